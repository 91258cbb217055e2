-- promise 1: enqueue, checkpoint, complete, fail and all the rest happen in the caller's transaction.
\i sql/include/helpers.sql
CREATE EXTENSION dblink;
SELECT dblink_connect('other', format('host=%s port=%s dbname=%I user=%I', split_part(current_setting('unix_socket_directories'), ',', 1),
	current_setting('port'), current_database(), current_user));
CREATE TABLE test.effects (what text);

SELECT fanout.create_queue('q', concurrency => 2, backoff => '0');

--
-- enqueue
--
BEGIN;
SELECT fanout.enqueue('q', 'never') > 0 AS enqueued;
INSERT INTO test.effects VALUES ('never');
SELECT count(*) FROM fanout.enqueue_many('q', 'never', '{1,2}');
SELECT fanout.fan_out('q', 'never', '{1,2}') AS batch \gset
ROLLBACK;
SELECT test.states('q'), (SELECT count(*) FROM test.effects) AS effects;
SELECT scheduled, ready, running, enqueued FROM fanout.queues WHERE queue = 'q';
SELECT fanout.progress(:batch);
SELECT name FROM fanout.dequeue('q');

-- Before the commit nobody has it, not even its own transaction; with the commit everybody can, at once.
BEGIN;
SELECT fanout.enqueue('q', 'a') > 0 AS enqueued;
SELECT name FROM fanout.dequeue('q');
SELECT * FROM dblink('other', $$SELECT count(*) FROM fanout.tasks WHERE queue = 'q'$$) AS (tasks bigint);
SELECT * FROM dblink('other', $$SELECT ready FROM fanout.queues WHERE queue = 'q'$$) AS (ready bigint);
SELECT * FROM dblink('other', $$SELECT name FROM fanout.dequeue('q', wait => '10 ms')$$) AS (name text);
COMMIT;
SELECT * FROM dblink('other', $$SELECT name FROM fanout.dequeue('q')$$) AS (name text);
SELECT count(fanout.complete(lease)) FROM fanout.leases WHERE queue = 'q';

-- Savepoints: what was rolled back to is as if it had not been.
BEGIN;
SELECT fanout.enqueue('q', 'b') > 0 AS enqueued;
SAVEPOINT one;
SELECT fanout.enqueue('q', 'not c') > 0 AS enqueued;
SAVEPOINT two;
SELECT fanout.enqueue('q', 'not d') > 0 AS enqueued;
RELEASE two;
ROLLBACK TO one;
SELECT fanout.enqueue('q', 'e') > 0 AS enqueued;
SAVEPOINT three;
SELECT fanout.enqueue('q', 'f') > 0 AS enqueued;
SAVEPOINT four;
SELECT fanout.enqueue('q', 'g') > 0 AS enqueued;
RELEASE three;
SAVEPOINT five;
SELECT fanout.enqueue('q', 'not h') > 0 AS enqueued;
ROLLBACK TO five;
COMMIT;
SELECT test.states('q');
SELECT ready FROM fanout.queues WHERE queue = 'q';
-- An error that a block catches
DO $$
BEGIN
	PERFORM fanout.enqueue('q', 'h');
	BEGIN
		PERFORM fanout.enqueue('q', 'not i');
		PERFORM 1 / 0;
	EXCEPTION WHEN division_by_zero THEN
		PERFORM fanout.enqueue('q', 'j');
	END;
END
$$;
SELECT test.states('q');
-- A queue of one's own making, in one transaction with its tasks
BEGIN;
SELECT fanout.create_queue('new');
SELECT fanout.enqueue('new', 'a') > 0 AS enqueued;
SELECT fanout.alter_queue('new', concurrency => 1);
SELECT fanout.enqueue('new', 'b') > 0 AS enqueued;
SELECT name FROM fanout.dequeue('new');
COMMIT;
SELECT concurrency, ready FROM fanout.queues WHERE queue = 'new';
SELECT name FROM fanout.dequeue('new', max_tasks => 2);
SELECT fanout.drop_queue('new', force => true);

