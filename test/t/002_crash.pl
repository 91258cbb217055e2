# Immediate stops and kill -9 of the postmaster in the middle of the work.
#
# Promise 1: what was committed is there, what was not never happened.
# Promise 2: each task has exactly one outcome, each step one value; effects in the same transaction happen once.
# Promise 3: leases that the journal had are still their holders'.
# Promise 7: a crash loses no enqueue, checkpoint or outcome, and with synchronous_claims no claim.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => 'max_worker_processes = 16');
my $longest = $node->safe_psql('postgres',
	"SELECT max_val FROM pg_settings WHERE name = 'pg_fanout.journal_interval'");

sub dequeue
{
	my ($queue, $count) = @_;

	return split /\n/, $node->safe_psql('postgres',
		"SELECT lease FROM fanout.dequeue('$queue', 'w1', max_tasks => $count)");
}

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('plain', lease => '10 min');
SELECT fanout.create_queue('synchronous', lease => '10 min', synchronous_claims => true);
SELECT fanout.enqueue_many('plain', 'task', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 6) i));
SELECT fanout.enqueue_many('synchronous', 'task', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 3) i));
EOS

# Claims that the journal has.
my @journaled = dequeue('plain', 3);
$node->safe_psql('postgres', "SELECT fanout.checkpoint($journaled[0], 'read', '1')");
$node->poll_query_until('postgres',
	"SELECT count(*) = 3 FROM fanout.attempts WHERE state = 'running'")
  or die 'the journal was not written';
my $held = $node->safe_psql('postgres', 'SELECT lease, task, worker, attempt FROM fanout.leases ORDER BY 1');

$node->append_conf('postgresql.conf', "pg_fanout.journal_interval = $longest");
$node->stop('immediate');
$node->start;
wait_for_memory($node);

is($node->safe_psql('postgres', 'SELECT lease, task, worker, attempt FROM fanout.leases ORDER BY 1'),
	$held, 'promise 7: journaled leases are as before the crash');
is( $node->safe_psql('postgres', "SELECT fanout.checkpoint($journaled[0], 'read', '2')"),
	'1', 'promise 7: the checkpoint is kept');
is($node->safe_psql('postgres', "SELECT fanout.complete($_)"),
	't', 'promise 3: a journaled lease completes after the crash')
  foreach @journaled;

# Claims that it does not have, but for those of the queue that asked for it. The journal was written just before
# them, so that its interval has just begun.
$node->safe_psql('postgres', "SELECT fanout.enqueue('plain', 'first', priority => -1)");
my @first = dequeue('plain', 1);
$node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM fanout.attempts WHERE lease = $first[0])")
  or die 'the journal was not written';
my @lost = dequeue('plain', 3);
my $tasks = $node->safe_psql('postgres',
	"SELECT string_agg(task::text, ',' ORDER BY task) FROM fanout.leases WHERE lease <> $first[0]");
my @synchronous = dequeue('synchronous', 3);
is(scalar @synchronous, 3, 'claims of the synchronous queue');
is( $node->safe_psql('postgres',
		"SELECT queue, count(*) FROM fanout.attempts WHERE state = 'running' AND lease <> $first[0] GROUP BY 1 ORDER BY 1"),
	'synchronous|3',
	'promise 7: synchronous claims are in the journal when dequeue has committed, others are not yet');
$node->stop('immediate');
$node->start;
wait_for_memory($node);

is(sqlstate($node, "SELECT fanout.complete($_)"),
	'FO001', 'promise 3: a lease that the journal did not have is lost')
  foreach @lost;
is($node->safe_psql('postgres', "SELECT fanout.complete($_)"),
	't', 'promise 7: a synchronous claim is not')
  foreach @synchronous;
my @again = dequeue('plain', 10);
is( $node->safe_psql('postgres',
		"SELECT string_agg(task::text, ',' ORDER BY task) FROM fanout.leases WHERE lease <> $first[0]"),
	$tasks,
	'promise 7: those tasks are delivered again');
cmp_ok($again[0], '>', (sort { $b <=> $a } @lost, @synchronous)[0],
	'a lease number that was lost is not given again');
$node->safe_psql('postgres', "SELECT fanout.complete($_)") foreach (@again, @first);

# What an open transaction did never happened.
$node->safe_psql('postgres', "SELECT fanout.enqueue('plain', 'kept')");
my $open = session($node);
$open->query_safe($_)
  foreach (
	'BEGIN',
	"SELECT fanout.enqueue('plain', 'uncommitted')",
	"SELECT fanout.complete(lease) FROM fanout.dequeue('plain', 'w2')",
	"SELECT fanout.create_queue('uncommitted')");
