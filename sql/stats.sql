-- fanout.stats and fanout.pools: counters and pools, with exact numbers where these are determined.
\i sql/include/helpers.sql

-- What is in use, of those pools that are.
CREATE FUNCTION test.used() RETURNS text LANGUAGE sql VOLATILE AS $$
	SELECT coalesce(string_agg(pool || ' ' || used, ', '), 'nothing') FROM fanout.pools WHERE used > 0 AND pool NOT IN ('databases', 'waiting backends')
$$;

SELECT pool, size, setting FROM fanout.pools WHERE pool <> 'waiting backends';
SELECT used, size > current_setting('max_connections')::int AS enough, setting FROM fanout.pools WHERE pool = 'waiting backends';
SELECT used FROM fanout.pools WHERE pool = 'databases';
SELECT test.used();

-- Each thing takes what it needs, and gives it back.
SELECT fanout.create_queue('q', lease => '10 min'), fanout.create_queue('rated', rate_limit => 10, rate_period => '1 h', partition_rate_limit => 5, partition_rate_period => '1 h');
SELECT test.used();
SELECT count(fanout.enqueue('q', 'x')) FROM generate_series(1, 3);
SELECT count(fanout.enqueue('q', 'y', partition_key => k, fair_group => 'g')) FROM unnest('{a,b}'::text[]) k;
SELECT test.used();
BEGIN;
SELECT count(fanout.enqueue('q', 'z')) FROM generate_series(1, 4);
SELECT test.used();
SAVEPOINT s;
SELECT count(fanout.enqueue('q', 'z')) FROM generate_series(1, 4);
SELECT test.used();
ROLLBACK TO s;
SELECT test.used();
ROLLBACK;
SELECT test.used();
SELECT count(*) FROM fanout.dequeue('q', 'w1', max_tasks => 2);
SELECT count(*) FROM fanout.dequeue('q', 'w2');
SELECT test.used();
SELECT fanout.enqueue('rated', 'x', partition_key => 'a') > 0 AS enqueued;
SELECT count(*) FROM fanout.dequeue('rated', 'w1');
SELECT test.used();
SELECT count(fanout.complete(lease)) FROM fanout.leases;
SELECT test.used();
SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
SELECT test.used();

-- Counters
SELECT fanout.create_queue('q', lease => '10 min', max_attempts => 5);
SELECT * FROM fanout.stats \gset before_
SELECT count(fanout.enqueue('q', 'x')) FROM generate_series(1, 3);
SELECT count(*) FROM fanout.dequeue('q', 'w', max_tasks => 3);
SELECT test.becomes($$ (SELECT journal_lag = 0 FROM fanout.stats) $$);
SELECT count(*) FROM fanout.extend((SELECT min(lease) FROM fanout.leases), '1 ms');
SELECT test.becomes($$ (SELECT count(*) = 2 FROM fanout.leases) $$);
SELECT test.becomes($$ (SELECT journal_lag = 0 FROM fanout.stats) $$);
SELECT journaled - :before_journaled BETWEEN 4 AND 5 AS journaled, expired_leases - :before_expired_leases AS expired, next_task - :before_next_task AS tasks, next_lease - :before_next_lease AS leases,
       refills - :before_refills AS refills, evictions - :before_evictions AS evictions, wakeups - :before_wakeups AS wakeups, idle_wakeups - :before_idle_wakeups AS idle,
       retired_segments, carried_tasks, last_retirement, joins_to_decide, queues
  FROM fanout.stats;
-- The keeper, which has not failed
SELECT s.state, s.ready_since BETWEEN s.rebuild_began AND now() AS ready, s.rebuilds > 0 AS rebuilt, s.rebuild_time BETWEEN '0' AND '1 min' AS rebuild_time, s.rebuilt_tasks >= 0 AS read,
       l.backend_type AS launcher, k.backend_type AS keeper, s.keeper_since <= now() AS since, s.keeper_starts > s.keeper_failures AS started, s.keeper_failures - :before_keeper_failures AS failed, s.failed_in_a_row,
       s.journal_lag_age
  FROM fanout.stats s LEFT JOIN pg_stat_activity l ON l.pid = s.launcher_pid LEFT JOIN pg_stat_activity k ON k.pid = s.keeper_pid AND k.datname = current_database();
-- It sleeps until there is something to do.
SELECT fanout.complete(lease) FROM fanout.leases;
SELECT count(*) FROM fanout.dequeue('q', 'w');
SELECT test.becomes($$ (SELECT keeper_wakes_at BETWEEN now() + '9 min' AND now() + '10 min' FROM fanout.stats) $$) AS sleeps;

SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
