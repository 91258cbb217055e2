CREATE FUNCTION fanout.enqueue(
    queue text, name text, args jsonb DEFAULT NULL, priority int DEFAULT 0, delay interval DEFAULT NULL,
    run_at timestamptz DEFAULT NULL, max_attempts int DEFAULT NULL, batch bigint DEFAULT NULL,
    lease bigint DEFAULT NULL, step text DEFAULT NULL, partition_key text DEFAULT NULL, cost int DEFAULT 1,
    key text DEFAULT NULL, on_conflict text DEFAULT NULL, key_ttl interval DEFAULT NULL, deadline timestamptz DEFAULT NULL,
    fair_group text DEFAULT NULL)
    RETURNS bigint AS 'MODULE_PATHNAME', 'fanout_enqueue' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.enqueue IS 'adds one task to a queue, in the caller''s transaction; its id, or that of the task that holds the key';

CREATE FUNCTION fanout.debounce(
    queue text, name text, key text, args jsonb, period interval, max_wait interval DEFAULT NULL, priority int DEFAULT 0,
    max_attempts int DEFAULT NULL, partition_key text DEFAULT NULL, cost int DEFAULT 1)
    RETURNS bigint AS 'MODULE_PATHNAME', 'fanout_debounce' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.debounce IS 'has a task run once no call with the key has come for the period, with the args of the last one; its id';

CREATE FUNCTION fanout.enqueue_many(
    queue text, name text, args jsonb[], priority int DEFAULT 0, delay interval DEFAULT NULL,
    run_at timestamptz DEFAULT NULL, max_attempts int DEFAULT NULL, batch bigint DEFAULT NULL,
    lease bigint DEFAULT NULL, step text DEFAULT NULL, partition_key text DEFAULT NULL, cost int DEFAULT 1,
    partition_keys text[] DEFAULT NULL, deadline timestamptz DEFAULT NULL,
    fair_group text DEFAULT NULL,
    OUT ordinal bigint, OUT task bigint)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'fanout_enqueue_many' LANGUAGE C VOLATILE ROWS 1000;
COMMENT ON FUNCTION fanout.enqueue_many IS 'adds one task for each element of args; their ids in order';

CREATE FUNCTION fanout.fan_out(
    queue text, name text, args jsonb[], "join" text DEFAULT 'all', join_count bigint DEFAULT NULL,
    priority int DEFAULT 0, delay interval DEFAULT NULL, run_at timestamptz DEFAULT NULL,
    max_attempts int DEFAULT NULL, lease bigint DEFAULT NULL, step text DEFAULT NULL,
    partition_key text DEFAULT NULL, cost int DEFAULT 1,
    partition_keys text[] DEFAULT NULL, deadline timestamptz DEFAULT NULL,
    fair_group text DEFAULT NULL)
    RETURNS bigint AS 'MODULE_PATHNAME', 'fanout_fan_out' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.fan_out(text, text, jsonb[], text, bigint, int, interval, timestamptz, int, bigint, text, text, int, text[], timestamptz, text)
    IS 'adds one task for each element of args as a sealed batch; the batch''s id';

CREATE FUNCTION fanout.fan_out(
    queue text, names text[], args jsonb[], "join" text DEFAULT 'all', join_count bigint DEFAULT NULL,
    priority int DEFAULT 0, delay interval DEFAULT NULL, run_at timestamptz DEFAULT NULL,
    max_attempts int DEFAULT NULL, lease bigint DEFAULT NULL, step text DEFAULT NULL,
    partition_key text DEFAULT NULL, cost int DEFAULT 1,
    partition_keys text[] DEFAULT NULL, deadline timestamptz DEFAULT NULL,
    fair_group text DEFAULT NULL)
    RETURNS bigint AS 'MODULE_PATHNAME', 'fanout_fan_out_names' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.fan_out(text, text[], jsonb[], text, bigint, int, interval, timestamptz, int, bigint, text, text, int, text[], timestamptz, text)
    IS 'as the other fan_out, with a name for each task';

