CREATE EXTENSION pg_fanout;
SELECT fanout.create_queue('soak', lease => '5 s', max_attempts => 2), fanout.create_queue('probes'), fanout.create_queue('later');

-- Tasks that end at once, of which the outcome has to be there for the retention; and tasks that wait all the time.
CREATE TABLE probe (task bigint PRIMARY KEY, ended_at timestamptz NOT NULL);
CREATE TABLE later (task bigint PRIMARY KEY);
CREATE PROCEDURE probe() LANGUAGE plpgsql AS $$
DECLARE
    claim record;
BEGIN
    PERFORM fanout.enqueue('probes', 'probe');
    INSERT INTO later VALUES (fanout.enqueue('later', 'later', delay => '1 day'));
    COMMIT;
    SELECT * INTO claim FROM fanout.dequeue('probes', 'prober');
    PERFORM fanout.complete(claim.lease, '1');
    INSERT INTO probe VALUES (claim.task, clock_timestamp());
    COMMIT;
END $$;

-- Outcomes that are gone too early, and unfinished tasks that are gone at all.
CREATE FUNCTION lost(retention interval) RETURNS SETOF text LANGUAGE sql AS $$
    SELECT 'outcome of ' || p.task FROM probe p WHERE p.ended_at > clock_timestamp() - retention + interval '1 s'
       AND NOT EXISTS (SELECT FROM fanout.tasks t WHERE t.task = p.task AND t.state = 'succeeded')
    UNION ALL
    SELECT 'task ' || l.task FROM later l
     WHERE NOT EXISTS (SELECT FROM fanout.tasks t WHERE t.task = l.task AND t.state = 'scheduled')
$$;

-- Of the log: bytes, dead rows, and the others'.
CREATE VIEW size AS
    SELECT sum(pg_total_relation_size(relid)) FILTER (WHERE relname ~ '_[1-4]$')::bigint AS log_bytes,
           sum(n_dead_tup) FILTER (WHERE relname ~ '_[1-4]$') AS dead_rows,
           sum(pg_total_relation_size(relid)) FILTER (WHERE relname !~ '_[1-4]$')::bigint AS other_bytes
      FROM pg_stat_user_tables WHERE schemaname = 'fanout';
