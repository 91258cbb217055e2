-- Enqueue one task.
SELECT fanout.enqueue(:queue, 'index_document', :args);
