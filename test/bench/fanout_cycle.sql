-- Enqueue, dequeue and complete one task, three calls. "work" is in milliseconds.
SELECT fanout.enqueue('cycle', 'index_document', :args);
SELECT lease, name, args, attempt FROM fanout.dequeue('cycle', :client_id) \gset
\if :work
\sleep :work ms
\endif
SELECT fanout.complete(:lease::bigint);
