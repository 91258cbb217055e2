-- promise 4: concurrency limits are exact at every moment, per queue and per worker.
\i sql/include/helpers.sql
CREATE FUNCTION test.take(queue_name text, worker_name text, at_most int DEFAULT 10) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(name, ' ') FROM fanout.dequeue(queue_name, worker_name, at_most)
$$;
CREATE FUNCTION test.running(queue_name text) RETURNS bigint LANGUAGE sql AS $$
	SELECT running FROM fanout.queues WHERE queue = queue_name
$$;
CREATE FUNCTION test.put(queue_name text, VARIADIC names text[]) RETURNS int LANGUAGE sql AS $$
	SELECT count(fanout.enqueue(queue_name, name))::int FROM unnest(names) AS name
$$;

--
-- concurrency
--
SELECT fanout.create_queue('q', concurrency => 2, backoff => '0', max_attempts => 100);
SELECT test.put('q', 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j');
SELECT test.take('q', 'w1');
SELECT test.take('q', 'w1'), test.take('q', 'w2'), test.running('q');
-- Each end gives its permit back.
SELECT fanout.complete(test.lease('a'));
SELECT test.take('q', 'w2'), test.take('q', 'w1');
SELECT fanout.fail(test.lease('b'), final => true);
SELECT test.take('q', 'w2'), test.take('q', 'w1');
SELECT fanout.release(test.lease('c'));
SELECT test.take('q', 'w2'), test.take('q', 'w1');
SELECT fanout.fail(test.lease('d'), retry_in => '1 hour') IS NOT NULL AS will_be_retried;
SELECT test.take('q', 'w2', 1), test.take('q', 'w1');
SELECT fanout.extend(test.lease('c'), '1 ms') IS NOT NULL AS expires;
SELECT name FROM fanout.dequeue('q', 'w3', wait => '30 s');
SELECT test.take('q', 'w4'), test.running('q');
-- Cancelling what waits gives nothing back, nor does another life.
SELECT fanout.cancel(test.task('f')), fanout.retry(test.task('b'));
SELECT test.take('q', 'w5'), test.running('q');

-- Claims count before they are committed, and are free again at once when they are rolled back.
SELECT fanout.complete(test.lease('c'));
BEGIN;
SELECT test.take('q', 'w1');
SELECT test.take('q', 'w2'), test.running('q');
ROLLBACK;
SELECT test.running('q');
BEGIN;
SAVEPOINT s;
SELECT test.take('q', 'w1');
ROLLBACK TO s;
SELECT test.take('q', 'w2');
SELECT test.take('q', 'w2');
COMMIT;
SELECT test.take('q', 'w1'), test.running('q');
-- A permit that is given back in a transaction is free at its commit; for the transaction itself, at once.
BEGIN;
SELECT fanout.complete(test.lease('b'));
SELECT test.take('q', 'w1');
SELECT test.take('q', 'w1');
-- Nor does it look as if there were more than the limit.
SELECT running <= concurrency AS within_the_limit FROM fanout.queues WHERE queue = 'q';
ROLLBACK;
SELECT test.take('q', 'w1'), test.running('q');
BEGIN;
SELECT fanout.complete(test.lease('b'));
SELECT test.take('q', 'w1');
SELECT test.take('q', 'w1');
COMMIT;
SELECT test.take('q', 'w1'), test.running('q');

-- Raised, the limit admits more at once.
SELECT fanout.alter_queue('q', concurrency => 3);
SELECT test.take('q', 'w1'), test.running('q');
-- Lowered, it revokes nothing, and admits nothing until the count is under it.
SELECT fanout.alter_queue('q', concurrency => 1);
SELECT test.running('q'), test.take('q', 'w1');
SELECT test.states('q');
SELECT fanout.complete(test.lease('e'));
SELECT test.running('q'), test.take('q', 'w1');
SELECT fanout.complete(test.lease('g'));
SELECT test.running('q'), test.take('q', 'w1');
SELECT fanout.complete(test.lease('h'));
SELECT test.running('q'), test.take('q', 'w1'), test.running('q');
-- A change that is not committed is no change.
BEGIN;
SELECT fanout.alter_queue('q', concurrency => 100);
SELECT test.take('q', 'w1');
ROLLBACK;
SELECT test.take('q', 'w1');
-- Unset, it holds nothing back.
SELECT test.put('q', 'k', 'l', 'm');
SELECT fanout.alter_queue('q', unset => '{concurrency}');
SELECT test.take('q', 'w1'), test.running('q');
-- Set below what is running
SELECT fanout.alter_queue('q', concurrency => 1);
SELECT fanout.release(test.lease('k'));
SELECT test.running('q'), test.take('q', 'w1');
SELECT count(fanout.complete(lease)) FROM fanout.leases;
SELECT test.running('q'), test.take('q', 'w1');

-- With a limit of one the more urgent is next, though it came later.
SELECT test.put('q', 'n');
SELECT fanout.enqueue('q', 'urgent', priority => -1) > 0 AS enqueued;
SELECT name FROM fanout.complete_and_dequeue(test.lease('k'), NULL, 'q', 'w1');
SELECT test.take('q', 'w2');
SELECT name FROM fanout.complete_and_dequeue(ARRAY[test.lease('urgent')], NULL, 'q', 'w1', max_tasks => 5);
SELECT test.take('q', 'w2'), test.running('q');
SELECT fanout.drop_queue('q', force => true);

--
-- worker_concurrency
--
SELECT fanout.create_queue('q', worker_concurrency => 2, backoff => '0');
SELECT test.put('q', 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j');
SELECT test.take('q', 'w1'), test.take('q', 'w1'), test.take('q', 'w2'), test.take('q', 'w2'), test.take('q', NULL), test.take('q', NULL);
SELECT CASE worker WHEN 'pid:' || pg_backend_pid() THEN 'this session' ELSE worker END AS worker, leases, queues FROM fanout.workers ORDER BY 1;
SELECT fanout.complete(test.lease('a'));
SELECT test.take('q', 'w2'), test.take('q', 'w1'), test.take('q', 'w1');
-- A worker is its name: another session is no other worker.
\c -
SELECT test.take('q', 'w1'), test.take('q', NULL);
-- Both limits hold at once.
SELECT fanout.alter_queue('q', concurrency => 9);
SELECT test.put('q', 'k', 'l', 'm');
SELECT test.running('q'), test.take('q', 'w3');
SELECT fanout.alter_queue('q', concurrency => 10);
SELECT test.take('q', 'w1'), test.take('q', 'w4', 1), test.take('q', 'w4'), test.running('q');
-- Lowered: nothing for who holds as many or more
SELECT fanout.alter_queue('q', worker_concurrency => 1, unset => '{concurrency}');
SELECT test.take('q', 'w1'), test.take('q', 'w4');
SELECT fanout.complete(test.lease('b'));
SELECT test.take('q', 'w1');
SELECT fanout.complete(test.lease('g'));
SELECT test.take('q', 'w1'), test.take('q', 'w5');
SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases));
-- Claims that are not committed count here, too.
SELECT test.put('q', 'n', 'o', 'p', 'q');
BEGIN;
SELECT test.take('q', 'w1');
SELECT test.take('q', 'w1');
ROLLBACK;
SELECT test.take('q', 'w1'), test.take('q', 'w1'), test.take('q', 'w2');
-- Completing and dequeuing in one call
SELECT name FROM fanout.complete_and_dequeue(test.lease('n'), NULL, 'q', 'w1', max_tasks => 3);
SELECT name FROM fanout.complete_and_dequeue(ARRAY[test.lease('p')], NULL, 'q', 'w2', max_tasks => 3);
-- What another worker had does not count for this one.
SELECT name FROM fanout.complete_and_dequeue(test.lease('q'), NULL, 'q', 'w1', max_tasks => 3);
SELECT test.running('q');
SELECT fanout.drop_queue('q', force => true);

--
-- Several queues, each with limits of its own
--
SELECT fanout.create_queue('q1', concurrency => 1), fanout.create_queue('q2', worker_concurrency => 2), fanout.create_queue('q3');
SELECT test.put('q1', 'a', 'b', 'c'), test.put('q2', 'd', 'e', 'f'), test.put('q3', 'g', 'h', 'i');
SELECT queue, name FROM fanout.dequeue('{q1,q2,q3}'::text[], 'w', 5);
SELECT queue, name FROM fanout.dequeue('{q1,q2,q3}'::text[], 'w', 5);
SELECT queue, name FROM fanout.dequeue('{q1,q2,q3}'::text[], 'w2', 5);
SELECT queue, running FROM fanout.queues ORDER BY queue;

DROP FUNCTION test.take, test.running, test.put;
SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
