-- Fair groups: who spreads work over many partition keys has the share of one.
\i sql/include/helpers.sql
CREATE FUNCTION test.put(queue_name text, fair_group text, keys int, each int) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM fanout.enqueue_many(queue_name, coalesce(fair_group, 'none'), array_fill('{}'::jsonb, ARRAY[keys * each]),
		partition_keys => ARRAY(SELECT coalesce(fair_group, 'none') || n % keys FROM generate_series(1, keys * each) n), fair_group => fair_group)
$$;
-- How many of each name come, with so many taken
CREATE FUNCTION test.shares(queue_name text, tasks int) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(name || ' ' || n, ', ' ORDER BY name)
	  FROM (SELECT name, count(*) AS n FROM fanout.dequeue(queue_name, 'w', tasks) GROUP BY 1) s
$$;
CREATE FUNCTION test.why(task_name text) RETURNS text LANGUAGE sql AS $$
	SELECT code || ': ' || reason FROM fanout.why(test.task(task_name))
$$;

--
-- one tenant of 100 keys against three of one
--
SELECT fanout.create_queue('q');
SELECT test.put('q', 'many', 100, 10), test.put('q', 'a', 1, 300), test.put('q', 'b', 1, 300), test.put('q', 'c', 1, 300);
SELECT count(*), count(DISTINCT fair_group) FROM fanout.partitions WHERE queue = 'q';
SELECT value LIKE '4 of %' AS four_groups FROM fanout.status() WHERE item = 'fair groups in memory';
SELECT test.shares('q', 400);
SELECT test.shares('q', 7);
SELECT test.shares('q', 1);
-- within the group, its partitions take turns
SELECT min(n), max(n) FROM (SELECT count(*) AS n FROM fanout.tasks WHERE queue = 'q' AND name = 'many' AND state = 'running' GROUP BY partition_key) p;
-- without a group, each partition has a share
SELECT test.put('q', NULL, 4, 50);
SELECT test.shares('q', 80);
-- what a group does not use the others do, and it saves nothing up
SELECT count(*) FROM fanout.cancel(ARRAY(SELECT task FROM fanout.tasks WHERE queue = 'q' AND state = 'ready' AND name <> 'many'));
SELECT test.shares('q', 50);
SELECT test.put('q', 'a', 1, 100), test.put('q', 'b', 1, 100);
SELECT test.shares('q', 30);
-- a paused partition takes no turns, and its group only as long as another one does
SELECT fanout.pause_partition('q', 'a0');
SELECT test.shares('q', 30);
SELECT fanout.resume_partition('q', 'a0');
SELECT test.shares('q', 30);
SELECT fanout.drop_queue('q', force => true);
SELECT value LIKE '0 of %' AS no_groups FROM fanout.status() WHERE item = 'fair groups in memory';

-- by their weights, which count within the group
SELECT fanout.create_queue('weights');
SELECT fanout.set_partition('weights', 'many0', weight => 3);
SELECT test.put('weights', 'many', 3, 100), test.put('weights', 'a', 1, 300);
SELECT test.shares('weights', 100);
SELECT partition_key, count(*) FROM fanout.tasks WHERE queue = 'weights' AND state = 'running' GROUP BY 1 ORDER BY 1;

--
-- turns that were for nothing come back, on both levels
--
SELECT fanout.create_queue('undo');
SELECT test.put('undo', 'many', 10, 20), test.put('undo', 'a', 1, 100), test.put('undo', 'b', 2, 50);
SELECT test.shares('undo', 6);
BEGIN;
SELECT test.shares('undo', 31);
ROLLBACK;
SELECT test.shares('undo', 3);
BEGIN;
SELECT test.shares('undo', 10);
SAVEPOINT s;
SELECT test.shares('undo', 20);
ROLLBACK TO s;
COMMIT;
SELECT test.shares('undo', 20);
SELECT min(n), max(n) FROM (SELECT count(*) AS n FROM fanout.tasks WHERE queue = 'undo' AND name = 'many' AND state = 'running' GROUP BY partition_key) p;

-- those of a group are whole turns, whatever the weights of its partitions
SELECT fanout.drop_queue('weights', force => true);
SELECT fanout.create_queue('weights');
SELECT fanout.set_partition('weights', 'many0', weight => 4);
SELECT test.put('weights', 'many', 1, 100), test.put('weights', 'a', 1, 100);
SELECT test.shares('weights', 2);
BEGIN;
SELECT test.shares('weights', 20);
ROLLBACK;
SELECT test.shares('weights', 20);

--
-- flood and trickle: Jain's index over tenants, (sum x)^2 / (n * sum x^2), is 1 where all have the same
--
SELECT fanout.create_queue('flood');
SELECT test.put('flood', 'flood' || n, 50, 10) FROM generate_series(1, 4) n;
CREATE PROCEDURE test.work_off() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 60 LOOP
		-- a trickle: never more than one waits
		PERFORM fanout.enqueue('flood', 'trickle', partition_key => 'trickle' || i, fair_group => 'trickle');
		COMMIT;
		PERFORM fanout.complete(ARRAY(SELECT lease FROM fanout.dequeue('flood', 'w', 5)));
		COMMIT;
	END LOOP;
