-- The story through psql: a line "ok" or "not ok" for each thing it looks at.
\set ON_ERROR_STOP 1
\set queue psql
\pset tuples_only on
\pset format unaligned

CREATE FUNCTION pg_temp.look(truth boolean, what text) RETURNS text LANGUAGE sql
    RETURN CASE WHEN truth THEN 'ok' ELSE 'not ok' END || ' - psql: ' || what;

SELECT fanout.create_queue(:'queue') AS created \gset
SELECT pg_temp.look(:'created', 'create_queue is true');

SELECT fanout.enqueue(:'queue', 'fetch', '{"url": "https://example.org/ä?q=''1''"}') AS task \gset
SELECT * FROM fanout.dequeue(:'queue', worker => 'me', max_tasks => 10) \gset first_
SELECT pg_temp.look((:first_task, :'first_queue', :'first_name', :first_attempt) = (:task, :'queue', 'fetch', 1),
                    'dequeue gives the task');
SELECT pg_temp.look(:'first_args'::jsonb->>'url' = 'https://example.org/ä?q=''1''', 'arguments come back as they went in');

SELECT fanout.checkpoint(:first_lease, 'downloaded', '{"bytes": 81234}') AS stored \gset
SELECT fanout.checkpoint(:first_lease, 'downloaded', '{"bytes": 1}') AS stored_again \gset
SELECT pg_temp.look(:'stored' = :'stored_again', 'a checkpoint''s first value stays');
SELECT fanout.fail(:first_lease, 'timeout', retry_in => '0') IS NOT NULL AS retried \gset
SELECT pg_temp.look(:'retried', 'fail gives the time of the next attempt');
\set ON_ERROR_STOP 0
\o /dev/null
\set VERBOSITY sqlstate
SELECT fanout.complete(:first_lease);
\o
\set state :SQLSTATE
\set ON_ERROR_STOP 1
SELECT pg_temp.look(:'state' = 'FO001', 'the lease has ended: FO001');

SELECT * FROM fanout.dequeue(:'queue', worker => 'me', wait => '10 s') \gset second_
SELECT pg_temp.look(:second_attempt = 2 AND :'second_checkpoints'::jsonb = '{"downloaded": {"bytes": 81234}}',
                    'the next attempt has the checkpoints');
SELECT fanout.complete(:second_lease, '{"pages": 12}') AS done \gset
SELECT fanout.complete(:second_lease, '{"pages": 12}') AS done_again \gset
SELECT pg_temp.look(:'done' AND NOT :'done_again', 'complete is true, and false when it is repeated');
SELECT pg_temp.look(status = 'succeeded' AND result = '{"pages": 12}' AND error IS NULL, 'result gives the outcome')
  FROM fanout.result(:task);

SELECT fanout.fan_out(:'queue', 'square', ARRAY(SELECT to_jsonb(n) FROM generate_series(1, 1000) n)) AS batch \gset
SELECT count(*) AS completed
  FROM fanout.complete(
         (SELECT array_agg(lease ORDER BY lease DESC) FROM fanout.dequeue(:'queue', max_tasks => 1)),
         ARRAY['"the first"'::jsonb]) \gset
SELECT pg_temp.look(:completed = 1, 'dequeue and complete in one statement');
CREATE TEMP TABLE taken AS SELECT * FROM fanout.dequeue(:'queue', max_tasks => 2000);
SELECT pg_temp.look(count(*) = 999, 'dequeue into a table') FROM taken;
SELECT pg_temp.look(count(*) = 999, 'complete with arrays')
  FROM (SELECT fanout.complete(array_agg(lease), array_agg(to_jsonb((args::int) ^ 2))) FROM taken) done;
SELECT pg_temp.look(array_agg(ordinal ORDER BY place) = array_agg(place ORDER BY place)
                    AND bool_and(status = 'succeeded')
                    AND bool_and(result = CASE ordinal WHEN 1 THEN '"the first"' ELSE to_jsonb(ordinal ^ 2) END),
                    'collect gives the results in order')
  FROM fanout.collect(:batch) WITH ORDINALITY c (ordinal, task, status, result, error, place);
COPY (SELECT pg_temp.look(count(*) = 1000, 'collect within COPY') FROM fanout.collect(:batch)) TO STDOUT;
CALL fanout.wait_batch(:batch, '1 s', NULL) \gset
SELECT pg_temp.look(:'ended', 'CALL wait_batch');

BEGIN;
SELECT fanout.enqueue(:'queue', 'never') AS never \gset
ROLLBACK;
SELECT pg_temp.look(count(*) = 0, 'what was rolled back never happened') FROM fanout.dequeue(:'queue');
SELECT fanout.drop_queue(:'queue') AS dropped \gset
SELECT pg_temp.look(count(*) = 0, 'drop_queue') FROM fanout.queues WHERE queue = :'queue';
