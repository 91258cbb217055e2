-- Enqueue, dequeue and complete one task, three calls. "work" is in milliseconds.
SELECT fanout.enqueue(:queue, 'index_document', :args);
SELECT lease, name, args, attempt FROM fanout.dequeue(:queue, :client_id) \gset
\if :work
\sleep :work ms
\endif
SELECT fanout.complete(:lease::bigint);
