# A task that kills its workers, or makes them hang, fails after max_attempts, with the history of its errors; retry()
# gives it another life.
#
# Promise 2: one outcome; promise 3: the workers that hung are too late; promise 9: its batch ends nevertheless.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('jobs', lease => '400 ms', max_attempts => 3, backoff => '1 ms', backoff_max => '1 ms');
EOS

sub state_of
{
	my ($task) = @_;

	return $node->safe_psql('postgres', "SELECT state, attempt FROM fanout.tasks WHERE task = $task");
}

# Workers that hang: nothing but the time of the lease ends the attempt.
my $batch = $node->safe_psql('postgres', "SELECT fanout.fan_out('jobs', '{poison,healthy}'::text[], '{1, 2}'::jsonb[])");
my ($poison, $healthy) = split /\n/, $node->safe_psql('postgres',
	"SELECT task FROM fanout.tasks WHERE batch = $batch ORDER BY 1");
my @leases = $node->safe_psql('postgres', "SELECT lease FROM fanout.dequeue('jobs', 'w1', lease => '10 min')");
$node->safe_psql('postgres', "SELECT fanout.checkpoint($leases[0], 'first', '1')");
is($node->safe_psql('postgres', "SELECT fanout.complete(lease) FROM fanout.dequeue('jobs', 'healthy')"),
	't', 'the healthy task is done meanwhile');
$node->safe_psql('postgres', "SELECT fanout.extend($leases[0], '400 ms')");
foreach my $attempt (2, 3)
{
	my ($lease, $task, $number) = split /\|/, $node->safe_psql('postgres',
		"SELECT lease, task, attempt FROM fanout.dequeue('jobs', 'w$attempt', wait => '20 s')");
	is("$task $number", "$poison $attempt", "attempt $attempt of the poisoned task");
	push @leases, $lease;
}
is( $node->safe_psql('postgres', "SELECT fanout.wait($batch, '20 s')"),
	't', 'promise 9: the batch ends');
is(state_of($poison), 'failed|3', 'after its attempts the task has failed');
is( $node->safe_psql('postgres', "SELECT ordinal, status, error IS NOT NULL FROM fanout.collect($batch)"),
	"1|failed|t\n2|succeeded|f", 'collect says so, with an error');
is( $node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('jobs', 'w4')"),
	0, 'it is not delivered again');
is(sqlstate($node, "SELECT fanout.complete($_)"), 'FO001', "promise 3: lease $_ is lost") foreach @leases;
$node->poll_query_until('postgres',
	"SELECT count(*) = 3 FROM fanout.attempts WHERE task = $poison AND state IN ('expired', 'failed')")
  or die 'the attempts are not on record';
is( $node->safe_psql('postgres', "SELECT lease, worker FROM fanout.attempts WHERE task = $poison ORDER BY claimed_at"),
	join("\n", map { "$leases[$_]|w" . ($_ + 1) } 0 .. 2),
	'all attempts are on record, with their workers');

# Workers that die, on and on: each takes its session with it.
my $killer = $node->safe_psql('postgres', "SELECT fanout.enqueue('jobs', 'killer')");
foreach my $attempt (1 .. 3)
{
	my $worker = session($node);
	my ($task, $number) = split /\|/, $worker->query_safe(
		"SELECT task, attempt FROM fanout.dequeue('jobs', 'w$attempt', lease => '10 min', wait => '20 s', bind_to_session => true)");
	is("$task $number", "$killer $attempt", "attempt $attempt of the task that kills its workers");
	my $pid = $worker->query_safe('SELECT pg_backend_pid()');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	drop_session($worker);
}
is($node->safe_psql('postgres', "SELECT status FROM fanout.result($killer, '20 s')"),
	'failed', 'it has failed, too');

# Errors of each kind.
my $mixed = $node->safe_psql('postgres', "SELECT fanout.enqueue('jobs', 'mixed')");
$node->safe_psql('postgres', "SELECT fanout.fail(lease, 'first error') FROM fanout.dequeue('jobs', 'w1')");
$node->safe_psql('postgres', "SELECT lease FROM fanout.dequeue('jobs', 'w2', wait => '20 s')");
my $last = $node->safe_psql('postgres',
	"SELECT lease FROM fanout.dequeue('jobs', 'w3', lease => '10 min', wait => '20 s')");
is($node->safe_psql('postgres', "SELECT fanout.fail($last, 'last error') IS NULL"), 't', 'the last attempt has no next');
is( $node->safe_psql('postgres', "SELECT status, error FROM fanout.result($mixed)"),
	'failed|last error', 'the last error is the task\'s');
$node->poll_query_until('postgres', "SELECT count(*) = 3 FROM fanout.attempts WHERE task = $mixed AND state <> 'running'")
  or die 'the attempts are not on record';
my @history = split /\n/, $node->safe_psql('postgres',
	"SELECT worker, state, error FROM fanout.attempts WHERE task = $mixed ORDER BY lease");
is($history[0], 'w1|failed|first error', 'the history has the first error');
like($history[1], qr/^w2\|expired\|/, 'the expiry');
is($history[2], 'w3|failed|last error', 'and the last error');

# Another life
is($node->safe_psql('postgres', "SELECT fanout.retry($healthy)"), 'f', 'what succeeded is not tried again');
is($node->safe_psql('postgres', "SELECT fanout.retry(ARRAY[$poison, $healthy, $mixed]) ORDER BY 1"),
	"$poison\n$mixed", 'what failed is');
$node->stop('immediate');
$node->start;
wait_for_memory($node);
is(state_of($poison), 'ready|0', 'promise 7: a crash does not take the new life back');
is(state_of($killer), 'failed|3', 'nor give it to others');
my ($lease, $task, $attempt, $checkpoints) = split /\|/, $node->safe_psql('postgres',
	"SELECT lease, task, attempt, checkpoints FROM fanout.dequeue('jobs', 'w5', lease => '10 min')");
is("$task $attempt $checkpoints", "$poison 1 {\"first\": 1}", 'it begins at the first attempt, with its checkpoints');
is(sqlstate($node, "SELECT fanout.complete($leases[2])"), 'FO001', 'promise 3: the old leases are still lost');
is($node->safe_psql('postgres', "SELECT fanout.complete($lease, '\"cured\"')"), 't', 'now it succeeds');
is( $node->safe_psql('postgres', "SELECT status, result, error FROM fanout.collect($batch)"),
	"succeeded|\"cured\"|\nsucceeded||", 'the batch has its result');

# In the new life there are as many attempts as in the first.
foreach my $number (1 .. 3)
{
	is( $node->safe_psql('postgres', "SELECT task, attempt FROM fanout.dequeue('jobs', 'w$number', wait => '20 s')"),
		"$mixed|$number", "attempt $number of the new life");
}
is($node->safe_psql('postgres', "SELECT status FROM fanout.result($mixed, '20 s')"), 'failed', 'it fails again');

$node->stop;
done_testing();
