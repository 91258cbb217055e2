-- Partitions: lanes of a queue with limits, an order and shares of their own. Promise 4, for partition keys.
\i sql/include/helpers.sql
CREATE FUNCTION test.put(queue_name text, key text, VARIADIC names text[]) RETURNS int LANGUAGE sql AS $$
	SELECT count(fanout.enqueue(queue_name, name, partition_key => key))::int FROM unnest(names) AS name
$$;
CREATE FUNCTION test.take(queue_name text, at_most int DEFAULT 10) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(name, ' ' ORDER BY name) FROM fanout.dequeue(queue_name, 'w', at_most)
$$;
CREATE FUNCTION test.lanes(queue_name text) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(format('%s: %s ready, %s running', partition_key, ready, running), '; ' ORDER BY partition_key)
	  FROM fanout.partitions WHERE queue = queue_name
$$;

--
-- partition_concurrency: of each partition, none of tasks without a key
--
SELECT fanout.create_queue('q', partition_concurrency => 1, backoff => '0', max_attempts => 100);
SELECT test.put('q', 'a', 'a1', 'a2', 'a3'), test.put('q', 'b', 'b1', 'b2'), test.put('q', NULL, 'm1', 'm2');
SELECT test.lanes('q');
SELECT test.take('q');
SELECT test.take('q'), test.lanes('q');
-- Every end of an attempt gives the permit back; the partition stays first-in, first-out over retries.
SELECT fanout.fail(test.lease('a1'), retry_in => '0') IS NOT NULL AS will_be_retried;
SELECT test.take('q');
SELECT fanout.release(test.lease('a1'));
SELECT test.take('q');
SELECT fanout.complete(test.lease('a1')), fanout.fail(test.lease('b1'), final => true);
SELECT test.take('q'), test.lanes('q');
-- A claim that is rolled back gives it back, too.
SELECT fanout.complete(test.lease('a2'));
BEGIN;
SELECT test.take('q');
SAVEPOINT s;
SELECT fanout.complete(test.lease('b2'));
ROLLBACK TO s;
SELECT test.take('q');
ROLLBACK;
SELECT test.take('q'), test.lanes('q');
-- A partition without tasks is forgotten.
SELECT fanout.complete(test.lease('a3')), fanout.complete(test.lease('b2'));
SELECT test.lanes('q');
-- Changes take effect at once. Lowering takes nothing away, and lets nothing in until the count is below.
SELECT test.put('q', 'a', 'a1', 'a2', 'a3', 'a4', 'a5');
SELECT fanout.alter_queue('q', partition_concurrency => 3);
SELECT test.take('q');
SELECT fanout.alter_queue('q', partition_concurrency => 2);
SELECT fanout.complete(test.lease('a1'));
SELECT test.take('q');
SELECT fanout.complete(test.lease('a2'));
SELECT test.take('q');
SELECT fanout.alter_queue('q', unset => '{partition_concurrency}');
SELECT test.take('q');
SELECT partition_concurrency FROM fanout.queues WHERE queue = 'q';
SELECT count(*) FROM fanout.complete((SELECT array_agg(lease) FROM fanout.leases));

