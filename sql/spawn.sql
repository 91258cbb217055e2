-- What a leased task enqueues under a step name is enqueued once, however often the task runs.
\i sql/include/helpers.sql
SELECT fanout.create_queue('agents', backoff => '0');
SELECT fanout.create_queue('tools');
SELECT fanout.create_queue('other tools');

SELECT fanout.enqueue('agents', 'agent') AS agent \gset
SELECT lease AS l1 FROM fanout.dequeue('agents') \gset
SELECT fanout.enqueue('tools', 'one', '{"a": 1}', lease => :l1, step => 'enqueue') AS one \gset
SELECT array_agg(task ORDER BY ordinal) AS many FROM fanout.enqueue_many('tools', 'many', '{1,2,3}', lease => :l1, step => 'enqueue_many') \gset
SELECT fanout.fan_out('tools', 'fan', '{10,20,30,40,50}', lease => :l1, step => 'fan_out') AS fan \gset
SELECT fanout.fan_out('tools', '{search,fetch}'::text[], '{1,2}', lease => :l1, step => 'fan_out names') AS named \gset
SELECT fanout.create_batch('n', 1, lease => :l1, step => 'create_batch') AS batch \gset
SELECT array_agg(task ORDER BY ordinal) AS none FROM fanout.enqueue_many('tools', 'many', '{}', lease => :l1, step => 'none') \gset
SELECT fanout.fan_out('tools', 'fan', '{}', lease => :l1, step => 'empty') AS empty \gset
SELECT count(*), bool_and(parent = :agent) AS child_of_the_agent FROM fanout.tasks WHERE queue = 'tools';

-- Again, in the same attempt: the same tasks and batches
CREATE VIEW test.spawned AS SELECT count(*) AS tasks, (SELECT count(*) FROM fanout.batches WHERE batch >= :fan) AS batches FROM fanout.tasks WHERE queue = 'tools';
SELECT * FROM test.spawned;
SELECT fanout.enqueue('tools', 'one', '{"a": 1}', lease => :l1, step => 'enqueue') = :one AS same;
SELECT array_agg(task ORDER BY ordinal) = :'many' AS same, array_agg(ordinal ORDER BY ordinal) AS ordinals
  FROM fanout.enqueue_many('tools', 'many', '{1,2,3}', lease => :l1, step => 'enqueue_many');
SELECT fanout.fan_out('tools', 'fan', '{10,20,30,40,50}', lease => :l1, step => 'fan_out') = :fan AS same;
SELECT fanout.fan_out('tools', '{search,fetch}'::text[], '{1,2}', lease => :l1, step => 'fan_out names') = :named AS same;
SELECT fanout.create_batch('n', 1, lease => :l1, step => 'create_batch') = :batch AS same;
SELECT count(*) FROM fanout.enqueue_many('tools', 'many', '{}', lease => :l1, step => 'none');
SELECT fanout.fan_out('tools', 'fan', '{}', lease => :l1, step => 'empty') = :empty AS same;
SELECT * FROM test.spawned;

-- The agent dies half-way; two of its tools have answered by then. Its next life gets the same batch, and they stay completed.
SELECT args, fanout.complete(lease, to_jsonb(args::int + 1)) FROM fanout.dequeue('tools', max_tasks => 6) WHERE name = 'fan';
SELECT fanout.fail(:l1, 'died') IS NOT NULL AS retried;
SELECT attempt, lease AS l2 FROM fanout.dequeue('agents') \gset
SELECT :attempt AS attempt;
SELECT fanout.fan_out('tools', 'fan', '{10,20,30,40,50}', lease => :l2, step => 'fan_out') = :fan AS same;
SELECT ordinal, status, result FROM fanout.collect(:fan, '0');
SELECT fanout.enqueue('tools', 'one', '{"a": 1}', lease => :l2, step => 'enqueue') = :one AS same;
SELECT array_agg(task ORDER BY ordinal) = :'many' AS same
  FROM fanout.enqueue_many('tools', 'many', '{1,2,3}', lease => :l2, step => 'enqueue_many');
SELECT fanout.create_batch('n', 1, lease => :l2, step => 'create_batch') = :batch AS same;
SELECT * FROM test.spawned;
-- promise 3: the life before can do nothing any more.
SELECT fanout.fan_out('tools', 'fan', '{10,20,30,40,50}', lease => :l1, step => 'fan_out');
SELECT fanout.enqueue('tools', 'one', '{"a": 1}', lease => :l1, step => 'enqueue');

