-- The careful queue: enqueue, claim and complete one task, three statements. "work" is in milliseconds.
INSERT INTO bench.queue (name, args) VALUES ('index_document', :args);
UPDATE bench.queue SET ready = false, attempt = attempt + 1, worker = :client_id, lease_until = now() + '60 s'
 WHERE id = (SELECT id FROM bench.queue WHERE ready ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1)
RETURNING id, name, args, attempt \gset
\if :work
\sleep :work ms
\endif
DELETE FROM bench.queue WHERE id = :id AND attempt = :attempt;
