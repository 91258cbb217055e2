-- Producers: enqueue, enqueue_many and fan_out, one by one and by the hundred thousand.
\i sql/include/helpers.sql
SELECT fanout.create_queue('q', max_attempts => 4);

-- The defaults
SELECT fanout.enqueue('q', 'plain') AS task \gset
SELECT queue, name, args, state, priority, batch, parent, attempt, max_attempts, lease, worker, lease_until, finished_at, result, error,
       enqueued_at BETWEEN now() - interval '1 min' AND now() AS enqueued_just_now
  FROM fanout.tasks WHERE task = :task;
SELECT task = :task AS same, queue, name, args, attempt, checkpoints, priority, batch, max_attempts FROM fanout.dequeue('q');

-- Everything given
SELECT fanout.enqueue('q', 'given', '{"a": [1, null, "x"]}', priority => -3, delay => '0', max_attempts => 2) AS task \gset
SELECT task = :task AS same, name, args, attempt, checkpoints, priority, max_attempts FROM fanout.dequeue('q');

-- NULL means "not given"; SQL's NULL and JSON's null are different args.
SELECT fanout.enqueue('q', 'nulls', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL) > 0 AS enqueued;
SELECT fanout.enqueue('q', 'json null', 'null') > 0 AS enqueued;
SELECT name, args, args IS NULL AS args_null, priority, batch, max_attempts FROM fanout.dequeue('q', max_tasks => 9);

-- promise 1: what a transaction enqueues is there at once when it has committed, and in its order.
SELECT min(fanout.enqueue('q', name)) > 0 AS enqueued FROM unnest('{a,b,c,d,e,f,g,h}'::text[]) AS name;
SELECT name FROM fanout.dequeue('q', max_tasks => 3);
SELECT name FROM fanout.dequeue('q');
SELECT name FROM fanout.dequeue('q', max_tasks => 9);

-- The smaller priority first; equal ones in the order of their enqueue
SELECT count(fanout.enqueue('q', name, priority => priority))
  FROM (VALUES ('0a', 0), ('2a', 2), ('-1a', -1), ('0b', 0), ('max', 2147483647), ('-1b', -1), ('min', -2147483648), ('2b', 2), ('0c', 0)) AS v (name, priority);
SELECT name, priority FROM fanout.dequeue('q', max_tasks => 4);
-- One that comes later takes its place between those that wait.
SELECT fanout.enqueue('q', '1', priority => 1) > 0 AS enqueued;
SELECT name, priority FROM fanout.dequeue('q', max_tasks => 9);

-- Tasks that were delayed are in their place once they are due.
SELECT fanout.enqueue('q', 'now') > 0 AS enqueued;
SELECT fanout.enqueue('q', 'was due yesterday', run_at => now() - interval '1 day') > 0 AS enqueued;
SELECT fanout.enqueue('q', 'in no time', delay => '0') > 0 AS enqueued;
SELECT fanout.enqueue('q', 'urgent, and due', priority => -1, run_at => now()) > 0 AS enqueued;
SELECT fanout.enqueue('q', 'in an hour', priority => -9, delay => '1 hour') AS in_an_hour \gset
SELECT fanout.enqueue('q', 'tomorrow', run_at => now() + interval '1 day') AS tomorrow \gset
SELECT name, state, run_at > now() AS later, run_at - enqueued_at AS delay FROM fanout.tasks WHERE task = :in_an_hour;
SELECT scheduled, ready FROM fanout.queues WHERE queue = 'q';
SELECT name FROM fanout.dequeue('q', max_tasks => 9);
SELECT name FROM fanout.dequeue('q', max_tasks => 9);
SELECT count(*) FROM fanout.cancel(ARRAY[:in_an_hour, :tomorrow]::bigint[]);
-- A worker that waits gets what becomes due, and not before.
SELECT fanout.enqueue('q', 'late', delay => '50 ms') > 0 AS enqueued;
SELECT name FROM fanout.dequeue('q', wait => '30 s');
SELECT fanout.enqueue('q', 'later', run_at => clock_timestamp() + interval '50 ms') > 0 AS enqueued;
SELECT name FROM fanout.dequeue('q', wait => '30 s');
SELECT t.name, l.claimed_at >= t.run_at AS not_before
  FROM fanout.leases l JOIN fanout.tasks t USING (task) WHERE t.name LIKE 'late%' ORDER BY task;

