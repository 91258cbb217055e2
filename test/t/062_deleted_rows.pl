# Tasks and outcomes that are deleted and kept for a snapshot, among tasks that wait on disk: a refill is not to walk past all
# of the outcomes to learn that a task has none, and past the tasks only so many at a time. Needs a checked build
# (test/harness/run_tests makes one), where these are 320.
#
# Promise 8: dequeue does not slow down while somebody's transaction stays open.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $waiting = 600;
my $deleted = 20_000;
my $look = 320;
my $node = new_node('main', conf => "fsync = off\nautovacuum = off\npg_fanout.max_tracked_tasks = 64\npg_fanout.max_lanes = 16");
sub query { return $node->safe_psql('postgres', $_[0]); }

install_work_off($node);
query("SELECT fanout.create_queue('waiting'), fanout.create_queue('short', retention => '1 ms')");
query("SELECT count(*) FROM fanout.enqueue_many('waiting', 'x', array_fill('1'::jsonb, '{$waiting}'))");
query("SELECT fanout.pause_queue('waiting')");
query("SELECT count(*) FROM fanout.enqueue_many('short', 'x', array_fill('1'::jsonb, '{$deleted}'))");
query("SELECT fanout.enqueue('waiting', 'last')");

my $reader = session($node);
$reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
$reader->query_safe('SELECT count(*) FROM fanout.outcome');
query("CALL work_off('short', $deleted)");
ok($node->poll_query_until('postgres', "SELECT count(*) = $waiting + 1 FROM fanout.task"), 'what has ended is deleted');

# The keeper tells what it has read when it ends.
sub read_by_keepers
{
	my ($keeper) = processes($node, 'keeper');

	query("SELECT pg_terminate_backend($keeper)");
	wait_until { my @now = processes($node, 'keeper'); @now && $now[0] != $keeper } 'another keeper' or die 'there is no other keeper';
	wait_for_memory($node);
	return query("SELECT idx_tup_read FROM pg_stat_all_indexes WHERE indexrelname = 'outcome_1_pkey'");
}

my $before = read_by_keepers();
my $refills = -query("SELECT value FROM fanout.status() WHERE item = 'refills'");
query("SELECT fanout.resume_queue('waiting')");
query("CALL work_off('waiting', $waiting + 1)");
$refills += query("SELECT value FROM fanout.status() WHERE item = 'refills'");
cmp_ok($refills, '>', $waiting / 64 + $deleted / $look, 'no refill has looked at more rows than it may, deleted ones included');
cmp_ok(read_by_keepers() - $before, '<', $refills * $deleted / 4, 'and not each refill has read all that was deleted');


$reader->quit;
$node->stop;
done_testing();