--
-- dequeue
--
-- A claim that is rolled back comes back at once, in its place, and was no attempt.
SELECT fanout.alter_queue('q', unset => '{concurrency}');
BEGIN;
SELECT name, attempt FROM fanout.dequeue('q', max_tasks => 2);
SELECT test.states('q');
SELECT running, ready FROM fanout.queues WHERE queue = 'q';
ROLLBACK;
SELECT running, ready FROM fanout.queues WHERE queue = 'q';
BEGIN;
SELECT name, attempt FROM fanout.dequeue('q');
SAVEPOINT s;
SELECT name, attempt, lease FROM fanout.dequeue('q', max_tasks => 2) ORDER BY name LIMIT 1 \gset undone_
SELECT :'undone_name' AS name, :undone_attempt AS attempt;
ROLLBACK TO s;
-- The lease went with it.
SELECT test.sqlstate_of(format('SELECT fanout.complete(%s)', :undone_lease)) AS complete;
SELECT name, attempt FROM fanout.dequeue('q');
SELECT running FROM fanout.queues WHERE queue = 'q';
COMMIT;
SELECT test.states('q');
-- Uncommitted claims are seen by others; their leases are not there yet.
BEGIN;
SELECT name, lease FROM fanout.dequeue('q') \gset
SELECT :'name' AS name;
SELECT * FROM dblink('other', format($$SELECT test.sqlstate_of('SELECT fanout.complete(%s)')$$, :lease)) AS (complete text);
SELECT * FROM dblink('other', $$SELECT committed, count(*) FROM fanout.leases GROUP BY 1 ORDER BY 1$$) AS (committed boolean, count bigint);
SELECT * FROM dblink('other', $$SELECT name FROM fanout.dequeue('q', max_tasks => 2)$$) AS (name text);
ROLLBACK;
SELECT * FROM dblink('other', $$SELECT name FROM fanout.dequeue('q', max_tasks => 2)$$) AS (name text);
SELECT test.states('q');

-- As many as do not fit into memory, undone
SELECT fanout.create_queue('large');
BEGIN;
SELECT fanout.fan_out('large', 'never', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 40000) i)) > 0 AS enqueued;
ROLLBACK;
SELECT scheduled, ready, running, in_memory, enqueued FROM fanout.queues WHERE queue = 'large';
SELECT fanout.fan_out('large', 'n', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 40000) i)) > 0 AS enqueued;
BEGIN;
SELECT count(*), min(args::int), max(args::int) FROM fanout.dequeue('large', max_tasks => 10000);
SAVEPOINT s;
SELECT count(*), min(args::int), max(args::int) FROM fanout.dequeue('large', max_tasks => 10000);
ROLLBACK TO s;
SELECT count(*), min(args::int), max(args::int) FROM fanout.dequeue('large', max_tasks => 5000);
SELECT ready, running FROM fanout.queues WHERE queue = 'large';
ROLLBACK;
SELECT ready, running FROM fanout.queues WHERE queue = 'large';
SELECT args, attempt FROM fanout.dequeue('large', max_tasks => 3);
SELECT fanout.drop_queue('large', force => true);

--
-- complete, fail, release
--
SELECT test.lease('b') AS b, test.lease('e') AS e, test.lease('f') AS f, test.lease('g') AS g, test.lease('h') AS h \gset
BEGIN;
INSERT INTO test.effects VALUES ('never');
SELECT fanout.complete(:b, '"never"');
SELECT fanout.complete(:b, '"never"') AS again_in_the_transaction;
SELECT fanout.fail(:e, 'never', final => true);
SELECT fanout.release(:f);
SELECT running FROM fanout.queues WHERE queue = 'q';
-- An end that is not committed has freed nothing yet.
SELECT * FROM dblink('other', $$SELECT name FROM fanout.dequeue('q')$$) AS (name text);
ROLLBACK;
SELECT test.states('q');
SELECT running FROM fanout.queues WHERE queue = 'q';
SELECT count(*) FROM test.effects;
-- promise 2: with its effect in the same transaction, a task takes effect once.
BEGIN;
INSERT INTO test.effects VALUES ('b');
SELECT fanout.complete(:b, '"done"');
SAVEPOINT s;
SELECT fanout.complete(:e, '"never"');
INSERT INTO test.effects VALUES ('never');
ROLLBACK TO s;
SELECT fanout.complete(:e, '"done after all"');
SAVEPOINT s;
SELECT fanout.fail(:f, 'never', final => true);
ROLLBACK TO s;
SELECT fanout.fail(:f, 'failed', final => true);
SAVEPOINT s;
SELECT fanout.release(:g);
ROLLBACK TO s;
COMMIT;
SELECT * FROM test.effects;
SELECT name, state, result, error, attempt FROM fanout.tasks WHERE queue = 'q' ORDER BY task;
-- What ended in a transaction has ended for all of it, and once.
BEGIN;
SELECT fanout.release(:g);
SELECT test.sqlstate_of(format('SELECT fanout.complete(%s)', :g)) AS complete, test.sqlstate_of(format('SELECT fanout.fail(%s)', :g)) AS fail,
       test.sqlstate_of(format('SELECT fanout.checkpoint(%s, ''step'', NULL)', :g)) AS checkpoint;
