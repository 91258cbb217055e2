-- What three calls cost at least, of a queue that keeps tasks and outcomes: an INSERT of each, and a look at the row by
-- its key in between. The queue itself is not there.
INSERT INTO bench.floor (queue, name, args) VALUES (1, 'index_document', :args) RETURNING id \gset
SELECT id, name, args, priority FROM bench.floor WHERE id = :id::bigint \gset
INSERT INTO bench.floor_outcome (task) VALUES (:id::bigint);
