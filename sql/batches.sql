-- Batches: fan-out, joins, and what comes of them in order.
\i sql/include/helpers.sql
SELECT fanout.create_queue('q', backoff => '0', max_attempts => 2);
-- Ends the running tasks of a name: by success, or for good as failed
CREATE FUNCTION test.succeed(task_name text, value jsonb DEFAULT NULL) RETURNS boolean LANGUAGE sql AS $$
	SELECT fanout.complete(test.lease(task_name), value)
$$;
CREATE FUNCTION test.fail(task_name text) RETURNS boolean LANGUAGE sql AS $$
	SELECT fanout.fail(test.lease(task_name), task_name || ' failed', final => true) IS NULL
$$;

--
-- fan_out: a batch of its own, sealed
--
SELECT fanout.fan_out('q', 'x', '{"\"a\"",NULL,"{\"b\": 1}"}', priority => 3, max_attempts => 7) AS batch \gset
SELECT owner = current_user AS mine, "join", join_count, sealed, tasks, finished, ended_at, created_at <= now() AS created FROM fanout.batches WHERE batch = :batch;
SELECT name, args, priority, max_attempts, batch = :batch AS of_the_batch, parent FROM fanout.tasks WHERE batch = :batch ORDER BY task;
SELECT total, scheduled, ready, running, succeeded, failed, cancelled, sealed, ended, per_second, time_left FROM fanout.progress(:batch);
SELECT name, args, batch = :batch AS of_the_batch FROM fanout.dequeue('q', max_tasks => 3);
SELECT ordinal, status, result, error FROM fanout.collect(:batch, '0');
-- Results come in the order of the fan-out, whatever the order of the ends.
SELECT count(fanout.complete(lease, jsonb_build_object('of', args))) FROM (SELECT l.lease, args FROM fanout.leases l JOIN fanout.tasks USING (task) ORDER BY task DESC) AS r;
SELECT ordinal, status, result, error FROM fanout.collect(:batch);
SELECT ordinal, task - min(task) OVER () AS place FROM fanout.collect(:batch);
SELECT ended_at IS NULL AS ended_with_its_last_task, tasks, finished FROM fanout.batches WHERE batch = :batch;
-- A name for each
SELECT fanout.fan_out('q', '{search,fetch,search}'::text[], '{1,2,3}') AS batch \gset
SELECT name, args FROM fanout.dequeue('q', max_tasks => 3);
SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases));
SELECT fanout.fan_out('q', '{a,b}'::text[], '{1}');
SELECT fanout.fan_out('q', '{a}'::text[], '{1,2}');
SELECT fanout.fan_out('q', '{a,NULL}'::text[], '{1,2}');
-- Delayed
SELECT fanout.fan_out('q', 'later', '{1,2}', delay => '1 hour') AS batch \gset
SELECT ordinal, status FROM fanout.collect(:batch, '0');
SELECT scheduled, ready, ended FROM fanout.progress(:batch);
SELECT fanout.purge_queue('q');
SELECT fanout.fan_out('q', 'later', '{1,2}', delay => '30 ms') AS batch \gset
SELECT args, fanout.complete(lease, args) FROM fanout.dequeue('q', wait => '30 s');
SELECT args, fanout.complete(lease, args) FROM fanout.dequeue('q', wait => '30 s');
SELECT ordinal, status, result FROM fanout.collect(:batch);

-- promise 9: a batch of nothing has ended.
SELECT fanout.fan_out('q', 'x', '{}') AS batch \gset
SELECT fanout.wait(:batch, '0');
SELECT * FROM fanout.collect(:batch);
SELECT total, scheduled, ready, running, succeeded, failed, cancelled, sealed, ended FROM fanout.progress(:batch);
SELECT fanout.fan_out('q', 'x', '{}', 'any') AS batch \gset
SELECT fanout.wait(:batch, '30 s');
SELECT fanout.fan_out('q', '{}'::text[], '{}', 'fail_fast') AS batch \gset
SELECT fanout.wait(:batch, '30 s');

