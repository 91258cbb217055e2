# A partition gives out a task that cannot leave memory before what is on disk while there is no memory for that, and
# goes by its order again once there is.
#
# Order is by priority and id, within a partition.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => 'pg_fanout.max_tracked_tasks = 64');

sub ask
{
	return $node->safe_psql('postgres', $_[0]);
}

install_work_off($node);

# The task that would start, and does not
ask(<<'EOS');
CREATE FUNCTION first_one() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	first text;
BEGIN
	SELECT name INTO first FROM fanout.dequeue('order', 'w');
	RAISE SQLSTATE 'UNDO0';
EXCEPTION WHEN SQLSTATE 'UNDO0' THEN
	RETURN first;
END $$;
EOS

# One has been attempted, and may not be left on disk; tasks of another queue run and have all memory that is left
ask("SELECT fanout.create_queue('order'), fanout.create_queue('busy', lease => '1 hour')");
ask("SELECT fanout.enqueue('order', 'attempted', partition_key => 'p')");
ask("SELECT fanout.release(lease) FROM fanout.dequeue('order', 'w')");
ask("SELECT count(*) FROM fanout.enqueue_many('busy', 'x', array_fill('1'::jsonb, '{63}'))");
ok($node->poll_query_until('postgres', "SELECT used = 64 FROM fanout.pools, (SELECT count(*) FROM fanout.dequeue('busy', 'w', max_tasks => 63)) d WHERE pool = 'tasks'"),
	'memory is used up');
ask("SELECT count(*) FROM fanout.enqueue_many('order', 'urgent', array_fill('1'::jsonb, '{200}'), priority => -1, partition_key => 'p')");
ok($node->poll_query_until('postgres', "SELECT first_one() = 'attempted'"), 'what is there may start');

# Some of those that are before it come to memory, and others are not there yet when these have started
ask("SELECT count(*) FROM fanout.complete((SELECT array_agg(lease) FROM fanout.leases))");
ok($node->poll_query_until('postgres', "SELECT ready > 1 FROM fanout.partitions WHERE queue = 'order'"), 'more urgent ones are in memory');
is(ask("SELECT DISTINCT name FROM fanout.dequeue('order', 'w', max_tasks => 100), fanout.complete(lease)"), 'urgent', 'and start before it');
my $others = ask("SELECT ready FROM fanout.queues WHERE queue = 'order'");
is($node->psql('postgres', "CALL work_off('order', $others)"), 0, 'all others come');
is(ask("SELECT max(a.lease) = max(a.lease) FILTER (WHERE t.name = 'attempted') FROM fanout.attempts a JOIN fanout.tasks t USING (task) WHERE t.queue = 'order' AND a.state = 'completed'"), 't',
	'and it comes last');

$node->stop;
done_testing();
