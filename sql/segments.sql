-- The log in segments: all rows of a task are in the segment of its id, and what a call names may be in several.
\i sql/include/helpers.sql
SELECT fanout.create_queue('q', backoff => '0', max_attempts => 2), fanout.create_queue('other');
SELECT fanout.create_queue('keyed');
SELECT fanout.enqueue('keyed', 'waits', key => 'a', delay => '1 day') AS waits \gset
CREATE FUNCTION test.segment_of(task bigint) RETURNS smallint LANGUAGE sql AS $$
	SELECT slot FROM fanout.segment WHERE first_task <= task ORDER BY first_task DESC LIMIT 1
$$;
-- Rows that are elsewhere than in the segment of their task.
CREATE FUNCTION test.misplaced() RETURNS TABLE (task bigint, relation text) LANGUAGE sql AS $$
	WITH segments AS (SELECT slot, first_task, lead(first_task) OVER (ORDER BY first_task) AS next FROM fanout.segment WHERE first_task IS NOT NULL)
	SELECT r.* FROM (SELECT id, tableoid::regclass::text FROM fanout.task UNION ALL SELECT task, tableoid::regclass::text FROM fanout.attempt
		UNION ALL SELECT task, tableoid::regclass::text FROM fanout.checkpoint UNION ALL SELECT task, tableoid::regclass::text FROM fanout.outcome) AS r (task, relation)
	  JOIN segments s ON r.task >= s.first_task AND (r.task < s.next OR s.next IS NULL)
	 WHERE r.relation !~ ('_' || s.slot || '$')
$$;

-- A batch that grows over three of them
SELECT fanout.create_batch() AS batch \gset
SELECT count(*) FROM fanout.enqueue_many('q', 'first', '{1,2,3,4,5,6}', batch => :batch);
SELECT fanout._next_segment();
SELECT slot, first_task FROM fanout.segment ORDER BY first_task LIMIT 1;
SELECT count(*), bool_and(task >= first_task) AS above FROM fanout.enqueue_many('q', 'second', '{1,2,3,4,5,6}', batch => :batch), fanout.segment WHERE slot = 2;
-- It moves on whatever becomes of the transaction, and tasks that were numbered before stay where they are.
BEGIN;
SELECT fanout.enqueue('q', 'numbered before', batch => :batch) > 0 AS enqueued;
SELECT fanout._next_segment();
SELECT count(*) FROM fanout.enqueue_many('q', 'third', '{1,2,3,4,5}', batch => :batch);
SAVEPOINT s;
SELECT count(*) FROM fanout.enqueue_many('q', 'rolled back', '{1,2}', batch => :batch);
ROLLBACK TO s;
COMMIT;
-- A key is held whatever segment its task is in.
SELECT fanout.enqueue('keyed', 'again', key => 'a') = :waits AS returned, fanout.enqueue('keyed', 'changed', key => 'a', on_conflict => 'replace') = :waits AS replaced;
SELECT fanout.enqueue('keyed', 'new', key => 'a', on_conflict => 'supersede') > :waits AS new_task;
SELECT fanout.drop_queue('keyed', true);
SELECT fanout.seal_batch(:batch);
SELECT name, test.segment_of(task), count(*) FROM fanout.tasks WHERE queue = 'q' GROUP BY 1, 2 ORDER BY min(task);
SELECT total, ready FROM fanout.progress(:batch);

