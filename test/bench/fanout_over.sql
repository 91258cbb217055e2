-- Over a backlog that is not all in memory: complete the task held and dequeue the next; if there is none at the moment,
-- wait for one.
\if :lease
SELECT coalesce(max(lease), 0) AS lease, max(name) AS name, max(args::text) AS task_args, max(attempt) AS attempt
  FROM fanout.complete_and_dequeue(:lease::bigint, NULL, :queue, :client_id) \gset
\endif
\if :lease
\else
SELECT lease, name, args AS task_args, attempt FROM fanout.dequeue(:queue, :client_id, wait => '10 s') \gset
\endif
