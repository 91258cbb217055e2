-- How long finished tasks are kept: settings, and queues that keep them for a shorter time.
\i sql/include/helpers.sql
SELECT fanout.create_queue('q'), fanout.create_queue('short', retention => '100 ms'), fanout.create_queue('long', retention => '100 years');
SELECT queue, retention FROM fanout.queues ORDER BY 1;
SELECT fanout.create_queue('x', retention => '0'), fanout.create_queue('x', retention => '-1 s');
SELECT fanout.alter_queue('q', retention => '0');
SELECT fanout.alter_queue('q', retention => '1 day', unset => '{retention}');
SELECT fanout.alter_queue('q', retention => '1 day');
SELECT fanout.alter_queue('q');
SELECT retention FROM fanout.queues WHERE queue = 'q';
SELECT fanout.alter_queue('q', unset => '{retention}');
SELECT retention FROM fanout.queues WHERE queue = 'q';

-- What is finished goes, with checkpoints and attempts; what is not stays, and so does a batch as a whole.
SELECT fanout.create_batch() AS growing \gset
SELECT fanout.create_batch() AS abandoned \gset
SELECT fanout.enqueue('short', 'of a batch', batch => :growing) > 0 AS enqueued;
SELECT fanout.enqueue('short', 'of another', batch => :abandoned) AS abandoned_task \gset
SELECT fanout.enqueue('short', 'done') AS done, fanout.enqueue('short', 'fails') AS fails, fanout.enqueue('short', 'held', key => 'k', key_ttl => '1 day') AS held \gset
SELECT fanout.fan_out('short', 'whole', '{1,2,3}') AS whole \gset
SELECT count(fanout.checkpoint(lease, 'read', '1')), count(CASE WHEN name = 'fails' THEN fanout.fail(lease, 'no', final => true)::text ELSE fanout.complete(lease)::text END) FROM fanout.dequeue('short', 'w', max_tasks => 8);
SELECT fanout.enqueue('q', 'waits', batch => :growing) > 0 AS enqueued;
SELECT fanout.seal_batch(:growing);
SELECT fanout.enqueue('q', 'kept') > 0 AS enqueued;
SELECT fanout.complete(lease) FROM fanout.dequeue('q', 'w', max_tasks => 2) WHERE name = 'kept';
SELECT test.becomes('(SELECT count(*) = 4 FROM fanout.task WHERE queue IN (SELECT id FROM fanout.queue))') AS removed;
SELECT name, state FROM fanout.tasks ORDER BY task;
SELECT count(*) FROM fanout.checkpoint c WHERE NOT EXISTS (SELECT FROM fanout.task t WHERE t.id = c.task);
SELECT count(*) FROM fanout.attempt a WHERE NOT EXISTS (SELECT FROM fanout.task t WHERE t.id = a.task) AND task >= :abandoned_task;
-- A batch whose tasks are gone goes as well; in one that is not sealed they are gone.
SELECT test.becomes(format('(SELECT NOT EXISTS (SELECT FROM fanout.batch WHERE id = %s))', :whole)) AS removed;
SELECT * FROM fanout.collect(:whole, '0');
SELECT ordinal, status, result, error FROM fanout.collect(:abandoned, '0');
SELECT total, ready, gone, ended FROM fanout.progress(:abandoned);
SELECT fanout.seal_batch(:abandoned);
SELECT fanout.wait(:abandoned::bigint, '10 s');
SELECT status FROM fanout.collect(:growing, '0');
SELECT fanout.result(:done), fanout.retry(:done);
SELECT fanout.cancel(:done);
SELECT fanout.why(:done);
SELECT fanout.wait(ARRAY[:done], '1 s');
SELECT count(*) FROM fanout.retry(ARRAY[:done, :fails]);
SELECT fanout.enqueue('short', 'again', key => 'k') = :held AS held_by_what_stays;
-- The batch that goes on has ended now, and goes, once its queue keeps it no longer.
SELECT fanout.alter_queue('short', retention => '1 day');
SELECT count(fanout.complete(lease)) FROM fanout.leases;
SELECT status FROM fanout.collect(:growing, '10 s');
SELECT fanout.alter_queue('short', retention => '100 ms');
SELECT test.becomes('(SELECT NOT EXISTS (SELECT FROM fanout.tasks WHERE name = ''of a batch''))') AS removed;
-- So does the one that was sealed when its tasks were gone, with the next that are removed.
SELECT test.becomes(format('(SELECT NOT EXISTS (SELECT FROM fanout.batch WHERE id = %s))', :abandoned)) AS removed;
-- A partition of which only a task runs that had a time is known by that
SELECT fanout.create_queue('named', retention => '1 ms');
SELECT fanout.enqueue('named', 'timed', partition_key => 'k', delay => '1 ms') > 0 AS enqueued;
SELECT name FROM fanout.dequeue('named', 'w', wait => '10 s');
SELECT fanout.enqueue('named', 'removed', partition_key => 'k') AS removed \gset
SELECT name, fanout.complete(lease) FROM fanout.dequeue('named', 'w');
SELECT test.becomes(format('(SELECT NOT EXISTS (SELECT FROM fanout.task WHERE id = %s))', :removed)) AS removed;
SELECT partition_key, running FROM fanout.partitions WHERE queue = 'named';
-- and a fair group by the latest of its tasks
SELECT fanout.enqueue('named', 'removed', partition_key => 'l', fair_group => 'g') AS removed,
       fanout.enqueue('named', 'stays', partition_key => 'l', fair_group => 'g') > 0 AS enqueued \gset
SELECT name, fanout.complete(lease) FROM fanout.dequeue('named', 'w');
SELECT test.becomes(format('(SELECT NOT EXISTS (SELECT FROM fanout.task WHERE id = %s))', :removed)) AS removed;
SELECT partition_key, fair_group, ready, running FROM fanout.partitions WHERE queue = 'named' ORDER BY 1;
SELECT fanout.drop_queue('named', force => true);
-- Segments
SELECT count(*) FILTER (WHERE state = 'current') AS current, bool_and(bytes > 0) AS have_bytes, count(kept_because) AS kept FROM fanout.segments;
SELECT fanout.purge_queue('short');
SELECT fanout.drop_queue('q'), fanout.drop_queue('short'), fanout.drop_queue('long');
