# Many tasks that have ended stand between those that wait: a refill that comes from before them is not to walk past all of
# them at once, be it in the order of a rank or of a partition, as the keeper has other things to do. Needs a checked build
# (test/harness/run_tests makes one), where a refill looks at 320 rows.
#
# Promise 7: leases are journaled in time, and so not behind such a walk.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $ended = 12_000;
my $look = 320;
my $node = new_node('main', conf => "fsync = off\nautovacuum = off\npg_fanout.max_tracked_tasks = 64");
sub query { return $node->safe_psql('postgres', $_[0]); }
sub refills { return query('SELECT refills FROM fanout.stats'); }

install_work_off($node);

# What comes first leaves the rest of its transaction on disk, for which there is no memory: the bound is before all others.
# Who comes from below the usual rank reads on in the order of ids, and so meets what has ended twice.
foreach my $case (
	[ 'below the usual rank', 2, map { "priority => $_" } -9, -5, -3 ],
	[ 'above the usual rank', 1, map { "priority => $_" } 1, 5, 9 ],
	[ 'of a partition', 1, map { "partition_key => 'k', priority => $_" } -9, 0, 9 ])
{
	my ($name, $times, $first, $between, $last) = @$case;
	my $put = sub { query("SELECT count(*) FROM fanout.enqueue_many('$name', '$_[2]', array_fill('1'::jsonb, '{$_[0]}'), $_[1])") };
	my $before;

	# in two segments, each of which has some that wait
	query("SELECT fanout.create_queue('$name')");
	foreach my $segment (1 .. 2)
	{
		$put->($ended / 2, $between, 'ended');
		query("CALL work_off('$name', $ended / 2)");
		$put->(10, $last, 'last');
		query('SELECT fanout._next_segment()') if $segment == 1;
	}
	$put->(40, $first, 'first');
	$before = refills();
	query("CALL work_off('$name', 60)");
	cmp_ok(refills() - $before, '>=', $times * int($ended / $look), "those $name are read some at a time");
	is(query("SELECT count(*) FROM fanout.tasks WHERE queue = '$name' AND state <> 'succeeded'"), 0, 'all come,');
	is(query("SELECT count(*) FROM (SELECT lease, lag(lease) OVER (ORDER BY priority, task) AS before FROM fanout.tasks"
		  . " WHERE queue = '$name' AND name <> 'ended') t WHERE before > lease"), 0, 'and in their order');
}

$node->stop;
done_testing();
