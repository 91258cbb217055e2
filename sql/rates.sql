-- Rate limits: promise 5, exact over any window, and given back by what is rolled back.
\i sql/include/helpers.sql
CREATE FUNCTION test.take(queue_name text, at_most int DEFAULT 10) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM fanout.dequeue(queue_name, 'w', at_most)
$$;
--
-- one window: so many starts, and no more until the first of them is as old as the period
--
SELECT fanout.create_queue('q', rate_limit => 160, rate_period => '1 hour');
SELECT count(*) FROM fanout.enqueue_many('q', 'x', array_fill('{}'::jsonb, '{400}'));
SELECT test.take('q', 100);
SELECT rate_limits FROM fanout.queues WHERE queue = 'q';
-- what is rolled back is given back
BEGIN;
SELECT test.take('q', 100);
SAVEPOINT s;
SELECT test.take('q', 100);
ROLLBACK;
SELECT test.take('q', 100), test.take('q', 100);
SELECT running FROM fanout.queues WHERE queue = 'q';
-- neither an end nor a cancel gives anything back
SELECT count(*) FROM fanout.complete((SELECT array_agg(lease) FROM fanout.leases WHERE queue = 'q'));
SELECT test.take('q');
SELECT fanout.cancel(max(task)) FROM fanout.tasks WHERE queue = 'q' AND state = 'ready';
SELECT test.take('q');
-- a higher limit counts what has started already
SELECT fanout.alter_queue('q', rate_limit => 165, rate_period => '1 hour');
SELECT test.take('q', 5);
SELECT test.take('q', 10);
SELECT fanout.alter_queue('q', rate_limit => 100, rate_period => '1 hour');
SELECT test.take('q');
SELECT fanout.alter_queue('q', unset => '{rate_limit}');
SELECT test.take('q'), (SELECT rate_limits IS NULL AS none FROM fanout.queues WHERE queue = 'q');

--
-- several windows
--
SELECT fanout.create_queue('two', rate_limit => 5, rate_period => '1 hour', synchronous_claims => true);
SELECT fanout.set_rate_limit('two', 2, '1 s');
SELECT rate_limits FROM fanout.queues WHERE queue = 'two';
SELECT count(*) FROM fanout.enqueue_many('two', 'x', array_fill('{}'::jsonb, '{20}'));
DO $$ BEGIN WHILE (SELECT running < 5 FROM fanout.queues WHERE queue = 'two') LOOP PERFORM test.take('two', 10); COMMIT; END LOOP; END $$;
SELECT max(starts) AS most_in_a_second FROM (SELECT count(*) OVER (ORDER BY claimed_at RANGE '1 s' PRECEDING) AS starts FROM fanout.leases WHERE queue = 'two') s;
-- the hour is used up
SELECT test.take('two');
SELECT fanout.set_rate_limit('two', NULL, '1 hour');
SELECT rate_limits FROM fanout.queues WHERE queue = 'two';
SELECT count(*) FROM fanout.dequeue('two', wait => '30 s');

--
-- cost
--
SELECT fanout.create_queue('cost', rate_limit => 10, rate_period => '1 hour', synchronous_claims => true);
SELECT fanout.enqueue('cost', 'a', cost => 4) > 0, fanout.enqueue('cost', 'b', cost => 5) > 0, fanout.enqueue('cost', 'c', cost => 2) > 0,
       fanout.enqueue('cost', 'd') > 0, fanout.enqueue('cost', 'e') > 0;
SELECT name FROM fanout.dequeue('cost');
SELECT name FROM fanout.dequeue('cost');
-- c does not fit any more, and those behind it wait their turn
SELECT name FROM fanout.dequeue('cost', max_tasks => 10);
SELECT name, cost FROM fanout.tasks WHERE queue = 'cost' ORDER BY task;
-- what costs more than there ever is takes a whole window
SELECT fanout.create_queue('large', rate_limit => 10, rate_period => '1 hour', synchronous_claims => true);
SELECT fanout.enqueue('large', 'a', cost => 100) > 0, fanout.enqueue('large', 'b') > 0;
-- which is all there once a claim has been rolled back
BEGIN;
SELECT name FROM fanout.dequeue('large');
ROLLBACK;
SELECT name FROM fanout.dequeue('large');
SELECT name FROM fanout.dequeue('large');