--
-- a transaction that ends a task passes its permits on to the next one of the partition
--
SELECT fanout.create_queue('chain', partition_concurrency => 1, backoff => '1 hour');
SELECT test.put('chain', 'a', 'a1', 'a2', 'a3', 'a4', 'a5'), test.put('chain', 'b', 'b1', 'b2', 'b3');
SELECT test.take('chain');
SELECT name FROM fanout.complete_and_dequeue(test.lease('a1'), NULL, 'chain', 'w', 10);
-- Nobody else gets in between, and what is rolled back passes nothing on.
BEGIN;
SELECT name FROM fanout.complete_and_dequeue(test.lease('a2'), NULL, 'chain', 'w', 10);
SAVEPOINT s;
SELECT name FROM fanout.complete_and_dequeue(test.lease('a3'), NULL, 'chain', 'w', 10);
ROLLBACK TO s;
SELECT test.take('chain'), test.lanes('chain');
ROLLBACK;
SELECT test.take('chain'), test.lanes('chain');
-- Several at once, of more than one partition; only those of the queue that is asked.
SELECT name FROM fanout.complete_and_dequeue(ARRAY[test.lease('a2'), test.lease('b1')], NULL, 'chain', 'w', 10) ORDER BY name;
-- One that has another attempt goes back to its place, which is not given away.
BEGIN;
SELECT fanout.release(test.lease('a3')), fanout.fail(test.lease('b2')) IS NOT NULL AS will_be_retried;
SELECT test.take('chain');
COMMIT;
SELECT test.take('chain'), test.lanes('chain');
-- With a limit that was lowered, the count has to be below it first.
SELECT fanout.alter_queue('chain', partition_concurrency => 3);
SELECT test.take('chain');
SELECT fanout.alter_queue('chain', partition_concurrency => 2);
SELECT name FROM fanout.complete_and_dequeue(test.lease('a3'), NULL, 'chain', 'w', 10);
SELECT test.put('chain', 'a', 'a6');
SELECT name FROM fanout.complete_and_dequeue(test.lease('a4'), NULL, 'chain', 'w', 10);
SELECT fanout.drop_queue('chain', force => true);
-- To a task of no partition goes that of the queue alone: the partition's is given back once, and not before the commit.
SELECT fanout.create_queue('chain', concurrency => 2, partition_concurrency => 1);
SELECT test.put('chain', 'a', 'a1'), test.put('chain', NULL, 'n1', 'n2'), test.put('chain', 'a', 'a2', 'a3');
SELECT test.take('chain');
BEGIN;
SELECT name FROM fanout.complete_and_dequeue(ARRAY[test.lease('a1'), test.lease('n1')], NULL, 'chain', 'w', 10);
SELECT test.lanes('chain');
COMMIT;
SELECT test.take('chain'), test.lanes('chain');
SELECT name FROM fanout.complete_and_dequeue(test.lease('a2'), NULL, 'chain', 'w', 10);
SELECT fanout.drop_queue('chain', force => true);

--
-- all limits together: a task starts only if the queue, the worker and the partition admit it
--
SELECT fanout.create_queue('all', concurrency => 4, worker_concurrency => 3, partition_concurrency => 2);
SELECT test.put('all', 'a', 'a1', 'a2', 'a3'), test.put('all', 'b', 'b1', 'b2', 'b3');
SELECT test.take('all'), running FROM fanout.queues WHERE queue = 'all';
SELECT string_agg(name, ' ' ORDER BY name) FROM fanout.dequeue('all', 'w2', 10);
SELECT max(running) FROM fanout.partitions WHERE queue = 'all';
SELECT fanout.drop_queue('all', force => true);

--
-- turns: partitions with work take turns, by weight; within one, priority and then the order of enqueue
--
SELECT fanout.create_queue('fair');
SELECT test.put('fair', 'flood', VARIADIC array_agg('flood' || i)) FROM generate_series(1, 300) i;
SELECT test.put('fair', 'trickle', 'trickle1', 'trickle2', 'trickle3');
SELECT count(*) FILTER (WHERE name LIKE 'trickle%') AS trickle, count(*) FILTER (WHERE name LIKE 'flood%') AS flood
  FROM fanout.dequeue('fair', max_tasks => 6);
-- A partition that comes later has its share from then on, and not what it missed.
SELECT test.put('fair', 'late', VARIADIC array_agg('late' || i)) FROM generate_series(1, 300) i;
SELECT fanout.set_partition('fair', 'late', weight => 3);
SELECT count(*) FILTER (WHERE name LIKE 'late%') AS late, count(*) FILTER (WHERE name LIKE 'flood%') AS flood
  FROM fanout.dequeue('fair', max_tasks => 40);
-- Tasks without a key are one more partition.
SELECT test.put('fair', NULL, VARIADIC array_agg('main' || i)) FROM generate_series(1, 300) i;
SELECT count(*) FILTER (WHERE name LIKE 'late%') AS late, count(*) FILTER (WHERE name LIKE 'flood%') AS flood,
       count(*) FILTER (WHERE name LIKE 'main%') AS main FROM fanout.dequeue('fair', max_tasks => 50);
-- What is rolled back does not cost a turn.
BEGIN;
SELECT count(*) FROM fanout.dequeue('fair', max_tasks => 200);
ROLLBACK;
SELECT count(*) FILTER (WHERE name LIKE 'late%') AS late, count(*) FILTER (WHERE name LIKE 'flood%') AS flood,
       count(*) FILTER (WHERE name LIKE 'main%') AS main FROM fanout.dequeue('fair', max_tasks => 50);
