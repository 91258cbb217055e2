# The procedures that wait hold no snapshot, so that vacuum is not held up by workers that idle; and they wait as long
# as they are told, whatever pg_fanout.max_wait says.
#
# Promise 8: what others pay does not depend on who waits, nor for how long.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "pg_fanout.max_wait = '50 ms'");

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('jobs', concurrency => 1);
SELECT fanout.create_queue('more');
SELECT fanout.create_queue('never');
EOS
my $task = $node->safe_psql('postgres', "SELECT fanout.fan_out('more', 'index'::text, '{1, 2}'::jsonb[])");
my @leases = split /\n/, $node->safe_psql('postgres', "SELECT lease FROM fanout.dequeue('more', 'w1', max_tasks => 2)");

# Start a CALL in a session of its own, and wait until it waits.
sub waiting
{
	my ($call) = @_;
	my $session = session($node);
	my $pid = $session->query_safe('SELECT pg_backend_pid()');

	$session->query_until(qr/calling/, "\\echo calling\n$call;\n\\echo returned\n");
	$node->poll_query_until('postgres',
		"SELECT state = 'active' AND wait_event_type = 'Extension' AND query ~ 'CALL' FROM pg_stat_activity WHERE pid = $pid")
	  or die 'it does not wait';
	return ($session, $pid);
}

# (it does for a moment, whenever it looks)
sub holds_nothing
{
	my ($pid, $what) = @_;

	ok( $node->poll_query_until('postgres', "SELECT backend_xmin IS NULL AND backend_xid IS NULL AND wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid"),
		"$what holds no snapshot and no transaction id");
}

my ($jobs, $jobs_pid) = waiting("CALL fanout.dequeue_wait('jobs', 'w1', '2 min', NULL)");
my ($several, $several_pid) = waiting("CALL fanout.dequeue_wait('{never,jobs,more}'::text[], 'w2', '2 min', NULL)");
my ($batch, $batch_pid) = waiting('CALL fanout.wait_batch(1, NULL, NULL)');
my ($never, $never_pid) = waiting("CALL fanout.dequeue_wait('never', 'w3', '2 min', NULL)");

# What has committed since does not matter to them.
$node->safe_psql('postgres', 'CREATE TABLE t AS SELECT 1 AS a');
$node->safe_psql('postgres', 'UPDATE t SET a = 2');
holds_nothing($jobs_pid, 'dequeue_wait');
holds_nothing($several_pid, 'dequeue_wait for several queues');
holds_nothing($batch_pid, 'wait_batch');
my $removed = wait_until
{
	my $vacuum;

	$node->psql('postgres', 'VACUUM VERBOSE t', stderr => \$vacuum);
	return $vacuum =~ /1 remain, 0 are dead but not yet removable/;
}
'a vacuum while nobody else looks';
ok($removed, 'vacuum removes what they could have seen');

# Nothing ends the wait but what it waits for.
is($node->safe_psql('postgres', "SELECT fanout.complete($leases[0])"), 't', 'the batch is half done');
holds_nothing($batch_pid, 'wait_batch, still');
$node->safe_psql('postgres', "SELECT fanout.complete($leases[1])");
is($batch->query_until(qr/returned/, ''), "t\nreturned\n", 'wait_batch returns true when the batch has ended');

$node->safe_psql('postgres', "SELECT fanout.enqueue('jobs', 'one')");
is($jobs->query_until(qr/returned/, ''), "t\nreturned\n", 'dequeue_wait returns true when there is work');
is($jobs->query_safe("SELECT name FROM fanout.dequeue('jobs', 'w1')"), 'one', 'which is then there');
$node->safe_psql('postgres', "SELECT fanout.enqueue('more', 'two')");
is($several->query_until(qr/returned/, ''), "t\nreturned\n", 'so does the wait for several queues');

# A task that the limit holds back is no work; one that is given free is.
$node->safe_psql('postgres', "SELECT fanout.enqueue('jobs', 'three')");
my ($limited, $limited_pid) = waiting("CALL fanout.dequeue_wait('jobs', 'w1', '2 min', NULL)");
holds_nothing($limited_pid, 'dequeue_wait for a permit');
$node->safe_psql('postgres', "SELECT fanout.complete(lease) FROM fanout.leases WHERE queue = 'jobs'");
is($limited->query_until(qr/returned/, ''), "t\nreturned\n", 'it returns when there is one');

# The ends that are none
is($node->safe_psql('postgres', "CALL fanout.dequeue_wait('never', 'w4', '100 ms', NULL)"), 'f', 'a wait that ends in vain');
my $open = $node->safe_psql('postgres', 'SELECT fanout.create_batch()');
is($node->safe_psql('postgres', "CALL fanout.wait_batch($open, '100 ms', NULL)"), 'f', 'a batch that goes on');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($never_pid)");
$never->query_until(qr/returned/, '');
like($never->{stderr}, qr/canceling statement due to user request/, 'a wait can be cancelled');
$never->{stderr} = '';
is($never->query_safe('SELECT 1'), 1, 'and its session goes on');
$node->poll_query_until('postgres', 'SELECT sum(waiting_workers) = 0 FROM fanout.queues')
  or die 'somebody still counts as waiting';
pass('nobody counts as waiting any more');

# A function cannot do the same: it waits no longer than pg_fanout.max_wait.
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('never', 'w5', wait => '2 min')"),
	0, 'dequeue waits no longer than pg_fanout.max_wait');

$_->quit foreach ($jobs, $several, $batch, $limited, $never);
$node->stop;
done_testing();
