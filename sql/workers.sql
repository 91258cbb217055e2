-- Workers: taking tasks, holding leases, reporting how it went.
\i sql/include/helpers.sql
SELECT fanout.create_queue('q', lease => '10 min', max_attempts => 3, backoff => '0');
SELECT fanout.create_queue('q2');

--
-- dequeue
--
SELECT * FROM fanout.dequeue('q') \gdesc
SELECT * FROM fanout.complete_and_dequeue(1, NULL, 'q') \gdesc

-- One task unless more are asked for, for the queue's lease, in the name of the backend
SELECT count(*) FROM fanout.enqueue_many('q', 'n', '{1,2,3,4,5,6}');
SELECT lease > 0 AS lease, queue, name, args, attempt, checkpoints, priority, batch, max_attempts,
       lease_until >= now() + interval '10 min' AND lease_until <= clock_timestamp() + interval '10 min' AS queues_lease, enqueued_at < now() AS enqueued
  FROM fanout.dequeue('q');
SELECT worker = 'pid:' || pg_backend_pid() AS this_backend, attempt, claimed_at < now() AS claimed, session_pid, committed FROM fanout.leases;
SELECT args FROM fanout.dequeue('q', worker => NULL, max_tasks => NULL, lease => NULL, wait => NULL, bind_to_session => NULL);
SELECT args, lease_until >= now() + interval '1 hour' AND lease_until <= clock_timestamp() + interval '1 hour' AS an_hour
  FROM fanout.dequeue('q', 'host-1:4711', 2, '1 hour');
SELECT args FROM fanout.dequeue('q', worker => repeat('w', 63), max_tasks => 10000);
SELECT args FROM fanout.dequeue('q', max_tasks => 10);
SELECT args, CASE WHEN worker = 'pid:' || pg_backend_pid() THEN 'this backend' ELSE left(worker, 12) END AS worker
  FROM fanout.leases JOIN fanout.tasks USING (task, worker) ORDER BY task;
-- No two leases have one number, and later ones have greater ones.
SELECT count(DISTINCT lease), bool_and(lease > previous) FROM (SELECT lease, lag(lease, 1, 0::bigint) OVER (ORDER BY task) AS previous FROM fanout.leases) AS l;
SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases));

-- Several queues: the first named first, each in its order
SELECT fanout.enqueue('q', 'a') > 0, fanout.enqueue('q2', 'b') > 0, fanout.enqueue('q', 'c', priority => -1) > 0, fanout.enqueue('q2', 'd') > 0;
SELECT queue, name FROM fanout.dequeue('{q2,q}'::text[], max_tasks => 3);
SELECT queue, name FROM fanout.dequeue(ARRAY['q2', 'q'], max_tasks => 3);
SELECT queue, name FROM fanout.dequeue('{q2,q}'::text[]);
SELECT fanout.enqueue('q', 'e', delay => '50 ms') > 0 AS enqueued;
SELECT queue, name FROM fanout.dequeue('{q2,q}'::text[], wait => '30 s');
SELECT fanout.enqueue('q', 'f') > 0 AS enqueued;
SELECT queue, name FROM fanout.dequeue('{q2,q2,q,q}'::text[], max_tasks => 5);
SELECT queue, name FROM fanout.dequeue('{}'::text[]);
SELECT queue, name FROM fanout.dequeue('{q,no such queue}'::text[]);
SELECT queue, name FROM fanout.dequeue('{q,NULL}'::text[]);
SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases));

-- Waiting ends without a task when its time is over, at the latest after pg_fanout.max_wait, and when it is cancelled.
SELECT count(*) FROM fanout.dequeue('q', wait => '0');
SELECT count(*) FROM fanout.dequeue('q', wait => '20 ms');
SET pg_fanout.max_wait = '20 ms';
SET statement_timeout = '20 s';
SELECT count(*) FROM fanout.dequeue('q', wait => '1 hour');
RESET pg_fanout.max_wait;
SET statement_timeout = '50 ms';
SELECT count(*) FROM fanout.dequeue('q', wait => '20 s');
RESET statement_timeout;
SELECT fanout.enqueue('q', 'after the cancel') > 0 AS enqueued;
SELECT name FROM fanout.dequeue('q', wait => '30 s');
SELECT fanout.complete(test.lease('after the cancel'));
-- A negative time is not a time.
SELECT count(*) FROM fanout.dequeue('q', wait => '-1 ms');

