-- Views run as their owner on the tables and as the caller in functions: each filters by what the caller may see.

CREATE FUNCTION fanout._queue_visible(queue_id int) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_queue_visible' LANGUAGE C STABLE STRICT COST 5;
CREATE FUNCTION fanout._role_visible(role oid) RETURNS boolean
    AS 'MODULE_PATHNAME', 'fanout_role_visible' LANGUAGE C STABLE STRICT COST 5;

-- The live side of a task that has no outcome: memory's word, without a look at the tables.
CREATE FUNCTION fanout._live_task(task bigint, queue_id int, run_at timestamptz,
    OUT state text, OUT due timestamptz, OUT attempt int, OUT lease bigint, OUT worker text, OUT lease_until timestamptz)
    RETURNS record AS 'MODULE_PATHNAME', 'fanout_live_task' LANGUAGE C VOLATILE;

CREATE FUNCTION fanout._live_queues(
    OUT queue_id int, OUT scheduled bigint, OUT ready bigint, OUT running bigint, OUT in_memory bigint,
    OUT oldest_ready timestamptz, OUT waiting_workers int, OUT enqueued bigint, OUT dequeued bigint, OUT succeeded bigint, OUT failed bigint, OUT cancelled bigint,
    OUT enqueued_per_second float8, OUT dequeued_per_second float8, OUT finished_per_second float8)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'fanout_live_queues' LANGUAGE C VOLATILE ROWS 10;

CREATE FUNCTION fanout._live_leases(
    OUT lease bigint, OUT task bigint, OUT queue_id int, OUT worker text, OUT attempt int,
    OUT claimed_at timestamptz, OUT lease_until timestamptz, OUT session_pid int, OUT committed boolean)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'fanout_live_leases' LANGUAGE C VOLATILE ROWS 100;

CREATE FUNCTION fanout._live_lanes(
    OUT queue_id int, OUT lane bigint, OUT sample_task bigint, OUT ready bigint, OUT running int, OUT concurrency int,
    OUT startable int, OUT more_on_disk boolean, OUT next_start timestamptz, OUT awaits_task bigint, OUT group_task bigint, OUT backlog int, OUT max_backlog int)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'fanout_live_lanes' LANGUAGE C VOLATILE ROWS 1000;

CREATE FUNCTION fanout._live_segments(OUT slot smallint, OUT looked_at timestamptz, OUT kept_because text)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'fanout_live_segments' LANGUAGE C VOLATILE ROWS 4;

CREATE FUNCTION fanout.status(OUT item text, OUT value text) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'fanout_status' LANGUAGE C VOLATILE ROWS 20;
COMMENT ON FUNCTION fanout.status IS 'what the extension is doing in this database: versions, processes, use of memory';

CREATE FUNCTION fanout._stats(
    OUT state text, OUT ready_since timestamptz, OUT rebuilds bigint, OUT rebuild_began timestamptz, OUT rebuild_microseconds bigint,
    OUT rebuilt_tasks bigint, OUT launcher_pid int, OUT keeper_pid int, OUT keeper_since timestamptz, OUT keeper_wakes_at timestamptz,
    OUT keeper_starts bigint, OUT keeper_failures bigint, OUT failed_in_a_row int, OUT failed_at timestamptz, OUT last_error text,
    OUT journal_lag bigint, OUT oldest_claim timestamptz, OUT journaled bigint, OUT refills bigint, OUT evictions bigint,
    OUT wakeups bigint, OUT idle_wakeups bigint, OUT expired bigint, OUT retired bigint, OUT carried bigint, OUT retired_at timestamptz,
    OUT joins_to_decide int, OUT next_task bigint, OUT next_lease bigint, OUT queues int)
    RETURNS SETOF record AS 'MODULE_PATHNAME', 'fanout_stats' LANGUAGE C VOLATILE ROWS 1;

CREATE FUNCTION fanout._pools(OUT pool text, OUT used bigint, OUT size bigint, OUT setting text) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'fanout_pools' LANGUAGE C VOLATILE ROWS 12;

