-- Results: collect, result, wait and progress.
\i sql/include/helpers.sql
CREATE EXTENSION dblink;
SELECT dblink_connect('other', format('host=%s port=%s dbname=%I user=%I', split_part(current_setting('unix_socket_directories'), ',', 1),
	current_setting('port'), current_database(), current_user));
SELECT fanout.create_queue('q', backoff => '0');
SELECT * FROM fanout.collect(1) \gdesc
SELECT * FROM fanout.result(1) \gdesc
SELECT * FROM fanout.progress(1) \gdesc

--
-- Without a wait: what is, at this moment
--
SELECT fanout.fan_out('q', 'x', '{1,2,3,4,5}') AS batch \gset
SELECT count(*) FROM fanout.dequeue('q', max_tasks => 3);
SELECT array_agg(task ORDER BY ordinal) AS t FROM fanout.collect(:batch, '0') \gset
SELECT array_agg(lease ORDER BY lease) AS l FROM fanout.leases \gset
SELECT fanout.complete((:'l'::bigint[])[1], '{"value": 1}'), fanout.fail((:'l'::bigint[])[2], 'why', final => true) IS NULL AS failed;
SELECT fanout.cancel((:'t'::bigint[])[4], 'because');
SELECT ordinal, status, result, error FROM fanout.collect(:batch, '0');
SELECT r.* FROM unnest(:'t'::bigint[]) WITH ORDINALITY AS t (task, i), fanout.result(task, '0') AS r ORDER BY i;
SELECT total, scheduled, ready, running, succeeded, failed, cancelled, sealed, ended, per_second > 0 AS per_second, time_left > '0' AS time_left
  FROM fanout.progress(:batch);
SELECT fanout.wait(:batch, '0'), fanout.wait((:'t'::bigint[])[1:2], '0'), fanout.wait(:'t'::bigint[], '0'), fanout.wait('{}'::bigint[], '0');
-- A task that succeeded without a result, and one that is delayed
SELECT fanout.complete((:'l'::bigint[])[3]);
SELECT status, result, result IS NULL AS null_result, error FROM fanout.result((:'t'::bigint[])[3]);
SELECT status, result, error FROM fanout.result(fanout.enqueue('q', 'delayed', delay => '1 hour'), '0');
SELECT test.task('delayed') AS delayed \gset
SELECT status, result, error FROM fanout.result(:delayed, '0');
SELECT fanout.cancel(:delayed);
SELECT status, result, error FROM fanout.result(:delayed);

--
-- With a wait: to its end, at the latest to pg_fanout.max_wait
--
SET statement_timeout = '25 s';
SELECT fanout.wait(:batch, '20 ms'), fanout.wait(:'t'::bigint[], '20 ms');
SELECT ordinal, status FROM fanout.collect(:batch, '20 ms');
SELECT status FROM fanout.result((:'t'::bigint[])[5], '20 ms');
CALL fanout.wait_batch(:batch, '20 ms', NULL);
SET pg_fanout.max_wait = '20 ms';
SELECT fanout.wait(:batch), fanout.wait(:'t'::bigint[]), fanout.wait(:batch, '1 hour');
SELECT ordinal, status FROM fanout.collect(:batch);
SELECT status FROM fanout.result((:'t'::bigint[])[5]);
RESET pg_fanout.max_wait;
RESET statement_timeout;
-- It can be cancelled.
SET statement_timeout = '50 ms';
SELECT fanout.wait(:batch);
SELECT * FROM fanout.collect(:batch);
SELECT * FROM fanout.result((:'t'::bigint[])[5]);
CALL fanout.wait_batch(:batch, NULL, NULL);
RESET statement_timeout;

-- Who waits in another session is woken by the commit of the last task, and not before.
SELECT pid AS other_pid FROM dblink('other', 'SELECT pg_backend_pid()') AS (pid int) \gset
SELECT format($$ EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND wait_event_type = 'Extension') $$, :other_pid) AS other_waits \gset
SELECT dblink_send_query('other', format('SELECT ordinal, status, result, error FROM fanout.collect(%s)', :batch));
SELECT test.becomes(:'other_waits');
BEGIN;
SELECT args, fanout.complete(lease, '"last"') FROM fanout.dequeue('q');
SELECT test.becomes(:'other_waits');
COMMIT;
SELECT * FROM dblink_get_result('other') AS (ordinal bigint, status text, result jsonb, error text);
SELECT * FROM dblink_get_result('other') AS (ordinal bigint, status text, result jsonb, error text);
SELECT fanout.enqueue('q', 'y') AS y \gset
SELECT dblink_send_query('other', format('SELECT status, result FROM fanout.result(%s)', :y));
SELECT test.becomes(:'other_waits');
SELECT args, fanout.complete(lease, '"y"') FROM fanout.dequeue('q');
SELECT * FROM dblink_get_result('other') AS (status text, result jsonb);
SELECT * FROM dblink_get_result('other') AS (status text, result jsonb);
-- The end of a lease's last attempt wakes, too: the keeper makes it.
SELECT fanout.fan_out('q', 'x', '{1,2}', max_attempts => 1) AS lost \gset
SELECT count(*) FROM fanout.dequeue('q', max_tasks => 2, lease => '40 ms');
CALL fanout.wait_batch(:lost, '30 s', NULL);
SELECT ordinal, status, error <> '' AS with_error FROM fanout.collect(:lost, '0');
CALL fanout.wait_batch(:lost, NULL, NULL);
SELECT fanout.wait(:lost), fanout.wait(:lost, NULL), fanout.wait(:'t'::bigint[], NULL);
-- Sealing wakes who waits for a batch of which all is done.
SELECT fanout.create_batch() AS growing \gset
SELECT fanout.enqueue('q', 'g', batch => :growing) > 0 AS enqueued;
SELECT fanout.complete(lease, '1') FROM fanout.dequeue('q');
SELECT dblink_send_query('other', format('SELECT fanout.wait(%s)', :growing));
SELECT test.becomes(:'other_waits');
SELECT fanout.seal_batch(:growing);
SELECT * FROM dblink_get_result('other') AS (wait boolean);
SELECT * FROM dblink_get_result('other') AS (wait boolean);

