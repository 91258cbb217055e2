-- A partition that runs one task at a time keeps its order over retries, or lets the next one pass: partition_retries.
\i sql/include/helpers.sql
CREATE FUNCTION test.put(queue_name text, key text, VARIADIC names text[]) RETURNS int LANGUAGE sql AS $$
	SELECT count(fanout.enqueue(queue_name, name, partition_key => key))::int FROM unnest(names) AS name
$$;
CREATE FUNCTION test.take(queue_name text, at_most int DEFAULT 10) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(name, ' ' ORDER BY name) FROM fanout.dequeue(queue_name, 'w', at_most)
$$;
-- Times and ids differ from run to run
CREATE FUNCTION test.why(task_name text) RETURNS text LANGUAGE sql AS $$
	SELECT code || ': ' || regexp_replace(regexp_replace(reason, '(task|lease) \d+', '\1 N'), ' (at|until) .*', ' \1 T') FROM fanout.why(test.task(task_name))
$$;
CREATE FUNCTION test.awaited(queue_name text) RETURNS TABLE (partition_key text, ready bigint, startable int, awaits text, in_time boolean) LANGUAGE sql AS $$
	SELECT p.partition_key, p.ready, p.startable, t.name, p.next_start = t.run_at FROM fanout.partitions p LEFT JOIN fanout.tasks t ON t.task = p.awaits_task
	 WHERE p.queue = queue_name ORDER BY 1
$$;

--
-- block, which is what a queue does if it does not say
--
SELECT fanout.create_queue('q', partition_concurrency => 1, max_attempts => 100, backoff => '1 hour', backoff_max => '1 hour');
SELECT partition_retries FROM fanout.queues WHERE queue = 'q';
SELECT test.put('q', 'a', 'a1', 'a2', 'a3'), test.put('q', 'b', 'b1', 'b2'), test.put('q', NULL, 'm1', 'm2');
SELECT test.take('q', 3);
SELECT fanout.fail(test.lease('a1')) IS NOT NULL AS will_be_retried, fanout.fail(test.lease('m1')) IS NOT NULL AS will_be_retried;
SELECT fanout.complete(test.lease('b1'));
SELECT test.take('q');
SELECT test.why('a2'), (fanout.why(test.task('a2'))).reason LIKE format('%%task %s of partition "a"%%', test.task('a1')) AS of_a1;
SELECT * FROM test.awaited('q');
-- what is more urgent does not pass it either
SELECT fanout.enqueue('q', 'a0', partition_key => 'a', priority => -1) > 0 AS enqueued;
SELECT test.take('q');
-- a cancel of it lets the others go, once it commits
BEGIN;
SELECT fanout.cancel(test.task('a1'));
SELECT test.take('q');
ROLLBACK;
SELECT test.take('q');
SELECT * FROM test.awaited('q');
BEGIN;
SAVEPOINT s;
SELECT fanout.cancel(test.task('a1'));
ROLLBACK TO s;
COMMIT;
SELECT test.take('q');
SELECT fanout.cancel(test.task('a1'));
SELECT test.take('q');
SELECT * FROM test.awaited('q');
-- a retry of it comes first again
SELECT fanout.complete(test.lease('a0')), fanout.retry(test.task('a1'));
SELECT test.take('q');
-- a release with a delay holds them up as well, one without does not
SELECT fanout.release(test.lease('a1'));
SELECT test.take('q');
SELECT fanout.release(test.lease('a1'), delay => '1 hour');
SELECT test.take('q');
SELECT * FROM test.awaited('q');
-- settings count at once: pass, another limit, one of its own
SELECT fanout.alter_queue('q', partition_retries => 'pass');
SELECT test.why('a2');
SELECT fanout.alter_queue('q', partition_retries => 'block');
SELECT test.why('a2');
SELECT fanout.alter_queue('q', partition_concurrency => 2);
SELECT test.why('a2');
SELECT fanout.alter_queue('q', partition_concurrency => 1);
SELECT test.why('a2');
SELECT fanout.set_partition('q', 'a', concurrency => 2);
SELECT test.why('a2');
SELECT test.take('q');
SELECT fanout.fail(test.lease('a2')) IS NOT NULL AS will_be_retried, fanout.fail(test.lease('a3'), retry_in => '0') IS NOT NULL AS will_be_retried;
SELECT fanout.set_partition('q', 'a', unset => '{concurrency}');
SELECT test.why('a3');
SELECT fanout.cancel(test.task('a1'));
SELECT test.why('a3'), test.take('q');
SELECT fanout.cancel(test.task('a2'));
SELECT test.take('q');
SELECT fanout.drop_queue('q', force => true);

--
-- in order, whatever fails
--
SELECT fanout.create_queue('order', partition_concurrency => 1, backoff => '1 ms', backoff_max => '5 ms', max_attempts => 100);
CREATE TABLE test.done (n serial, name text);
CREATE PROCEDURE test.work(queue_name text) LANGUAGE plpgsql AS $$
DECLARE
	got record;
	turn int := 0;