-- For tests, of a build with CHECKED=1; no rows in any other.
CREATE FUNCTION fanout._violations(OUT kind text, OUT looked bigint, OUT violations bigint, OUT first text) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'fanout_violations' LANGUAGE C VOLATILE ROWS 10;

-- For tests, of the same builds: what is to happen where a process comes to a crash point.
CREATE FUNCTION fanout._set_point(point text, action text, times int DEFAULT 1, skip int DEFAULT 0) RETURNS void
    AS 'MODULE_PATHNAME', 'fanout_set_point' LANGUAGE C VOLATILE;
CREATE FUNCTION fanout._points(OUT point text, OUT may_fail boolean, OUT action text, OUT reached int, OUT pid int) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'fanout_points' LANGUAGE C VOLATILE ROWS 50;

CREATE VIEW fanout.queues WITH (security_barrier) AS
    SELECT q.name AS queue, q.owner::text AS owner, q.paused,
           l.scheduled, l.ready, l.running, l.oldest_ready, now() - l.oldest_ready AS oldest_ready_age,
           q.concurrency, q.worker_concurrency, q.partition_concurrency,
           (SELECT string_agg(format('%s in %s', r.units, r.period), ', ' ORDER BY r.period) FROM fanout.rate r WHERE r.queue = q.id) AS rate_limits,
           q.partition_rate_limit, q.partition_rate_period, q.partition_retries, q.aging, CASE WHEN q.held_until > clock_timestamp() THEN q.held_until END AS held_until,
           q.max_backlog, q.partition_max_backlog,
           q.lease, q.max_attempts, q.backoff, q.backoff_max, q.synchronous_claims, q.retention,
           l.waiting_workers, l.in_memory,
           l.enqueued, l.dequeued, l.succeeded, l.failed, l.cancelled,
           l.enqueued_per_second, l.dequeued_per_second, l.finished_per_second,
           q.created_at
      FROM fanout.queue q LEFT JOIN fanout._live_queues() l ON l.queue_id = q.id
     WHERE fanout._queue_visible(q.id);
COMMENT ON VIEW fanout.queues IS 'queues with their settings and live counts; counters and rates are since the server started';

CREATE VIEW fanout.partitions WITH (security_barrier) AS
    SELECT q.name AS queue, coalesce(p.key, (SELECT t.partition_key FROM fanout.task t WHERE t.id = l.sample_task AND t.lane = l.lane AND t.queue = l.queue_id),
           (SELECT t.partition_key FROM fanout.task t WHERE t.queue = l.queue_id AND t.lane = l.lane AND t.run_at IS NULL LIMIT 1),
           -- what the lane knows of is removed, and the others had a time
           (SELECT t.partition_key FROM fanout._live_leases() h JOIN fanout.task t ON t.id = h.task WHERE h.queue_id = l.queue_id AND t.queue = l.queue_id AND t.lane = l.lane LIMIT 1)) AS partition_key,
           (SELECT t.fair_group FROM fanout.task t WHERE t.id = l.group_task) AS fair_group,
           l.ready, l.more_on_disk, l.running, coalesce(l.concurrency, p.concurrency, q.partition_concurrency) AS concurrency,
           coalesce(p.rate_limit, q.partition_rate_limit) AS rate_limit, CASE WHEN p.rate_limit IS NULL THEN q.partition_rate_period ELSE p.rate_period END AS rate_period,
           coalesce(p.weight, 1) AS weight, coalesce(p.paused, false) AS paused, l.startable, l.next_start, l.awaits_task,
           l.backlog, coalesce(l.max_backlog, p.max_backlog, q.partition_max_backlog) AS max_backlog
      FROM fanout._live_lanes() l FULL JOIN fanout.partition p ON p.queue = l.queue_id AND p.lane = l.lane
      JOIN fanout.queue q ON q.id = coalesce(l.queue_id, p.queue)
     WHERE fanout._queue_visible(q.id);
COMMENT ON VIEW fanout.partitions IS 'partitions that are in memory, as they have tasks, or have settings';