CREATE FUNCTION fanout.create_batch("join" text DEFAULT 'all', join_count bigint DEFAULT NULL,
    lease bigint DEFAULT NULL, step text DEFAULT NULL)
    RETURNS bigint AS 'MODULE_PATHNAME', 'fanout_create_batch' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.create_batch IS 'opens a batch to which enqueue and enqueue_many add until it is sealed';

CREATE FUNCTION fanout.seal_batch(batch bigint) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_seal_batch' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.seal_batch IS 'closes a batch to further tasks; false if it was sealed before';

CREATE FUNCTION fanout.cancel(tasks bigint[], reason text DEFAULT NULL) RETURNS SETOF bigint
    AS 'MODULE_PATHNAME', 'fanout_cancel_many' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.cancel(bigint[], text) IS 'cancels those of the tasks that wait, and has the workers of running ones told; the ids of these';

CREATE FUNCTION fanout.cancel(task bigint, reason text DEFAULT NULL) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_cancel' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.cancel(bigint, text) IS 'cancels a task that waits, or has the worker of one that runs told; false if it has ended';

CREATE FUNCTION fanout.cancel_matching(
    queue text, name text DEFAULT NULL, args jsonb DEFAULT NULL, partition_key text DEFAULT NULL, batch bigint DEFAULT NULL,
    min_priority int DEFAULT NULL, max_priority int DEFAULT NULL, enqueued_before timestamptz DEFAULT NULL,
    reason text DEFAULT NULL, max_tasks bigint DEFAULT NULL)
    RETURNS SETOF bigint AS 'MODULE_PATHNAME', 'fanout_cancel_matching' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.cancel_matching IS 'cancels those tasks of a queue that match all that is given, as cancel does; their ids';

CREATE FUNCTION fanout.reprioritize(tasks bigint[], priority int) RETURNS SETOF bigint
    AS 'MODULE_PATHNAME', 'fanout_reprioritize_many' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.reprioritize(bigint[], int) IS 'gives those of the tasks that wait another priority; the ids of these';

CREATE FUNCTION fanout.reprioritize(task bigint, priority int) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_reprioritize' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.reprioritize(bigint, int) IS 'gives a task that waits another priority; false if it runs or has ended';

CREATE FUNCTION fanout.reschedule(tasks bigint[], run_at timestamptz DEFAULT NULL, delay interval DEFAULT NULL) RETURNS SETOF bigint
    AS 'MODULE_PATHNAME', 'fanout_reschedule_many' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.reschedule(bigint[], timestamptz, interval) IS 'has those of the tasks that wait be due at another time; the ids of these';

CREATE FUNCTION fanout.reschedule(task bigint, run_at timestamptz DEFAULT NULL, delay interval DEFAULT NULL) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_reschedule' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.reschedule(bigint, timestamptz, interval) IS 'has a task that waits be due at another time; false if it runs or has ended';

CREATE FUNCTION fanout.move(tasks bigint[], queue text DEFAULT NULL, partition_key text DEFAULT NULL, unset text[] DEFAULT NULL)
    RETURNS SETOF bigint AS 'MODULE_PATHNAME', 'fanout_move_many' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.move(bigint[], text, text, text[]) IS 'moves those of the tasks that wait to another queue or partition; the ids of these';

CREATE FUNCTION fanout.move(task bigint, queue text DEFAULT NULL, partition_key text DEFAULT NULL, unset text[] DEFAULT NULL)
    RETURNS boolean AS 'MODULE_PATHNAME', 'fanout_move' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.move(bigint, text, text, text[]) IS 'moves a task that waits to another queue or partition; false if it runs or has ended';

CREATE FUNCTION fanout.retry(tasks bigint[]) RETURNS SETOF bigint
    AS 'MODULE_PATHNAME', 'fanout_retry_many' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.retry(bigint[]) IS 'gives those of the tasks that failed or were cancelled another life; the ids of these';

CREATE FUNCTION fanout.retry(task bigint) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_retry' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.retry(bigint) IS 'gives a failed or cancelled task another life, with its checkpoints';