$node->stop('immediate');
drop_session($open);
$node->start;
wait_for_memory($node);
is( $node->safe_psql('postgres',
		"SELECT name, state, attempt FROM fanout.tasks WHERE name IN ('kept', 'uncommitted')"),
	'kept|ready|0',
	'promise 1: what was not committed never happened');
is(sqlstate($node, "SELECT fanout.enqueue('uncommitted', 'x')"), '42704', 'nor was the queue created');
is( $node->safe_psql('postgres', "SELECT fanout.complete(lease) FROM fanout.dequeue('plain', 'w2')"),
	't', 'and the task is delivered');
$node->safe_psql('postgres', "SELECT fanout.drop_queue('plain')");
$node->safe_psql('postgres', "SELECT fanout.drop_queue('synchronous')");
$node->safe_psql('postgres', 'DROP EXTENSION pg_fanout');

# Now under load, crash after crash.
$node->append_conf('postgresql.conf', 'pg_fanout.journal_interval = 10');
$node->restart;
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION pg_fanout;
SELECT fanout.create_queue('load', concurrency => 5, lease => '2 s', max_attempts => 1000);
SELECT fanout.create_queue('sitting', lease => '10 min');
EOS
install_ledger($node);

my (%produced, %completed, %claimed);

# What the clients were told.
sub note_promises
{
	foreach my $client (@_)
	{
		my $output = client_output($client);

		while ($output =~ /NOTICE:  (\w+) (.*)/g)
		{
			my ($what, $ids) = ($1, $2);
			my @ids = $ids =~ /(\d+)/g;
			if ($what eq 'produced') { $produced{$_} = 1 foreach @ids }
			if ($what eq 'completed') { $completed{$_}++ foreach @ids }
			if ($what eq 'claimed') { $claimed{$_}++ foreach @ids }
		}
	}
}

# A worker that sits on its lease while the server crashes around it.
sub sit
{
	$node->safe_psql('postgres', "INSERT INTO produced SELECT fanout.enqueue('sitting', 'long')");
	my ($lease, $task) = split /\|/, $node->safe_psql('postgres',
		"SELECT lease, task FROM fanout.dequeue('sitting', 'sitter')");
	$node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM fanout.attempts WHERE lease = $lease)")
	  or die 'the journal was not written';
	return ($lease, $task);
}

my $rounds = 4;
my $kept = 0;
foreach my $round (1 .. $rounds)
{
	my $done = $node->safe_psql('postgres', 'SELECT count(*) FROM effect');
	my ($lease, $task) = sit();
	my @round = (
		(map { start_client($node, "CALL produce('load', 80)") } 1 .. 2),
		(map { start_client($node, "CALL work('load', 'w$round.$_', stays => true)") } 1 .. 6));
	$node->poll_query_until('postgres', "SELECT count(*) >= $done + 150 FROM effect")
	  or die 'no work is done';

	$round % 2 ? crash($node) : $node->stop('immediate');
	finish_clients(@round);
	note_promises(@round);
	ok(start_after_crash($node), "round $round: the server starts again");

	cmp_ok(
		$node->safe_psql('postgres', "SELECT running FROM fanout.queues WHERE queue = 'load'"),
		'<=', 5, "round $round: promise 4: the limit holds after the crash");
	$kept++
	  if $node->safe_psql('postgres',
		"WITH c AS (SELECT fanout.complete($lease) AS done), e AS (INSERT INTO effect SELECT $task FROM c WHERE done) SELECT done FROM c") eq 't';
}
is($kept, $rounds, 'promise 7: leases that were journaled outlived each crash');

my @rest = map { start_client($node, "CALL work('load', 'rest.$_')") } 1 .. 4;
ok(finish_clients(@rest), 'the rest is worked off');
note_promises(@rest);

is($node->safe_psql('postgres', 'SELECT * FROM violations() LIMIT 20'),
	'', 'promises 1, 2 and 7: nothing lost, nothing twice, nothing that was rolled back');

my %finished = map { $_ => 1 } split /\n/, $node->safe_psql('postgres',
	"SELECT task FROM fanout.tasks WHERE state = 'succeeded'");
is(scalar(grep { !$finished{$_} } keys %produced),
	0, 'promise 7: every enqueue that a client was told of is there and done');
is(scalar(grep { $_ != 1 } values %completed), 0, 'promise 2: no task was completed twice');
is(scalar(grep { !$finished{$_} } keys %completed), 0, 'promise 7: no completion was lost');
is(scalar(grep { $_ != 1 } values %claimed), 0, 'no lease number was given twice');
cmp_ok(scalar(keys %completed), '>', 150 * $rounds * 0.9, 'the clients were told of the work');
note(scalar(keys %produced) . ' tasks, ' . scalar(keys %claimed) . ' leases');

$node->stop;
done_testing();