COMMIT;
SELECT fanout.complete(:g);
-- Claimed and ended in one transaction
BEGIN;
SELECT name, attempt, lease AS g2 FROM fanout.dequeue('q') \gset
SELECT :'name' AS name, :attempt AS attempt;
SELECT fanout.complete(:g2, '1');
ROLLBACK;
SELECT test.states('q');
BEGIN;
SELECT lease AS g2 FROM fanout.dequeue('q') \gset
SELECT fanout.complete(:g2, '2');
COMMIT;
SELECT name, state, attempt, result FROM fanout.tasks WHERE queue = 'q' AND name = 'g';
SELECT fanout.complete(:g2) AS again;
BEGIN;
SAVEPOINT s;
SELECT fanout.complete(:h);
RELEASE s;
COMMIT;
SELECT test.states('q');

--
-- checkpoint
--
SELECT fanout.create_queue('steps');
SELECT fanout.enqueue('steps', 'a') > 0 AS enqueued;
SELECT lease FROM fanout.dequeue('steps') \gset
BEGIN;
SELECT fanout.checkpoint(:lease, 'one', '"never"');
ROLLBACK;
BEGIN;
SELECT fanout.checkpoint(:lease, 'one', '"first"');
SAVEPOINT s;
SELECT fanout.checkpoint(:lease, 'two', '"never"');
SELECT fanout.checkpoint(:lease, 'one', '"second"');
ROLLBACK TO s;
SELECT fanout.checkpoint(:lease, 'two', '"third"');
COMMIT;
SELECT fanout.release(:lease);
SELECT name, checkpoints FROM fanout.dequeue('steps');

--
-- batches, cancel and retry
--
BEGIN;
SELECT fanout.fan_out('q', 'x', '{1,2}') AS batch \gset
SAVEPOINT s;
SELECT fanout.create_batch() AS open_batch \gset
SELECT fanout.enqueue('q', 'never', batch => :open_batch) > 0 AS enqueued;
ROLLBACK TO s;
COMMIT;
SELECT total, ready FROM fanout.progress(:batch);
SELECT fanout.seal_batch(:open_batch);
SELECT fanout.create_batch() AS open_batch \gset
BEGIN;
SELECT fanout.enqueue('q', 'never', batch => :open_batch) > 0 AS enqueued;
SELECT fanout.seal_batch(:open_batch);
ROLLBACK;
SELECT total, sealed FROM fanout.progress(:open_batch);
SELECT task AS x1 FROM fanout.collect(:batch, '0') WHERE ordinal = 1 \gset
BEGIN;
SELECT fanout.cancel(:x1);
SELECT state FROM fanout.tasks WHERE task = :x1;
SELECT * FROM dblink('other', $$SELECT name, args FROM fanout.dequeue('q')$$) AS (name text, args jsonb);
ROLLBACK;
SELECT state FROM fanout.tasks WHERE task = :x1;
BEGIN;
SAVEPOINT s;
SELECT fanout.cancel(:x1);
ROLLBACK TO s;
COMMIT;
SELECT name, args FROM fanout.dequeue('q');
SELECT count(fanout.release(lease)) FROM fanout.leases WHERE task = :x1;
SELECT fanout.cancel(:x1);
BEGIN;
SELECT fanout.retry(:x1);
ROLLBACK;
SELECT state FROM fanout.tasks WHERE task = :x1;
SELECT args FROM fanout.dequeue('q');
BEGIN;
SELECT fanout.retry(:x1);
SELECT args FROM fanout.dequeue('q');
COMMIT;
SELECT args FROM fanout.dequeue('q');
SELECT count(fanout.complete(lease)) FROM fanout.leases WHERE queue = 'q';