-- Other arguments under the same step are an error: for enqueue ...
SELECT fanout.enqueue('tools', 'one', '{"a": 2}', lease => :l2, step => 'enqueue');
SELECT fanout.enqueue('tools', 'one', NULL, lease => :l2, step => 'enqueue');
SELECT fanout.enqueue('tools', 'two', '{"a": 1}', lease => :l2, step => 'enqueue');
SELECT fanout.enqueue('other tools', 'one', '{"a": 1}', lease => :l2, step => 'enqueue');
-- ... for enqueue_many ...
SELECT fanout.enqueue_many('tools', 'many', '{1,2,4}', lease => :l2, step => 'enqueue_many');
SELECT fanout.enqueue_many('tools', 'many', '{1,2}', lease => :l2, step => 'enqueue_many');
SELECT fanout.enqueue_many('tools', 'many', '{1,2,3,4}', lease => :l2, step => 'enqueue_many');
SELECT fanout.enqueue_many('tools', 'many', '{1,2,NULL}', lease => :l2, step => 'enqueue_many');
SELECT fanout.enqueue_many('tools', 'more', '{1,2,3}', lease => :l2, step => 'enqueue_many');
SELECT fanout.enqueue_many('tools', 'many', '{1}', lease => :l2, step => 'none');
-- ... for fan_out ...
SELECT fanout.fan_out('tools', 'fan', '{10,20,30,40,51}', lease => :l2, step => 'fan_out');
SELECT fanout.fan_out('tools', 'fan', '{20,10,30,40,50}', lease => :l2, step => 'fan_out');
SELECT fanout.fan_out('tools', 'fan', '{10,20,30,40}', lease => :l2, step => 'fan_out');
SELECT fanout.fan_out('tools', 'fun', '{10,20,30,40,50}', lease => :l2, step => 'fan_out');
SELECT fanout.fan_out('other tools', 'fan', '{10,20,30,40,50}', lease => :l2, step => 'fan_out');
SELECT fanout.fan_out('tools', 'fan', '{10,20,30,40,50}', 'any', lease => :l2, step => 'fan_out');
SELECT fanout.fan_out('tools', '{search,search}'::text[], '{1,2}', lease => :l2, step => 'fan_out names');
SELECT fanout.fan_out('tools', '{fetch,search}'::text[], '{1,2}', lease => :l2, step => 'fan_out names');
SELECT fanout.fan_out('tools', '{search,fetch}'::text[], '{2,1}', lease => :l2, step => 'fan_out names');
-- ... for create_batch ...
SELECT fanout.create_batch('n', 2, lease => :l2, step => 'create_batch');
SELECT fanout.create_batch('all', lease => :l2, step => 'create_batch');
-- ... and for another function under a step that has been used.
SELECT fanout.enqueue_many('tools', 'one', ARRAY['{"a": 1}'::jsonb], lease => :l2, step => 'enqueue');
SELECT fanout.enqueue('tools', 'fan', '10', lease => :l2, step => 'fan_out');
SELECT fanout.enqueue_many('tools', 'fan', '{10,20,30,40,50}', lease => :l2, step => 'fan_out');
SELECT fanout.create_batch(lease => :l2, step => 'fan_out');
SELECT fanout.fan_out('tools', 'many', '{1,2,3}', lease => :l2, step => 'enqueue_many');
SELECT * FROM test.spawned;

-- A step and a checkpoint of one name do not meet; nor do the steps of two tasks.
SELECT fanout.checkpoint(:l2, 'fan_out', '"mine"');
SELECT fanout.enqueue('agents', 'agent') > 0 AS enqueued;
SELECT lease AS l3 FROM fanout.dequeue('agents') \gset
SELECT fanout.enqueue('tools', 'one', '{"a": 1}', lease => :l3, step => 'enqueue') <> :one AS another;
SELECT fanout.fan_out('tools', 'fan', '{1}', lease => :l3, step => 'fan_out') <> :fan AS another;
-- jsonb that is equal is the same argument.
SELECT fanout.enqueue('tools', 'json', '{"b": 1, "a": 1.0}', lease => :l3, step => 'json') AS json \gset
SELECT fanout.enqueue('tools', 'json', '{ "a" : 1.0,"b":1 }', lease => :l3, step => 'json') = :json AS same;

-- What was rolled back is not remembered.
BEGIN;
SELECT fanout.enqueue('tools', 'never', '1', lease => :l3, step => 'rolled back') > 0 AS enqueued;
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT fanout.fan_out('tools', 'never', '{1}', lease => :l3, step => 'rolled back') > 0 AS enqueued;
ROLLBACK TO s;
SELECT fanout.enqueue('tools', 'once', '2', lease => :l3, step => 'rolled back') AS once \gset
SELECT fanout.enqueue('tools', 'once', '2', lease => :l3, step => 'rolled back') = :once AS same;
COMMIT;
SELECT fanout.enqueue('tools', 'once', '2', lease => :l3, step => 'rolled back') = :once AS same;
SELECT count(*) FROM fanout.tasks WHERE name = 'never';

-- A batch that grows, step by step
SELECT fanout.create_batch(lease => :l3, step => 'growing') AS growing \gset
SELECT fanout.enqueue('tools', 'g', '1', batch => :growing, lease => :l3, step => 'growing 1') AS g1 \gset
SELECT fanout.enqueue('tools', 'g', '2', batch => :growing, lease => :l3, step => 'growing 2') AS g2 \gset
SELECT fanout.enqueue('tools', 'g', '1', batch => :growing, lease => :l3, step => 'growing 1') = :g1 AS same;
SELECT fanout.enqueue('tools', 'g', '1', batch => NULL, lease => :l3, step => 'growing 1');
SELECT fanout.seal_batch(:growing);
-- The replay of a step goes through though the batch has been sealed since.
SELECT fanout.enqueue('tools', 'g', '2', batch => :growing, lease => :l3, step => 'growing 2') = :g2 AS same;
SELECT total, sealed FROM fanout.progress(:growing);

-- A step needs a lease, and a lease a step.
SELECT fanout.enqueue('tools', 'no step', lease => :l3);
SELECT fanout.enqueue('tools', 'no lease', step => 'step');
SELECT fanout.enqueue_many('tools', 'no lease', '{1}', step => 'step');
SELECT fanout.fan_out('tools', 'no lease', '{1}', step => 'step');
SELECT fanout.create_batch(step => 'step');
SELECT fanout.enqueue('tools', 'empty step', lease => :l3, step => '');

DROP VIEW test.spawned;
SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
