-- What there is to look at: queues, tasks, batches, leases, workers, attempts and status().
\i sql/include/helpers.sql

-- The columns
SELECT relname AS view, attnum, attname, format_type(atttypid, atttypmod) AS type
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
 WHERE relnamespace = 'fanout'::regnamespace AND relkind = 'v' AND attnum > 0 ORDER BY relname COLLATE "C", attnum;
-- All of them, without a row
SELECT (SELECT count(*) FROM fanout.queues) AS queues, (SELECT count(*) FROM fanout.leases) AS leases, (SELECT count(*) FROM fanout.workers) AS workers;

SELECT fanout.create_queue('q', concurrency => 10, worker_concurrency => 5, max_backlog => 1000, backoff => '0', max_attempts => 3), fanout.create_queue('empty');
-- A queue that nothing has happened to
SELECT queue, paused, scheduled, ready, running, oldest_ready, oldest_ready_age, waiting_workers, in_memory, enqueued, dequeued, succeeded, failed, cancelled,
       enqueued_per_second, dequeued_per_second, finished_per_second FROM fanout.queues WHERE queue = 'empty';

-- A task in each state
SELECT fanout.enqueue('q', 'succeeded', '1') > 0, fanout.enqueue('q', 'failed', '2') > 0, fanout.enqueue('q', 'running', '3', max_attempts => 7) > 0,
       fanout.enqueue('q', 'to be retried') > 0, fanout.enqueue('q', 'ready', priority => 5) > 0, fanout.enqueue('q', 'scheduled', run_at => '2100-01-01 00:00+00') > 0,
       fanout.enqueue('q', 'cancelled') > 0;
SELECT fanout.cancel(test.task('cancelled'), 'changed my mind');
SELECT name FROM fanout.dequeue('q', 'host-1:1', max_tasks => 3);
SELECT fanout.complete(test.lease('succeeded'), '{"pages": 12}'), fanout.fail(test.lease('failed'), 'no good', final => true);
SELECT name FROM fanout.dequeue('q', 'host-2:1');
SELECT fanout.fail(test.lease('to be retried'), 'not yet', retry_in => '1 hour') IS NOT NULL AS retried;
SELECT name, args, state, priority, run_at IS NOT NULL AS run_at, attempt, max_attempts, lease IS NOT NULL AS lease, worker, lease_until > now() AS live,
       finished_at <= now() AS finished, result, error
  FROM fanout.tasks WHERE queue = 'q' ORDER BY task;
SELECT run_at = '2100-01-01 00:00+00' AS as_given FROM fanout.tasks WHERE name = 'scheduled';
SELECT run_at > now() + interval '59 min' AS in_an_hour FROM fanout.tasks WHERE name = 'to be retried';
SELECT scheduled, ready, running, in_memory, enqueued, dequeued, succeeded, failed, cancelled, enqueued_per_second > 0 AS enqueued_per_second,
       dequeued_per_second > 0 AS dequeued_per_second, finished_per_second > 0 AS finished_per_second
  FROM fanout.queues WHERE queue = 'q';
-- The oldest of the ready ones
SELECT q.oldest_ready = t.enqueued_at AS oldest, q.oldest_ready_age BETWEEN '0' AND '1 min' AS age
  FROM fanout.queues q, fanout.tasks t WHERE q.queue = 'q' AND t.name = 'ready';
SELECT fanout.enqueue('q', 'newer', priority => -1) > 0 AS enqueued;
SELECT q.oldest_ready = t.enqueued_at AS still_the_oldest FROM fanout.queues q, fanout.tasks t WHERE q.queue = 'q' AND t.name = 'ready';
SELECT fanout.cancel(test.task('ready'));
SELECT q.oldest_ready = t.enqueued_at AS the_next_oldest FROM fanout.queues q, fanout.tasks t WHERE q.queue = 'q' AND t.name = 'newer';

-- leases and workers
SELECT t.name, l.queue, l.worker, l.attempt, l.claimed_at <= now() AS claimed, l.lease_until > now() AS live, l.session_pid, l.committed
  FROM fanout.leases l JOIN fanout.tasks t USING (task) ORDER BY task;