--
-- queues
--
BEGIN;
SELECT fanout.create_queue('never');
SELECT fanout.enqueue('never', 'a') > 0 AS enqueued;
ROLLBACK;
SELECT fanout.enqueue('never', 'a');
BEGIN;
SELECT fanout.create_queue('mine');
SAVEPOINT s;
SELECT fanout.create_queue('never');
SELECT fanout.enqueue('never', 'a') > 0 AS enqueued;
SELECT fanout.enqueue('mine', 'not a') > 0 AS enqueued;
ROLLBACK TO s;
SELECT test.sqlstate_of($$SELECT fanout.enqueue('never', 'a')$$);
SELECT fanout.enqueue('mine', 'b') > 0 AS enqueued;
COMMIT;
SELECT queue, ready FROM fanout.queues WHERE queue IN ('never', 'mine');

BEGIN;
SELECT fanout.alter_queue('mine', concurrency => 1);
SELECT fanout.pause_queue('mine');
ROLLBACK;
SELECT concurrency, paused FROM fanout.queues WHERE queue = 'mine';
SELECT fanout.enqueue('mine', 'c') > 0 AS enqueued;
SELECT name FROM fanout.dequeue('mine', max_tasks => 2);
BEGIN;
SELECT fanout.alter_queue('mine', concurrency => 3);
SAVEPOINT s;
SELECT fanout.alter_queue('mine', concurrency => 4, max_attempts => 8);
SELECT fanout.pause_queue('mine');
ROLLBACK TO s;
SELECT fanout.alter_queue('mine', max_attempts => 9);
COMMIT;
SELECT concurrency, max_attempts, paused FROM fanout.queues WHERE queue = 'mine';
SELECT count(*) FROM fanout.enqueue_many('mine', 'd', '{1,2,3}');
SELECT name, max_attempts FROM fanout.dequeue('mine', max_tasks => 9);

SELECT fanout.alter_queue('mine', unset => '{concurrency}');
BEGIN;
SELECT fanout.purge_queue('mine');
SELECT * FROM dblink('other', $$SELECT name FROM fanout.dequeue('mine', max_tasks => 9)$$) AS (name text);
ROLLBACK;
SELECT scheduled, ready, running FROM fanout.queues WHERE queue = 'mine';
BEGIN;
SAVEPOINT s;
SELECT fanout.drop_queue('mine', force => true);
SELECT * FROM dblink('other', $$SELECT name FROM fanout.dequeue('mine')$$) AS (name text);
ROLLBACK TO s;
COMMIT;
SELECT scheduled, ready, running FROM fanout.queues WHERE queue = 'mine';
SELECT name, args FROM fanout.dequeue('mine');
SELECT fanout.complete(test.lease('c'));
-- Dropped and created again in one transaction: a new queue
BEGIN;
SELECT fanout.drop_queue('mine', force => true);
SELECT fanout.create_queue('mine');
SELECT fanout.enqueue('mine', 'of the new one') > 0 AS enqueued;
COMMIT;
SELECT concurrency, scheduled, ready, running FROM fanout.queues WHERE queue = 'mine';
SELECT name FROM fanout.dequeue('mine', max_tasks => 9);

-- What a transaction enqueues, or gives another life, and purges: either it is cancelled or it is given out, not both.
SELECT fanout.create_queue('purged');
SELECT fanout.enqueue('purged', 'retried') AS retried \gset
SELECT fanout.cancel(:retried);
BEGIN;
SELECT fanout.retry(:retried);
SELECT fanout.enqueue('purged', 'a') > 0 AS enqueued;
SELECT count(*) FROM fanout.enqueue_many('purged', 'b', '{1,2}');
SELECT fanout.purge_queue('purged') IN (0, 4) AS all_or_none;
COMMIT;
SELECT count(*) FILTER (WHERE state = 'ready') AS ready, count(*) FILTER (WHERE state = 'cancelled') AS cancelled FROM fanout.tasks WHERE queue = 'purged' \gset
SELECT :ready + :cancelled AS tasks, ready = :ready AS counted, scheduled, running FROM fanout.queues WHERE queue = 'purged';
SELECT count(*) = :ready AS given_out FROM fanout.dequeue('purged', max_tasks => 9);
SELECT count(fanout.complete(lease)) = :ready AS completed FROM fanout.leases WHERE queue = 'purged';
SELECT ready, running FROM fanout.queues WHERE queue = 'purged';

