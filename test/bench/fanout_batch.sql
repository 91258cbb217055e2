-- Enqueue, dequeue and complete 100 tasks, three calls.
SELECT count(task) FROM fanout.enqueue_many(:queue, 'index_document', array_fill(:args::jsonb, '{100}'));
SELECT array_agg(lease) AS leases FROM fanout.dequeue(:queue, :client_id, max_tasks => 100) \gset
\if :work
\sleep :work ms
\endif
SELECT count(*) FROM fanout.complete(:leases::bigint[]);
