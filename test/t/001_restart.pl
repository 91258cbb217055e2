# A fast shutdown writes the journal out, so that a restart changes nothing for anybody.
#
# Promise 7 for the orderly case; promise 3: the holder of a lease keeps it; promise 4: limits hold over restarts.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Waiters that would outlast pg_ctl
my $node = new_node('main', conf => "pg_fanout.max_wait = '10 min'");

# So long an interval that only the shutdown can write the claims below.
$node->safe_psql('postgres',
	"SELECT format('ALTER SYSTEM SET pg_fanout.journal_interval = %L', max_val)"
	  . " FROM pg_settings WHERE name = 'pg_fanout.journal_interval' \\gexec");
$node->restart;

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('jobs', concurrency => 6, lease => '10 min', backoff => '1 h', backoff_max => '1 h');
SELECT fanout.create_queue('held', worker_concurrency => 1);
SELECT fanout.pause_queue('held');
SELECT fanout.enqueue('held', 'later');
SELECT fanout.fan_out('jobs', 'index', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 20) i));
SELECT fanout.enqueue('jobs', 'tomorrow', delay => '1 day');
SELECT fanout.enqueue('jobs', 'cancelled', priority => 9);
SELECT fanout.cancel(task) FROM fanout.tasks WHERE name = 'cancelled';
EOS

# One each that was completed, failed, released; five that run, one of them with a checkpoint and one extended.
my $worker = session($node);
my @leases = split /\n/, $worker->query_safe(
	"SELECT lease FROM fanout.dequeue('jobs', 'w1', max_tasks => 6)");
is(scalar @leases, 6, 'as many claims as the limit admits');
$worker->query_safe("SELECT fanout.complete($leases[0], '\"done\"')");
$worker->query_safe("SELECT fanout.fail($leases[1], 'broken')");
$worker->query_safe("SELECT fanout.release($leases[2])");
push @leases, split /\n/, $worker->query_safe(
	"SELECT lease FROM fanout.dequeue('jobs', 'w2', max_tasks => 2)");
splice @leases, 0, 3;
is(scalar @leases, 5, 'five leases are held');
$worker->query_safe("SELECT fanout.checkpoint($leases[0], 'read', '{\"size\": 42}')");
$worker->query_safe("SELECT fanout.extend($leases[1], '2 h')");

my %before = (
	leases =>
	  'SELECT lease, task, queue, worker, attempt, claimed_at, session_pid, committed FROM fanout.leases ORDER BY lease',
	tasks =>
	  'SELECT task, queue, name, args, state, priority, batch, run_at, attempt, lease, worker, result, error FROM fanout.tasks ORDER BY task',
	queues =>
	  'SELECT queue, owner, paused, scheduled, ready, running, concurrency, worker_concurrency, lease, max_attempts, backoff FROM fanout.queues ORDER BY queue',
	batches => 'SELECT * FROM fanout.batches ORDER BY batch',
	checkpoints => 'SELECT task, step, value FROM fanout.checkpoint ORDER BY task',
);
my %expected = map { $_ => $node->safe_psql('postgres', $before{$_}) } keys %before;
my $ends = $node->safe_psql('postgres',
	"SELECT string_agg(format('(%s, %L::timestamptz)', lease, lease_until), ', ') FROM fanout.leases");

# Waiters must not hold the shutdown up.
my $waiter = session($node);
$waiter->query_until(qr/waiting/,
	"\\echo waiting\nSELECT * FROM fanout.dequeue('held', 'w3', wait => '10 min');\n");
my $caller = session($node);
$caller->query_until(qr/waiting/,
	"\\echo waiting\nCALL fanout.dequeue_wait('held', 'w4', '10 min', NULL);\n");
$node->poll_query_until('postgres',
	"SELECT waiting_workers = 2 FROM fanout.queues WHERE queue = 'held'")
  or die 'nobody waits';

ok($node->stop('fast'), 'the shutdown waits for no waiter');
drop_session($_) foreach ($worker, $waiter, $caller);
$node->start;
wait_for_memory($node);

foreach my $what (sort keys %before)
{
	is($node->safe_psql('postgres', $before{$what}), $expected{$what}, "$what are as before the restart");
}
is( $node->safe_psql('postgres', "SELECT count(*) FROM fanout.leases JOIN (VALUES $ends) AS b (lease, until) USING (lease) WHERE lease_until >= until"),
	5,
	'promise 3: no lease ends earlier for the restart');
is( $node->safe_psql(
		'postgres', "SELECT count(*) FROM fanout.attempts WHERE state = 'running'"),
	5,
	'promise 7: every claim is in the journal after a fast shutdown');

is( $node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('jobs', 'w5', max_tasks => 10)"),
	1,
	'promise 4: leases from before the restart count for the limit');

my $last = $node->safe_psql('postgres', 'SELECT max(lease) FROM fanout.leases');
cmp_ok($last, '>', $leases[-1], 'lease numbers go on where they were');

is( $node->safe_psql(
		'postgres', "SELECT fanout.checkpoint($leases[0], 'read', '{\"size\": 43}')"),
	'{"size": 42}',
	'the checkpoint is kept');
is($node->safe_psql('postgres', "SELECT fanout.complete($_)"), 't', "lease $_ completes")
  foreach @leases;
is( $node->safe_psql('postgres', "SELECT fanout.complete($leases[0])"),
	'f', 'promise 3: repeating a completion is no error');
is( sqlstate($node, "SELECT fanout.complete($last + 1)"),
	'FO001', 'promise 3: a lease that was never given is lost');

# A completion from before the restart can be repeated after it.
$node->restart;
is( $node->safe_psql('postgres', "SELECT fanout.complete($leases[0])"),
	'f', 'promise 3: a completion can be repeated after another restart');

$node->safe_psql('postgres', "SELECT fanout.complete($last)");
$node->safe_psql('postgres', "SELECT fanout.complete(lease) FROM fanout.dequeue('jobs', 'w6', max_tasks => 6)")
  for 1 .. 5;
is( $node->safe_psql(
		'postgres', "SELECT state, count(*) FROM fanout.tasks WHERE name = 'index' GROUP BY 1 ORDER BY 1"),
	"scheduled|1\nsucceeded|19",
	'nothing is lost: all is done but the one that waits for its retry');

my $enqueued = $node->safe_psql('postgres', "SELECT fanout.enqueue('jobs', 'new')");
is( $node->safe_psql('postgres', 'SELECT max(task) FROM fanout.tasks'),
	$enqueued, 'task ids go on where they were');

$node->stop;
done_testing();
