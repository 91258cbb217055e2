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

# The keeper waits for no transaction of others, however long that stays open: a lease ends meanwhile.
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('probe');
SELECT fanout.create_queue('many', lease => '300 ms');
SELECT fanout.create_queue('dropped', lease => '300 ms', max_attempts => 1);
SELECT fanout.create_queue('joins');
EOS

sub expiry_goes_on
{
	my ($holder, $what) = @_;

	$node->safe_psql('postgres', "SELECT fanout.enqueue('probe', 'x')");
	$node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('probe', 'prober', max_tasks => 1, lease => '400 ms')");
	my $ended = wait_until { $node->safe_psql('postgres', "SELECT count(*) = 0 FROM fanout.leases WHERE worker = 'prober'") eq 't' } "the lease, $what", 10;
	ok($ended, "a lease ends, $what");
	$holder->query_safe('ROLLBACK');
	$node->safe_psql('postgres', "SELECT fanout.purge_queue('probe')");
	return;
}

my $holder = session($node);
my $any = $node->safe_psql('postgres',
	qq{SELECT fanout.fan_out('joins', 'x', array_fill('1'::jsonb, '{4}'), "join" => 'any')});
my $lease = $node->safe_psql('postgres', "SELECT lease FROM fanout.dequeue('joins', 'w1')");
my $last = $node->safe_psql('postgres', "SELECT max(task) FROM fanout.tasks WHERE batch = $any");
$holder->query_safe("BEGIN; SELECT fanout.cancel($last)");
$node->safe_psql('postgres', "SELECT fanout.complete($lease)");
expiry_goes_on($holder, 'while a task is being cancelled that a join is to cancel as well');
$node->poll_query_until('postgres', "SELECT cancelled = 3 FROM fanout.progress($any)") or die 'the join cancels nothing';
pass('the join cancels it when the other has rolled back');

$any = $node->safe_psql('postgres', "SELECT fanout.create_batch('any')");
$node->safe_psql('postgres', "SELECT fanout.enqueue('joins', 'x', batch => $any) FROM generate_series(1, 3)");
$lease = $node->safe_psql('postgres', "SELECT lease FROM fanout.dequeue('joins', 'w1')");
$holder->query_safe("BEGIN; SELECT fanout.seal_batch($any)");
$node->safe_psql('postgres', "SELECT fanout.complete($lease)");
expiry_goes_on($holder, 'while a batch is being sealed whose join has ended it');
$node->poll_query_until('postgres', "SELECT ended_at IS NOT NULL FROM fanout.batches WHERE batch = $any")
  or die 'the end of the join is not noted';
pass('the end of the join is noted when the other has rolled back');

$node->safe_psql('postgres', "SELECT fanout.enqueue('dropped', 'x')");
$node->safe_psql('postgres', "SELECT lease FROM fanout.dequeue('dropped', 'w1')");
$holder->query_safe("BEGIN; SELECT fanout.drop_queue('dropped', true)");
expiry_goes_on($holder, 'while a queue is being dropped with a task whose last attempt has expired');
$node->poll_query_until('postgres', "SELECT state = 'failed' FROM fanout.tasks WHERE queue = 'dropped'")
  or die 'the last attempt does not expire';
pass('the last attempt expires when the other has rolled back');

$node->safe_psql('postgres', "SELECT count(*) FROM fanout.enqueue_many('many', 'x', array_fill('1'::jsonb, '{400}'))");
$holder->query_safe("BEGIN; SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.dequeue('many', 'w1', max_tasks => 400)))");
$node->safe_psql('postgres', 'SELECT pg_sleep(0.3)');
expiry_goes_on($holder, 'while 400 leases that have run out are being completed');
$holder->quit;

# A batch that a join was about to end when the keeper went is looked at by the next one.
$any = $node->safe_psql('postgres',
	qq{SELECT fanout.fan_out('joins', 'x', array_fill('1'::jsonb, '{4}'), "join" => 'any')});
$lease = $node->safe_psql('postgres', "SELECT lease FROM fanout.dequeue('joins', 'w1')");
$holder = session($node);
$holder->query_safe('BEGIN; LOCK TABLE fanout.batch IN EXCLUSIVE MODE');
$node->safe_psql('postgres', "SELECT fanout.complete($lease)");
my ($keeper) = processes($node, 'keeper');
$node->poll_query_until('postgres', "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $keeper")
  or die 'the keeper does not look at the join';
$node->safe_psql('postgres', "SELECT pg_cancel_backend($keeper)");
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $keeper")
  or die 'the keeper stays';
$holder->query_safe('ROLLBACK');
$holder->quit;
$node->poll_query_until('postgres', "SELECT cancelled = 3 FROM fanout.progress($any)") or die 'the join cancels nothing';
pass('the next keeper does what this one was about to do');

# Under load
$node->safe_psql('postgres', "SELECT fanout.complete(lease) FROM fanout.leases");
$node->safe_psql('postgres', "SELECT fanout.drop_queue(queue, force => true) FROM fanout.queues WHERE queue <> 'load'");
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
