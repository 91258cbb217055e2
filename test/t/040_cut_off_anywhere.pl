# Calls of all kinds are cut off at random moments, by statement_timeout, lock_timeout, pg_cancel_backend and
# pg_terminate_backend, alone and in transactions with savepoints; then memory, tables and what was told agree, and
# nothing is left in the pools. Needs a checked build (test/harness/run_tests makes one).
#
# Promises 1, 2 and 4. make chaos does more of this, with crashes; here each kind of call is met many times.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $seed = $ENV{SEED} // 1;
srand($seed);
note("SEED=$seed");

my $node = new_node('main', conf => <<EOC);
pg_fanout.max_tracked_tasks = 256
pg_fanout.max_lanes = 16
EOC

sub query { return $node->safe_psql('postgres', $_[0]); }

query(<<'EOS');
SELECT fanout.create_queue('jobs', concurrency => 20, worker_concurrency => 8, lease => '300 ms', max_attempts => 1000, backoff => '1 ms', partition_concurrency => 3);
SELECT fanout.create_queue('rated', rate_limit => 1000, rate_period => '1 s', lease => '300 ms', max_attempts => 1000, backoff => '1 ms', synchronous_claims => true);
CREATE TABLE told (n bigserial, what text, task bigint);

CREATE FUNCTION some_task() RETURNS bigint LANGUAGE sql VOLATILE AS $$
	SELECT id FROM fanout.task WHERE id >= (SELECT max(id) FROM fanout.task) - 300 AND NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = task.id) ORDER BY random() LIMIT 1
$$;
CREATE FUNCTION some_lease() RETURNS bigint LANGUAGE sql VOLATILE AS $$
	SELECT lease FROM fanout.leases ORDER BY random() LIMIT 1
$$;
EOS

