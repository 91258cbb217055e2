# A partition that is held back by time gives turns back, or goes to another fair group: its place among those that wait
# for a time is that of its virtual time, too. Needs a checked build, which looks at the order of sets.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => 'pg_fanout.max_tracked_tasks = 256');

# Two partitions of one queue, and of their tasks so many each
sub make_queue
{
	my ($queue, $tasks) = @_;

	$node->safe_psql('postgres', <<"EOS");
SELECT fanout.create_queue('$queue');
SELECT count(*) FROM fanout.enqueue_many('$queue', 't', array_fill('{}'::jsonb, '{@{[2 * $tasks]}}'),
	partition_keys => (SELECT array_agg(chr(97 + i % 2)) FROM generate_series(1, 2 * $tasks) AS i));
EOS
	return;
}

sub hold
{
	$node->safe_psql('postgres', "SELECT fanout.backpressure('$_[0]', '2100-01-01', partition_key => k) FROM unnest('{b,a}'::text[]) k");
	return;
}

sub violations
{
	return $node->safe_psql('postgres', 'SELECT kind, first FROM fanout._violations() WHERE violations > 0');
}

make_queue('undo', 5);
my $one = session($node);
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.pause_partition('undo', 'a');
SELECT count(*) FROM fanout.dequeue('undo', 'w', 2);
SELECT fanout.resume_partition('undo', 'a'), fanout.pause_partition('undo', 'b');
EOS
$one->query_safe('BEGIN');
$one->query_safe("SELECT count(*) FROM fanout.dequeue('undo', 'w', 2)");
hold('undo');
$one->query_safe('ROLLBACK');
is(violations(), '', 'a partition that is held gives turns back');

make_queue('regroup', 5);
$node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('regroup', 'w', 6)");
hold('regroup');
$node->safe_psql('postgres', "SELECT fanout.enqueue('regroup', 't', partition_key => k, fair_group => 'g') FROM unnest('{a,b}'::text[]) k");
is(violations(), '', 'a partition that is held goes to a fair group');

$node->stop;
done_testing();