--
-- The transaction's own fan-out
--
BEGIN;
SELECT fanout.fan_out('q', 'own', '{1,2}') AS own \gset
SELECT total, ready, ended FROM fanout.progress(:own);
SELECT ordinal, status FROM fanout.collect(:own, '0');
SELECT fanout.wait(:own, '10 ms');
ROLLBACK;
SELECT * FROM fanout.collect(:own, '0');

-- A result of ten megabytes
SELECT fanout.fan_out('q', 'large', '{1,2}') AS large \gset
SELECT count(fanout.complete(lease, jsonb_build_object('text', repeat(md5(args::text), 312500)))) FROM fanout.dequeue('q', max_tasks => 2);
SELECT ordinal, status, length(result ->> 'text') AS length, result ->> 'text' = repeat(md5(ordinal::text), 312500) AS same FROM fanout.collect(:large);
SELECT r.status, length(r.result ->> 'text') AS length FROM fanout.collect(:large) AS c, fanout.result(c.task) AS r WHERE ordinal = 2;
-- An error text of one, too
SELECT fanout.fan_out('q', 'large', '{1}') AS large \gset
SELECT count(*) FROM fanout.dequeue('q') AS d, fanout.fail(d.lease, repeat('error ', 200000), final => true);
SELECT status, length(error) FROM fanout.collect(:large);

-- JSON's null is a result, too.
SELECT fanout.fan_out('q', 'null', '{1,2}') AS batch \gset
SELECT count(fanout.complete(lease, CASE args WHEN '1' THEN 'null'::jsonb END)) FROM fanout.dequeue('q', max_tasks => 2);
SELECT ordinal, result, result IS NULL AS none FROM fanout.collect(:batch);

-- What a dropped queue's tasks came to is still to be collected.
SELECT fanout.create_queue('dropped');
SELECT fanout.fan_out('dropped', 'x', '{1,2,3}') AS batch \gset
SELECT fanout.complete(lease, '"done"') FROM fanout.dequeue('dropped');
SELECT count(*) FROM fanout.dequeue('dropped');
SELECT fanout.drop_queue('dropped', force => true);
SELECT ordinal, status, result, error <> '' AS with_error FROM fanout.collect(:batch);

--
-- progress
--
SELECT fanout.fan_out('q', 'p', '{1,2,3,4}') AS batch \gset
SELECT total, scheduled, ready, running, succeeded, failed, cancelled, sealed, ended, per_second, time_left FROM fanout.progress(:batch);
SELECT count(*) FROM fanout.dequeue('q', max_tasks => 3);
SELECT count(fanout.complete(lease)) FROM (SELECT lease FROM fanout.leases ORDER BY task LIMIT 2) AS l;
SELECT total, scheduled, ready, running, succeeded, failed, cancelled, sealed, ended, per_second > 0 AS per_second, time_left > '0' AS time_left
  FROM fanout.progress(:batch);
SELECT fanout.release(lease, '1 hour') FROM fanout.leases;
SELECT total, scheduled, ready, running, succeeded FROM fanout.progress(:batch);
SELECT count(fanout.cancel(task)) FROM fanout.collect(:batch, '0') WHERE status IN ('scheduled', 'ready');
SELECT total, scheduled, ready, running, succeeded, failed, cancelled, sealed, ended, time_left FROM fanout.progress(:batch);

-- Nothing of that name
SELECT * FROM fanout.collect(0);
SELECT * FROM fanout.result(0);
SELECT fanout.wait(0);
SELECT fanout.wait(ARRAY[0::bigint]);
SELECT * FROM fanout.progress(0);
CALL fanout.wait_batch(0, '1 s', NULL);

SELECT dblink_disconnect('other');
DROP EXTENSION dblink;
SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