--
-- partitions: each with its own window, beside the queue's
--
SELECT fanout.create_queue('p', partition_rate_limit => 1, partition_rate_period => '1 hour', synchronous_claims => true);
SELECT count(*) FROM fanout.enqueue_many('p', 'x', array_fill('{}'::jsonb, '{7}'), partition_keys => '{a,b,a,b,c,a,NULL}');
SELECT count(*) FROM fanout.dequeue('p', max_tasks => 10);
SELECT count(*) FROM fanout.dequeue('p', max_tasks => 10);
SELECT fanout.set_partition('p', 'a', rate_limit => 3, rate_period => '1 hour');
SELECT count(*) FROM fanout.dequeue('p');
SELECT count(*) FROM fanout.dequeue('p');
SELECT count(*) FROM fanout.dequeue('p');
-- a partition that has no tasks left is remembered as long as its window
SELECT fanout.complete(array_agg(lease)) IS NOT NULL AS done FROM fanout.leases WHERE queue = 'p' GROUP BY lease;
SELECT count(fanout.enqueue('p', 'x', partition_key => key)) FROM unnest('{a,c}'::text[]) key;
SELECT count(*) FROM fanout.dequeue('p', max_tasks => 10);
SELECT fanout.alter_queue('p', unset => '{partition_rate_limit}');
SELECT count(*) FROM fanout.dequeue('p', max_tasks => 10);
-- one of its own goes with what it remembers
SELECT fanout.create_queue('own');
SELECT fanout.set_partition('own', 'a', rate_limit => 1, rate_period => '1 hour');
SELECT fanout.enqueue('own', name, partition_key => 'a') > 0 AS enqueued FROM unnest('{x,y}'::text[]) name;
SELECT name, fanout.complete(lease) FROM fanout.dequeue('own', max_tasks => 10);
SELECT fanout.set_partition('own', 'a', unset => '{rate_limit}');
SELECT name, fanout.complete(lease) FROM fanout.dequeue('own', max_tasks => 10);
SELECT count(*) FROM fanout._live_lanes() JOIN fanout.queue q ON q.id = queue_id AND q.name = 'own';
-- a limit on costs, and one that goes before the journal has what has started under it
SELECT fanout.create_queue('c', partition_rate_limit => 100, partition_rate_period => '1 hour');
SELECT fanout.enqueue('c', name, partition_key => 'a', cost => 60) > 0 AS enqueued FROM unnest('{a,b}'::text[]) name;
SELECT name FROM fanout.dequeue('c', max_tasks => 10);
SELECT fanout.enqueue('c', 'c', partition_key => 'c') > 0 AS enqueued;
BEGIN;
SELECT name FROM fanout.dequeue('c', max_tasks => 10);
SELECT fanout.alter_queue('c', unset => '{partition_rate_limit}');
COMMIT;
SELECT test.becomes($$ (SELECT journal_lag = 0 FROM fanout.stats) $$);
SELECT name FROM fanout.dequeue('c', max_tasks => 10);

--
-- backpressure: by those who may dequeue
--
SELECT fanout.create_queue('held');
SELECT count(*) FROM fanout.enqueue_many('held', 'x', array_fill('{}'::jsonb, '{4}'), partition_keys => '{a,b,b,b}');
SELECT fanout.backpressure('held', now() + '1 hour');
SELECT test.take('held');
SELECT fanout.backpressure('held', now() + '1 hour', partition_key => 'b'), fanout.backpressure('held', now() - '1 s'::interval);
SELECT test.take('held');
SELECT fanout.backpressure('held', clock_timestamp() + '20 ms', partition_key => 'b');
SELECT name FROM fanout.dequeue('held', wait => '30 s');

--
-- what is refused
--
SELECT statement, test.sqlstate_of(statement) FROM (VALUES
	($$SELECT fanout.create_queue('no', rate_limit => 1)$$),
	($$SELECT fanout.create_queue('no', rate_period => '1 s')$$),
	($$SELECT fanout.create_queue('no', rate_limit => 0, rate_period => '1 s')$$),
	($$SELECT fanout.create_queue('no', rate_limit => 1, rate_period => '0')$$),
	($$SELECT fanout.create_queue('no', rate_limit => 1, rate_period => '-1 s')$$),
	($$SELECT fanout.create_queue('no', partition_rate_limit => 1)$$),
	($$SELECT fanout.alter_queue('q', rate_limit => 1)$$),
	($$SELECT fanout.alter_queue('q', rate_limit => 1, rate_period => '1 s', unset => '{rate_limit}')$$),
	($$SELECT fanout.set_rate_limit('q', 1, NULL)$$),
	($$SELECT fanout.set_rate_limit('q', 0, '1 s')$$),
	($$SELECT fanout.set_rate_limit('q', NULL, '0')$$),
	($$SELECT fanout.set_rate_limit('q', NULL, '-1 s')$$),
	($$SELECT fanout.set_rate_limit('unknown', 1, '1 s')$$),
	($$SELECT fanout.set_rate_limit('q', 1, n * '1 s'::interval) FROM generate_series(1, 5) n$$),
	($$SELECT fanout.set_partition('q', 'a', rate_limit => 1)$$),
	($$SELECT fanout.enqueue('q', 'x', cost => 0)$$),
	($$SELECT fanout.enqueue('q', 'x', cost => -1)$$),
	($$SELECT fanout.backpressure('q', NULL)$$),
	($$SELECT fanout.backpressure('q', 'infinity')$$),
	($$SELECT fanout.backpressure('unknown', now())$$)
) v (statement);

DROP FUNCTION test.take;
SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
