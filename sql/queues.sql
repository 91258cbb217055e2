-- Queues: created, altered, paused, purged and dropped.
\i sql/include/helpers.sql
CREATE VIEW test.settings AS
	SELECT queue, concurrency, worker_concurrency AS worker, lease, max_attempts AS attempts, backoff, backoff_max, max_backlog AS backlog,
	       synchronous_claims AS sync, paused
	  FROM fanout.queues;

-- The defaults
SELECT fanout.create_queue('plain');
SELECT * FROM test.settings WHERE queue = 'plain';
SELECT owner = current_user AS mine, created_at <= now() AND created_at > now() - interval '1 min' AS just_created
  FROM fanout.queues WHERE queue = 'plain';

-- All of it given
SELECT fanout.create_queue('full', concurrency => 3, worker_concurrency => 2, lease => '90 s', max_attempts => 7,
	backoff => '250 ms', backoff_max => '1 hour', max_backlog => 1000, synchronous_claims => true);
SELECT * FROM test.settings WHERE queue = 'full';

-- NULL means "not given", for a setting that has a default, too.
SELECT fanout.create_queue('nulls', concurrency => NULL, worker_concurrency => NULL, lease => NULL, max_attempts => NULL,
	backoff => NULL, backoff_max => NULL, max_backlog => NULL, synchronous_claims => NULL, if_not_exists => NULL);
SELECT * FROM test.settings WHERE queue = 'nulls';

-- The bounds
SELECT fanout.create_queue('least', concurrency => 1, worker_concurrency => 1, lease => '1 us', max_attempts => 1,
	backoff => '0', backoff_max => '0', max_backlog => 1);
SELECT fanout.create_queue('most', concurrency => 2147483647, worker_concurrency => 2147483647, lease => '36500 days', max_attempts => 32767,
	backoff => '36500 days', backoff_max => '36500 days', max_backlog => 9223372036854775807);
SELECT * FROM test.settings WHERE queue IN ('least', 'most') ORDER BY queue;
SELECT fanout.enqueue('most', 'a') > 0 AS enqueued;
SELECT name, max_attempts, lease_until - now() > interval '36499 days' AS a_hundred_years FROM fanout.dequeue('most');

-- A name that is taken
SELECT fanout.create_queue('plain');
SELECT fanout.create_queue('plain', if_not_exists => true, concurrency => 5);
SELECT fanout.create_queue('plain', if_not_exists => false);
SELECT concurrency FROM fanout.queues WHERE queue = 'plain';
-- Names are taken as they are: case counts.
SELECT fanout.create_queue('Plain'), fanout.create_queue('it''s a "queue", ж'), fanout.create_queue(repeat('x', 63)), fanout.create_queue(repeat('é', 31));
SELECT count(*) FROM fanout.queues WHERE queue IN ('Plain', 'it''s a "queue", ж', repeat('x', 63), repeat('é', 31));

-- alter_queue changes what is given, at once.
SELECT fanout.alter_queue('full', concurrency => 4);
SELECT fanout.alter_queue('full', worker_concurrency => 3, lease => '10 s', max_attempts => 2);
SELECT fanout.alter_queue('full', backoff => '2 s', backoff_max => '2 min', max_backlog => 5, synchronous_claims => false);
SELECT * FROM test.settings WHERE queue = 'full';
SELECT fanout.alter_queue('full');
SELECT * FROM test.settings WHERE queue = 'full';
SELECT fanout.alter_queue('full', unset => '{concurrency,worker_concurrency}');
SELECT fanout.alter_queue('full', max_attempts => 3, unset => '{max_backlog}');
SELECT * FROM test.settings WHERE queue = 'full';
-- Only limits can be unset, and not together with a value.
SELECT fanout.alter_queue('full', unset => '{lease}');
SELECT fanout.alter_queue('full', unset => '{no_such_setting}');
SELECT fanout.alter_queue('full', unset => '{NULL}');
SELECT fanout.alter_queue('full', concurrency => 1, unset => '{concurrency}');
SELECT fanout.alter_queue('full', concurrency => 0);
SELECT fanout.alter_queue('full', lease => '-1 s');
SELECT fanout.alter_queue('no such queue', concurrency => 1);
SELECT * FROM test.settings WHERE queue = 'full';

