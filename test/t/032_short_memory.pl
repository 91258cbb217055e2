# More lanes than memory for tasks, and memory that is full of what cannot leave it.
#
# A lane may take memory from others of its queue so as to have something to give out. But two lanes must not take the
# only task of each other for ever, and what is blocked or cannot leave memory must not keep others from starting.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => 'pg_fanout.max_tracked_tasks = 64');

install_work_off($node);

sub status
{
	my ($item) = @_;
	return $node->safe_psql('postgres', "SELECT value FROM fanout.status() WHERE item = '$item'");
}

# 100 partitions with a backlog, each of which could start: one task of each that there is memory for is there, and stays.
# Two places are kept for what comes.
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('wide');
SELECT count(fanout.enqueue('wide', 'x', partition_key => 'p' || i % 100)) FROM generate_series(1, 300) i;
EOS
wait_until { status('tasks in memory') =~ /^6[234] of 64$/ } 'memory is full';

# With each of these the keeper has a look at all of them
$node->safe_psql('postgres', "SELECT fanout.create_queue('other')");
my $refills = status('refills');
my $evictions = status('evictions');
for my $turn (1 .. 20)
{
	my $journaled = status('journaled');
	$node->safe_psql('postgres', "SELECT fanout.enqueue('other', 'x')");
	my $lease = $node->safe_psql('postgres', "SELECT lease FROM fanout.dequeue('other', wait => '20 s')");
	wait_until { status('journaled') > $journaled } "the keeper has journaled a claim";
	$node->safe_psql('postgres', "SELECT fanout.complete($lease)");
}
cmp_ok(status('evictions') - $evictions, '<=', 64, 'those that have none do not take it from others');
cmp_ok(status('refills') - $refills, '<=', 64, 'nor read for it again and again');
is($node->psql('postgres', "CALL work_off('wide', 300)"), 0, 'all of it comes');

# Three queues have most of the memory; what else there is, 12 tasks that are to be tried again in an hour have, which cannot
# leave it, and the only tasks of four partitions that are paused then.
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue(q) FROM unnest('{a,b,c}'::text[]) q;
SELECT fanout.enqueue_many(q, 'x', array_fill('{}'::jsonb, ARRAY[16])) FROM unnest('{a,b,c}'::text[]) q;
SELECT fanout.create_queue('held', backoff => '1 hour', backoff_max => '1 hour');
SELECT fanout.enqueue_many('held', 'retried', array_fill('{}'::jsonb, ARRAY[12]), partition_key => 'retried');
SELECT count(*) FROM fanout.fail((SELECT array_agg(lease) FROM fanout.dequeue('held', max_tasks => 12)));
SELECT fanout.enqueue('held', 'paused', partition_key => 'paused' || i) FROM generate_series(1, 4) i;
SELECT fanout.pause_partition('held', 'paused' || i) FROM generate_series(1, 4) i;
EOS
is(status('tasks in memory'), '64 of 64', 'memory is full of what cannot start');
$node->safe_psql('postgres', "SELECT fanout.enqueue('held', 'free', partition_key => 'free' || i) FROM generate_series(1, 6) i");
is($node->psql('postgres', "CALL work_off('held', 6)"), 0, 'what can start does');
$node->safe_psql('postgres', "SELECT fanout.resume_partition('held', 'paused' || i) FROM generate_series(1, 4) i");
is($node->psql('postgres', "CALL work_off('held', 4)"), 0, 'and the others when they are resumed');

$node->stop;
done_testing();
