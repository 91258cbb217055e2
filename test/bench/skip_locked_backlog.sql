-- The careful queue over a backlog: complete the task held and claim the next, one statement.
WITH done AS (DELETE FROM bench.queue WHERE id = :id AND attempt = :attempt)
UPDATE bench.queue SET ready = false, attempt = attempt + 1, worker = :client_id, lease_until = now() + '60 s'
 WHERE id = (SELECT id FROM bench.queue WHERE ready ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1)
RETURNING id, name, args, attempt \gset
