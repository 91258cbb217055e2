# cancel_matching finds each task that matches, whatever part of its order is in memory.
#
# Of what is on disk it reads each order from the place on from which there may be some.  Here the tasks at that place,
# next to it, and those of later places with smaller ids, are asked for one by one, with nothing else that matches.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# A queue has 16 waiting tasks in memory
my $node = new_node('main', conf => 'pg_fanout.max_tracked_tasks = 64');

# Terms of tasks, in the order in which they come
my @urgent = ('priority => -1') x 16;
my %orders = (
	'the usual order' => [ ('') x 20 ],
	'an order by priority' => [ ('priority => 1') x 20 ],
	'an order by priority that is full' => [ ('priority => 1') x 16, 'priority => 2', 'priority => 1', 'priority => 2' ],
	'usual tasks behind urgent ones' => [ @urgent, '', 'priority => -1', '', 'priority => 1' ],
	'a partition' => [ ("partition_key => 'k'") x 20 ],
	'a partition with urgent tasks' => [ map { "partition_key => 'k'" . ($_ ? ", $_" : '') } @urgent, '', 'priority => -1', '', 'priority => 1' ],
	'the schedule' => [ map { "delay => '1 hour $_ min'" } 1 .. 18, 17, 17 ],
	'an order by age' => [ 'priority => 1', ('') x 18, 'priority => -1' ]);
my %settings = ('an order by age' => ", aging => '1 hour'");

# Each of the queue's tasks from this one on, in a transaction that is rolled back, so that all find the same
sub finds_each
{
	my ($queue, $first, $last, $what, $filter) = @_;
	my $found = $node->safe_psql('postgres', join '', map
		{
			"BEGIN; SELECT t.args ->> 'n' FROM fanout.cancel_matching('$queue', args => '{\"n\": $_}'$filter) c JOIN fanout.task t ON t.id = c;"
			  . " ROLLBACK;\n"
		} $first .. $last);

	is($found, join("\n", $first .. $last), "$what: each of them is found" . ($filter && ' by its partition'));
}

sub make_queue
{
	my ($queue, $settings, @terms) = @_;

	$node->safe_psql('postgres', join '', "SELECT fanout.create_queue('$queue'$settings);\n", map
		{
			"SELECT fanout.enqueue('$queue', 't', '{\"n\": $_}'" . ($terms[ $_ - 1 ] ? ", $terms[$_ - 1]" : '') . ");\n"
		} 1 .. @terms);
}

foreach my $order (sort keys %orders)
{
	my @terms = @{ $orders{$order} };
	my $queue = $order =~ tr/ /_/r;

	make_queue($queue, $settings{$order} // '', @terms);
	is($node->safe_psql('postgres', "SELECT in_memory FROM fanout.queues WHERE queue = '$queue'"), 16, "$order: the others are on disk");
	finds_each($queue, 1, scalar @terms, $order, '');
	finds_each($queue, 1, scalar @terms, $order, ", partition_key => 'k'") if $terms[0] =~ /partition_key/;
	$node->safe_psql('postgres', "SELECT fanout.drop_queue('$queue', force => true)");
}

# A refill moves the bound on, but does not come to the tasks of later places
foreach my $where ('', "partition_key => 'k'")
{
	my $what = 'after a refill' . ($where && ' of a partition');

	make_queue('read', '', map { $where . ($where && $_ && ', ') . $_ } @urgent, '', ('priority => -1') x 40);
	$node->safe_psql('postgres', "SELECT fanout.complete(ARRAY(SELECT lease FROM fanout.dequeue('read', 'w', max_tasks => 12)))");
	ok($node->poll_query_until('postgres', "SELECT in_memory = 16 FROM fanout.queues WHERE queue = 'read'"), "$what, memory has its share again");
	finds_each('read', 13, 57, $what, '');
	$node->safe_psql('postgres', "SELECT fanout.drop_queue('read', force => true)");
}

$node->stop;
done_testing();
