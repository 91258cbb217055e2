CREATE FUNCTION fanout.collect(batch bigint, timeout interval DEFAULT NULL,
    OUT ordinal bigint, OUT task bigint, OUT status text, OUT result jsonb, OUT error text)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'fanout_collect' LANGUAGE C VOLATILE ROWS 1000;
COMMENT ON FUNCTION fanout.collect IS 'waits for the batch to end, then its tasks in the order of the fan-out';

CREATE FUNCTION fanout.result(task bigint, timeout interval DEFAULT NULL,
    OUT status text, OUT result jsonb, OUT error text)
    RETURNS record AS 'MODULE_PATHNAME', 'fanout_result' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.result IS 'waits for the task to end, then its state and what it gave';

CREATE FUNCTION fanout.wait(tasks bigint[], timeout interval DEFAULT NULL) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_wait_tasks' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.wait(bigint[], interval) IS 'waits for the tasks to end; true if all have';

CREATE FUNCTION fanout.wait(batch bigint, timeout interval DEFAULT NULL) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_wait_batch' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.wait(bigint, interval) IS 'waits for the batch to end by its join; true if it has';

CREATE PROCEDURE fanout.wait_batch(batch bigint, timeout interval, INOUT ended boolean DEFAULT NULL)
    AS 'MODULE_PATHNAME', 'fanout_call_wait_batch' LANGUAGE C;
COMMENT ON PROCEDURE fanout.wait_batch IS 'waits for the batch to end, holding no snapshot';

CREATE FUNCTION fanout.progress(batch bigint,
    OUT total bigint, OUT scheduled bigint, OUT ready bigint, OUT running bigint, OUT succeeded bigint, OUT failed bigint,
    OUT cancelled bigint, OUT sealed boolean, OUT ended boolean, OUT per_second float8, OUT time_left interval,
    OUT gone bigint)
    RETURNS record AS 'MODULE_PATHNAME', 'fanout_progress' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.progress IS 'how many tasks of the batch are in which state, how fast they end, and how long the rest will take';