-- args of 1 MB and of 10 MB come back as they were, as one string, as many elements, and deeply nested.
SELECT fanout.enqueue('q', '1 MB', jsonb_build_object('text', repeat('fanout ж ', 100000))) > 0 AS enqueued;
SELECT fanout.enqueue('q', '10 MB', jsonb_build_object('text', repeat(md5('a'), 312500))) > 0 AS enqueued;
SELECT fanout.enqueue('q', 'many numbers', (SELECT jsonb_agg(i) FROM generate_series(1, 300000) i)) > 0 AS enqueued;
SELECT fanout.enqueue('q', 'nested', (repeat('[', 1000) || repeat(']', 1000))::jsonb) > 0 AS enqueued;
SELECT name, length(args::text) AS length,
       args = CASE name WHEN '1 MB' THEN jsonb_build_object('text', repeat('fanout ж ', 100000))
                        WHEN '10 MB' THEN jsonb_build_object('text', repeat(md5('a'), 312500))
                        WHEN 'nested' THEN (repeat('[', 1000) || repeat(']', 1000))::jsonb
                        ELSE (SELECT jsonb_agg(i) FROM generate_series(1, 300000) i) END AS same
  FROM fanout.dequeue('q', max_tasks => 9);

-- enqueue_many: a task for each element, in order, numbered from 1
SELECT ordinal, task - min(task) OVER () AS place
  FROM fanout.enqueue_many('q', 'many', '{1,"\"two\"",NULL,"null","[4]"}', priority => 5, max_attempts => 1);
SELECT name, args, args IS NULL AS args_null, priority, max_attempts FROM fanout.dequeue('q', max_tasks => 9);
SELECT * FROM fanout.enqueue_many('q', 'none', '{}');
SELECT ordinal FROM fanout.enqueue_many('q', 'delayed', '{1,2}', delay => '1 hour');
SELECT name, args, state FROM fanout.tasks WHERE queue = 'q' AND name = 'delayed' ORDER BY task;
SELECT fanout.purge_queue('q');

-- A backlog that is longer than the queue's share of memory is given out whole, once, and in order, with what comes between.
-- promise 8: the rest waits on disk.
SELECT fanout.create_queue('long');
SELECT fanout.fan_out('long', 'n', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 100000) i)) > 0 AS enqueued;
SELECT ready, running, in_memory < ready AS partly_on_disk FROM fanout.queues WHERE queue = 'long';
SELECT fanout.enqueue('long', 'urgent', '0', priority => -1) > 0 AS enqueued;
DO $$
DECLARE
	next int := 0;
	last int := 100000;
	leases bigint[];
	numbers int[];
BEGIN
	WHILE next <= last LOOP
		SELECT array_agg(lease), array_agg(args::int) INTO leases, numbers FROM fanout.dequeue('long', max_tasks => 1000, wait => '20 s');
		IF numbers IS DISTINCT FROM (SELECT array_agg(i) FROM generate_series(next, next + cardinality(numbers) - 1) i) THEN
			RAISE EXCEPTION 'expected the tasks from %, got %', next, numbers;
		END IF;
		IF (SELECT count(*) FROM fanout.complete(leases)) <> cardinality(leases) THEN
			RAISE EXCEPTION 'a lease was lost';
		END IF;
		next := next + cardinality(numbers);
		COMMIT;
		-- more of them come, and are last
		IF last < 120000 THEN
			PERFORM fanout.enqueue_many('long', 'n', ARRAY(SELECT to_jsonb(i) FROM generate_series(last + 1, last + 500) i));
			COMMIT;
			last := last + 500;
		END IF;
	END LOOP;
END
$$;
SELECT scheduled, ready, running, enqueued, dequeued, succeeded FROM fanout.queues WHERE queue = 'long';
SELECT name FROM fanout.dequeue('long');
SELECT count(*), count(DISTINCT task) FROM fanout.tasks WHERE queue = 'long' AND state = 'succeeded' AND attempt = 1;