--
-- create_batch: one that grows until it is sealed
--
SELECT fanout.create_batch() AS batch \gset
SELECT "join", join_count, sealed, tasks, finished FROM fanout.batches WHERE batch = :batch;
SELECT fanout.wait(:batch, '0');
SELECT fanout.enqueue('q', 'a', batch => :batch) > 0 AS enqueued;
SELECT count(*) FROM fanout.enqueue_many('q', 'b', '{1,2}', batch => :batch);
SELECT fanout.enqueue('q', 'not of the batch') > 0 AS enqueued;
SELECT fanout.enqueue('q', 'c', batch => :batch) > 0 AS enqueued;
SELECT name, fanout.complete(lease, to_jsonb(name)) FROM fanout.dequeue('q', max_tasks => 10);
-- All of its tasks have ended, but more may come.
SELECT fanout.wait(:batch, '0');
SELECT total, succeeded, sealed, ended FROM fanout.progress(:batch);
SELECT fanout.seal_batch(:batch);
SELECT fanout.seal_batch(:batch);
SELECT fanout.wait(:batch, '0');
SELECT total, succeeded, sealed, ended FROM fanout.progress(:batch);
SELECT ordinal, status, result FROM fanout.collect(:batch);
SELECT fanout.enqueue('q', 'd', batch => :batch);
SELECT fanout.enqueue_many('q', 'd', '{1}', batch => :batch);
SELECT fanout.enqueue_many('q', 'd', '{}', batch => :batch);
SELECT fanout.fan_out('q', 'x', '{1}') AS sealed \gset
SELECT fanout.enqueue('q', 'd', batch => :sealed);
SELECT fanout.enqueue('q', 'd', batch => 0);
SELECT fanout.seal_batch(0);
SELECT fanout.purge_queue('q');

--
-- all: ends when the last task has, however it has
--
SELECT fanout.fan_out('q', '{a,b,c}'::text[], '{1,2,3}') AS batch \gset
SELECT count(*) FROM fanout.dequeue('q', max_tasks => 2);
SELECT test.succeed('a', '1'), test.fail('b');
SELECT fanout.wait(:batch, '0');
SELECT ended FROM fanout.progress(:batch);
SELECT ordinal, status, result, error FROM fanout.collect(:batch, '10 ms');
SELECT fanout.cancel(test.task('c'), 'not needed');
SELECT fanout.wait(:batch, '0');
SELECT ordinal, status, result, error FROM fanout.collect(:batch);
SELECT total, scheduled, ready, running, succeeded, failed, cancelled, sealed, ended FROM fanout.progress(:batch);
-- promise 9: also if all of them fail
SELECT fanout.fan_out('q', '{a,b}'::text[], '{1,2}') AS batch \gset
SELECT count(*) FROM fanout.dequeue('q', max_tasks => 2);
SELECT test.fail('b'), test.fail('a');
SELECT ordinal, status, result, error FROM fanout.collect(:batch);
-- A task that will be tried again has not ended.
SELECT fanout.fan_out('q', '{a}'::text[], '{1}') AS batch \gset
SELECT fanout.fail(lease, 'again') IS NOT NULL AS retried FROM fanout.dequeue('q');
SELECT fanout.wait(:batch, '0');
SELECT attempt, fanout.complete(lease, '2') FROM fanout.dequeue('q');
SELECT fanout.wait(:batch, '0');

