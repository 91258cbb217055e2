-- cancel and retry: the end of tasks that wait, and another life for those that did not make it.
\i sql/include/helpers.sql
SELECT fanout.create_queue('q', backoff => '0', max_attempts => 2);

-- What waits can be cancelled, whether it is ready, delayed, or to be tried again; what runs or has ended can not.
SELECT fanout.enqueue('q', 'running') > 0, fanout.enqueue('q', 'succeeded') > 0, fanout.enqueue('q', 'failed') > 0,
       fanout.enqueue('q', 'tried') > 0, fanout.enqueue('q', 'ready') > 0, fanout.enqueue('q', 'delayed', delay => '1 hour') > 0;
SELECT name FROM fanout.dequeue('q', 'w', max_tasks => 4);
SELECT fanout.complete(test.lease('succeeded')), fanout.fail(test.lease('failed'), 'it failed', final => true),
       fanout.fail(test.lease('tried'), 'once', retry_in => '1 hour') IS NOT NULL AS retried;
SELECT test.states('q');
SELECT name, fanout.cancel(task, 'no longer needed') FROM fanout.tasks WHERE queue = 'q' ORDER BY task;
SELECT name, state, error, result, worker, finished_at <= now() AS finished FROM fanout.tasks WHERE queue = 'q' ORDER BY task;
SELECT name, fanout.cancel(task) FROM fanout.tasks WHERE queue = 'q' ORDER BY task;
SELECT scheduled, ready, running, cancelled FROM fanout.queues WHERE queue = 'q';
SELECT name FROM fanout.dequeue('q', max_tasks => 10);
SELECT fanout.cancel(0);
SELECT fanout.cancel(9223372036854775807);
-- Without a reason
SELECT fanout.enqueue('q', 'mine') > 0 AS enqueued;
SELECT fanout.cancel(test.task('mine'));
SELECT state, error FROM fanout.tasks WHERE name = 'mine';
-- The array form gives those that it has cancelled, and knows no error for the others.
SELECT count(*) FROM fanout.enqueue_many('q', 'many', '{1,2,3,4,5}');
SELECT array_agg(task ORDER BY task) AS t FROM fanout.tasks WHERE name = 'many' \gset
SELECT fanout.complete(lease) FROM fanout.dequeue('q');
SELECT task - (:'t'::bigint[])[1] AS place FROM fanout.cancel((:'t'::bigint[])[1:3] || ARRAY[0, 9223372036854775807] || (:'t'::bigint[])[3:4], 'these') AS task;
SELECT array_agg(state || coalesce(': ' || error, '') ORDER BY task) FROM fanout.tasks WHERE name = 'many';
SELECT count(*) FROM fanout.cancel('{}'::bigint[]);
SELECT args FROM fanout.dequeue('q', max_tasks => 10);
SELECT count(fanout.complete(lease)) FROM fanout.leases;
-- Tasks that are on disk only
SELECT min(task) AS first FROM fanout.enqueue_many('q', 'n', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 60000) i)) \gset
SELECT in_memory < ready AS partly_on_disk FROM fanout.queues WHERE queue = 'q';
SELECT count(*) FROM fanout.cancel(ARRAY(SELECT :first + i FROM generate_series(2, 59999, 2::bigint) i));
SELECT fanout.cancel(:first + 59999), fanout.cancel(:first + 59999);
SELECT ready FROM fanout.queues WHERE queue = 'q';
BEGIN;
SELECT count(*) FROM fanout.cancel(ARRAY(SELECT :first + i FROM generate_series(0, 59999::bigint) i));
ROLLBACK;
SELECT ready FROM fanout.queues WHERE queue = 'q';
DO $$
DECLARE
	numbers int[];
	seen int := 0;
BEGIN
	WHILE seen < 30000 LOOP
		SELECT array_agg(args::int), count(fanout.complete(lease)) + seen INTO numbers, seen FROM fanout.dequeue('q', max_tasks => 5000, wait => '20 s');
		IF numbers IS NULL OR EXISTS (SELECT FROM unnest(numbers) AS n WHERE n > 1 AND (n % 2 = 1 OR n = 60000)) THEN
			RAISE EXCEPTION 'after %: %', seen, numbers;
		END IF;
		COMMIT;
	END LOOP;
END
$$;
SELECT args FROM fanout.dequeue('q');
SELECT scheduled, ready, running FROM fanout.queues WHERE queue = 'q';

--
-- retry
--
SELECT fanout.purge_queue('q');
SELECT fanout.enqueue('q', 'running') > 0, fanout.enqueue('q', 'succeeded') > 0, fanout.enqueue('q', 'failed', '{"a": 1}') > 0,
       fanout.enqueue('q', 'cancelled', delay => '1 hour') > 0, fanout.enqueue('q', 'ready') > 0;
