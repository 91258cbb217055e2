CREATE FUNCTION fanout.create_queue(
    queue text, concurrency int DEFAULT NULL, worker_concurrency int DEFAULT NULL, lease interval DEFAULT '60 s',
    max_attempts int DEFAULT 5, backoff interval DEFAULT '1 s', backoff_max interval DEFAULT '5 min',
    max_backlog bigint DEFAULT NULL, synchronous_claims boolean DEFAULT false,
    partition_concurrency int DEFAULT NULL, partition_rate_limit int DEFAULT NULL, partition_rate_period interval DEFAULT NULL,
    partition_retries text DEFAULT 'block', aging interval DEFAULT NULL, rate_limit int DEFAULT NULL, rate_period interval DEFAULT NULL, if_not_exists boolean DEFAULT false,
    partition_max_backlog int DEFAULT NULL, retention interval DEFAULT NULL)
    RETURNS boolean AS 'MODULE_PATHNAME', 'fanout_create_queue' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.create_queue IS 'creates a queue, owned by the current role; true if it was created';

CREATE FUNCTION fanout.alter_queue(
    queue text, concurrency int DEFAULT NULL, worker_concurrency int DEFAULT NULL, lease interval DEFAULT NULL,
    max_attempts int DEFAULT NULL, backoff interval DEFAULT NULL, backoff_max interval DEFAULT NULL,
    max_backlog bigint DEFAULT NULL, synchronous_claims boolean DEFAULT NULL,
    partition_concurrency int DEFAULT NULL, partition_rate_limit int DEFAULT NULL, partition_rate_period interval DEFAULT NULL,
    partition_retries text DEFAULT NULL, aging interval DEFAULT NULL, rate_limit int DEFAULT NULL, rate_period interval DEFAULT NULL, unset text[] DEFAULT '{}',
    partition_max_backlog int DEFAULT NULL, retention interval DEFAULT NULL)
    RETURNS void AS 'MODULE_PATHNAME', 'fanout_alter_queue' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.alter_queue IS 'changes the settings that are given; unset names limits to take away';

CREATE FUNCTION fanout.drop_queue(queue text, force boolean DEFAULT false) RETURNS void
    AS 'MODULE_PATHNAME', 'fanout_drop_queue' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.drop_queue IS 'drops a queue without unfinished tasks; forced, cancels those first';

CREATE FUNCTION fanout.pause_queue(queue text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_pause_queue' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.pause_queue IS 'stops giving out tasks of the queue; true if it was not paused before';

CREATE FUNCTION fanout.resume_queue(queue text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_resume_queue' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.resume_queue IS 'gives out tasks of the queue again; true if it was paused before';

CREATE FUNCTION fanout.purge_queue(queue text) RETURNS bigint
    AS 'MODULE_PATHNAME', 'fanout_purge_queue' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.purge_queue IS 'cancels every task of the queue that waits; the number of them';

CREATE FUNCTION fanout.set_rate_limit(queue text, rate_limit int, rate_period interval) RETURNS void
    AS 'MODULE_PATHNAME', 'fanout_set_rate_limit' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.set_rate_limit IS 'adds a window to the rate limit of the queue, changes the one of that period, or takes it away (NULL)';

CREATE FUNCTION fanout.backpressure(queue text, until timestamptz, partition_key text DEFAULT NULL) RETURNS void
    AS 'MODULE_PATHNAME', 'fanout_backpressure' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.backpressure IS 'lets no task of the queue, or of the partition, start before that time';

CREATE FUNCTION fanout.set_partition(
    queue text, key text, concurrency int DEFAULT NULL, weight int DEFAULT NULL,
    rate_limit int DEFAULT NULL, rate_period interval DEFAULT NULL, unset text[] DEFAULT '{}',
    max_backlog int DEFAULT NULL) RETURNS void
    AS 'MODULE_PATHNAME', 'fanout_set_partition' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.set_partition IS 'gives a partition of the queue limits and a share of its own';

CREATE FUNCTION fanout.pause_partition(queue text, key text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_pause_partition' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.pause_partition IS 'stops giving out tasks of the partition; true if it was not paused before';

CREATE FUNCTION fanout.resume_partition(queue text, key text) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_resume_partition' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.resume_partition IS 'gives out tasks of the partition again; true if it was paused before';

CREATE FUNCTION fanout.grant_queue(queue text, role regrole, privileges text[] DEFAULT '{enqueue,dequeue}') RETURNS void
    AS 'MODULE_PATHNAME', 'fanout_grant_queue' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.grant_queue IS 'lets a role enqueue to, dequeue from or manage the queue';

CREATE FUNCTION fanout.revoke_queue(queue text, role regrole, privileges text[] DEFAULT '{enqueue,dequeue,manage}') RETURNS void
    AS 'MODULE_PATHNAME', 'fanout_revoke_queue' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.revoke_queue IS 'takes privileges on the queue away from a role';
