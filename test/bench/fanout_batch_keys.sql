-- Enqueue, dequeue and complete 100 tasks of 100 partitions, three calls.
SELECT count(task) FROM fanout.enqueue_many(:queue, 'index_document', array_fill(:args::jsonb, '{100}'),
    partition_keys => :keys::text[]);
SELECT array_agg(lease) AS leases FROM fanout.dequeue(:queue, :client_id, max_tasks => 100) \gset
SELECT count(*) FROM fanout.complete(:leases::bigint[]);