BEGIN;
SELECT name FROM fanout.dequeue('q', 'host-2:1', bind_to_session => true);
SELECT t.name, l.worker, l.session_pid = pg_backend_pid() AS this_session, l.committed FROM fanout.leases l JOIN fanout.tasks t USING (task) ORDER BY task;
COMMIT;
SELECT t.name, l.session_pid = pg_backend_pid() AS this_session, l.committed FROM fanout.leases l JOIN fanout.tasks t USING (task) ORDER BY task;
SELECT fanout.enqueue('empty', 'x') > 0 AS enqueued;
SELECT name FROM fanout.dequeue('empty', 'host-2:1');
SELECT w.worker, w.leases, w.queues, w.oldest_claim = min(l.claimed_at) AS oldest, w.next_lease_end = min(l.lease_until) AS next
  FROM fanout.workers w JOIN fanout.leases l USING (worker) GROUP BY w.worker, w.leases, w.queues, w.oldest_claim, w.next_lease_end ORDER BY worker;

-- attempts: every lease that there was, with its end
SELECT fanout.enqueue('q', 'history', max_attempts => 9) > 0 AS enqueued;
SELECT attempt FROM fanout.dequeue('q', 'w1');
SELECT fanout.fail(test.lease('history'), 'one', retry_in => '0') IS NOT NULL AS retried;
SELECT attempt FROM fanout.dequeue('q', 'w2');
SELECT fanout.release(test.lease('history'));
SELECT attempt FROM fanout.dequeue('q', 'w3', lease => '10 ms');
SELECT attempt FROM fanout.dequeue('q', 'w4', wait => '30 s');
SELECT test.becomes($$ (SELECT count(*) FROM fanout.attempts WHERE task = (SELECT test.task('history'))) = 4 $$);
SELECT queue, worker, state, error, ended_at < claimed_at IS TRUE AS out_of_order, ended_at IS NULL AS open FROM fanout.attempts WHERE task = (SELECT test.task('history')) ORDER BY lease;
SELECT fanout.complete(test.lease('history'), '1');
SELECT worker, state, error, ended_at < claimed_at IS TRUE AS out_of_order, ended_at IS NULL AS open FROM fanout.attempts WHERE task = (SELECT test.task('history')) ORDER BY lease;
SELECT name, a.state, a.error FROM fanout.attempts a JOIN fanout.tasks t USING (task) WHERE name IN ('succeeded', 'failed', 'cancelled') ORDER BY task;

-- batches
SELECT fanout.fan_out('q', 'b', '{1,2,3}', 'n', 2) AS batch \gset
SELECT owner = current_user AS mine, "join", join_count, sealed, created_at <= now() AS created, ended_at, tasks, finished FROM fanout.batches WHERE batch = :batch;
SELECT count(fanout.complete(lease)) FROM fanout.dequeue('q', max_tasks => 2);
SELECT test.becomes(format($$ (SELECT finished = 3 AND ended_at IS NOT NULL FROM fanout.batches WHERE batch = %s) $$, :batch));
SELECT ended_at BETWEEN created_at AND now() AS ended, tasks, finished FROM fanout.batches WHERE batch = :batch;

-- status(): the items, and what can be said of their values
SELECT item, value ~ CASE
	WHEN item LIKE '% version' THEN '^[0-9]+\.[0-9]+\.[0-9]+$'
	WHEN item LIKE '% in memory' THEN '^[0-9]+ of [0-9]+$'
	WHEN item = 'state' THEN '^ready$'
	WHEN item = 'ready since' THEN '^20[0-9][0-9]-'
	WHEN item = 'rebuild time' THEN '^[0-9]+\.[0-9] ms$'
	WHEN item = 'journal lag' THEN '^[0-9]+ leases$'
	WHEN item = 'wake-ups' THEN '^[0-9]+, [0-9]+ for nothing$'
	ELSE '^[0-9]+$' END AS as_expected FROM fanout.status();
SELECT value AS queues FROM fanout.status() WHERE item = 'queues';
SELECT count(*) FROM fanout.status() s JOIN pg_stat_activity a ON a.pid = s.value::int WHERE s.item = 'keeper pid' AND a.datname = current_database();

SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