END $$;
CALL test.work_off();
SELECT count(*) AS tenants, min(n), max(n), round(sum(n) ^ 2 / (count(*) * sum(n ^ 2)), 3) >= 0.99 AS fair
  FROM (SELECT fair_group, count(*)::numeric AS n FROM fanout.tasks WHERE queue = 'flood' AND state = 'succeeded' GROUP BY 1) s;
DROP PROCEDURE test.work_off;

--
-- a partition is in the group that its latest task names
--
SELECT fanout.create_queue('move');
SELECT fanout.enqueue('move', 'x', partition_key => 'p', fair_group => 'one') > 0 AS enqueued;
SELECT partition_key, fair_group FROM fanout.partitions WHERE queue = 'move';
-- not before it commits
BEGIN;
SELECT fanout.enqueue('move', 'y', partition_key => 'p', fair_group => 'two') > 0 AS enqueued;
SELECT fair_group FROM fanout.partitions WHERE queue = 'move';
ROLLBACK;
SELECT fair_group FROM fanout.partitions WHERE queue = 'move';
SELECT fanout.enqueue('move', 'y', partition_key => 'p', fair_group => 'two') > 0 AS enqueued;
SELECT fair_group FROM fanout.partitions WHERE queue = 'move';
SELECT fanout.enqueue('move', 'z', partition_key => 'p') > 0 AS enqueued;
SELECT fair_group FROM fanout.partitions WHERE queue = 'move';
SELECT name, partition_key, fair_group FROM fanout.tasks WHERE queue = 'move' ORDER BY task;
SELECT test.shares('move', 10);
-- to go back and forth gains nothing
SELECT test.put('move', 'steady', 1, 100);
CREATE PROCEDURE test.go_back_and_forth() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 20 LOOP
		PERFORM fanout.enqueue('move', 'restless', partition_key => 'restless', fair_group => CASE i % 3 WHEN 0 THEN NULL WHEN 1 THEN 'left' ELSE 'right' END);
		COMMIT;
		PERFORM fanout.complete(ARRAY(SELECT lease FROM fanout.dequeue('move', 'w', 1)));
		COMMIT;
	END LOOP;
END $$;
CALL test.go_back_and_forth();
SELECT name, count(*) FROM fanout.tasks WHERE queue = 'move' AND state = 'succeeded' GROUP BY 1 ORDER BY 1;
DROP PROCEDURE test.go_back_and_forth;

-- nor does it to go when another partition goes that has had no turn for long
SELECT fanout.create_queue('come');
SELECT test.put('come', NULL, 1, 100);
CREATE PROCEDURE test.come_and_go() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 20 LOOP
		PERFORM fanout.enqueue('come', 'decoy', partition_key => 'decoy', delay => '1 hour');
		PERFORM fanout.enqueue('come', 'comes', partition_key => 'comes')
		  WHERE NOT EXISTS (SELECT FROM fanout.tasks WHERE name = 'comes' AND state = 'ready');
		COMMIT;
		PERFORM fanout.complete(ARRAY(SELECT lease FROM fanout.dequeue('come', 'w', 1)));
		PERFORM fanout.cancel(test.task('decoy'));
		COMMIT;
	END LOOP;
END $$;
CALL test.come_and_go();
SELECT name, count(*) FROM fanout.tasks WHERE queue = 'come' AND state = 'succeeded' GROUP BY 1 ORDER BY 1;
DROP PROCEDURE test.come_and_go;

-- a partition that is held for a time, and goes to another group meanwhile, starts when that is over
SELECT fanout.create_queue('held');
SELECT fanout.enqueue('held', 'x', partition_key => 'p') > 0 AS enqueued;
SELECT fanout.backpressure('held', clock_timestamp() + '500 ms', partition_key => 'p');
SELECT fanout.enqueue('held', 'y', partition_key => 'p', fair_group => 'g', delay => '1 hour') > 0 AS enqueued;
SELECT test.becomes($$ (SELECT next_start IS NULL FROM fanout.partitions WHERE queue = 'held') $$);
SELECT name FROM fanout.dequeue('held', 'w', 10);

-- one that was held and has nothing goes when that is over, and who comes then starts where the others are
SELECT fanout.create_queue('new');
SELECT test.put('new', NULL, 1, 10);
SELECT fanout.backpressure('new', clock_timestamp() + '10 ms', partition_key => 'nothing');
SELECT test.becomes($$ (SELECT count(*) = 1 FROM fanout._live_lanes() JOIN fanout.queue q ON q.id = queue_id AND q.name = 'new') $$);
SELECT test.shares('new', 2);
SELECT fanout.enqueue('new', 'comes', partition_key => 'comes') > 0 AS enqueued;
SELECT test.shares('new', 1);

