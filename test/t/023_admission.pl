# Keys, deadlines and backlogs of partitions, with far more tasks than there is memory for, over restarts and crashes,
# and while the keeper does nothing.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "pg_fanout.max_tracked_tasks = 64\npg_fanout.max_lanes = 16");

sub is_empty
{
	my ($what) = @_;
	my $counts = $node->safe_psql('postgres', 'SELECT sum(scheduled + ready + running) FROM fanout.queues');
	my $backlogs = $node->safe_psql('postgres', 'SELECT coalesce(sum(backlog), 0) FROM fanout._live_lanes()');

	is("$counts, $backlogs", '0, 0', "nothing waits or runs: $what");
	return;
}

# All that waits is given out: also what is delayed, or due and not read from disk yet
sub work_off_all
{
	my ($queue) = @_;

	is($node->psql('postgres', "SELECT scheduled + ready AS waiting FROM fanout.queues WHERE queue = '$queue' \\gset\nCALL work_off('$queue', :waiting)"),
		0, "$queue: all of it comes");
	return;
}

install_work_off($node);
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('keys'), fanout.create_queue('late'), fanout.create_queue('tenants', partition_max_backlog => 100);
SELECT fanout.pause_queue('keys'), fanout.pause_queue('late');
EOS

# Keys of tasks that are on disk only
$node->safe_psql('postgres', <<'EOS');
SELECT count(*) FROM fanout.enqueue_many('keys', 'filler', array_fill('{}'::jsonb, '{300}'));
SELECT count(fanout.enqueue('keys', 'first', to_jsonb(n), key => 'k' || n)) FROM generate_series(1, 200) n;
EOS
is( $node->safe_psql(
		'postgres', "SELECT count(*), count(*) FILTER (WHERE name = 'first')
		FROM (SELECT fanout.enqueue('keys', 'second', key => 'k' || n) FROM generate_series(1, 200) n) e (id) JOIN fanout.task t USING (id)"),
	'200|200',
	'they are returned');
is( $node->safe_psql('postgres', <<'EOS'), '200|200', 'or replaced, also in transactions that are rolled back in part');
DO $$
BEGIN
	FOR n IN 1 .. 200 LOOP
		BEGIN
			PERFORM fanout.enqueue('keys', 'never', to_jsonb(-n), key => 'k' || n, on_conflict => 'replace', priority => -1);
			RAISE EXCEPTION USING ERRCODE = 'RB000';
		EXCEPTION WHEN SQLSTATE 'RB000' THEN
			NULL;
		END;
		PERFORM fanout.enqueue('keys', 'replaced', to_jsonb(n), key => 'k' || n, on_conflict => 'replace', priority => CASE WHEN n % 2 = 0 THEN -1 ELSE 1 END,
			partition_key => CASE WHEN n % 3 = 0 THEN 'p' || n % 8 END);
		COMMIT;
	END LOOP;
END $$;
SELECT count(*), count(*) FILTER (WHERE name = 'replaced' AND args = to_jsonb(ltrim(key, 'k')::int)) FROM fanout.tasks WHERE key IS NOT NULL
EOS
is( $node->safe_psql('postgres', <<'EOS'), '100|100', 'or superseded');
DO $$
BEGIN
	FOR n IN 1 .. 100 LOOP
		PERFORM fanout.enqueue('keys', 'newest', key => 'k' || n, on_conflict => 'supersede');
		COMMIT;
	END LOOP;
END $$;
SELECT count(*) FILTER (WHERE state = 'cancelled' AND name = 'replaced'), count(*) FILTER (WHERE state <> 'cancelled' AND name = 'newest')
  FROM fanout.tasks WHERE key = ANY (ARRAY(SELECT 'k' || n FROM generate_series(1, 100) n))
EOS
is($node->safe_psql('postgres', "SELECT ready FROM fanout.queues WHERE queue = 'keys'"), 500, 'so many wait');
$node->safe_psql('postgres', "SELECT fanout.resume_queue('keys')");
work_off_all('keys');
is( $node->safe_psql('postgres', "SELECT count(*), count(*) FILTER (WHERE state = 'succeeded') FROM fanout.tasks WHERE queue = 'keys' AND state <> 'cancelled'"),
	'500|500', 'all of them run');
is_empty('keys');

# Deadlines of tasks that are on disk only, in all orders; those without one stay
$node->safe_psql('postgres', <<'EOS');
SELECT count(*) FROM fanout.enqueue_many('late', 'stays', array_fill('{}'::jsonb, '{100}'));
SELECT count(*) FROM fanout.enqueue_many('late', 'many', array_fill('{}'::jsonb, '{600}'), deadline => clock_timestamp() + '2 s');
SELECT count(fanout.enqueue('late', 'each', partition_key => CASE WHEN n % 2 = 0 THEN 'p' || n END, priority => n % 3 - 1,
	deadline => clock_timestamp() + '2 s' + '1 ms'::interval * n)) FROM generate_series(1, 200) n;
SELECT count(*) FROM fanout.enqueue_many('late', 'delayed', array_fill('{}'::jsonb, '{200}'), delay => '1 s', deadline => clock_timestamp() + '2 s');
SELECT count(*) FROM fanout.enqueue_many('late', 'later', array_fill('{}'::jsonb, '{50}'), deadline => clock_timestamp() + '1 day');
EOS
ok( $node->poll_query_until('postgres', "SELECT cancelled = 1000 FROM fanout.queues WHERE queue = 'late'"),
	'those whose deadline has passed are cancelled');
is( $node->safe_psql('postgres', <<'EOS'), "1000|t|t", 'for that reason, and not before');
SELECT count(*), bool_and(finished_at >= deadline), bool_and(error ~ 'deadline') FROM fanout.tasks WHERE queue = 'late' AND state = 'cancelled'
EOS
$node->safe_psql('postgres', "SELECT fanout.resume_queue('late')");
work_off_all('late');
is($node->safe_psql('postgres', "SELECT succeeded FROM fanout.queues WHERE queue = 'late'"), 150, 'the others run');
is_empty('deadlines');

# Backlogs of partitions most of which are on disk
my $fill = <<'EOS';
DO $$
BEGIN
	FOR n IN 1 .. 12 LOOP
		FOR i IN 1 .. 120 LOOP
			BEGIN
				PERFORM fanout.enqueue('tenants', 'x', partition_key => 'tenant' || n, priority => i % 3, delay => CASE WHEN i % 5 = 0 THEN interval '1 ms' * i END);
			EXCEPTION WHEN SQLSTATE 'FO003' THEN
				NULL;
			END;
			IF i % 10 = 0 THEN
				COMMIT;
			END IF;
		END LOOP;
	END LOOP;
END $$;
EOS
my $full = "SELECT count(*), min(n), max(n) FROM (SELECT count(*) AS n FROM fanout.tasks WHERE queue = 'tenants' AND state IN ('ready', 'scheduled') GROUP BY partition_key) c";
$node->safe_psql('postgres', "SELECT fanout.pause_queue('tenants')");
$node->safe_psql('postgres', $fill);
is($node->safe_psql('postgres', $full), '12|100|100', 'each partition takes as many as it may');
$node->safe_psql('postgres', "SELECT fanout.resume_queue('tenants')");
$node->safe_psql('postgres', "SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.dequeue('tenants', max_tasks => 1, wait => '5 s')))") for 1 .. 40;
$node->safe_psql('postgres', "SELECT fanout.pause_queue('tenants')");
$node->safe_psql('postgres', $fill);
is($node->safe_psql('postgres', $full), '12|100|100', 'and as many as have gone');

# A restart counts them again
$node->restart;
wait_for_memory($node);
$node->safe_psql('postgres', $fill);
is($node->safe_psql('postgres', $full), '12|100|100', 'after a restart, too');
$node->safe_psql('postgres', "SELECT fanout.resume_queue('tenants')");
work_off_all('tenants');
is_empty('backlogs');

# While the keeper does nothing no claim finds what is late
my $keeper = stop_keeper($node);
$node->safe_psql('postgres', <<'EOS');
SELECT count(*) FROM fanout.enqueue_many('late', 'stopped', '{1,2,3}', deadline => clock_timestamp() + '2 s');
SELECT fanout.enqueue('late', 'in time', deadline => clock_timestamp() + '1 day');
EOS
$node->poll_query_until('postgres', "SELECT clock_timestamp() > max(deadline) FROM fanout.tasks WHERE name = 'stopped'");
is($node->safe_psql('postgres', "SELECT name FROM fanout.dequeue('late', 'w', max_tasks => 10)"), 'in time', 'a claim passes them over');
is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT state || ' ' || (fanout.why(task)).code, ', ') FROM fanout.tasks WHERE name = 'stopped'"),
	'scheduled cancelling', 'they wait for the keeper then');