SELECT fanout.enqueue('fair', 'urgent', partition_key => 'flood', priority => -1) IS NOT NULL AS enqueued;
SELECT count(*) FILTER (WHERE name = 'urgent') AS urgent FROM fanout.dequeue('fair', max_tasks => 5);
SELECT fanout.drop_queue('fair', force => true);

-- Nor is a turn gained by a partition that is forgotten each time its only task is done.
SELECT fanout.create_queue('short');
SELECT test.put('short', 'steady', 's1', 's2', 's3', 's4', 's5', 's6');
CREATE PROCEDURE test.take_in_turn() LANGUAGE plpgsql AS $$
DECLARE
	lease bigint;
BEGIN
	FOR i IN 1 .. 8 LOOP
		PERFORM test.put('short', 'again', 'again');
		COMMIT;
		SELECT d.lease INTO lease FROM fanout.dequeue('short') d;
		PERFORM fanout.complete(lease);
		COMMIT;
	END LOOP;
END $$;
CALL test.take_in_turn();
SELECT partition_key, count(*) FROM fanout.tasks WHERE queue = 'short' AND state = 'succeeded' GROUP BY 1 ORDER BY 1;
DROP PROCEDURE test.take_in_turn;
SELECT fanout.drop_queue('short', force => true);

--
-- settings of single partitions
--
SELECT fanout.create_queue('set', partition_concurrency => 1);
SELECT fanout.set_partition('set', 'big', concurrency => 3, weight => 2);
SELECT partition_key, ready, running, concurrency, weight, paused, startable FROM fanout.partitions WHERE queue = 'set';
SELECT test.put('set', 'big', 'b1', 'b2', 'b3', 'b4'), test.put('set', 'small', 's1', 's2');
SELECT test.take('set');
SELECT fanout.set_partition('set', 'big', concurrency => 4);
SELECT test.take('set');
SELECT partition_key, ready, running, concurrency, weight, paused, startable FROM fanout.partitions WHERE queue = 'set' ORDER BY 1;
SELECT fanout.set_partition('set', 'big', unset => '{concurrency}');
SELECT partition_key, concurrency, weight FROM fanout.partitions WHERE queue = 'set' ORDER BY 1;
BEGIN;
SELECT fanout.set_partition('set', 'small', concurrency => 2), test.take('set');
ROLLBACK;
SELECT partition_key, concurrency, weight FROM fanout.partitions WHERE queue = 'set' ORDER BY 1;
-- pause and resume
SELECT fanout.complete(test.lease('s1'));
SELECT fanout.pause_partition('set', 'small'), fanout.pause_partition('set', 'small');
SELECT test.take('set');
SELECT fanout.resume_partition('set', 'small'), fanout.resume_partition('set', 'small'), fanout.resume_partition('set', 'unknown');
SELECT test.take('set');
SELECT fanout.drop_queue('set', force => true);
SELECT count(*) AS rows_left FROM fanout.partition;

--
-- many at once, each with a key, and under a step
--
SELECT fanout.create_queue('many', partition_concurrency => 1);
SELECT fanout.fan_out('many', 'x', '{1,2,3,4}', partition_keys => '{a,b,a,NULL}') AS batch \gset
SELECT args, partition_key FROM fanout.tasks WHERE batch = :batch ORDER BY task;
SELECT args FROM fanout.dequeue('many', max_tasks => 10) ORDER BY args;
SELECT count(*) FROM fanout.enqueue_many('many', 'y', '{1,2}', partition_key => 'c');
SELECT count(*) FROM fanout.enqueue_many('many', 'y', '{1,2}', partition_keys => '{c,d}');
SELECT fanout.fan_out('many', '{p,q}'::text[], '{1,2}', partition_keys => '{e,e}') AS batch \gset
SELECT name, partition_key FROM fanout.tasks WHERE batch = :batch ORDER BY task;
SELECT lease FROM fanout.leases WHERE queue = 'many' ORDER BY lease LIMIT 1 \gset
SELECT fanout.enqueue('many', 'child', partition_key => 'f', lease => :lease, step => 's') = fanout.enqueue('many', 'child', partition_key => 'f', lease => :lease, step => 's') AS same;
SELECT test.sqlstate_of(format($$SELECT fanout.enqueue('many', 'child', partition_key => 'g', lease => %s, step => 's')$$, :lease));

