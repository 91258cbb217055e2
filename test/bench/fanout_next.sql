-- Over a backlog, in a queue whose concurrency may be used up: complete the task held and dequeue the next, one call; who
-- holds none waits. The lease ends with the session, so that those who wait at the end of the measurement do not wait on.
\if :lease
SELECT lease, name, args, attempt
  FROM fanout.complete_and_dequeue(:lease::bigint, NULL, :queue, :client_id, bind_to_session => true) \gset
\else
SELECT lease, name, args, attempt
  FROM fanout.dequeue(:queue, :client_id, wait => '10 s', bind_to_session => true) \gset
\endif
