# Many partitions whose tasks are on disk get memory at once, more than the keeper reads for in one turn: it comes back to
# those that are left.
#
# Promise 7: no task that is unfinished is lost.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => 'pg_fanout.max_tracked_tasks = 4096');

sub ask
{
	return $node->safe_psql('postgres', $_[0]);
}

install_work_off($node);

# Tasks that run have all memory, and none of 4000 partitions has its task there
ask("SELECT fanout.create_queue('busy', lease => '1 hour'), fanout.create_queue('parts')");
ask("SELECT count(*) FROM fanout.enqueue_many('busy', 'x', array_fill('1'::jsonb, '{4096}'))");
ok($node->poll_query_until('postgres', "SELECT running = 4096 FROM fanout.queues, (SELECT count(*) FROM fanout.dequeue('busy', 'w', max_tasks => 1000)) d WHERE queue = 'busy'"),
	'memory is used up');
ask("SELECT count(*) FROM fanout.enqueue_many('parts', 'x', array_fill('1'::jsonb, '{4000}'), partition_keys => ARRAY(SELECT 'key' || n FROM generate_series(1, 4000) n))");
is(ask("SELECT count(*) FILTER (WHERE ready = 0 AND more_on_disk) FROM fanout.partitions WHERE queue = 'parts'"), 4000, 'all partitions are on disk');

ask("SELECT count(*) FROM fanout.complete((SELECT array_agg(lease) FROM fanout.leases))");
is($node->psql('postgres', "CALL work_off('parts', 4000)"), 0, 'the task of each comes');

$node->stop;
done_testing();