# Partitions with settings keep their lanes: fewer than there are, or tasks of others wait for ever.
# Each is one statement; ROUND is a number of its own. What is told is told in the same transaction.
my @calls = split /\n/, <<'EOS';
INSERT INTO told (what, task) SELECT 'enqueued', fanout.enqueue('jobs', 'x', '{"n": ROUND}', priority => ROUND % 3, partition_key => 'k' || ROUND % 25)
INSERT INTO told (what, task) SELECT 'enqueued', fanout.enqueue('rated', 'x', delay => '20 ms')
INSERT INTO told (what, task) SELECT 'enqueued', task FROM fanout.enqueue_many('jobs', 'many', array_fill('1'::jsonb, '{40}'))
INSERT INTO told (what, task) SELECT 'enqueued', c.task FROM fanout.fan_out('jobs', 'fan', array_fill('1'::jsonb, '{20}'), "join" => 'any') b, fanout.collect(b, '0') c
INSERT INTO told (what, task) SELECT 'keyed', fanout.enqueue('rated', 'keyed', key => 'k' || ROUND % 5, on_conflict => (ARRAY['return', 'replace', 'supersede'])[ROUND % 3 + 1])
SELECT fanout.debounce('rated', 'typed', 'd' || ROUND % 3, '1', '30 ms')
SELECT count(*) FROM fanout.dequeue('jobs', 'wROUND', max_tasks => 5)
SELECT count(*) FROM fanout.dequeue('{jobs,rated}', 'w', max_tasks => 20, wait => '50 ms')
CALL fanout.dequeue_wait('rated', 'w', '20 ms', NULL)
SELECT fanout.checkpoint(some_lease(), 'stepROUND', 'ROUND')
SELECT fanout.extend(some_lease(), '200 ms')
SELECT fanout.heartbeat('w')
INSERT INTO told (what, task) SELECT 'completed', l.task FROM (SELECT lease, task FROM fanout.leases LIMIT 1) l WHERE fanout.complete(l.lease)
INSERT INTO told (what, task) SELECT 'completed', a.task FROM fanout.leases a WHERE a.lease IN (SELECT fanout.complete(ARRAY(SELECT lease FROM fanout.leases ORDER BY 1 LIMIT 15)))
SELECT fanout.fail(some_lease(), 'no', retry_in => '5 ms')
SELECT fanout.release(some_lease(), '5 ms')
SELECT count(*) FROM fanout.complete_and_dequeue(some_lease(), NULL, 'jobs', 'w')
SELECT fanout.cancel(some_task(), 'no more')
SELECT fanout.cancel_matching('jobs', name => 'fan')
SELECT fanout.retry(ARRAY(SELECT task FROM fanout.outcome ORDER BY random() LIMIT 3))
SELECT fanout.reprioritize(some_task(), ROUND % 7)
SELECT fanout.reschedule(some_task(), delay => '10 ms')
SELECT fanout.move(some_task(), (ARRAY['jobs', 'rated'])[ROUND % 2 + 1])
SELECT fanout.set_partition('jobs', 'k' || ROUND % 8, concurrency => ROUND % 3 + 1)
SELECT fanout.pause_partition('jobs', 'k' || ROUND % 8)
SELECT fanout.resume_partition('jobs', 'k' || ROUND % 8)
SELECT fanout.backpressure('rated', now() + '5 ms')
SELECT fanout.alter_queue('jobs', concurrency => 20 + ROUND % 9)
SELECT fanout.pause_queue('rated'), fanout.resume_queue('rated')
SELECT fanout.create_queue('passing', if_not_exists => true), fanout.enqueue('jobs', 'x', delay => '1 ms')
SELECT fanout.drop_queue('passing', force => true)
SELECT count(*) FROM fanout.collect((SELECT max(batch) FROM fanout.batches), timeout => '10 ms')
SELECT fanout.wait(ARRAY[some_task()], timeout => '10 ms')
SELECT * FROM fanout.why(some_task())
SELECT count(*) FROM fanout.tasks
SELECT count(*) FROM fanout.partitions
EOS
my %calls_of = map { $_ => 1 } map { /fanout\.(\w+)\(/g } @calls;
my $missing = join ' ', grep { !$calls_of{$_} } split /\n/, query("SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'fanout'::regnamespace AND prorettype <> 'trigger'::regtype AND proname !~ '^_'");
note("not called: $missing");

sub one_call { my $sql = $calls[ int rand @calls ]; my $n = 1 + int rand 100; $sql =~ s/ROUND/$n/g; return $sql; }

# What one session does: statements, some in transactions; CALL needs none.
sub story
{
	my ($count) = @_;
	my @lines = ('\set ON_ERROR_ROLLBACK ' . (qw(on off))[ int rand 2 ]);	# on: a savepoint before each statement

	for (1 .. $count)
	{
		push @lines, sprintf("SET statement_timeout = %d; SET lock_timeout = %d;", (0, 1, 2, 3, 5, 8, 13, 30)[ int rand 8 ], (0, 1, 5)[ int rand 3 ]);
		if (rand() < 0.5) { push @lines, one_call() . ';'; next; }
		push @lines, 'BEGIN;';
		foreach my $part (1 .. 1 + int rand 3)
		{
			my $call = one_call();

			push @lines, "SAVEPOINT s$part;", ($call =~ /^CALL/ ? 'SELECT 1;' : "$call;"), (rand() < 0.3 ? "ROLLBACK TO s$part;" : ());
		}
		push @lines, (rand() < 0.7 ? 'COMMIT;' : 'ROLLBACK;');
	}
	return join "\n", @lines;
}

# psql goes on after an error, but not when its session is terminated: then another one begins.
my $dir = PostgreSQL::Test::Utils::tempdir;
my @runs;
foreach my $client (1 .. 4)
{
	append_to_file("$dir/$client.$_.sql", story(120)) foreach 1 .. 6;
	my $psql = $node->installed_command('psql') . " -XAtq -d \"" . $node->connstr('postgres') . '"';
	my $script = "until [ -e $dir/enough ]; do for n in 1 2 3 4 5 6; do PGAPPNAME=victim $psql -f $dir/$client.\$n.sql; done; done; touch $dir/$client.done";

	push @runs, IPC::Run::start([ 'sh', '-c', $script ], '<', \undef, '>', "$dir/$client.out", '2>&1', IPC::Run::timeout(280));
}

sub count_errors
{
	my ($error) = @_;
	my $output = join '', map { slurp_file("$dir/$_.out") } 1 .. 4;

	return scalar(() = $output =~ /$error/g);
}

# On a machine that is busy many a cancel comes when there is nothing to be cancelled: the clients go on until enough were.
my $ended = wait_until
{
	query(<<'EOS');
DO $$
BEGIN
	FOR i IN 1 .. 100 LOOP
		PERFORM pg_sleep(random() * 0.06), pg_stat_clear_snapshot();
		PERFORM CASE WHEN random() < 0.06 THEN pg_terminate_backend(pid) ELSE pg_cancel_backend(pid) END
		   FROM (SELECT pid FROM pg_stat_activity WHERE application_name = 'victim' OR (backend_type = 'pg_fanout keeper' AND random() < 0.1) ORDER BY random() LIMIT 1) v;
	END LOOP;
END $$;
EOS
	append_to_file("$dir/enough", '')
	  if count_errors('due to statement timeout') > 50 && count_errors('due to user request') > 20 && count_errors('terminating connection') > 2;
	return 4 == grep { -e "$dir/$_.done" } 1 .. 4;
}
'the clients', 4;
$_->finish foreach @runs;
ok($ended, 'many were cut off by a timeout or cancelled, and some sessions terminated');

my $log = slurp_file($node->logfile);
unlike($log, qr/PANIC:|TRAP:|pg_fanout violation|was terminated by signal|duplicate key value violates unique constraint "outcome/, 'the server has no complaint');
unlike($log, qr/lost synchronization|cache lookup|XX000|could not find|unexpected|task \d+ has no row/, 'no error that cannot happen');

# -- nobody is at work: all that is left can be done
query(<<'EOS');
SELECT fanout.resume_queue(queue) FROM fanout.queues;
SELECT fanout.resume_partition('jobs', 'k' || k) FROM generate_series(0, 7) k;
DO $$
BEGIN
	FOR i IN 1 .. 1000000 LOOP
		PERFORM fanout.complete(ARRAY(SELECT lease FROM fanout.dequeue(ARRAY(SELECT queue FROM fanout.queues), 'drain' || i % 7, max_tasks => 100, wait => '50 ms')));
		COMMIT;
		EXIT WHEN NOT EXISTS (SELECT FROM fanout.queues WHERE scheduled + ready + running > 0);
	END LOOP;
END $$;
EOS
is(query('SELECT queue, scheduled, ready, running FROM fanout.queues WHERE scheduled + ready + running > 0'), '', 'all that was left is done');
is(query('SELECT count(*) FROM fanout.task t WHERE NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id) AND EXISTS (SELECT FROM fanout.queue q WHERE q.id = t.queue)'), 0, 'promise 2: each has an outcome');
is(query('SELECT task, count(*) FROM fanout.outcome GROUP BY 1 HAVING count(*) > 1 LIMIT 3'), '', 'promise 2: and one');
is(query("SELECT what, task FROM told WHERE what = 'enqueued' AND NOT EXISTS (SELECT FROM fanout.tasks t WHERE t.task = told.task) LIMIT 3"), '', 'promise 1: what was told to be enqueued is there');
is(query("SELECT t.task, t.name FROM fanout.tasks t WHERE name IN ('many', 'fan') AND NOT EXISTS (SELECT FROM told WHERE told.task = t.task) LIMIT 3"), '', 'promise 1: and nothing else is');
is(query("SELECT t.task FROM told JOIN fanout.tasks t USING (task) WHERE what = 'completed' AND t.finished_at IS NULL LIMIT 3"), '', 'promise 1: what was completed has ended');
is(query("SELECT kind, first FROM fanout._violations() WHERE violations > 0"), '', 'promise 4: no limit was exceeded, and memory counts right');
query("SELECT fanout.drop_queue(queue, force => true) FROM fanout.queues");
ok( $node->poll_query_until('postgres', "SELECT count(*) = 0 FROM fanout.pools WHERE used > 0 AND pool NOT IN ('databases')"),
	'nothing is left in any pool') or diag(query('SELECT pool, used FROM fanout.pools WHERE used > 0'));
ok($node->poll_query_until('postgres', 'SELECT journal_lag = 0 AND joins_to_decide = 0 AND failed_in_a_row = 0 FROM fanout.stats'), 'nor for the keeper to do');

$node->stop;
done_testing();
