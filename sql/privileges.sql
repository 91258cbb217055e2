-- promise 10: nothing of anyone else's. A role sees and touches the queues that it owns or was granted.
\i sql/include/helpers.sql
CREATE ROLE regress_fanout_owner;
CREATE ROLE regress_fanout_producer;
CREATE ROLE regress_fanout_worker;
CREATE ROLE regress_fanout_manager;
CREATE ROLE regress_fanout_team;
CREATE ROLE regress_fanout_member IN ROLE regress_fanout_team;
CREATE ROLE regress_fanout_stranger;
CREATE ROLE regress_fanout_nobody;

-- Without any grant there is nothing, not even the schema.
SET ROLE regress_fanout_nobody;
SELECT fanout.create_queue('q');
SELECT * FROM fanout.queues;
RESET ROLE;
-- Only a superuser lets a role in to have queues of its own.
SELECT fanout.grant_usage('regress_fanout_owner');
SELECT fanout.grant_usage('regress_fanout_stranger');
SET ROLE regress_fanout_owner;
SELECT fanout.grant_usage('regress_fanout_nobody');
RESET ROLE;

-- The owner can do everything with it.
SET ROLE regress_fanout_owner;
SELECT fanout.create_queue('q', max_attempts => 1);
SELECT owner FROM fanout.queues;
SELECT fanout.enqueue('q', 'a') > 0, fanout.enqueue('q', 'b') > 0, fanout.enqueue('q', 'c', delay => '1 hour') > 0;
SELECT fanout.fan_out('q', 'd', '{1,2}') AS batch \gset
SELECT fanout.create_batch() AS open_batch \gset
SELECT name FROM fanout.dequeue('q', 'w', max_tasks => 2);
SELECT test.lease('a') AS a, test.lease('b') AS b, test.task('b') AS task_b, test.task('c') AS c \gset
SELECT fanout.checkpoint(:a, 'step', '1');
SELECT fanout.fail(:a, 'oh');
SELECT test.states('q');
SELECT (SELECT count(*) FROM fanout.tasks) AS tasks, (SELECT count(*) FROM fanout.batches) AS batches, (SELECT count(*) FROM fanout.leases) AS leases,
       (SELECT count(*) FROM fanout.workers) AS workers, (SELECT count(*) FROM fanout.attempts WHERE task = (SELECT test.task('a'))) AS attempts;
SELECT fanout.wait(:batch, '0');
RESET ROLE;

-- What follows is tried by several roles: each call with what is expected of it.
CREATE TABLE test.calls (i int GENERATED ALWAYS AS IDENTITY, call text, needs text);
INSERT INTO test.calls (call, needs) VALUES
	($$fanout.enqueue('q', 'x')$$, 'enqueue'),
	($$fanout.enqueue_many('q', 'x', '{1}')$$, 'enqueue'),
	($$fanout.enqueue_many('q', 'x', '{}')$$, 'enqueue'),
	($$fanout.fan_out('q', 'x', '{1}')$$, 'enqueue'),
	($$fanout.fan_out('q', '{x}'::text[], '{1}')$$, 'enqueue'),
	(format($$fanout.reprioritize(%s, 0)$$, :c), 'enqueue'),
	(format($$fanout.reprioritize(ARRAY[%s::bigint], 0)$$, :c), 'enqueue'),
	(format($$fanout.reschedule(%s, delay => '1 hour')$$, :c), 'enqueue'),
	(format($$fanout.move(%s, 'q')$$, :c), 'enqueue'),
	($$fanout.cancel_matching('q', name => 'none')$$, 'enqueue'),
	($$fanout.dequeue('q')$$, 'dequeue'),
	($$fanout.dequeue('{q}'::text[])$$, 'dequeue'),
	($$fanout.complete_and_dequeue(NULL::bigint, NULL, 'q')$$, 'dequeue'),
	($$fanout.complete_and_dequeue(NULL::bigint[], NULL, 'q')$$, 'dequeue'),
	(format($$fanout.complete(%s)$$, :b), 'dequeue'),
	(format($$fanout.complete(ARRAY[%s::bigint])$$, :b), 'dequeue'),
	(format($$fanout.fail(%s)$$, :b), 'dequeue'),
	(format($$fanout.fail(ARRAY[%s::bigint])$$, :b), 'dequeue'),
	(format($$fanout.release(%s)$$, :b), 'dequeue'),
	(format($$fanout.release(ARRAY[%s::bigint])$$, :b), 'dequeue'),
	(format($$fanout.extend(%s)$$, :b), 'dequeue'),
	(format($$fanout.extend(ARRAY[%s::bigint])$$, :b), 'dequeue'),
	(format($$fanout.checkpoint(%s, 'step', '1')$$, :b), 'dequeue'),
	($$fanout.alter_queue('q', concurrency => 1)$$, 'manage'),
	($$fanout.pause_queue('q')$$, 'manage'),
	($$fanout.resume_queue('q')$$, 'manage'),
	($$fanout.purge_queue('q')$$, 'manage'),
	($$fanout.drop_queue('q', force => true)$$, 'manage'),
	($$fanout.grant_queue('q', 'regress_fanout_nobody')$$, 'manage'),
	($$fanout.revoke_queue('q', 'regress_fanout_nobody')$$, 'manage'),
	(format($$fanout.result(%s, '0')$$, :task_b), 'any'),
	(format($$fanout.wait(ARRAY[%s::bigint], '0')$$, :task_b), 'any'),
	(format($$fanout.collect(%s, '0')$$, :batch), 'owner'),
	(format($$fanout.wait(%s, '0')$$, :batch), 'owner'),
	(format($$fanout.progress(%s)$$, :batch), 'owner'),
	(format($$fanout.seal_batch(%s)$$, :open_batch), 'owner'),
	($$(SELECT 1 / count(*) FROM fanout.queues WHERE queue = 'q')$$, 'to see');