--
-- timed tasks keep their partition; cancel, purge and retry know it
--
SELECT fanout.create_queue('timed', partition_concurrency => 1);
SELECT fanout.enqueue('timed', 'later' || i, delay => '10 ms', partition_key => 'a') IS NOT NULL AS enqueued FROM generate_series(1, 3) i;
SELECT name FROM fanout.dequeue('timed', wait => '30 s');
SELECT test.becomes($$ (SELECT ready = 2 FROM fanout.partitions WHERE queue = 'timed') $$);
SELECT test.take('timed');
SELECT fanout.cancel(test.task('later2'));
SELECT fanout.fail(test.lease('later1'), final => true) IS NULL AS failed;
SELECT test.take('timed');
SELECT fanout.retry(test.task('later1'));
SELECT test.take('timed');
SELECT fanout.complete(test.lease('later3'));
SELECT test.take('timed');
SELECT test.put('timed', 'a', 'more');
SELECT fanout.purge_queue('timed');
SELECT test.lanes('timed');
SELECT fanout.complete(test.lease('later1'));
SELECT test.lanes('timed');

--
-- what is refused
--
SELECT statement, test.sqlstate_of(statement) FROM (VALUES
	($$SELECT fanout.enqueue('q', 'x', partition_key => '')$$),
	($$SELECT fanout.enqueue('q', 'x', partition_key => repeat('x', 256))$$),
	($$SELECT fanout.enqueue('q', 'x', partition_key => repeat('x', 255))$$),
	($$SELECT fanout.fan_out('q', 'x', '{1,2}', partition_keys => '{a}')$$),
	($$SELECT fanout.fan_out('q', 'x', '{1}', partition_key => 'a', partition_keys => '{a}')$$),
	($$SELECT fanout.create_queue('no', partition_concurrency => 0)$$),
	($$SELECT fanout.alter_queue('q', partition_concurrency => -1)$$),
	($$SELECT fanout.alter_queue('q', partition_concurrency => 1, unset => '{partition_concurrency}')$$),
	($$SELECT fanout.set_partition('q', NULL)$$),
	($$SELECT fanout.set_partition('q', '')$$),
	($$SELECT fanout.set_partition('q', 'a', concurrency => 0)$$),
	($$SELECT fanout.set_partition('q', 'a', weight => 0)$$),
	($$SELECT fanout.set_partition('q', 'a', weight => 1001)$$),
	($$SELECT fanout.set_partition('q', 'a', unset => '{weight}')$$),
	($$SELECT fanout.set_partition('unknown', 'a')$$),
	($$SELECT fanout.pause_partition('unknown', 'a')$$),
	($$SELECT fanout.pause_partition('q', NULL)$$),
	($$SELECT fanout.resume_partition('q', '')$$)
) v (statement);
CREATE ROLE partition_user;
SELECT fanout.grant_queue('q', 'partition_user');
SET ROLE partition_user;
SELECT fanout.set_partition('q', 'a', weight => 2);
SELECT fanout.pause_partition('q', 'a');
SELECT count(*) FROM fanout.partitions WHERE queue <> 'q';
RESET ROLE;
SELECT fanout.revoke_queue('q', 'partition_user');
DROP OWNED BY partition_user;
DROP ROLE partition_user;

-- A task that was rolled back does not take the name of its partition with it.
SELECT fanout.create_queue('named') \gset
SELECT fanout.enqueue('named', 'x', partition_key => 'a') IS NOT NULL AS enqueued;
BEGIN;
SELECT fanout.enqueue('named', 'x', partition_key => 'a') IS NOT NULL AS enqueued;
ROLLBACK;
SELECT partition_key, ready FROM fanout.partitions WHERE queue = 'named';

-- Nor does one that is moved away, though all that is left has a time.
SELECT fanout.enqueue('named', 'x', partition_key => 'b', delay => '1 day') IS NOT NULL AS enqueued;
SELECT fanout.enqueue('named', 'x', partition_key => 'b') AS moved \gset
SELECT fanout.move(:moved, partition_key => 'a');
SELECT partition_key, backlog FROM fanout.partitions WHERE queue = 'named' ORDER BY 1;

DROP FUNCTION test.put, test.take, test.lanes;
SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