-- The procedure tells whether there is something to dequeue, and takes nothing.
CALL fanout.dequeue_wait('q', 'w', '10 ms', NULL);
CALL fanout.dequeue_wait('{q2,q}'::text[], 'w', '10 ms', NULL);
SELECT fanout.enqueue('q', 'a', delay => '50 ms') > 0 AS enqueued;
CALL fanout.dequeue_wait('q', 'w', '30 s', NULL);
CALL fanout.dequeue_wait('{q2,q}'::text[], NULL, '30 s', NULL);
CALL fanout.dequeue_wait('q', NULL, '0', NULL);
SELECT name FROM fanout.dequeue('q');
CALL fanout.dequeue_wait('q', NULL, '0', NULL);
CALL fanout.dequeue_wait('no such queue', NULL, '0', NULL);
-- What limits hold back is not there for the worker.
SELECT fanout.enqueue('q', 'b') > 0 AS enqueued;
SELECT fanout.alter_queue('q', worker_concurrency => 1);
CALL fanout.dequeue_wait('q', NULL, '0', NULL);
CALL fanout.dequeue_wait('q', 'w', '0', NULL);
SELECT fanout.alter_queue('q', concurrency => 1, unset => '{worker_concurrency}');
CALL fanout.dequeue_wait('q', 'w', '0', NULL);
SELECT fanout.alter_queue('q', unset => '{concurrency}');
SELECT fanout.pause_queue('q');
CALL fanout.dequeue_wait('q', 'w', '0', NULL);
SELECT fanout.resume_queue('q');
SELECT fanout.cancel(test.task('b'));
-- It is not capped, and can be cancelled.
SET pg_fanout.max_wait = '0';
SET statement_timeout = '50 ms';
CALL fanout.dequeue_wait('q', 'w', NULL, NULL);
RESET statement_timeout;
RESET pg_fanout.max_wait;
SELECT fanout.complete(test.lease('a'));

--
-- complete
--
SELECT count(fanout.enqueue('q', name)) FROM unnest('{a,b,c,d,e}'::text[]) AS name;
SELECT name FROM fanout.dequeue('q', 'w', 5);
SELECT test.lease('a') AS a, test.lease('b') AS b, test.lease('c') AS c, test.lease('d') AS d, test.lease('e') AS e \gset
SELECT fanout.complete(:a, '{"pages": 12}');
-- promise 3: a completion that went through may be repeated; another word on the matter comes too late.
SELECT fanout.complete(:a, '{"pages": 12}');
SELECT fanout.complete(:a, '"another result"');
SELECT fanout.fail(:a);
SELECT fanout.release(:a);
SELECT fanout.extend(:a);
SELECT fanout.checkpoint(:a, 'step', '1');
-- Those that really ended, and no others
SELECT lease = :c AS c, lease = :b AS b FROM fanout.complete(ARRAY[:a, :c, :b, 0, -1, 9223372036854775807], '{1,"\"c\"",null,4,5,6}') AS lease;
SELECT count(*) FROM fanout.complete(ARRAY[:a, :b, :c]);
SELECT count(*) FROM fanout.complete('{}'::bigint[]);
SELECT count(*) FROM fanout.complete('{}'::bigint[], '{}');
-- A lease that is named twice ends once.
SELECT lease = :d AS d FROM fanout.complete(ARRAY[:d, :d], '{1,2}') AS lease;
-- As many results as leases, or none
SELECT fanout.complete(ARRAY[:e], '{}');
SELECT fanout.complete(ARRAY[:e], '{1,2}');
SELECT fanout.complete(ARRAY[:e, NULL]);
SELECT count(*) FROM fanout.complete(ARRAY[:e]);
SELECT name, state, worker, attempt, result, result IS NULL AS null_result, error, finished_at <= now() AS finished
  FROM fanout.tasks WHERE task >= (SELECT test.task('a')) ORDER BY task;
