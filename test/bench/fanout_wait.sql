-- Over a backlog: a worker that waits until it may have a task, and completes it. There is no work in between.
SELECT lease, name, args, attempt FROM fanout.dequeue(:queue, :client_id, wait => '10 s') \gset
SELECT fanout.complete(:lease::bigint);