--
-- The other isolation levels: what is dequeued may be newer than the transaction's snapshot.
--
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM fanout.tasks WHERE name = 'newer';
SELECT * FROM dblink('other', $$SELECT fanout.enqueue('q', 'newer', '{"a": 1}') > 0$$) AS (enqueued boolean);
SELECT name, args FROM fanout.dequeue('q');
COMMIT;
SELECT lease FROM fanout.leases WHERE queue = 'q' \gset
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT fanout.checkpoint(:lease, 'step', '1');
SELECT fanout.complete(:lease, '2');
COMMIT;
SELECT state, result FROM fanout.tasks WHERE name = 'newer';

--
-- Tables that others fill, as a restore does: memory is built anew, also where an error of ours was caught before in that
-- transaction. It may come between two statements of ours,
--
CREATE PROCEDURE test.restore_task(task_name text) LANGUAGE sql AS $$
	INSERT INTO fanout.task_1 (id, enqueued_at, queue, name)
	SELECT (SELECT max(id) FROM fanout.task) + 1, now(), id, task_name FROM fanout.queue WHERE name = 'q'
$$;
SELECT fanout.enqueue('q', 'parent') > 0 AS enqueued;
SELECT lease FROM fanout.dequeue('q') \gset
SELECT fanout.enqueue('q', 'child', lease => :lease, step => 's', delay => '1 hour') > 0 AS enqueued;
BEGIN;
SELECT test.sqlstate_of(format($$SELECT fanout.enqueue('q', 'another', lease => %s, step => 's')$$, :lease)) AS other_arguments;
CALL test.restore_task('restored');
COMMIT;
SELECT test.becomes($$(SELECT ready = 1 FROM fanout.queues WHERE queue = 'q')$$) AS found;
SELECT name FROM fanout.dequeue('q');
-- or within one.
SELECT * FROM dblink('other', $$BEGIN; SELECT fanout.alter_queue('q', max_attempts => 7)$$) AS (altered text);
BEGIN;
SET LOCAL lock_timeout = '10 ms';
SELECT test.sqlstate_of($$SELECT fanout.alter_queue('q', max_attempts => 8)$$) AS locked;
CALL test.restore_task('restored too');
COMMIT;
SELECT dblink_exec('other', 'COMMIT');
SELECT test.becomes($$(SELECT ready = 1 FROM fanout.queues WHERE queue = 'q')$$) AS found;
SELECT name FROM fanout.dequeue('q');
-- What we fill ourselves is known: whatever was caught, nothing is built anew.
SELECT rebuilds FROM fanout.stats \gset
BEGIN;
SELECT test.sqlstate_of(format($$SELECT fanout.enqueue('q', 'another', lease => %s, step => 's')$$, :lease)) AS other_arguments;
SELECT fanout.create_queue('unnoticed', rate_limit => 10, rate_period => '1 s');
SELECT fanout.set_partition('unnoticed', 'p', concurrency => 1);
COMMIT;
-- The keeper has been awake since: it has ended a lease.
SELECT count(*) FROM fanout.enqueue_many('unnoticed', 'short', '{1}', max_attempts => 1);
SELECT name FROM fanout.dequeue('unnoticed', lease => '1 ms');
SELECT test.becomes($$(SELECT state = 'failed' FROM fanout.tasks WHERE queue = 'unnoticed')$$) AS ended;
SELECT rebuilds = :rebuilds AS nothing_was_rebuilt FROM fanout.stats;
DROP PROCEDURE test.restore_task;

SELECT dblink_disconnect('other');
SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
DROP TABLE test.effects;
DROP EXTENSION dblink;
