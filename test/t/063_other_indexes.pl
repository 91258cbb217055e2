# Indexes that an operator has made on the log's tables, to look for tasks: they begin as those do that refills read, and are
# not to be taken for them. Memory for few tasks, so that each order is read from disk.
#
# Promises 1 and 2: no task is lost, and tasks start in their order.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $tasks = 300;
my $node = new_node('main', conf => "fsync = off\nautovacuum = off\npg_fanout.max_tracked_tasks = 64");
sub query { return $node->safe_psql('postgres', $_[0]); }

query(<<'EOS');
CREATE INDEX ON fanout.task_1 (queue, (args ->> 'customer'));
CREATE INDEX ON fanout.task_1 (queue, (args ->> 'customer'), id) WHERE args ? 'customer';
CREATE INDEX ON fanout.task_1 (queue, coalesce(rank, priority), id) WHERE priority > 1000;
CREATE INDEX ON fanout.task_1 (queue, lane);
CREATE INDEX ON fanout.task_1 (queue, lane, name, id);
CREATE INDEX ON fanout.task_1 (queue, lane, coalesce(rank, priority, 0), id) WHERE lane = 1;
CREATE INDEX ON fanout.task_1 (queue, run_at);
CREATE INDEX ON fanout.task_1 (queue, run_at, name);
CREATE INDEX ON fanout.task_1 (queue, run_at DESC, id) WHERE run_at IS NOT NULL;
CREATE INDEX ON fanout.task_1 USING brin (queue, run_at, id);
EOS

# The ids in the order in which a worker has them
sub work_off
{
	my ($queue, $waits) = @_;
	my @order;

	while (@order < $waits)
	{
		my @more = split /\n/, query("SELECT task FROM fanout.dequeue('$queue', 'w', max_tasks => 10, wait => '20 s') WHERE fanout.complete(lease)");

		last unless @more;
		push @order, @more;
	}
	return join ',', @order;
}

# As many as wait, from the last one to the first
foreach my $case (['low', 'priority => -i'], ['high', 'priority => i'], ['partition', "partition_key => 'k', priority => -i"])
{
	my ($queue, $terms) = @$case;
	my $down = $terms =~ /-i/;

	query("SELECT fanout.create_queue('$queue')");
	query("SELECT fanout.enqueue('$queue', 'x', jsonb_build_object('customer', i % 7), $terms) FROM generate_series(1, $tasks) i");
	is(work_off($queue, $tasks), query("SELECT string_agg(task::text, ',' ORDER BY task " . ($down ? 'DESC' : '') . ") FROM fanout.tasks WHERE queue = '$queue'"),
		"what waits in memory and on disk starts in its order: $terms");
}

query("SELECT fanout.create_queue('timed')");
query("SELECT fanout.enqueue('timed', 'x', jsonb_build_object('customer', i % 7), delay => i * interval '1 ms') FROM generate_series(1, $tasks) i");
is(scalar(() = work_off('timed', $tasks) =~ /\d+/g), $tasks, 'and what had a time comes');
is(query('SELECT keeper_failures FROM fanout.stats'), 0, 'no keeper has failed');

$node->stop;
done_testing();
