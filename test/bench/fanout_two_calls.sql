-- Enqueue one task; complete the one held and dequeue the next. The first time there is none to complete.
SELECT fanout.enqueue(:queue, 'index_document', :args);
\if :lease
SELECT lease, name, args, attempt FROM fanout.complete_and_dequeue(:lease::bigint, NULL, :queue, :client_id) \gset
\else
SELECT lease, name, args, attempt FROM fanout.dequeue(:queue, :client_id) \gset
\endif