-- Tasks are joined to their outcomes segment by segment. Of all together the planner does not know that a task has one
-- outcome at most, nor does autovacuum gather statistics of them.
DO $do$
BEGIN
    EXECUTE format($view$
CREATE VIEW fanout.tasks WITH (security_barrier) AS
    SELECT t.id AS task, q.name AS queue, t.name, t.args,
           CASE t.status WHEN 's' THEN 'succeeded' WHEN 'f' THEN 'failed' WHEN 'c' THEN 'cancelled' ELSE l.state END AS state,
           coalesce(t.priority, 0) AS priority, t.partition_key, CASE WHEN t.lane IS NOT NULL THEN t.fair_group END AS fair_group, t.key, coalesce(t.cost, 1) AS cost, t.batch, t.parent, t.enqueued_at, CASE WHEN t.status IS NULL THEN coalesce(l.due, t.run_at) ELSE t.run_at END AS run_at, t.deadline,
           coalesce(t.attempt::int, l.attempt) AS attempt, coalesce(t.max_attempts::int, q.max_attempts) AS max_attempts,
           coalesce(t.lease, l.lease) AS lease, coalesce(t.worker, l.worker) AS worker, l.lease_until,
           t.finished_at, CASE WHEN t.status = 's' THEN t.value END AS result,
           CASE WHEN t.status <> 's' THEN t.value #>> '{}' END AS error
      FROM (%s) t
      JOIN fanout.queue q ON q.id = t.queue
      LEFT JOIN LATERAL (SELECT s.* FROM fanout._live_task(t.id, t.queue, t.run_at) s WHERE t.status IS NULL OFFSET 0) l ON true
     WHERE fanout._queue_visible(t.queue)
    $view$, (SELECT string_agg(format('SELECT t.*, o.status, o.attempt, o.lease, o.worker, o.finished_at, o.value'
                                      ' FROM fanout.task_%1$s t LEFT JOIN fanout.outcome_%1$s o ON o.task = t.id', slot), ' UNION ALL ')
               FROM generate_series(1, 4) slot));
END $do$;
COMMENT ON VIEW fanout.tasks IS 'every task that is kept, with its state and outcome';

-- Before the first one is left there is no row of it.
CREATE VIEW fanout.segments WITH (security_barrier) AS
    WITH known AS (SELECT slot, first_task, began_at, finished FROM fanout.segment
                   UNION ALL SELECT 1::smallint, 0, NULL, false WHERE NOT EXISTS (SELECT FROM fanout.segment))
    SELECT s.slot AS segment,
           CASE WHEN s.slot = (SELECT c.slot FROM known c ORDER BY c.first_task DESC NULLS LAST LIMIT 1) THEN 'current'
                WHEN s.first_task IS NULL THEN 'emptied' WHEN s.finished THEN 'finished' ELSE 'older' END AS state,
           s.first_task, s.began_at, now() - s.began_at AS age,
           (SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c
             WHERE c.relnamespace = 'fanout'::regnamespace AND c.relkind = 'r' AND c.relname ~ ('^(task|attempt|checkpoint|outcome)_' || s.slot || '$')) AS bytes,
           l.looked_at, l.kept_because
      FROM known s LEFT JOIN fanout._live_segments() l ON l.slot = s.slot;
COMMENT ON VIEW fanout.segments IS 'segments of the log that are in use, their size, and why one is kept longer than it had to be';

CREATE VIEW fanout.stats WITH (security_barrier) AS
    SELECT s.state, s.ready_since, s.rebuilds, s.rebuild_began, make_interval(secs => s.rebuild_microseconds / 1e6) AS rebuild_time, s.rebuilt_tasks,
           s.launcher_pid, s.keeper_pid, s.keeper_since, s.keeper_wakes_at, s.keeper_starts, s.keeper_failures, s.failed_in_a_row,
           s.failed_at AS last_failure_at, s.last_error,
           s.journal_lag, CASE WHEN s.oldest_claim IS NOT NULL THEN greatest(clock_timestamp() - s.oldest_claim, '0') END AS journal_lag_age, s.journaled, s.refills, s.evictions, s.wakeups, s.idle_wakeups,
           s.expired AS expired_leases, s.retired AS retired_segments, s.carried AS carried_tasks, s.retired_at AS last_retirement,
           s.joins_to_decide, s.next_task, s.next_lease, s.queues
      FROM fanout._stats() s;