GRANT SELECT ON test.calls TO PUBLIC;
CREATE FUNCTION test.try_calls() RETURNS TABLE (needs text, sqlstates text, calls bigint) LANGUAGE sql AS $$
	SELECT needs, string_agg(DISTINCT sqlstate, ' '), count(*)
	  FROM (SELECT needs, test.sqlstate_of('SELECT ' || call) AS sqlstate FROM test.calls ORDER BY i) AS c GROUP BY needs ORDER BY needs
$$;
SET ROLE regress_fanout_owner;
SELECT * FROM test.try_calls();
-- Somebody with a queue of his own has nothing to do with this one: no verb, and no view.
SET ROLE regress_fanout_stranger;
SELECT fanout.create_queue('own');
SELECT fanout.enqueue('own', 'mine') > 0 AS enqueued;
SELECT name FROM fanout.dequeue('own', 'w');
SELECT * FROM test.try_calls();
SELECT test.sqlstate_of(format('SELECT fanout.cancel(%s)', :c)) AS cancel, test.sqlstate_of(format('SELECT fanout.cancel(ARRAY[%s::bigint])', :c)) AS cancel_many,
       test.sqlstate_of(format('SELECT fanout.retry(%s)', :c)) AS retry, test.sqlstate_of(format('SELECT fanout.enqueue(''own'', ''x'', batch => %s)', :open_batch)) AS enqueue_to_batch,
       test.sqlstate_of(format('SELECT fanout.enqueue(''own'', ''x'', lease => %s, step => ''step'')', :b)) AS enqueue_under_lease;
SELECT test.sqlstate_of(format('SELECT fanout.move(%s, ''own'')', :c)) AS move_from, test.sqlstate_of(format('SELECT fanout.move(%s, ''q'')', test.task('mine'))) AS move_to;
CALL fanout.wait_batch(:batch, '0', NULL);
CALL fanout.dequeue_wait('q', 'w', '0', NULL);
SELECT queue FROM fanout.queues;
SELECT queue, name FROM fanout.tasks;
SELECT * FROM fanout.batches;
SELECT queue, worker FROM fanout.leases;
SELECT worker, leases, queues FROM fanout.workers;
SELECT test.becomes($$ EXISTS (SELECT FROM fanout.attempts) $$);
SELECT queue, worker FROM fanout.attempts;
-- One worker's name, two roles' queues: each has its own leases.
SELECT fanout.heartbeat('w');
SET ROLE regress_fanout_owner;
SELECT fanout.heartbeat('w');
-- Nobody else's lease, of either kind
SELECT count(*) FROM fanout.leases WHERE queue = 'own';
RESET ROLE;
SELECT count(*) FROM fanout.queues WHERE queue IN ('q', 'own');

-- The tables, and what only the views use, are for nobody.
SET ROLE regress_fanout_owner;
SELECT relname, test.sqlstate_of(format('SELECT FROM fanout.%I', relname)) AS read, test.sqlstate_of(format('DELETE FROM fanout.%I', relname)) AS write
  FROM pg_class WHERE relnamespace = 'fanout'::regnamespace AND relkind = 'r' ORDER BY relname COLLATE "C";
