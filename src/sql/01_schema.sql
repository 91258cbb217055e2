-- pg_fanout 0.1.0: the install script is the parts of src/sql/, in the order of their names.
\echo Use "CREATE EXTENSION pg_fanout" to load this file. \quit

-- The schema is created here, not named in the control file, so that it belongs to the extension and goes with it.
CREATE SCHEMA fanout;
COMMENT ON SCHEMA fanout IS 'durable queues and fan-out: tasks, leases, checkpoints, batches';
REVOKE ALL ON SCHEMA fanout FROM PUBLIC;

-- Fails, in words, where the library is not preloaded; tells the launcher that this database wants a keeper.
CREATE FUNCTION fanout._register() RETURNS void
    AS 'MODULE_PATHNAME', 'fanout_register' LANGUAGE C STRICT;
SELECT fanout._register();
