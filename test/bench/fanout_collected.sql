-- A worker of the fan-out that is collected: complete what it holds, with its args as results, and take some more.
SELECT coalesce(array_agg(lease), '{}') AS leases, coalesce(array_agg(args), '{}') AS results
  FROM fanout.complete_and_dequeue(:leases::bigint[], :results::jsonb[], 'collected', 'worker-' || :worker,
           max_tasks => :batch, wait => '1 h') \gset
