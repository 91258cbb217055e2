\i sql/include/helpers.sql
-- Every argument of a public function that is an interval or a time, found in pg_proc, with the ends of what there is.
-- Each call gives a result or an error that is the caller's, loses nothing, and does not get the keeper into trouble.
SET pg_fanout.max_wait = '1 ms';
SET timezone = 'UTC';

-- (Infinite intervals, which PostgreSQL has from 17 on, are no longer than the longest of these.)
CREATE TABLE test.value (type regtype, n int, value text);
INSERT INTO test.value SELECT 'interval', row_number() OVER (), * FROM unnest('{
	0, 1 us, -1 us, -1 day, 1 mon -30 days, 1 mon -31 days, 36500 days, 36500 days 1 us, 36500 days 23 h, 178000000 years, -178000000 years,
	2147483647 mons 2147483647 days 2562047788 hours, -2147483648 mons -2147483648 days -2562047788 hours,
	2147483647 mons -2147483648 days}'::text[]);
INSERT INTO test.value SELECT 'timestamptz', row_number() OVER (), * FROM unnest(ARRAY[
	'infinity', '-infinity', '4714-11-24 00:00:00+00 BC', '1999-12-31 23:59:59.999999+00', '2000-01-01 00:00:00+00',
	'294276-12-31 23:59:59.999999+00']);

-- What the calls are given beside it: what they need, and what goes with the argument.
CREATE TABLE test.given (argument text, type regtype, expression text);
INSERT INTO test.given VALUES
	('queue', 'text', '%1$L'), ('queue', 'text[]', 'ARRAY[%1$L]'), ('name', 'text', '''made'''), ('names', 'text[]', '''{made,made}'''),
	('args', 'jsonb', '''{}'''), ('args', 'jsonb[]', '''{1,2}'''), ('key', 'text', '''key'''), ('period', 'interval', '''1 hour'''),
	('worker', 'text', '%1$L'), ('rate_limit', 'int', '1000000'), ('partition_rate_limit', 'int', '1000000'), ('rate_period', 'interval', '''1 s'''),
	('partition_key', 'text', '''p'''), ('until', 'timestamptz', 'now()'),
	('task', 'bigint', '(SELECT max(task) FROM fanout.tasks WHERE queue = %1$L AND name = ''waits'')'),
	('tasks', 'bigint[]', '(SELECT array_agg(task) FROM fanout.tasks WHERE queue = %1$L AND name = ''waits'')'),
	('lease', 'bigint', '(SELECT max(lease) FROM fanout.leases WHERE queue = %1$L)'),
	('leases', 'bigint[]', '(SELECT array_agg(lease) FROM fanout.leases WHERE queue = %1$L)'),
	('result', 'jsonb', '''{}'''), ('results', 'jsonb[]', 'NULL'),
	('batch', 'bigint', '(SELECT min(batch) FROM fanout.batches)'),
	('priority', 'int', '0');
CREATE FUNCTION test.expression(function text, argument text, type regtype, queue text) RETURNS text LANGUAGE sql AS $$
	SELECT CASE WHEN function = 'create_queue' AND argument = 'queue' THEN quote_literal(queue || ' made')
				ELSE (SELECT format(g.expression, queue) FROM test.given g WHERE (g.argument, g.type) = ($2, $3)) END
$$;
CREATE TABLE test.call (n int PRIMARY KEY, function text, argument text, type regtype, value text, queue text, statement text, state text);
WITH argument AS (
	SELECT p.oid, p.proname, a.* FROM pg_proc p
	 CROSS JOIN LATERAL unnest(p.proargnames, p.proargtypes::regtype[]) WITH ORDINALITY a (argument, type, place)
	 WHERE p.pronamespace = 'fanout'::regnamespace AND p.proname !~ '^_' AND p.prokind = 'f' AND a.place <= p.pronargs),
tried AS (
	SELECT a.*, v.value, format('q%s', row_number() OVER order_of) AS queue, row_number() OVER order_of AS n
	  FROM argument a JOIN test.value v USING (type)
	WINDOW order_of AS (ORDER BY a.proname, a.oid, a.place, v.n))
INSERT INTO test.call
SELECT t.n, t.proname, t.argument, t.type, t.value, t.queue, format('SELECT count(*) FROM fanout.%I(%s)', t.proname,
	   (SELECT string_agg(format('%I => %s', a.argument, CASE WHEN a.place = t.place THEN format('%L::%s', t.value, t.type)
							ELSE test.expression(t.proname, a.argument, a.type, t.queue) END), ', ' ORDER BY a.place)
		  FROM argument a JOIN pg_proc p USING (oid)
		 WHERE a.oid = t.oid AND (a.place = t.place OR a.place <= p.pronargs - p.pronargdefaults OR
			   (t.argument, a.argument) IN (('rate_period', 'rate_limit'), ('partition_rate_period', 'partition_rate_limit'), ('key_ttl', 'key')))))
  FROM tried t;

