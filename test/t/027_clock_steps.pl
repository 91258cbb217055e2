# The clock is set back, and forth: the journal tells what has happened by the numbers of leases, not by its times.
#
# Promise 7: journaled leases are still held after a crash.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');
sub query { return $node->safe_psql('postgres', $_[0]); }
sub claim { return query("SELECT lease FROM fanout.dequeue('$_[0]', '$_[1]', lease => '$_[2]', wait => '20 s')"); }
sub journaled { $node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM fanout.attempt WHERE lease = $_[0] AND event = '$_[1]')") or die "no $_[1] in the journal"; return; }

query("SELECT fanout.create_queue(q, backoff => '0', max_attempts => 10) FROM unnest('{expired,failed,retried,moved,extended}'::text[]) q");
query("SELECT fanout.enqueue(q, 'task') FROM unnest('{expired,failed,retried,moved,extended}'::text[]) q");

# An expiry, a failure and a new life, each before the next claim
my $expired = claim('expired', 'w1', '100 ms');
journaled($expired, 'x');
my $failed = claim('failed', 'w1', '1 h');
journaled($failed, 'c');
query("SELECT fanout.fail($failed, 'no')");
my $retried = claim('retried', 'w1', '1 h');
query("SELECT fanout.fail($retried, 'no', final => true)");
query("SELECT fanout.retry(task) FROM fanout.tasks WHERE queue = 'retried'");
my %held = map { $_ => claim($_, 'w2', '1 h') } qw(expired failed retried);
journaled($held{$_}, 'c') foreach sort keys %held;

# What a task was told that waits for another attempt; a lease that was extended
my $moved = claim('moved', 'w1', '1 h');
journaled($moved, 'c');
query("SELECT fanout.fail($moved, 'no', retry_in => '1 h')");
query("SELECT fanout.reschedule(task, run_at => date_trunc('day', now()) + '3 days') FROM fanout.tasks WHERE queue = 'moved'");
my $extended = claim('extended', 'w1', '10 min');
journaled($extended, 'c');
query("SELECT fanout.extend($extended, '3 h')");
journaled($extended, 'e');

my $look = "SELECT queue, state, attempt, lease, worker, run_at FROM fanout.tasks ORDER BY task";
my $lasts = "SELECT lease_until > now() + '170 min' FROM fanout.leases WHERE lease = $extended";
my $was = query($look);
is(query($lasts), 't', 'the lease was extended');

# As if the clock had been set back by an hour after each of these, or forth before
my %steps = (
	'back after an end' => "UPDATE fanout.attempt SET at = at + interval '1 h' WHERE event IN ('x', 'f', 'n') OR (event = 'c' AND lease = $extended)",
	'forth before a claim' => "UPDATE fanout.attempt SET at = at - interval '2 h' WHERE event IN ('s', 'e') OR (event = 'c' AND worker = 'w2')",
);
foreach my $step (sort keys %steps)
{
	query($steps{$step});
	$node->stop('immediate');
	$node->start;
	wait_for_memory($node);
	is(query($look), $was, "promise 7: $step: leases, attempts and times");
	is(query($lasts), 't', "$step: the extension");
}
is(query("SELECT count(fanout.complete(lease)) FROM fanout.leases"), 4, 'the leases are live');

$node->stop;
done_testing();