-- Not a lease
SELECT fanout.complete(0);
SELECT fanout.complete(-1);
SELECT fanout.complete(9223372036854775807);

--
-- complete_and_dequeue
--
SELECT count(fanout.enqueue('q', name)) FROM unnest('{a,b,c,d,e}'::text[]) AS name;
SELECT lease AS a FROM fanout.dequeue('q', 'w') \gset
SELECT name, attempt, lease_until >= now() + interval '2 hours' AS two_hours FROM fanout.complete_and_dequeue(:a, '1', 'q', 'w', lease_for => '2 hours');
-- A repeated one ends nothing, and goes on.
SELECT name FROM fanout.complete_and_dequeue(:a, '2', 'q', 'w');
SELECT lease AS b FROM fanout.leases WHERE task = (SELECT test.task('b')) \gset
-- Lost leases: the single one is an error and nothing is dequeued; among others it is skipped, with a warning.
SELECT fanout.release(:b);
SELECT name FROM fanout.complete_and_dequeue(:b, '3', 'q', 'w');
SELECT test.states('q') ~ 'a succeeded, b ready, c running, d ready, e ready$' AS as_before;
SELECT name FROM fanout.complete_and_dequeue(ARRAY[test.lease('c'), :b], '{4,5}', 'q', 'w', max_tasks => 2);
SELECT test.states('q') ~ 'a succeeded, b running, c succeeded, d running, e ready$' AS as_expected;
SELECT name FROM fanout.complete_and_dequeue(ARRAY[test.lease('b'), test.lease('d')], NULL, 'q', 'w', max_tasks => 2, wait => '10 ms');
SELECT name FROM fanout.complete_and_dequeue(ARRAY[test.lease('e')], '{1,2}', 'q', 'w');
SELECT name FROM fanout.complete_and_dequeue(test.lease('e'), NULL, 'no such queue');
SELECT name FROM fanout.complete_and_dequeue(test.lease('e'), NULL, 'q', 'w', wait => '10 ms');
SELECT name, state, result FROM fanout.tasks WHERE task >= (SELECT test.task('a')) ORDER BY task;
-- Nothing to complete is fine, too.
SELECT name FROM fanout.complete_and_dequeue('{}'::bigint[], NULL, 'q', 'w');
SELECT fanout.enqueue('q', 'first') > 0, fanout.enqueue('q', 'second') > 0;
SELECT name FROM fanout.complete_and_dequeue(NULL::bigint, NULL, 'q', 'w');
SELECT name FROM fanout.complete_and_dequeue(NULL::bigint[], NULL, 'q', 'w');
SELECT count(*) FROM fanout.complete(ARRAY[test.lease('first'), test.lease('second')]);

--
-- fail
--
SELECT fanout.enqueue('q', 'a') > 0 AS enqueued;
SELECT attempt FROM fanout.dequeue('q', 'w1');
-- Told when the next attempt is due: after the queue's backoff, here at once
SELECT fanout.fail(test.lease('a'), 'first') <= clock_timestamp() AS due;
SELECT attempt, max_attempts FROM fanout.dequeue('q', 'w2');
SELECT due BETWEEN now() + interval '1 hour' AND clock_timestamp() + interval '1 hour' AS in_an_hour
  FROM fanout.fail(test.lease('a'), 'second', retry_in => '1 hour') AS due;