SELECT value AS keeper FROM fanout.status() WHERE item = 'keeper pid' \gset
SELECT fanout.create_batch() AS batch \gset

-- Each in a queue with a task that waits and one that runs
CREATE PROCEDURE test.run(which int) LANGUAGE plpgsql AS $$
DECLARE
	call test.call;
BEGIN
	SELECT * INTO call FROM test.call c WHERE c.n = which;
	PERFORM fanout.create_queue(call.queue, backoff => '0');
	COMMIT;
	PERFORM fanout.enqueue(call.queue, 'runs', priority => -1), fanout.enqueue(call.queue, 'waits', partition_key => 'p');
	COMMIT;
	PERFORM fanout.dequeue(call.queue, worker => call.queue);
	COMMIT;
	BEGIN
		EXECUTE call.statement;
		call.state := 'ok';
	EXCEPTION WHEN OTHERS THEN
		call.state := SQLSTATE;
		IF SQLSTATE ~ '^XX' THEN
			RAISE WARNING '%: %', call.statement, SQLERRM;
		END IF;
	END;
	UPDATE test.call c SET state = call.state WHERE c.n = which;
	COMMIT;
END $$;
DO $$ BEGIN FOR i IN 1 .. (SELECT max(n) FROM test.call) LOOP CALL test.run(i); END LOOP; END $$;

-- What is refused, and what is taken: one line for each argument
SELECT function, argument, string_agg(DISTINCT state, ' ') FILTER (WHERE state <> 'ok') AS refused_with,
	   string_agg(value, ', ' ORDER BY n) FILTER (WHERE state = 'ok') AS taken
  FROM test.call GROUP BY function, argument ORDER BY 1, 2;

-- Nothing is lost: of each queue the two tasks, and what the call has made, are counted, and can be worked off
-- (55006: the aging of a queue that has tasks)
SELECT statement, state AS other_error FROM test.call WHERE state IS NULL OR state !~ '^(ok|22023|55006)$';
SELECT queue, q.scheduled, q.ready, q.running, t.* FROM fanout.queues q JOIN test.call USING (queue)
 CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE state = 'scheduled'), count(*) FILTER (WHERE state = 'ready'), count(*) FILTER (WHERE state = 'running'),
						 count(*) FILTER (WHERE name IN ('runs', 'waits')) FROM fanout.tasks t WHERE t.queue = q.queue) t (s, r, u, own)
 WHERE (q.scheduled, q.ready, q.running, 2) IS DISTINCT FROM (s, r, u, own);
DO $$
DECLARE
	name text;
BEGIN
	FOR name IN SELECT queue FROM fanout.queues ORDER BY queue LOOP
		PERFORM fanout.dequeue(name, worker => name, max_tasks => 100);
		COMMIT;
		PERFORM fanout.complete(ARRAY(SELECT lease FROM fanout.leases l WHERE l.queue = name));
		COMMIT;
	END LOOP;
END $$;
SELECT DISTINCT c.function, c.argument, c.value, t.state FROM fanout.tasks t JOIN test.call c USING (queue) WHERE t.state IN ('ready', 'running') AND c.value <> '1 us' ORDER BY 1, 2, 3;
SELECT t.state, count(*), count(*) FILTER (WHERE t.run_at > now() + '100 years' - interval '1 day') AS in_100_years, bool_and(c.function IN ('enqueue', 'enqueue_many', 'fan_out', 'fail', 'release', 'reschedule', 'debounce')) AS expected
  FROM fanout.tasks t JOIN test.call c USING (queue) WHERE t.state IN ('failed', 'cancelled') OR t.run_at > now() + '1 minute' GROUP BY 1 ORDER BY 1;
SELECT DISTINCT c.function, t.error FROM fanout.tasks t JOIN test.call c USING (queue) WHERE t.state IN ('failed', 'cancelled') ORDER BY 1, 2;

-- Procedures, which wait for as long as they are told: not when what they wait for is there
SELECT fanout.create_queue('waited for');
SELECT fanout.enqueue('waited for', 'ready') AS ready, fanout.create_batch() AS ended \gset
SELECT fanout.seal_batch(:ended);
SELECT format('CALL fanout.dequeue_wait(''waited for'', ''w'', %L)', value) FROM test.value WHERE type = 'interval'::regtype ORDER BY n \gexec
\set ECHO none
SELECT format('CALL fanout.wait_batch(%s, %L)', :ended, value) FROM test.value WHERE type = 'interval'::regtype ORDER BY n \gexec
\set ECHO all

-- The keeper is the same, and has written all
SELECT value = :'keeper' AS same_keeper, test.becomes($$(SELECT value LIKE '0 %' FROM fanout.status() WHERE item = 'journal lag')$$) AS journaled
  FROM fanout.status() WHERE item = 'keeper pid';
DROP TABLE test.value, test.given;
SELECT count(fanout.drop_queue(queue, force => true)) > 700 AS dropped FROM fanout.queues;
