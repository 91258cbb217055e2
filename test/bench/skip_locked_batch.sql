-- The careful queue: enqueue, claim and complete 100 tasks, three statements.
INSERT INTO bench.queue (name, args)
SELECT 'index_document', args FROM unnest(array_fill(:args::jsonb, '{100}')) AS args;
WITH claimed AS (
    UPDATE bench.queue SET ready = false, attempt = attempt + 1, worker = :client_id, lease_until = now() + '60 s'
     WHERE id = ANY (ARRAY(SELECT id FROM bench.queue WHERE ready ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 100))
    RETURNING id, name, args, attempt)
SELECT array_agg(id) AS ids FROM claimed \gset
\if :work
\sleep :work ms
\endif
DELETE FROM bench.queue WHERE id = ANY (:ids::bigint[]);