SELECT state, attempt, run_at > now() AS later, error FROM fanout.tasks WHERE task = (SELECT test.task('a'));
SELECT attempt FROM fanout.dequeue('q');
SELECT fanout.cancel(test.task('a'));
SELECT fanout.enqueue('q', 'b') > 0 AS enqueued;
SELECT attempt FROM fanout.dequeue('q', 'w1');
SELECT fanout.fail(test.lease('b'), 'first', retry_in => '0') IS NOT NULL AS retried;
SELECT attempt FROM fanout.dequeue('q', 'w2');
SELECT fanout.fail(test.lease('b'), NULL, retry_in => '20 ms') IS NOT NULL AS retried;
SELECT attempt FROM fanout.dequeue('q', 'w3', wait => '30 s');
-- The last of max_attempts fails the task for good, whatever is said of a retry; its history is kept.
SELECT fanout.fail(test.lease('b'), 'third', retry_in => '0') IS NULL AS failed_for_good;
SELECT state, attempt, worker, result, error FROM fanout.tasks WHERE task = (SELECT test.task('b'));
SELECT test.becomes($$ (SELECT count(*) FROM fanout.attempts WHERE task = (SELECT test.task('b'))) = 3 $$);
SELECT state, worker, error, ended_at < claimed_at IS TRUE AS out_of_order, ended_at IS NULL AS open FROM fanout.attempts WHERE task = (SELECT test.task('b')) ORDER BY lease;
-- final: no further attempts
SELECT fanout.enqueue('q', 'c', max_attempts => 100) > 0 AS enqueued;
SELECT attempt, max_attempts FROM fanout.dequeue('q');
SELECT fanout.fail(test.lease('c'), 'hopeless', final => true) IS NULL AS failed_for_good;
SELECT state, attempt, error FROM fanout.tasks WHERE task = (SELECT test.task('c'));
-- max_attempts of the task itself goes before the queue's.
SELECT fanout.enqueue('q', 'd', max_attempts => 1) > 0 AS enqueued;
SELECT attempt, max_attempts FROM fanout.dequeue('q');
SELECT fanout.fail(test.lease('d')) IS NULL AS failed_for_good;
SELECT state, attempt, error FROM fanout.tasks WHERE task = (SELECT test.task('d'));
-- A queue whose max_attempts is lowered below what its tasks have had: the next failure is the last.
SELECT fanout.enqueue('q', 'e') > 0 AS enqueued;
SELECT fanout.fail(lease) IS NOT NULL AS retried FROM fanout.dequeue('q');
SELECT attempt FROM fanout.dequeue('q');
SELECT fanout.alter_queue('q', max_attempts => 1);
SELECT fanout.fail(test.lease('e')) IS NULL AS failed_for_good;
SELECT fanout.alter_queue('q', max_attempts => 3);
-- An array of them; those that have lost their lease are left out.
SELECT count(fanout.enqueue('q', name)) FROM unnest('{f,g,h}'::text[]) AS name;
SELECT name, attempt FROM fanout.dequeue('q', max_tasks => 3);
SELECT test.lease('f') AS f, test.lease('g') AS g, test.lease('h') AS h \gset
SELECT fanout.complete(:g);
SELECT lease = :h AS h, lease = :f AS f FROM fanout.fail(ARRAY[:g, :h, 0, :f, :h], 'both', retry_in => '0') AS lease;
SELECT name, attempt FROM fanout.dequeue('q', max_tasks => 3);
SELECT count(*) FROM fanout.fail(ARRAY[test.lease('f'), test.lease('h')], 'for good', final => true);
SELECT test.states('q') ~ 'f failed, g succeeded, h failed$' AS as_expected;
SELECT count(*) FROM fanout.fail('{}'::bigint[]);
-- A failed attempt is no longer a lease.
SELECT fanout.complete(:f);
SELECT fanout.fail(:f);
SELECT fanout.fail(0);

-- The backoff doubles with each attempt up to backoff_max; the jitter takes up to half of it away.
SELECT fanout.create_queue('slow', backoff => '100 s', backoff_max => '1000 s', max_attempts => 32767);
CREATE TABLE test.backoffs (attempt int, backoff interval);
DO $$
BEGIN
	FOR n IN 1 .. 60 LOOP
		PERFORM fanout.enqueue('slow', 'slow');
		COMMIT;
		FOR i IN 1 .. (n - 1) % 6 LOOP
			PERFORM fanout.fail(lease, retry_in => '0') FROM fanout.dequeue('slow');
			COMMIT;
		END LOOP;
		INSERT INTO test.backoffs SELECT attempt, fanout.fail(lease) - clock_timestamp() FROM fanout.dequeue('slow');
		COMMIT;
	END LOOP;
END
$$;
SELECT attempt, count(*), bool_and(backoff > b.least - '1 s' AND backoff <= b.most) AS within_bounds, count(DISTINCT backoff) > 1 AS jitter
  FROM test.backoffs JOIN (VALUES (1, interval '50 s', interval '100 s'), (2, '100 s', '200 s'), (3, '200 s', '400 s'), (4, '400 s', '800 s'),
	(5, '500 s', '1000 s'), (6, '500 s', '1000 s')) AS b (attempt, least, most) USING (attempt)
 GROUP BY attempt ORDER BY attempt;