kill 'CONT', $keeper;
ok($node->poll_query_until('postgres', "SELECT count(*) = 3 FROM fanout.tasks WHERE name = 'stopped' AND state = 'cancelled' AND error ~ 'deadline'"),
	'which cancels them');
$node->safe_psql('postgres', "SELECT fanout.complete(lease) FROM fanout.leases");

# A keeper that is ended is followed by one that goes on
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.pause_queue('late');
SELECT count(*) FROM fanout.enqueue_many('late', 'next keeper', array_fill('{}'::jsonb, '{500}'), deadline => clock_timestamp() + '0.5 s');
EOS
foreach my $round (1 .. 3)
{
	$node->poll_query_until('postgres', "SELECT clock_timestamp() > max(deadline) FROM fanout.tasks WHERE name = 'next keeper'") if $round == 2;
	$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type ~ 'fanout.*keeper'");
	wait_for_memory($node);
}
ok($node->poll_query_until('postgres', "SELECT count(*) = 500 FROM fanout.tasks WHERE name = 'next keeper' AND state = 'cancelled'"),
	'tasks are cancelled by whichever keeper there is');

# What a crash finds: keys are held, deadlines hold that passed meanwhile, and those of tasks that have started do not
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.resume_queue('late');
SELECT fanout.enqueue('late', 'failed', key => 'failed', deadline => clock_timestamp() + '1 hour', priority => -1);
SELECT fanout.enqueue('late', 'released', deadline => clock_timestamp() + '1 hour', priority => -1);
SELECT count(*) FROM fanout.dequeue('late', 'w', max_tasks => 2);
SELECT fanout.fail(l.lease, 'once', retry_in => '0') FROM fanout.leases l JOIN fanout.tasks USING (task) WHERE name = 'failed';
SELECT fanout.release(l.lease) FROM fanout.leases l JOIN fanout.tasks USING (task) WHERE name = 'released';
SELECT fanout.pause_queue('late');
SELECT fanout.enqueue('late', 'missed', key => 'missed', deadline => clock_timestamp() + '1 hour');
SELECT fanout.enqueue('late', 'to come', key => 'to come', deadline => clock_timestamp() + '1 day');
SELECT fanout.enqueue('late', 'throttled', key => 'throttled', key_ttl => '1 day');
SELECT fanout.cancel(task) FROM fanout.tasks WHERE name = 'throttled';
SELECT fanout.debounce('late', 'debounced', 'debounced', '1', '1 hour', '1 day');
SELECT fanout.debounce('late', 'debounced', 'debounced', '2', '1 hour', '1 day');
-- as if the hour were over when the server starts again
UPDATE fanout.task SET deadline = clock_timestamp() WHERE name IN ('failed', 'released', 'missed');
EOS
crash($node);
ok(start_after_crash($node), 'the server starts after a crash');
ok($node->poll_query_until('postgres', "SELECT state = 'cancelled' FROM fanout.tasks WHERE name = 'missed'"), 'what has missed its deadline is cancelled');
is( $node->safe_psql('postgres', "SELECT string_agg(name || ' ' || state, ', ' ORDER BY task) FROM fanout.tasks
		WHERE name IN ('failed', 'released', 'missed', 'to come', 'throttled', 'debounced')"),
	'failed ready, released ready, missed cancelled, to come ready, throttled cancelled, debounced scheduled', 'what has started is free of it');
is( $node->safe_psql('postgres', <<'EOS'), 'failed,to come,throttled,debounced,fresh', 'keys are held as before');
SELECT string_agg(coalesce(t.name, 'fresh'), ',' ORDER BY n)
  FROM (SELECT n, fanout.enqueue('late', 'fresh', key => key) AS task FROM (VALUES (1, 'failed'), (2, 'to come'), (3, 'throttled'), (4, 'debounced'), (5, 'missed')) k (n, key) OFFSET 0) e
  LEFT JOIN fanout.tasks t USING (task)
EOS
is( $node->safe_psql('postgres', "SELECT fanout.debounce('late', 'debounced', 'debounced', '3', '100 days', '1 day') = task, count(*) OVER () FROM fanout.tasks WHERE name = 'debounced'"),
	't|1', 'a series goes on');
is($node->safe_psql('postgres', "SELECT args, run_at - enqueued_at FROM fanout.tasks WHERE name = 'debounced'"), '3|1 day', 'and knows when it has begun');

# Everybody at once. While a task holds its key no other runs, each debounced series ends with the args of its last call.
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.purge_queue('late'), fanout.resume_queue('late');
SELECT fanout.create_queue('load', lease => '1 hour');
CREATE TABLE called (n bigserial, kind text, key text, args jsonb);
CREATE TABLE ran (kind text, key text, args jsonb);
CREATE TABLE violation (what text);
CREATE PROCEDURE put_all(rounds int, seed float8) LANGUAGE plpgsql AS $$
DECLARE
	kind text;
	number int;
BEGIN
	PERFORM setseed(seed);
	FOR i IN 1 .. rounds LOOP
		number := 1 + random() * 4;
		kind := (ARRAY['return', 'debounce', 'supersede', 'replace'])[1 + floor(random() * 4)::int];
		BEGIN
			IF kind = 'debounce' THEN
				PERFORM fanout.debounce('load', kind, kind || number, to_jsonb(seed * 1000 + i), '20 ms', '100 ms');
			ELSE
				PERFORM fanout.enqueue('load', kind, to_jsonb(seed * 1000 + i), key => kind || number, on_conflict => kind,
					partition_key => CASE WHEN random() < 0.3 THEN 'p' || number END);
			END IF;
			INSERT INTO called (kind, key, args) VALUES (kind, kind || number, to_jsonb(seed * 1000 + i));
			IF random() < 0.2 THEN
				RAISE EXCEPTION USING ERRCODE = 'RB000';
			END IF;
		EXCEPTION WHEN SQLSTATE 'RB000' THEN
			NULL;
		END;
		IF random() < 0.1 THEN
			ROLLBACK;
		ELSE
			COMMIT;
		END IF;
	END LOOP;
END $$;
CREATE PROCEDURE work_with_keys(rounds int) LANGUAGE plpgsql AS $$
DECLARE
	claim record;
	row record;
BEGIN
	FOR i IN 1 .. rounds LOOP
		SELECT * INTO claim FROM fanout.dequeue('load', wait => '100 ms');
		COMMIT;
		CONTINUE WHEN claim.lease IS NULL;
		SELECT key INTO row FROM fanout.task WHERE id = claim.task;
		IF claim.name = 'return' AND NOT pg_try_advisory_lock(hashtext(row.key)) THEN
			INSERT INTO violation VALUES ('two tasks with key ' || row.key || ' at one time');
		END IF;
		INSERT INTO ran VALUES (claim.name, row.key, claim.args);
		COMMIT;
		IF claim.name = 'return' THEN
			PERFORM pg_advisory_unlock(hashtext(row.key));
		END IF;
		IF i % 7 = 0 THEN
			PERFORM fanout.fail(claim.lease, 'again', retry_in => '0');
		ELSE
			PERFORM fanout.complete(claim.lease);
		END IF;
		COMMIT;
	END LOOP;
END $$;
EOS
my @clients = ((map { start_client($node, "CALL put_all(300, 0.$_)") } 1 .. 3), (map { start_client($node, 'CALL work_with_keys(300)') } 1 .. 3));
ok(finish_clients(@clients), 'they all come to their end') or diag(map { client_output($_) } @clients);
$node->safe_psql('postgres', 'CALL work_with_keys(1)')
	while $node->safe_psql('postgres', "SELECT scheduled + ready > 0 FROM fanout.queues WHERE queue = 'load'") eq 't';
is($node->safe_psql('postgres', 'SELECT string_agg(what, E\'\n\') FROM violation'), '', 'no two at one time');
is( $node->safe_psql('postgres', <<'EOS'), '', 'the last args win');
SELECT string_agg(key || ' ' || args, ', ') FROM (SELECT DISTINCT ON (key) kind, key, args FROM called WHERE kind IN ('debounce', 'supersede', 'replace') ORDER BY key, n DESC) c
 WHERE NOT EXISTS (SELECT FROM ran r WHERE r.key = c.key AND r.args = c.args)
EOS
is_empty('load');

$node->stop;
done_testing();
