-- Enqueue one task that is more urgent than those which wait, dequeue and complete it, three calls.
SELECT fanout.enqueue(:queue, 'index_document', :args, priority => -1);
SELECT lease, name, args, attempt FROM fanout.dequeue(:queue, :client_id) \gset
SELECT fanout.complete(:lease::bigint);