-- Several priorities, each of them longer than memory's share, and some of the tasks given back on the way
SELECT count(*) FROM fanout.enqueue_many('long', 'third', ARRAY(SELECT to_jsonb(i) FROM generate_series(40001, 60000) i), priority => 7);
SELECT count(*) FROM fanout.enqueue_many('long', 'first', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 20000) i), priority => -7);
SELECT count(*) FROM fanout.enqueue_many('long', 'second', ARRAY(SELECT to_jsonb(i) FROM generate_series(20001, 40000) i));
SELECT ready, in_memory < ready AS partly_on_disk FROM fanout.queues WHERE queue = 'long';
DO $$
DECLARE
	next int := 1;
	leases bigint[];
	numbers int[];
BEGIN
	WHILE next <= 60000 LOOP
		SELECT array_agg(lease), array_agg(args::int) INTO leases, numbers FROM fanout.dequeue('long', max_tasks => 1000, wait => '20 s');
		IF numbers IS DISTINCT FROM (SELECT array_agg(i) FROM generate_series(next, next + cardinality(numbers) - 1) i) THEN
			RAISE EXCEPTION 'expected the tasks from %, got %', next, numbers;
		END IF;
		COMMIT;
		-- the second half of them is not done after all
		next := next + cardinality(numbers) - cardinality(numbers) / 2;
		PERFORM fanout.complete(leases[:cardinality(leases) - cardinality(leases) / 2]);
		PERFORM fanout.release(leases[cardinality(leases) - cardinality(leases) / 2 + 1:]);
		COMMIT;
	END LOOP;
END
$$;
SELECT scheduled, ready, running, succeeded FROM fanout.queues WHERE queue = 'long';

-- The same with delayed ones: they come when they are due, wherever they were kept.
SELECT count(*) FROM fanout.enqueue_many('long', 'delayed', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 50000) i), delay => '1 hour');
SELECT scheduled, ready, in_memory < scheduled AS partly_on_disk FROM fanout.queues WHERE queue = 'long';
SELECT fanout.enqueue('long', 'sooner', delay => '50 ms') > 0 AS enqueued;
SELECT name FROM fanout.dequeue('long', wait => '30 s');
SELECT name FROM fanout.dequeue('long');
SELECT fanout.purge_queue('long');
SELECT scheduled, ready, running FROM fanout.queues WHERE queue = 'long';

-- max_backlog counts what waits, this transaction's included, and refuses the call that would go beyond it, whole.
SELECT fanout.create_queue('short', max_backlog => 3);
SELECT count(*) FROM fanout.enqueue_many('short', 'a', '{1,2,3}');
SELECT fanout.enqueue('short', 'b');
SELECT name, args, lease FROM fanout.dequeue('short') \gset
SELECT fanout.enqueue_many('short', 'c', '{1,2}');
SELECT fanout.fan_out('short', 'c', '{1,2}');
SELECT fanout.enqueue('short', 'd', delay => '1 hour') > 0 AS enqueued;
SELECT fanout.enqueue('short', 'e');
SELECT test.states('short');
-- A task that goes on waiting after an attempt is not refused.
SELECT fanout.fail(:lease, 'again', retry_in => '0') IS NOT NULL AS will_be_retried;
SELECT scheduled + ready AS waiting FROM fanout.queues WHERE queue = 'short';
SELECT fanout.alter_queue('short', max_backlog => 5);
BEGIN;
SELECT fanout.enqueue('short', 'never') > 0 AS enqueued;
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT fanout.enqueue('short', 'never') > 0 AS enqueued;
ROLLBACK TO s;
SELECT fanout.enqueue('short', 'f') > 0 AS enqueued;
SAVEPOINT s;
SELECT fanout.enqueue('short', 'g');
ROLLBACK TO s;
COMMIT;
SELECT fanout.enqueue('short', 'g');
SELECT fanout.alter_queue('short', unset => '{max_backlog}');
SELECT fanout.enqueue('short', 'g') > 0 AS enqueued;
SELECT test.states('short');

SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