-- What is altered holds for tasks that are there already.
SELECT fanout.enqueue('plain', 'a') > 0 AS enqueued;
SELECT fanout.alter_queue('plain', lease => '2 hours', max_attempts => 9);
SELECT name, max_attempts, lease_until >= now() + interval '2 hours' AND lease_until <= clock_timestamp() + interval '2 hours' AS two_hours
  FROM fanout.dequeue('plain');

-- A paused queue takes tasks and gives none; what runs goes on.
SELECT lease FROM fanout.leases WHERE queue = 'plain' \gset
SELECT fanout.pause_queue('plain');
SELECT fanout.pause_queue('plain');
SELECT fanout.enqueue('plain', 'b') > 0 AS enqueued;
SELECT paused, ready, running FROM fanout.queues WHERE queue = 'plain';
SELECT name FROM fanout.dequeue('plain', wait => '10 ms');
SELECT fanout.checkpoint(:lease, 'step', '1');
SELECT fanout.complete(:lease);
SELECT fanout.resume_queue('plain');
SELECT fanout.resume_queue('plain');
SELECT paused FROM fanout.queues WHERE queue = 'plain';
SELECT name FROM fanout.dequeue('plain');
SELECT fanout.pause_queue('no such queue');
SELECT fanout.resume_queue('no such queue');

-- Purging cancels what waits, ready or scheduled, and lets be what runs.
SELECT fanout.create_queue('purged');
SELECT count(*) FROM unnest('{a,b,c}'::text[]) AS name, fanout.enqueue('purged', name);
SELECT fanout.enqueue('purged', 'd', delay => '1 hour') > 0 AS enqueued;
SELECT lease FROM fanout.dequeue('purged') \gset
SELECT test.states('purged');
SELECT fanout.purge_queue('purged');
SELECT test.states('purged');
SELECT scheduled, ready, running, cancelled FROM fanout.queues WHERE queue = 'purged';
SELECT fanout.purge_queue('purged');
SELECT fanout.complete(:lease);
SELECT test.states('purged');
SELECT fanout.enqueue('purged', 'e') > 0 AS enqueued;
SELECT name FROM fanout.dequeue('purged');
SELECT fanout.purge_queue('no such queue');

-- A queue with tasks that are ready, scheduled or running is not dropped, unless forced.
SELECT fanout.create_queue('full of work');
SELECT fanout.enqueue('full of work', 'a') AS task \gset
SELECT fanout.drop_queue('full of work');
SELECT fanout.cancel(:task);
SELECT fanout.enqueue('full of work', 'b', delay => '1 hour') AS task \gset
SELECT fanout.drop_queue('full of work');
SELECT fanout.cancel(:task);
SELECT fanout.enqueue('full of work', 'c') AS task \gset
SELECT lease FROM fanout.dequeue('full of work') \gset
SELECT fanout.drop_queue('full of work', force => false);
SELECT fanout.complete(:lease);
SELECT fanout.drop_queue('full of work');
SELECT count(*) FROM fanout.queues WHERE queue = 'full of work';
SELECT fanout.drop_queue('full of work');
SELECT fanout.enqueue('full of work', 'd');
SELECT * FROM fanout.dequeue('full of work');

-- Forced: what waited is cancelled, what ran has lost its lease; a queue of the same name starts empty.
SELECT fanout.create_queue('forced', concurrency => 1);
SELECT count(*) FROM unnest('{a,b}'::text[]) AS name, fanout.enqueue('forced', name);
SELECT lease FROM fanout.dequeue('forced') \gset
SELECT fanout.drop_queue('forced', force => true);
SELECT fanout.complete(:lease);
SELECT fanout.checkpoint(:lease, 'step', '1');
SELECT fanout.create_queue('forced');
SELECT scheduled, ready, running, concurrency FROM fanout.queues WHERE queue = 'forced';
SELECT name FROM fanout.dequeue('forced');
SELECT fanout.enqueue('forced', 'c') > 0 AS enqueued;
SELECT name FROM fanout.dequeue('forced');

SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
DROP VIEW test.settings;