SELECT name FROM fanout.dequeue('q', 'w1', max_tasks => 3);
SELECT fanout.checkpoint(test.lease('failed'), 'step', '"kept"');
SELECT fanout.complete(test.lease('succeeded'), '1'), fanout.fail(test.lease('failed'), 'first') IS NOT NULL AS retried, fanout.cancel(test.task('cancelled'), 'why');
SELECT name, attempt FROM fanout.dequeue('q', 'w2');
SELECT fanout.fail(test.lease('failed'), 'second') IS NULL AS failed_for_good;
SELECT test.becomes($$ (SELECT count(*) FROM fanout.attempts WHERE task = (SELECT test.task('failed'))) = 2 $$);
SELECT name, fanout.retry(task) FROM fanout.tasks WHERE task >= (SELECT test.task('running')) ORDER BY task;
SELECT name, state, attempt, error, finished_at FROM fanout.tasks WHERE task >= (SELECT test.task('running')) AND name <> 'succeeded' ORDER BY task;
SELECT name, fanout.retry(task) FROM fanout.tasks WHERE task >= (SELECT test.task('running')) ORDER BY task;
SELECT scheduled, ready, running FROM fanout.queues WHERE queue = 'q';
-- In its old place, with all of its attempts before it, and with its checkpoints
SELECT name, args, attempt, max_attempts, checkpoints FROM fanout.dequeue('q', 'w3', max_tasks => 10);
-- What went wrong in the life before is still to be seen.
SELECT test.becomes($$ (SELECT count(*) FROM fanout.attempts WHERE task = (SELECT test.task('failed'))) = 3 $$);
SELECT worker, state, error FROM fanout.attempts WHERE task = (SELECT test.task('failed')) ORDER BY lease;
SELECT fanout.fail(test.lease('failed'), 'third') IS NOT NULL AS retried;
SELECT name, attempt FROM fanout.dequeue('q', 'w4');
SELECT fanout.complete(test.lease('failed'), '"at last"');
SELECT state, attempt, worker, result, error FROM fanout.tasks WHERE task = (SELECT test.task('failed'));
SELECT fanout.retry(0);
SELECT fanout.retry(9223372036854775807);
SELECT count(fanout.complete(lease)) FROM fanout.leases;
-- The array form
SELECT count(*) FROM fanout.enqueue_many('q', 'some', '{1,2,3,4}');
SELECT array_agg(task ORDER BY task) AS t FROM fanout.tasks WHERE name = 'some' \gset
SELECT fanout.complete(lease) FROM fanout.dequeue('q');
SELECT count(*) FROM fanout.cancel((:'t'::bigint[])[2:3]);
SELECT task - (:'t'::bigint[])[1] AS place FROM fanout.retry(ARRAY[0] || :'t'::bigint[] || :'t'::bigint[]) AS task;
SELECT count(*) FROM fanout.retry('{}'::bigint[]);
SELECT args FROM fanout.dequeue('q', max_tasks => 10);
SELECT count(fanout.complete(lease)) FROM fanout.leases;
-- A batch that had ended goes on, and ends again.
SELECT fanout.fan_out('q', 'member', '{1,2}') AS batch \gset
SELECT count(fanout.fail(lease, 'oh', final => args = '2')) FROM fanout.dequeue('q', max_tasks => 2);
SELECT fanout.complete(lease, '"one"') FROM fanout.dequeue('q');
SELECT fanout.wait(:batch, '0');
SELECT ordinal, status, result, error FROM fanout.collect(:batch);
SELECT fanout.retry(test.task('member'));
SELECT fanout.wait(:batch, '0');
SELECT ordinal, status, result, error FROM fanout.collect(:batch, '0');
SELECT fanout.complete(lease, '"two"') FROM fanout.dequeue('q');
SELECT ordinal, status, result, error FROM fanout.collect(:batch);
-- Its join hears of a task that has been given another life, too.
SELECT fanout.fan_out('q', 'option', '{1,2,3}', "join" => 'any') AS batch \gset
SELECT fanout.fail(lease, 'oh', final => true) FROM fanout.dequeue('q');
SELECT fanout.retry(min(task)) FROM fanout.tasks WHERE batch = :batch;
SELECT fanout.complete(lease, '"one"') FROM fanout.dequeue('q');
SELECT test.becomes($$(SELECT cancelled = 2 FROM fanout.progress($$ || :batch || '))');
SELECT ordinal, status, result, error FROM fanout.collect(:batch);

--
-- A running task: its worker is told at its next word, and what it holds stays held until it lets go or its lease ends.
--
SELECT fanout.create_queue('running', concurrency => 3);
SELECT fanout.enqueue('running', name) > 0 FROM unnest('{told,other,expires,waits}'::text[]) name;
SELECT name FROM fanout.dequeue('running', 'w', max_tasks => 3);
SELECT fanout.cancel(test.task('told'), 'not needed'), fanout.cancel(ARRAY[test.task('expires')], 'too late') = test.task('expires') AS same;
SELECT fanout.cancel(test.task('told'));
SELECT test.states('running'), (SELECT code FROM fanout.why(test.task('told')));
SELECT test.sqlstate_of(format('SELECT fanout.checkpoint(%s, ''a'', ''1'')', test.lease('told'))) AS checkpoint,
       test.sqlstate_of(format('SELECT fanout.extend(%s)', test.lease('told'))) AS extend,
       test.sqlstate_of('SELECT fanout.heartbeat(''w'')') AS heartbeat,
       test.sqlstate_of(format('SELECT fanout.enqueue(''running'', ''child'', lease => %s, step => ''s'')', test.lease('told'))) AS enqueue;
-- the array form leaves it out
SELECT count(*) FROM fanout.extend(ARRAY[test.lease('told'), test.lease('other')]);
-- the limit is still used up
SELECT name FROM fanout.dequeue('running', 'w2');
SELECT fanout.fail(test.lease('told'), 'stopped') IS NULL AS final;
SELECT name FROM fanout.dequeue('running', 'w2');
-- extend does not reach a cancelled task, so its end comes by itself
SELECT fanout.retry(test.task('told'));
SELECT fanout.complete(test.lease('waits')), fanout.complete(test.lease('other'));
SELECT name, attempt FROM fanout.dequeue('running', 'w2', lease => '200 ms');
SELECT fanout.cancel(test.task('told'), 'again');
SELECT fanout.wait(ARRAY[test.task('told')], '30 s');
SELECT name, state, error FROM fanout.tasks WHERE queue = 'running' AND name IN ('told', 'other', 'waits') ORDER BY task;
SELECT fanout.drop_queue('running', force => true);

SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