DROP TABLE test.backoffs;

--
-- release
--
SELECT fanout.enqueue('q', 'a') > 0, fanout.enqueue('q', 'b') > 0;
SELECT name, attempt, lease FROM fanout.dequeue('q') \gset
SELECT :'name' AS name, :attempt AS attempt;
SELECT fanout.release(:lease);
-- It is back in its place, and that was no attempt.
SELECT name, attempt FROM fanout.dequeue('q');
SELECT fanout.release(:lease);
SELECT fanout.complete(:lease);
SELECT fanout.release(test.lease('a'), delay => '1 hour');
SELECT name, state, attempt, run_at BETWEEN now() + interval '59 min' AND now() + interval '1 hour' AS in_an_hour
  FROM fanout.tasks WHERE task = (SELECT test.task('a'));
SELECT name, attempt FROM fanout.dequeue('q', max_tasks => 5);
SELECT fanout.release(test.lease('b'), delay => '20 ms');
SELECT name, attempt FROM fanout.dequeue('q', wait => '30 s');
SELECT fanout.cancel(test.task('a'));
SELECT fanout.complete(test.lease('b'));
SELECT count(fanout.enqueue('q', name)) FROM unnest('{c,d,e}'::text[]) AS name;
SELECT count(*) FROM fanout.dequeue('q', max_tasks => 3);
SELECT test.lease('c') AS c, test.lease('d') AS d, test.lease('e') AS e \gset
SELECT fanout.complete(:d);
SELECT lease = :e AS e, lease = :c AS c FROM fanout.release(ARRAY[0, :e, :d, :c, :e]) AS lease;
SELECT name, attempt FROM fanout.dequeue('q', max_tasks => 3);
SELECT count(*) FROM fanout.release('{}'::bigint[]);
SELECT fanout.release(0);
SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases));

--
-- A lease ends at its time, and the task goes on with another.
--
SELECT fanout.enqueue('q', 'a') > 0 AS enqueued;
SELECT attempt, lease AS a1 FROM fanout.dequeue('q', 'slow', lease => '30 ms') \gset
SELECT attempt, lease > :a1 AS greater FROM fanout.dequeue('q', 'next', wait => '30 s');
-- promise 3: who comes back late has lost it, in every verb.
SELECT fanout.checkpoint(:a1, 'step', '1');
SELECT fanout.complete(:a1);
SELECT fanout.fail(:a1);
SELECT fanout.release(:a1);
SELECT fanout.extend(:a1);
SELECT fanout.enqueue('q', 'b', lease => :a1, step => 'b');
SELECT fanout.enqueue_many('q', 'b', '{1}', lease => :a1, step => 'b');
SELECT fanout.fan_out('q', 'b', '{1}', lease => :a1, step => 'b');
SELECT fanout.create_batch(lease => :a1, step => 'b');
SELECT name FROM fanout.complete_and_dequeue(:a1, NULL, 'q');
SELECT count(*) FROM fanout.complete(ARRAY[:a1]);
SELECT count(*) FROM fanout.extend(ARRAY[:a1]);
SELECT fanout.heartbeat('slow');
SELECT state, worker FROM fanout.tasks WHERE task = (SELECT test.task('a'));
SELECT test.becomes($$ (SELECT count(*) FROM fanout.attempts WHERE task = (SELECT test.task('a'))) = 2 $$);
SELECT state, worker, ended_at >= claimed_at AS ended FROM fanout.attempts WHERE task = (SELECT test.task('a')) ORDER BY lease;
SELECT fanout.complete(test.lease('a'), '"of the second"');
SELECT fanout.complete(:a1, '"of the first"');
SELECT state, worker, attempt, result FROM fanout.tasks WHERE task = (SELECT test.task('a'));
-- Expired as often as it may be attempted, a task has failed.
SELECT fanout.enqueue('q', 'poison', max_attempts => 2) > 0 AS enqueued;
SELECT attempt FROM fanout.dequeue('q', 'w1', lease => '10 ms');
SELECT attempt FROM fanout.dequeue('q', 'w2', lease => '10 ms', wait => '30 s');
SELECT fanout.wait(ARRAY[test.task('poison')], '30 s');
SELECT state, attempt, error <> '' AS with_error FROM fanout.tasks WHERE task = (SELECT test.task('poison'));
SELECT test.becomes($$ (SELECT count(*) FROM fanout.attempts WHERE task = (SELECT test.task('poison'))) = 2 $$);
SELECT worker, error <> '' AS with_error, ended_at IS NULL AS open FROM fanout.attempts WHERE task = (SELECT test.task('poison')) ORDER BY lease;
SELECT name FROM fanout.dequeue('q');

