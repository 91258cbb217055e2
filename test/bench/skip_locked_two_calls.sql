-- The careful queue in two statements: enqueue one task; complete the one held and claim the next with a CTE.
INSERT INTO bench.queue (name, args) VALUES ('index_document', :args);
WITH done AS (DELETE FROM bench.queue WHERE id = :id AND attempt = :attempt)
UPDATE bench.queue SET ready = false, attempt = attempt + 1, worker = :client_id, lease_until = now() + '60 s'
 WHERE id = (SELECT id FROM bench.queue WHERE ready ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1)
RETURNING id, name, args, attempt \gset