SELECT test.sqlstate_of($$SELECT nextval('fanout.task_id')$$), test.sqlstate_of($$SELECT setval('fanout.lease_id', 1)$$), test.sqlstate_of('SELECT fanout._register()'), test.sqlstate_of('SELECT fanout._next_segment()');
SELECT test.sqlstate_of('SELECT fanout._violations()');
SELECT test.sqlstate_of('SELECT fanout._points()'), test.sqlstate_of($$SELECT fanout._set_point('claim-made', 'kill')$$);
SET ROLE regress_fanout_stranger;
-- They tell nothing that the views would not.
SELECT count(*) FROM fanout._live_leases();
SELECT count(*) FROM fanout._live_queues();
SELECT worker FROM fanout._live_task(:task_b, (SELECT 1), NULL);

--
-- grant_queue: each privilege by itself
--
SET ROLE regress_fanout_owner;
SELECT fanout.grant_queue('q', 'regress_fanout_producer', '{enqueue}');
SELECT fanout.grant_queue('q', 'regress_fanout_worker', '{dequeue}');
SELECT fanout.grant_queue('q', 'regress_fanout_manager', '{manage}');
SET ROLE regress_fanout_producer;
SELECT * FROM test.try_calls();
SELECT fanout.enqueue('q', 'of the producer') AS task \gset
SELECT fanout.cancel(:task);
SELECT fanout.retry(:task);
SELECT fanout.cancel(:task);
SELECT fanout.fan_out('q', 'of the producer', '{1,2}') AS batch \gset
SELECT total FROM fanout.progress(:batch);
SELECT count(*) FROM fanout.batches;
SELECT fanout.create_queue('not allowed');
SET ROLE regress_fanout_worker;
SELECT * FROM test.try_calls();
SELECT test.states('q');
SET ROLE regress_fanout_manager;
SELECT * FROM test.try_calls();
-- Both by default; again is no error.
SET ROLE regress_fanout_owner;
SELECT fanout.grant_queue('q', 'regress_fanout_team');
SELECT fanout.grant_queue('q', 'regress_fanout_team');
-- A grant is for the members of the role, too.
SET ROLE regress_fanout_member;
SELECT * FROM test.try_calls();
-- Revoked, it is gone at once, one by one or all together; what was not granted is no error.
SET ROLE regress_fanout_owner;
SELECT fanout.revoke_queue('q', 'regress_fanout_team', '{dequeue}');
SELECT fanout.revoke_queue('q', 'regress_fanout_team', '{dequeue,manage}');
SET ROLE regress_fanout_member;
SELECT * FROM test.try_calls();
SET ROLE regress_fanout_owner;
SELECT fanout.revoke_queue('q', 'regress_fanout_team');
SET ROLE regress_fanout_member;
SELECT * FROM test.try_calls();
-- Rolled back, neither happened.
SET ROLE regress_fanout_owner;
BEGIN;
SELECT fanout.grant_queue('q', 'regress_fanout_team');
ROLLBACK;
SET ROLE regress_fanout_member;
SELECT test.sqlstate_of($$SELECT fanout.enqueue('q', 'x')$$);
RESET ROLE;
-- A manager can pass on.
SET ROLE regress_fanout_manager;
SELECT fanout.grant_queue('q', 'regress_fanout_nobody', '{enqueue}');
SET ROLE regress_fanout_nobody;
SELECT fanout.enqueue('q', 'x') > 0 AS enqueued;
-- Bad input
SET ROLE regress_fanout_owner;
SELECT fanout.grant_queue('q', 'regress_fanout_team', '{everything}');
SELECT fanout.grant_queue('q', 'regress_fanout_team', '{enqueue,NULL}');
SELECT fanout.grant_queue('q', 'no_such_role');
SELECT fanout.grant_queue('q', 0);
SELECT fanout.grant_queue('q', NULL);
SELECT fanout.grant_queue('no such queue', 'regress_fanout_team');
SELECT fanout.revoke_queue('q', 'regress_fanout_team', '{everything}');
SELECT fanout.revoke_queue('no such queue', 'regress_fanout_team');
SELECT fanout.revoke_queue('q', NULL);
RESET ROLE;
SELECT fanout.grant_usage('no_such_role');
SELECT fanout.grant_usage(NULL);

