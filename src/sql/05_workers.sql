-- A type of its own: the description of columns that are OUT arguments is built anew in each call.
CREATE TYPE fanout.leased_task AS (
    lease bigint, task bigint, queue text, name text, args jsonb, attempt int, checkpoints jsonb, lease_until timestamptz,
    priority int, batch bigint, max_attempts int, enqueued_at timestamptz);
COMMENT ON TYPE fanout.leased_task IS 'a task as dequeue gives it to a worker, with its lease';

CREATE FUNCTION fanout.dequeue(
    queue text, worker text DEFAULT NULL, max_tasks int DEFAULT 1, lease interval DEFAULT NULL,
    wait interval DEFAULT NULL, bind_to_session boolean DEFAULT false)
    RETURNS SETOF fanout.leased_task AS 'MODULE_PATHNAME', 'fanout_dequeue' LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION fanout.dequeue(text, text, int, interval, interval, boolean)
    IS 'leases up to max_tasks tasks of the queue to the worker';

CREATE FUNCTION fanout.dequeue(
    queue text[], worker text DEFAULT NULL, max_tasks int DEFAULT 1, lease interval DEFAULT NULL,
    wait interval DEFAULT NULL, bind_to_session boolean DEFAULT false)
    RETURNS SETOF fanout.leased_task AS 'MODULE_PATHNAME', 'fanout_dequeue_queues' LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION fanout.dequeue(text[], text, int, interval, interval, boolean)
    IS 'as the other dequeue, from several queues, the first named first';

CREATE FUNCTION fanout.complete_and_dequeue(
    lease bigint, result jsonb, queue text, worker text DEFAULT NULL, max_tasks int DEFAULT 1,
    lease_for interval DEFAULT NULL, wait interval DEFAULT NULL, bind_to_session boolean DEFAULT false)
    RETURNS SETOF fanout.leased_task AS 'MODULE_PATHNAME', 'fanout_complete_and_dequeue' LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION fanout.complete_and_dequeue(bigint, jsonb, text, text, int, interval, interval, boolean)
    IS 'completes one task and leases the next, in one round trip and one commit';

CREATE FUNCTION fanout.complete_and_dequeue(
    leases bigint[], results jsonb[], queue text, worker text DEFAULT NULL, max_tasks int DEFAULT 1,
    lease_for interval DEFAULT NULL, wait interval DEFAULT NULL, bind_to_session boolean DEFAULT false)
    RETURNS SETOF fanout.leased_task AS 'MODULE_PATHNAME', 'fanout_complete_many_and_dequeue' LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION fanout.complete_and_dequeue(bigint[], jsonb[], text, text, int, interval, interval, boolean)
    IS 'completes tasks and leases the next ones; a lease that is lost is skipped with a warning';

CREATE PROCEDURE fanout.dequeue_wait(queue text, worker text, wait interval, INOUT ready boolean DEFAULT NULL)
    AS 'MODULE_PATHNAME', 'fanout_dequeue_wait' LANGUAGE C;
COMMENT ON PROCEDURE fanout.dequeue_wait(text, text, interval, boolean)
    IS 'waits, holding no snapshot, until the worker could dequeue from the queue';

CREATE PROCEDURE fanout.dequeue_wait(queue text[], worker text, wait interval, INOUT ready boolean DEFAULT NULL)
    AS 'MODULE_PATHNAME', 'fanout_dequeue_wait_queues' LANGUAGE C;
COMMENT ON PROCEDURE fanout.dequeue_wait(text[], text, interval, boolean)
    IS 'waits, holding no snapshot, until the worker could dequeue from one of the queues';

CREATE FUNCTION fanout.extend(lease bigint, "by" interval DEFAULT NULL) RETURNS timestamptz
    AS 'MODULE_PATHNAME', 'fanout_extend' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.extend(bigint, interval) IS 'lets the lease end that long from now; when it ends';

CREATE FUNCTION fanout.extend(leases bigint[], "by" interval DEFAULT NULL) RETURNS SETOF bigint
    AS 'MODULE_PATHNAME', 'fanout_extend_many' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.extend(bigint[], interval) IS 'extends those of the leases that are still held; these leases';

CREATE FUNCTION fanout.heartbeat(worker text, "by" interval DEFAULT NULL) RETURNS int
    AS 'MODULE_PATHNAME', 'fanout_heartbeat' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.heartbeat IS 'extends all leases of the worker; their number';

CREATE FUNCTION fanout.checkpoint(lease bigint, step text, value jsonb) RETURNS jsonb
    AS 'MODULE_PATHNAME', 'fanout_checkpoint' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.checkpoint IS 'stores the value of a step of the leased task, unless the step has one; the stored value';

CREATE FUNCTION fanout.complete(lease bigint, result jsonb DEFAULT NULL) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_complete' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.complete(bigint, jsonb) IS 'ends the leased task as succeeded; false if this lease had done it before';

CREATE FUNCTION fanout.complete(leases bigint[], results jsonb[] DEFAULT NULL) RETURNS SETOF bigint
    AS 'MODULE_PATHNAME', 'fanout_complete_many' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.complete(bigint[], jsonb[]) IS 'completes those of the tasks whose leases are still held; these leases';

CREATE FUNCTION fanout.fail(lease bigint, error text DEFAULT NULL, retry_in interval DEFAULT NULL, final boolean DEFAULT false)
    RETURNS timestamptz AS 'MODULE_PATHNAME', 'fanout_fail' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.fail(bigint, text, interval, boolean)
    IS 'ends the attempt as failed; when the next one is due, or NULL if the task has failed for good';

CREATE FUNCTION fanout.fail(leases bigint[], error text DEFAULT NULL, retry_in interval DEFAULT NULL, final boolean DEFAULT false)
    RETURNS SETOF bigint AS 'MODULE_PATHNAME', 'fanout_fail_many' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.fail(bigint[], text, interval, boolean) IS 'fails the attempts whose leases are still held; these leases';

CREATE FUNCTION fanout.release(lease bigint, delay interval DEFAULT NULL) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_release' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.release(bigint, interval) IS 'gives the task back, as if it had not been attempted';

CREATE FUNCTION fanout.release(leases bigint[], delay interval DEFAULT NULL) RETURNS SETOF bigint
    AS 'MODULE_PATHNAME', 'fanout_release_many' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.release(bigint[], interval) IS 'gives back the tasks whose leases are still held; these leases';
