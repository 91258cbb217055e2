# A worker's backend goes: by SIGKILL, which takes the whole server through a crash; by pg_terminate_backend; by a
# client that hangs up.
#
# Promise 2: its task is delivered again, and goes on after the last checkpoint.
# Promise 3: until its lease ends nobody else gets the task; afterwards the stale worker can do nothing.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => 'restart_after_crash = on');

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('jobs', lease => '10 min', backoff => '1 ms', backoff_max => '1 ms');
EOS

# Kill a backend and wait until the server has come back.
sub kill_backend
{
	my ($session, $pid) = @_;
	my $offset = -s $node->logfile;

	kill 'KILL', $pid;
	$node->wait_for_log(qr/all server processes terminated; reinitializing/, $offset);
	drop_session($session);
	wait_for_memory($node);
}

sub wait_for_journal
{
	my ($lease) = @_;

	$node->poll_query_until('postgres',
		"SELECT EXISTS (SELECT FROM fanout.attempts WHERE lease = $lease)")
	  or die 'the journal was not written';
}

# SIGKILL
my $task = $node->safe_psql('postgres', "SELECT fanout.enqueue('jobs', 'tool calls')");
my $other_task = $node->safe_psql('postgres', "SELECT fanout.enqueue('jobs', 'other')");
my $worker = session($node);
my $pid = $worker->query_safe('SELECT pg_backend_pid()');
my ($lease, $until) = split /\|/, $worker->query_safe(
	"SELECT lease, lease_until FROM fanout.dequeue('jobs', 'w1')");
my $other = $node->safe_psql('postgres', "SELECT lease FROM fanout.dequeue('jobs', 'w2')");
$worker->query_safe("SELECT fanout.checkpoint($lease, 'first', '1')");
$worker->query_safe("SELECT fanout.checkpoint($lease, 'second', '2')");
wait_for_journal($other);
$worker->query_safe('BEGIN');
$worker->query_safe("SELECT fanout.checkpoint($lease, 'third', '3')");
kill_backend($worker, $pid);

is( $node->safe_psql('postgres', "SELECT fanout.complete($other)"),
	't', 'promise 7: the lease of another worker is still held');
is( $node->safe_psql('postgres', "SELECT lease_until >= '$until' FROM fanout.leases WHERE lease = $lease"),
	't', 'so is that of the killed one, until its time');
$until = $node->safe_psql('postgres', "SELECT fanout.extend($lease, '1 s')");
my ($redelivered, $again, $attempt, $checkpoints, $in_time) = split /\|/,
  $node->safe_psql('postgres',
	"SELECT lease, task, attempt, checkpoints, clock_timestamp() >= '$until' FROM fanout.dequeue('jobs', 'w2', wait => '20 s')"
  );
is($again, $task, 'promise 2: the task is delivered again');
is($in_time, 't', 'promise 3: not before the lease has ended');
is($attempt, 2, 'as its second attempt');
is($checkpoints, '{"first": 1, "second": 2}',
	'promise 2: with the checkpoints that were committed, and only these');
is(sqlstate($node, "SELECT fanout.checkpoint($lease, 'third', '3')"),
	'FO001', 'promise 3: the stale lease cannot checkpoint');
is(sqlstate($node, "SELECT fanout.complete($lease)"), 'FO001', 'nor complete');
is($node->safe_psql('postgres', "SELECT fanout.complete($redelivered)"), 't', 'the new one can');
is( $node->safe_psql('postgres', "SELECT state FROM fanout.attempts WHERE task = $task ORDER BY lease"),
	"expired\ncompleted",
	'both attempts are on record');

