-- Enqueue one task; complete the one held and dequeue the next. The first time there is none to complete.
SELECT fanout.enqueue('cycle', 'index_document', :args);
\if :lease
SELECT lease, name, args, attempt FROM fanout.complete_and_dequeue(:lease::bigint, NULL, 'cycle', :client_id) \gset
\else
SELECT lease, name, args, attempt FROM fanout.dequeue('cycle', :client_id) \gset
\endif