-- Work, in the order of the ids, with checkpoints and ends of every kind
SELECT name, args, attempt FROM fanout.dequeue('q', 'w', max_tasks => 18);
CREATE TABLE held AS SELECT lease, task, t.name, t.args FROM fanout.leases l JOIN fanout.tasks t USING (task, lease);
SELECT count(fanout.checkpoint(lease, 'read', to_jsonb(task))) FROM held;
SELECT count(fanout.checkpoint(lease, 'read', '"again"')) FROM held;
SELECT bool_and(value = to_jsonb(task)) AS first_write_wins, count(*) FROM fanout.checkpoint JOIN held USING (task);
SELECT count(*) FROM fanout.complete((SELECT array_agg(lease ORDER BY lease) FROM held WHERE args < '3'), (SELECT array_agg(args ORDER BY lease) FROM held WHERE args < '3'));
SELECT fanout.complete(lease) FROM held WHERE args = '1';
SELECT count(*) FROM fanout.fail((SELECT array_agg(lease) FROM held WHERE args = '3'), 'no good', final => true);
SELECT count(*) FROM fanout.fail((SELECT array_agg(lease) FROM held WHERE args = '4'), 'not yet');
SELECT count(*) FROM fanout.release((SELECT array_agg(lease) FROM held WHERE args = '5'));
SELECT fanout.complete(lease, '"before"') FROM held WHERE name = 'numbered before';
SELECT count(*) FROM fanout.cancel((SELECT array_agg(task) FROM held WHERE args = '4'), 'given up');
SELECT * FROM test.misplaced();
SELECT t.name, t.args, state, attempt, result, error FROM fanout.tasks t WHERE queue = 'q' ORDER BY task;
-- Another life, for those of two segments; it comes with its checkpoints.
SELECT count(*) FROM fanout.retry((SELECT array_agg(task) FROM held WHERE args = '3' AND name <> 'second'));
SELECT test.segment_of(d.task) AS segment, d.args, d.attempt, d.checkpoints = jsonb_build_object('read', d.task) AS checkpoints FROM fanout.dequeue('q', max_tasks => 2) d;
SELECT fanout.complete(lease, '"second life"') FROM fanout.dequeue('q', max_tasks => 2);
SELECT test.becomes('(SELECT count(*) = 4 FROM fanout.attempts a JOIN fanout.leases l USING (task, lease))') AS journaled;
SELECT count(fanout.complete(l.lease)) FROM fanout.leases l JOIN held USING (task);
SELECT name, args, state FROM fanout.tasks WHERE queue = 'q' AND finished_at IS NULL;
SELECT fanout.enqueue('other', 'stays') > 0 AS enqueued;
SELECT fanout.purge_queue('q');
SELECT ordinal, status, result, error FROM fanout.collect(:batch, '10 s');
SELECT total, succeeded, failed, cancelled, ended FROM fanout.progress(:batch);
SELECT * FROM test.misplaced();
SELECT test.states('other');

-- All tasks of a queue, over all segments
SELECT count(*) FROM fanout.enqueue_many('q', 'in the third', '{1,2}');
SELECT fanout._next_segment();
SELECT count(*) FROM fanout.enqueue_many('q', 'in the fourth', '{1,2}');
SELECT fanout.purge_queue('q');
SELECT count(*) FROM fanout.enqueue_many('q', 'left', '{1,2}');

-- None is left.
SELECT fanout._next_segment();
\set VERBOSITY default
SELECT fanout._next_segment();
\set VERBOSITY sqlstate
SELECT slot, first_task > 0 AS later FROM fanout.segment ORDER BY first_task;
SELECT fanout.enqueue('q', 'goes on') > 0 AS enqueued;
-- Retired by hand, the first is used again.
SELECT max(id) AS old FROM fanout.task_1 \gset
SELECT value AS since FROM fanout.status() WHERE item = 'ready since' \gset
BEGIN;
TRUNCATE fanout.task_1, fanout.attempt_1, fanout.checkpoint_1, fanout.outcome_1;
DELETE FROM fanout.segment WHERE slot = 1;
COMMIT;
SELECT test.becomes(format($$(SELECT value <> %L FROM fanout.status() WHERE item = 'ready since')$$, :'since')) AS rebuilt;
SELECT fanout._next_segment();
SELECT fanout._next_segment();
SELECT fanout.cancel(:old), fanout.cancel(-1);
SELECT fanout.retry(:old);
SELECT fanout.result(:old);
SELECT test.segment_of(fanout.enqueue('q', 'in the first')) AS segment;
SELECT name, attempt FROM fanout.dequeue('q', max_tasks => 10);
SELECT count(fanout.complete(lease)) FROM fanout.leases;
SELECT * FROM test.misplaced();

SELECT fanout.purge_queue('other');
SELECT fanout.drop_queue('q'), fanout.drop_queue('other');
