-- The floor: a bare INSERT of a row like a task's, and its commit.
INSERT INTO bench.floor (queue, name, args) VALUES (1, 'index_document', :args);
