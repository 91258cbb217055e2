# The launcher and the keeper are terminated, idle and under load: they come back, and nobody loses anything.
#
# Promises 2, 3 and 4, with these processes gone for a while.

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
SELECT fanout.create_queue('jobs', concurrency => 5, lease => '10 min');
SELECT fanout.create_queue('waited', lease => '10 min');
SELECT fanout.create_queue('load', concurrency => 4, lease => '5 s', max_attempts => 1000);
SELECT fanout.fan_out('jobs', 'index', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 10) i));
EOS

# Terminate the process of this kind, and wait for its successor.
sub terminate
{
	my ($kind) = @_;
	my ($pid) = processes($node, $kind);

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	my $back = wait_until { my @pids = processes($node, $kind); @pids == 1 && $pids[0] != $pid } "another $kind";
	ok($back, "the $kind comes back");
}

is(scalar(processes($node, 'launcher')), 1, 'one launcher');
is(scalar(processes($node, 'keeper')), 1, 'one keeper, for the database that has the extension');

my @leases = split /\n/, $node->safe_psql('postgres', "SELECT lease FROM fanout.dequeue('jobs', 'w1', max_tasks => 3)");
$node->safe_psql('postgres', "SELECT fanout.checkpoint($leases[0], 'read', '1')");
my $look = 'SELECT task, state, attempt, lease, worker, lease_until FROM fanout.tasks ORDER BY 1';
my $before = $node->safe_psql('postgres', $look);

# Waiters before and after
my $waiter = session($node);
$waiter->query_until(qr/waiting/, "\\echo waiting\nCALL fanout.dequeue_wait('waited', 'w2', '2 min', NULL);\n");
$node->poll_query_until('postgres', "SELECT waiting_workers = 1 FROM fanout.queues WHERE queue = 'waited'")
  or die 'nobody waits';

terminate('keeper');
is($node->safe_psql('postgres', $look), $before, 'promise 3: leases and tasks are as they were');
terminate('launcher');
is(scalar(processes($node, 'keeper')), 1, 'still one keeper');
terminate('keeper');
is(scalar(processes($node, 'launcher')), 1, 'still one launcher');
is($node->safe_psql('postgres', $look), $before, 'promise 3: leases and tasks are still as they were');

$node->safe_psql('postgres', "SELECT fanout.enqueue('waited', 'at last')");
is($waiter->query_until(qr/^t$/m, ''), "t\n", 'a waiter of before is woken');
$waiter->quit;
is($node->safe_psql('postgres', "SELECT fanout.complete(lease) FROM fanout.dequeue('waited', 'w2')"), 't', 'and has its task');
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('jobs', 'w1', max_tasks => 10)"), 2, 'promise 4: the limit counts the leases of before');
is($node->safe_psql('postgres', "SELECT fanout.complete($_)"), 't', "lease $_ completes") foreach @leases;
$node->safe_psql('postgres', "SELECT fanout.enqueue('waited', 'later', delay => '300 ms')");
is($node->safe_psql('postgres', "SELECT fanout.complete(lease) FROM fanout.dequeue('waited', 'w2', wait => '20 s')"), 't', 'timers work');
$node->poll_query_until('postgres', "SELECT count(*) = 2 FROM fanout.attempts WHERE state = 'running'")
  or die 'the journal was not written';
pass('the journal is written');

# Under load
$node->safe_psql('postgres', "SELECT fanout.complete(lease) FROM fanout.leases");
$node->safe_psql('postgres', "SELECT fanout.drop_queue(q, force => true) FROM unnest('{jobs,waited}'::text[]) q");
install_ledger($node);
my @clients = map { start_client($node, "CALL produce('load', 200)") } 1 .. 2;
$node->poll_query_until('postgres', "SELECT enqueued > 100 FROM fanout.queues WHERE queue = 'load'")
  or die 'nothing is produced';
push @clients, map { start_client($node, "CALL work('load', 'w$_')") } 1 .. 5;
terminate($_) foreach qw(keeper launcher keeper keeper);
ok(finish_clients(@clients), 'no client noticed');
ok(finish_clients(start_client($node, "CALL work('load', 'last')")), 'the rest');
is($node->safe_psql('postgres', 'SELECT * FROM violations() LIMIT 20'), '', 'promises 1 and 2: nothing lost, nothing twice');

$node->stop;
done_testing();