--
-- extend and heartbeat
--
SELECT count(fanout.enqueue('q', name)) FROM unnest('{a,b,c}'::text[]) AS name;
SELECT name FROM fanout.dequeue('q', 'w', 2, lease => '20 min');
SELECT name FROM fanout.dequeue('q', 'other', lease => '20 min');
SELECT test.lease('a') AS a, test.lease('b') AS b, test.lease('c') AS c \gset
SELECT until BETWEEN now() + interval '1 hour' AND clock_timestamp() + interval '1 hour' AS an_hour_from_now FROM fanout.extend(:a, '1 hour') AS until;
-- NULL: the queue's lease. A lease can be made shorter, too.
SELECT until BETWEEN now() + interval '10 min' AND clock_timestamp() + interval '10 min' AS ten_minutes_from_now FROM fanout.extend(:a) AS until;
SELECT lease_until BETWEEN now() + interval '9 min' AND now() + interval '10 min' AS in_the_view FROM fanout.leases WHERE lease = :a;
SELECT fanout.extend(0);
SELECT fanout.extend(:a, '0');
SELECT fanout.extend(:a, '-1 s');
SELECT lease = :c AS c, lease = :a AS a FROM fanout.extend(ARRAY[:c, 0, :a], '2 hours') AS lease;
SELECT name, l.lease_until > now() + interval '119 min' AS two_hours FROM fanout.leases l JOIN fanout.tasks USING (task) ORDER BY task;
SELECT fanout.heartbeat('w', '3 hours');
SELECT name, l.worker, l.lease_until > now() + interval '179 min' AS three_hours FROM fanout.leases l JOIN fanout.tasks USING (task) ORDER BY task;
SELECT fanout.heartbeat('w');
SELECT name, l.lease_until < now() + interval '11 min' AS queues_lease FROM fanout.leases l JOIN fanout.tasks USING (task) ORDER BY task;
SELECT fanout.heartbeat('nobody');
SELECT worker, leases, queues FROM fanout.workers ORDER BY worker;
-- Shortened to nothing much, it ends; extended in time, it does not.
SELECT fanout.extend(:a, '1 ms') IS NOT NULL AS extended;
SELECT name, attempt FROM fanout.dequeue('q', wait => '30 s');
SELECT fanout.complete(:a);
SELECT fanout.complete(:b);
SELECT fanout.complete(:c);
SELECT fanout.complete(test.lease('a'));

--
-- bind_to_session: such leases end with the session, others do not care.
--
SELECT fanout.enqueue('q', 'bound') > 0, fanout.enqueue('q', 'unbound') > 0;
SELECT name, lease_until > now() + interval '5 hours' AS long FROM fanout.dequeue('q', 'w', lease => '6 hours', bind_to_session => true);
SELECT name FROM fanout.dequeue('q', 'w', lease => '6 hours');
SELECT name, session_pid = pg_backend_pid() AS this_session FROM fanout.leases JOIN fanout.tasks USING (task) ORDER BY task;
SELECT test.lease('bound') AS bound, test.lease('unbound') AS unbound \gset
\c -
SELECT name, attempt FROM fanout.dequeue('q', wait => '30 s');
SELECT fanout.complete(:bound);
SELECT fanout.complete(:unbound);
SELECT fanout.complete(test.lease('bound'));
SELECT name, state, attempt FROM fanout.tasks WHERE name IN ('bound', 'unbound') ORDER BY task;

SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