--
-- any: ends with the first success; what still waits then is cancelled, what runs may finish
--
SELECT fanout.fan_out('q', '{a,b,c,d,e}'::text[], '{1,2,3,4,5}', 'any') AS batch \gset
SELECT count(*) FROM fanout.dequeue('q', max_tasks => 3);
SELECT test.fail('a');
SELECT fanout.wait(:batch, '0');
SELECT test.succeed('b', '"first"');
SELECT fanout.wait(:batch, '30 s');
SELECT test.becomes(format($$ (SELECT bool_and(status = 'cancelled') FROM fanout.collect(%s, '0') WHERE ordinal > 3) $$, :batch));
SELECT ordinal, status, result FROM fanout.collect(:batch);
SELECT total, scheduled, ready, running, succeeded, failed, cancelled, sealed, ended FROM fanout.progress(:batch);
SELECT test.becomes(format($$ (SELECT ended_at IS NOT NULL FROM fanout.batches WHERE batch = %s) $$, :batch));
SELECT test.succeed('c', '"late"');
SELECT ordinal, status, result FROM fanout.collect(:batch);
-- promise 9: without a success it ends with the last failure.
SELECT fanout.fan_out('q', '{a,b}'::text[], '{1,2}', 'any') AS batch \gset
SELECT count(*) FROM fanout.dequeue('q', max_tasks => 2);
SELECT test.fail('a');
SELECT fanout.wait(:batch, '0');
SELECT test.fail('b');
SELECT fanout.wait(:batch, '30 s');
SELECT ordinal, status, error FROM fanout.collect(:batch);

--
-- n: ends with the n-th success, or when there can be no n
--
SELECT fanout.fan_out('q', '{a,b,c,d}'::text[], '{1,2,3,4}', 'n', 2) AS batch \gset
SELECT "join", join_count FROM fanout.batches WHERE batch = :batch;
SELECT count(*) FROM fanout.dequeue('q', max_tasks => 3);
SELECT test.succeed('c', '3');
SELECT test.fail('a');
SELECT fanout.wait(:batch, '0');
SELECT test.succeed('b', '2');
SELECT fanout.wait(:batch, '30 s');
SELECT test.becomes(format($$ (SELECT bool_and(status = 'cancelled') FROM fanout.collect(%s, '0') WHERE ordinal = 4) $$, :batch));
SELECT ordinal, status, result FROM fanout.collect(:batch);
SELECT fanout.fan_out('q', '{a,b}'::text[], '{1,2}', 'n', 2) AS batch \gset
SELECT count(*) FROM fanout.dequeue('q', max_tasks => 2);
SELECT test.fail('a'), test.succeed('b');
SELECT fanout.wait(:batch, '30 s');
SELECT ordinal, status FROM fanout.collect(:batch);

--
-- fail_fast: ends with the first failure, or with the last success
--
SELECT fanout.fan_out('q', '{a,b,c,d}'::text[], '{1,2,3,4}', 'fail_fast') AS batch \gset
SELECT count(*) FROM fanout.dequeue('q', max_tasks => 3);
SELECT test.succeed('a', '1');
SELECT fanout.fail(test.lease('b'), 'will be tried again', retry_in => '1 hour') IS NOT NULL AS retried;
SELECT fanout.wait(:batch, '0');
SELECT test.fail('c');
SELECT fanout.wait(:batch, '30 s');
-- The one that waited for its second attempt is cancelled as well.
SELECT test.becomes(format($$ (SELECT count(*) FROM fanout.collect(%s, '0') WHERE status = 'cancelled') = 2 $$, :batch));
SELECT ordinal, status, result FROM fanout.collect(:batch);
SELECT fanout.fan_out('q', '{a,b}'::text[], '{1,2}', 'fail_fast') AS batch \gset
SELECT count(*) FROM fanout.dequeue('q', max_tasks => 2);
SELECT test.succeed('b', '2');
SELECT fanout.wait(:batch, '0');
SELECT test.succeed('a', '1');
SELECT ordinal, status, result FROM fanout.collect(:batch);
-- Nothing is left over from all of that.
SELECT scheduled, ready, running FROM fanout.queues WHERE queue = 'q';

-- A batch that grows may be decided before it is sealed.
SELECT fanout.create_batch('any') AS batch \gset
SELECT fanout.enqueue('q', 'a', batch => :batch) > 0, fanout.enqueue('q', 'b', batch => :batch) > 0;
SELECT count(*) FROM fanout.dequeue('q');
SELECT test.succeed('a');
SELECT fanout.wait(:batch, '30 s');
SELECT fanout.wait(ARRAY[test.task('b')], '30 s');
SELECT ordinal, status FROM fanout.collect(:batch);