COMMENT ON VIEW fanout.stats IS 'what the extension does in this database: its memory, its keeper, and counters since the server started';

CREATE VIEW fanout.pools WITH (security_barrier) AS
    SELECT p.pool, p.used, p.size, p.setting FROM fanout._pools() p;
COMMENT ON VIEW fanout.pools IS 'how much is used of the memory that all databases of the server share, and which setting gives more';

CREATE VIEW fanout.batches WITH (security_barrier) AS
    SELECT b.id AS batch, b.owner::text AS owner, b.join_policy AS "join", b.join_count, b.sealed, b.created_at, b.ended_at,
           (SELECT coalesce(sum(p.tasks), 0)::bigint FROM fanout.batch_part p WHERE p.batch = b.id) AS tasks,
           (SELECT count(*) FROM fanout.batch_part p JOIN fanout.outcome o
               ON o.task >= p.first_task AND o.task < p.first_task + p.tasks WHERE p.batch = b.id) AS finished
      FROM fanout.batch b
     WHERE fanout._role_visible(b.owner::oid);
COMMENT ON VIEW fanout.batches IS 'batches with the number of their tasks and of those that have ended';

CREATE VIEW fanout.leases WITH (security_barrier) AS
    SELECT l.lease, l.task, q.name AS queue, l.worker, l.attempt, l.claimed_at, l.lease_until, l.session_pid, l.committed
      FROM fanout._live_leases() l JOIN fanout.queue q ON q.id = l.queue_id
     WHERE fanout._queue_visible(l.queue_id);
COMMENT ON VIEW fanout.leases IS 'leases that are held now, those not yet committed included';

CREATE VIEW fanout.workers WITH (security_barrier) AS
    SELECT worker, count(*) AS leases, array_agg(DISTINCT queue) AS queues,
           min(claimed_at) AS oldest_claim, min(lease_until) AS next_lease_end
      FROM fanout.leases GROUP BY worker;
COMMENT ON VIEW fanout.workers IS 'workers that hold leases';

-- A lease that ended before the journal came to it is known from its outcome alone.
CREATE VIEW fanout.attempts WITH (security_barrier) AS
    SELECT k.task, q.name AS queue, k.lease, coalesce(o.worker, j.worker) AS worker,
           coalesce(o.claimed_at, j.claimed_at) AS claimed_at, coalesce(o.finished_at, j.ended_at) AS ended_at,
           CASE WHEN o.status = 's' THEN 'completed' WHEN o.status = 'c' THEN 'cancelled'
                WHEN o.status = 'f' OR j.ended = 'f' THEN 'failed'
                WHEN j.ended = 'r' THEN 'released' WHEN j.ended = 'x' THEN 'expired' ELSE 'running' END AS state,
           coalesce(CASE WHEN o.status <> 's' THEN o.value #>> '{}' END, j.error) AS error
      FROM (SELECT a.task, a.lease, max(a.worker) AS worker, min(a.at) FILTER (WHERE a.event IN ('c', 'b')) AS claimed_at,
                   max(a.at) FILTER (WHERE a.event IN ('f', 'r', 'x')) AS ended_at,
                   max(a.event::text) FILTER (WHERE a.event IN ('f', 'r', 'x')) AS ended,
                   max(a.error) FILTER (WHERE a.event <> 'k') AS error
              FROM fanout.attempt a WHERE a.event NOT IN ('n', 's', 'm') GROUP BY a.task, a.lease) j
      FULL JOIN (SELECT * FROM fanout.outcome WHERE lease IS NOT NULL) o USING (task, lease) AS k
      JOIN fanout.task t ON t.id = k.task JOIN fanout.queue q ON q.id = t.queue
     WHERE fanout._queue_visible(t.queue);
COMMENT ON VIEW fanout.attempts IS 'attempts of tasks, from the journal (some milliseconds behind) and from outcomes';

CREATE FUNCTION fanout.why(task bigint, OUT code text, OUT reason text) RETURNS record
    AS 'MODULE_PATHNAME', 'fanout_why' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.why IS 'what the task waits for: a code, and in words';