-- a partition that leaves the group that it has brought is even with that, and both have their turns
SELECT fanout.create_queue('even');
SELECT fanout.enqueue('even', 'a1', partition_key => 'a', fair_group => 'g') > 0 AS enqueued;
SELECT fanout.enqueue('even', 'b1', partition_key => 'b', fair_group => 'g') > 0 AS enqueued;
SELECT fanout.enqueue('even', 'a2', partition_key => 'a') > 0 AS enqueued;
SELECT fanout.enqueue('even', 'c1', partition_key => 'c') > 0 AS enqueued;
SELECT name FROM fanout.dequeue('even', 'w', 9);
SELECT fanout.drop_queue('even', force => true);

-- a task that is moved to another partition takes its group along, and has none where it has no partition
SELECT fanout.enqueue('move', 'm', partition_key => 'here', fair_group => 'group') > 0 AS enqueued;
BEGIN;
SELECT fanout.move(test.task('m'), partition_key => 'there');
ROLLBACK;
SELECT partition_key, fair_group FROM fanout.partitions WHERE queue = 'move' AND fair_group = 'group';
SELECT fanout.move(test.task('m'), partition_key => 'there');
SELECT partition_key, fair_group FROM fanout.partitions WHERE queue = 'move' AND fair_group = 'group';
SELECT fanout.move(test.task('m'), unset => '{partition_key}');
SELECT count(*) FROM fanout.partitions WHERE queue = 'move' AND fair_group = 'group';
SELECT partition_key, fair_group FROM fanout.tasks WHERE task = (SELECT test.task('m'));
SELECT fanout.create_queue('other');
SELECT fanout.move(test.task('m'), queue => 'other', partition_key => 'p');
SELECT queue, partition_key, fair_group FROM fanout.partitions WHERE fair_group = 'group';
SELECT name FROM fanout.dequeue('other');

--
-- why, and under a step
--
SELECT fanout.create_queue('why');
SELECT fanout.enqueue('why', 'own', partition_key => 'own') > 0, fanout.enqueue('why', 'g1', partition_key => 'g1', fair_group => 'g') > 0,
       fanout.enqueue('why', 'g2', partition_key => 'g2', fair_group => 'g') > 0, fanout.enqueue('why', 'g2 again', partition_key => 'g2', fair_group => 'g') > 0;
SELECT test.why('own'), test.why('g1');
SELECT test.why('g2 again');
SELECT count(*) FROM fanout.dequeue('why', 'w', 2);
SELECT test.why('g2'), test.why('g2 again');
SELECT fanout.fan_out('why', 'f', '{1,2}', partition_keys => '{f1,f2}', fair_group => 'f') AS batch \gset
SELECT fanout.fan_out('why', '{f,f}'::text[], '{3,4}', partition_key => 'f3', fair_group => 'f') > 0 AS batch;
SELECT args, partition_key, fair_group FROM fanout.tasks WHERE name = 'f' ORDER BY task;
SELECT test.lease('own') AS lease \gset
SELECT fanout.enqueue('why', 'child', partition_key => 'c', fair_group => 'c', lease => :lease, step => 's') = fanout.enqueue('why', 'child', partition_key => 'c', fair_group => 'c', lease => :lease, step => 's') AS same;
SELECT test.sqlstate_of(format($$SELECT fanout.enqueue('why', 'child', partition_key => 'c', fair_group => 'd', lease => %s, step => 's')$$, :lease));
-- retry and delay know it
SELECT fanout.cancel(test.task('child')), fanout.enqueue('why', 'soon', partition_key => 's', fair_group => 'soon', delay => '10 ms') > 0 AS enqueued;
SELECT fanout.retry(test.task('child'));
SELECT test.becomes($$ (SELECT count(*) = 1 FROM fanout.partitions WHERE fair_group = 'soon' AND ready = 1) $$);
SELECT partition_key, fair_group FROM fanout.partitions WHERE queue = 'why' ORDER BY 1;

SELECT statement, test.sqlstate_of(statement) FROM (VALUES
	($$SELECT fanout.enqueue('q', 'x', fair_group => 'g')$$),
	($$SELECT fanout.enqueue('why', 'x', fair_group => 'g')$$),
	($$SELECT fanout.enqueue('why', 'x', partition_key => 'k', fair_group => '')$$),
	($$SELECT fanout.enqueue('why', 'x', partition_key => 'k', fair_group => repeat('x', 256))$$),
	($$SELECT fanout.enqueue('why', 'x', partition_key => 'k', fair_group => repeat('x', 255))$$),
	($$SELECT fanout.enqueue_many('why', 'x', '{1,2}', fair_group => 'g')$$),
	($$SELECT fanout.enqueue_many('why', 'x', '{1,2}', partition_keys => '{a,NULL}', fair_group => 'g')$$),
	($$SELECT fanout.fan_out('why', 'x', '{1,2}', fair_group => 'g')$$),
	($$SELECT fanout.fan_out('why', 'x', '{}', partition_keys => '{}', fair_group => 'g')$$)
) v (statement);

DROP FUNCTION test.put, test.shares, test.why;
SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
SELECT value LIKE '0 of %' AS no_groups FROM fanout.status() WHERE item = 'fair groups in memory';