# A lease that is bound to its session ends with it, in each way a session can end.
sub bound_session
{
	my ($name) = @_;
	$task = $node->safe_psql('postgres', "SELECT fanout.enqueue('jobs', '$name')");
	my $session = session($node);
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	my ($got, $lease) = split /\|/, $session->query_safe(
		"SELECT task, lease FROM fanout.dequeue('jobs', 'bound', bind_to_session => true)");
	is($got, $task, "$name: claimed");
	is( $node->safe_psql('postgres', "SELECT session_pid FROM fanout.leases WHERE lease = $lease"),
		$pid, "$name: the lease is bound to the session");
	$session->query_safe("SELECT fanout.checkpoint($lease, 'first', '1')");
	return ($session, $pid, $lease);
}

sub redelivered_at_once
{
	my ($name, $lease) = @_;
	my $got = $node->safe_psql('postgres',
		"SELECT task, attempt, checkpoints FROM fanout.dequeue('jobs', 'w3', wait => '20 s')");
	is($got, "$task|2|{\"first\": 1}", "$name: the task goes on at once, ten minutes before the lease's time");
	is(sqlstate($node, "SELECT fanout.complete($lease)"), 'FO001', "$name: the lease is lost");
	is($node->safe_psql('postgres', "SELECT fanout.complete(lease) FROM fanout.leases"),
		't', "$name: done");
}

my $session;
($session, $pid, $lease) = bound_session('terminated');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
redelivered_at_once('terminated', $lease);
drop_session($session);

($session, $pid, $lease) = bound_session('quit');
$session->quit;
redelivered_at_once('quit', $lease);

($session, $pid, $lease) = bound_session('hung up');
drop_session($session);
redelivered_at_once('hung up', $lease);

($session, $pid, $lease) = bound_session('in a transaction');
$session->query_safe('BEGIN');
$session->query_safe("SELECT fanout.complete($lease)");
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
redelivered_at_once('in a transaction', $lease);
drop_session($session);

($session, $pid, $lease) = bound_session('killed');
wait_for_journal($lease);
kill_backend($session, $pid);
redelivered_at_once('killed', $lease);

# A bound lease that was completed is over, whatever becomes of the session.
($session, $pid, $lease) = bound_session('completed');
$session->query_safe("SELECT fanout.complete($lease)");
$session->quit;
is($node->safe_psql('postgres', "SELECT state FROM fanout.tasks WHERE task = $task"),
	'succeeded', 'a completed task is not delivered again');
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('jobs', 'w3')"), 0, 'indeed');

# A claim that was not committed was none.
$task = $node->safe_psql('postgres', "SELECT fanout.enqueue('jobs', 'uncommitted')");
$session = session($node);
$pid = $session->query_safe('SELECT pg_backend_pid()');
$session->query_safe('BEGIN');
is($session->query_safe("SELECT task FROM fanout.dequeue('jobs', 'w1')"), $task, 'claimed, not committed');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
is( $node->safe_psql('postgres', "SELECT task, attempt FROM fanout.dequeue('jobs', 'w2', wait => '20 s')"),
	"$task|1", 'promise 1: a claim whose transaction ended without a commit never happened');
drop_session($session);

# A client that has gone while it waited gets nothing: its session ends when it is woken, and passes that on.
my $gone = start_client($node, "SELECT * FROM fanout.dequeue('jobs', 'gone', wait => '1 min')");
my $its_session = "FROM pg_stat_activity WHERE query LIKE '%gone%' AND pid <> pg_backend_pid()";
$node->poll_query_until('postgres', "SELECT count(*) = 1 $its_session AND wait_event_type = 'Extension' AND now() - query_start > '1.2 s'")
  or die 'it does not wait';
$gone->{run}->kill_kill;
$task = $node->safe_psql('postgres', "SELECT fanout.enqueue('jobs', 'for somebody else')");
is($node->safe_psql('postgres', "SELECT task, attempt FROM fanout.dequeue('jobs', 'w2', wait => '20 s')"), "$task|1",
	'a task is not leased to a client that has gone');
$node->poll_query_until('postgres', "SELECT count(*) = 0 $its_session") or die 'its session goes on';

$node->stop;
done_testing();