-- What counts is the current role: a function of the owner's can let others in.
GRANT CREATE ON SCHEMA test TO regress_fanout_owner;
SET ROLE regress_fanout_owner;
CREATE FUNCTION test.on_behalf() RETURNS boolean LANGUAGE sql SECURITY DEFINER AS $$ SELECT fanout.enqueue('q', 'on behalf') > 0 $$;
SET ROLE regress_fanout_stranger;
SELECT test.on_behalf();
SELECT fanout.enqueue('q', 'x');
RESET ROLE;
-- Our own statements do not see the caller's search_path: nothing of it runs with more rights than the caller has.
CREATE SCHEMA regress_fanout_evil AUTHORIZATION regress_fanout_owner;
SET ROLE regress_fanout_owner;
CREATE FUNCTION regress_fanout_evil.trap(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN RAISE EXCEPTION 'trapped as %', current_user USING ERRCODE = 'EVIL0'; END $$;
CREATE FUNCTION regress_fanout_evil.trap(int, int) RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN RAISE EXCEPTION 'trapped as %', current_user USING ERRCODE = 'EVIL0'; END $$;
CREATE FUNCTION regress_fanout_evil.trap(text, text) RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN RAISE EXCEPTION 'trapped as %', current_user USING ERRCODE = 'EVIL0'; END $$;
CREATE OPERATOR regress_fanout_evil.= (FUNCTION = regress_fanout_evil.trap, LEFTARG = bigint, RIGHTARG = bigint);
CREATE OPERATOR regress_fanout_evil.= (FUNCTION = regress_fanout_evil.trap, LEFTARG = int, RIGHTARG = int);
CREATE OPERATOR regress_fanout_evil.= (FUNCTION = regress_fanout_evil.trap, LEFTARG = text, RIGHTARG = text);
\c -
SET ROLE regress_fanout_owner;
CREATE TEMP TABLE task (id bigint);
CREATE TEMP TABLE queue (id int, name text, owner oid);
SET search_path = regress_fanout_evil, pg_temp, fanout, pg_catalog;
SELECT 1 = 1 AS trapped;
SELECT fanout.purge_queue('q') > 0 AS purged;
SELECT fanout.enqueue('q', 'one') AS one \gset
SELECT fanout.fan_out('q', 'two', '{1,2}') AS two \gset
SELECT name, lease FROM fanout.dequeue('q', 'w2') \gset
SELECT fanout.checkpoint(:lease, 'step', '1');
SELECT fanout.checkpoint(:lease, 'step', '2');
SELECT fanout.fan_out('q', 'two', '{1,2}', lease => :lease, step => 'fan_out') > 0 AS first;
SELECT fanout.fan_out('q', 'two', '{1,2}', lease => :lease, step => 'fan_out') > 0 AS again;
SELECT fanout.heartbeat('w2'), fanout.complete(:lease, '3');
SELECT fanout.complete(:lease, '3');
SELECT status, result FROM fanout.result(:one, '0');
SELECT ordinal, status FROM fanout.collect(:two, '0');
SELECT total, ready FROM fanout.progress(:two);
SELECT fanout.alter_queue('q', concurrency => 2), fanout.pause_queue('q'), fanout.resume_queue('q'), fanout.grant_queue('q', 'regress_fanout_team');
SELECT fanout.cancel(task), fanout.retry(task) FROM fanout.collect(:two, '0') LIMIT 1;
SELECT state FROM fanout.tasks ORDER BY task DESC LIMIT 4;
SELECT concurrency, ready FROM fanout.queues;
RESET search_path;
SET client_min_messages = warning;
DROP SCHEMA regress_fanout_evil CASCADE;
RESET client_min_messages;
RESET ROLE;

-- A role of any name can be let in.
CREATE ROLE "regress_fanout ""odd"", 'role'";
SELECT fanout.grant_queue('q', '"regress_fanout ""odd"", ''role''"', '{enqueue}');
SET ROLE "regress_fanout ""odd"", 'role'";
SELECT fanout.enqueue('q', 'x') > 0 AS enqueued;
RESET ROLE;
DROP OWNED BY "regress_fanout ""odd"", 'role'";
DROP ROLE "regress_fanout ""odd"", 'role'";

-- A superuser may do everything, and gets no owner's name for it.
SELECT count(*) FROM fanout.tasks WHERE queue = 'q' AND name = 'on behalf';
SELECT fanout.pause_queue('q'), fanout.resume_queue('q');
-- The queue goes; its grants go with it.
SELECT fanout.drop_queue('q', force => true);
SELECT count(*) FROM fanout.queue_grant;
SET ROLE regress_fanout_stranger;
SELECT fanout.create_queue('q');
SET ROLE regress_fanout_producer;
SELECT fanout.enqueue('q', 'x');
RESET ROLE;

SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
DROP TABLE test.calls;
DROP FUNCTION test.try_calls, test.on_behalf;
DROP OWNED BY regress_fanout_owner, regress_fanout_producer, regress_fanout_worker, regress_fanout_manager, regress_fanout_team,
	regress_fanout_member, regress_fanout_stranger, regress_fanout_nobody;
DROP ROLE regress_fanout_owner, regress_fanout_producer, regress_fanout_worker, regress_fanout_manager, regress_fanout_team,
	regress_fanout_member, regress_fanout_stranger, regress_fanout_nobody;
