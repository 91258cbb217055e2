-- Over a backlog: complete the task held and dequeue the next, one call.
\if :lease
SELECT lease, name, args, attempt FROM fanout.complete_and_dequeue(:lease::bigint, NULL, :queue, :client_id) \gset
\else
SELECT lease, name, args, attempt FROM fanout.dequeue(:queue, :client_id) \gset
\endif