BEGIN
	LOOP
		turn := turn + 1;
		SELECT d.lease, d.name, d.attempt INTO got FROM fanout.dequeue(queue_name, 'w', wait => '30 s') d;
		IF turn % 17 = 0 THEN
			ROLLBACK;
			CONTINUE;
		END IF;
		COMMIT;
		IF got.attempt < 3 AND turn % 3 <> 0 THEN
			PERFORM fanout.fail(got.lease);
		ELSIF turn % 5 = 0 THEN
			PERFORM fanout.release(got.lease, delay => '2 ms');
		ELSE
			INSERT INTO test.done (name) VALUES (got.name);
			PERFORM fanout.complete(got.lease);
		END IF;
		COMMIT;
		EXIT WHEN (SELECT scheduled + ready + running = 0 FROM fanout.queues q WHERE q.queue = queue_name);
	END LOOP;
END $$;
SELECT test.put('order', key, VARIADIC array_agg(format('%s%s', key, lpad(i::text, 2, '0')) ORDER BY i)) FROM unnest('{a,b,c}'::text[]) key, generate_series(1, 20) i GROUP BY key;
CALL test.work('order');
SELECT count(*), count(*) FILTER (WHERE name < before) AS out_of_order
  FROM (SELECT name, lag(name) OVER (PARTITION BY left(name, 1) ORDER BY n) AS before FROM test.done) d;
SELECT count(*) AS lanes FROM fanout.partitions WHERE queue = 'order';

--
-- in one transaction with its failure
--
SELECT fanout.create_queue('one', partition_concurrency => 1, backoff => '1 hour', backoff_max => '1 hour');
SELECT test.put('one', 'a', 'a1', 'a2');
SELECT test.take('one');
BEGIN;
SELECT fanout.fail(test.lease('a1')) IS NOT NULL AS will_be_retried;
SELECT test.take('one');
COMMIT;
SELECT test.take('one');
SELECT * FROM test.awaited('one');
SELECT test.put('one', 'b', 'b1', 'b2');
SELECT test.take('one');
SELECT name FROM fanout.complete_and_dequeue(test.lease('b1'), NULL, 'one', 'w');
SELECT test.take('one');
BEGIN;
SELECT fanout.fail(test.lease('b2')) IS NOT NULL AS will_be_retried;
ROLLBACK;
SELECT * FROM test.awaited('one');
-- what is not theirs: a task that was delayed and has not been attempted
SELECT fanout.enqueue('one', 'c1', partition_key => 'c', delay => '1 hour') > 0 AS enqueued, test.put('one', 'c', 'c2');
SELECT test.take('one');
-- a purge, of what holds up and what is held up
SELECT fanout.purge_queue('one');
SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases WHERE queue = 'one'));
SELECT count(*) AS lanes FROM fanout.partitions WHERE queue = 'one';

-- a change of what holds up: another time, another priority, another partition
SELECT fanout.create_queue('change', partition_concurrency => 1, backoff => '1 hour', backoff_max => '1 hour');
SELECT test.put('change', 'a', 'a1', 'a2', 'a3'), test.put('change', 'b', 'b1', 'b2');
SELECT test.take('change');
SELECT fanout.fail(test.lease('a1')) IS NOT NULL AS will_be_retried, fanout.complete(test.lease('b1'));
BEGIN;
SELECT fanout.move(test.task('a1'), partition_key => 'b');
SELECT test.take('change');
ROLLBACK;
SELECT * FROM test.awaited('change');
BEGIN;
SELECT fanout.reschedule(test.task('a1'), delay => '2 hours');
SAVEPOINT s;
SELECT fanout.reprioritize(test.task('a1'), 1);
ROLLBACK TO s;
COMMIT;
SELECT * FROM test.awaited('change');
SELECT fanout.move(test.task('a1'), partition_key => 'b');
SELECT * FROM test.awaited('change');
SELECT test.take('change');
SELECT fanout.move(test.task('a1'), unset => '{partition_key}');
SELECT * FROM test.awaited('change');
SELECT fanout.move(test.task('a1'), partition_key => 'a'), fanout.reschedule(test.task('a1'), delay => '0');
SELECT * FROM test.awaited('change');
SELECT fanout.complete(test.lease('a2'));
SELECT test.take('change');

--
-- pass
--
SELECT fanout.create_queue('pass', partition_concurrency => 1, partition_retries => 'pass', backoff => '1 hour', backoff_max => '1 hour');
SELECT partition_retries FROM fanout.queues WHERE queue = 'pass';
SELECT test.put('pass', 'a', 'a1', 'a2', 'a3');
SELECT test.take('pass');
SELECT fanout.fail(test.lease('a1')) IS NOT NULL AS will_be_retried;
SELECT * FROM test.awaited('pass');
SELECT test.take('pass');

SELECT statement, test.sqlstate_of(statement) FROM (VALUES
	($$SELECT fanout.create_queue('no', partition_retries => 'wait')$$),
	($$SELECT fanout.create_queue('no', partition_retries => NULL)$$),
	($$SELECT fanout.alter_queue('q', partition_retries => '')$$),
	($$SELECT fanout.alter_queue('one', partition_retries => 'PASS')$$)
) v (statement);

DROP PROCEDURE test.work;
DROP TABLE test.done;
DROP FUNCTION test.put, test.take, test.why, test.awaited;
SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