-- One whose tasks have all ended when it is sealed is decided then: not by their ends, which are looked at before that of "d".
SELECT fanout.create_batch('fail_fast') AS batch \gset
SELECT fanout.fan_out('q', '{d}'::text[], '{1}', 'any') AS other \gset
SELECT fanout.enqueue('q', 'c', batch => :batch) > 0;
SELECT count(*) FROM fanout.dequeue('q', max_tasks => 2);
SELECT test.succeed('c');
SELECT test.succeed('d');
SELECT test.becomes(format($$ (SELECT ended_at IS NOT NULL FROM fanout.batches WHERE batch = %s) $$, :other));
SELECT fanout.wait(:batch, '0'), fanout.seal_batch(:batch), fanout.wait(:batch, '30 s');
SELECT test.becomes(format($$ (SELECT ended_at IS NOT NULL FROM fanout.batches WHERE batch = %s) $$, :batch));

-- Joins that are none
SELECT fanout.fan_out('q', 'x', '{1}', 'some');
SELECT fanout.fan_out('q', 'x', '{1}', 'ALL');
SELECT fanout.fan_out('q', 'x', '{1}', 'n');
SELECT fanout.fan_out('q', 'x', '{1}', 'n', 0);
SELECT fanout.fan_out('q', 'x', '{1}', 'n', -1);
SELECT fanout.fan_out('q', 'x', '{1}', 'all', 1);
SELECT fanout.create_batch('some');
SELECT fanout.create_batch('n');
SELECT fanout.create_batch('n', 0);
SELECT fanout.create_batch('any', 1);
SELECT fanout.create_batch(NULL) > 0 AS join_all;
-- More than there are: it ends when all have.
SELECT fanout.fan_out('q', '{a}'::text[], '{1}', 'n', 2) AS batch \gset
SELECT count(*) FROM fanout.dequeue('q');
SELECT test.succeed('a');
SELECT fanout.wait(:batch, '30 s');

--
-- Tasks of a batch that wait for times of their own
--
SELECT fanout.fan_out('q', 'n', '{1, 2, 3, 4}') AS batch \gset
SELECT task AS first FROM fanout.collect(:batch, '0') WHERE ordinal = 1 \gset
SELECT fanout.reschedule(:first, delay => '1 hour');
SELECT scheduled, ready, running FROM fanout.progress(:batch);
SELECT task AS second, fanout.fail(lease, retry_in => '1 hour') > now() AS again FROM fanout.dequeue('q') \gset
SELECT scheduled, ready, running FROM fanout.progress(:batch);
SELECT fanout.reschedule(:second, delay => '2 hours');
SELECT scheduled, ready, running FROM fanout.progress(:batch);
SELECT fanout.reschedule(:first, delay => '0');
SELECT scheduled, ready, running FROM fanout.progress(:batch);
SELECT fanout.purge_queue('q');

--
-- 100,000 tasks, collected in order
--
SELECT fanout.fan_out('q', 'n', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 100000) i)) AS batch \gset
SELECT tasks, finished FROM fanout.batches WHERE batch = :batch;
SELECT total, ready, succeeded, ended FROM fanout.progress(:batch);
DO $$
DECLARE
	done bigint := 0;
	taken bigint;
BEGIN
	WHILE done < 100000 LOOP
		SELECT count(*) INTO taken FROM (
			SELECT fanout.complete(array_agg(lease ORDER BY lease DESC), array_agg(to_jsonb(args::int * 2) ORDER BY lease DESC))
			  FROM fanout.dequeue('q', max_tasks => 2000, wait => '20 s')
			HAVING count(*) > 0) AS completed;
		COMMIT;
		EXIT WHEN taken = 0;
		done := done + taken;
	END LOOP;
END
$$;
SELECT count(*), bool_and(result = to_jsonb(ordinal * 2) AND status = 'succeeded' AND error IS NULL) AS right_ones,
       bool_and(ordinal = row) AS in_order, count(DISTINCT task) AS tasks
  FROM (SELECT *, row_number() OVER () AS row FROM fanout.collect(:batch, '30 s')) AS c;
SELECT total, ready, running, succeeded, ended FROM fanout.progress(:batch);

DROP FUNCTION test.succeed, test.fail;
SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
