\set ECHO none
-- For every test, first line: \i sql/include/helpers.sql
\set VERBOSITY sqlstate
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_fanout;
CREATE SCHEMA IF NOT EXISTS test;
GRANT USAGE ON SCHEMA test TO PUBLIC;

-- The SQLSTATE that a statement ends with, rolled back whatever it is.
CREATE OR REPLACE FUNCTION test.sqlstate_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		EXECUTE statement;
		RAISE SQLSTATE 'UNDO0';
	EXCEPTION WHEN OTHERS THEN
		RETURN CASE SQLSTATE WHEN 'UNDO0' THEN '00000' ELSE SQLSTATE END;
	END;
END
$$;

-- Is a condition met, now or within half a minute? Each look has a snapshot of its own.
CREATE OR REPLACE FUNCTION test.becomes(condition text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	patience timestamptz := clock_timestamp() + '30 s';
	met boolean;
BEGIN
	LOOP
		EXECUTE 'SELECT (' || condition || ')' INTO met;
		IF met OR clock_timestamp() > patience THEN
			RETURN coalesce(met, false);
		END IF;
		PERFORM pg_sleep(0.005), pg_stat_clear_snapshot();
	END LOOP;
END
$$;

-- The states of a queue's tasks, in the order of their enqueue: "a ready, b running".
CREATE OR REPLACE FUNCTION test.states(queue_name text) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(name || ' ' || state, ', ' ORDER BY task) FROM fanout.tasks WHERE queue = queue_name
$$;

-- The latest task of that name, and the live lease on it
CREATE OR REPLACE FUNCTION test.task(task_name text) RETURNS bigint LANGUAGE sql AS $$
	SELECT max(task) FROM fanout.tasks WHERE name = task_name
$$;
CREATE OR REPLACE FUNCTION test.lease(task_name text) RETURNS bigint LANGUAGE sql AS $$
	SELECT lease FROM fanout.leases WHERE task = (SELECT test.task(task_name))
$$;
RESET client_min_messages;
\set ECHO all
