# A task whose deadline passes while there is no memory to cancel it is cancelled once there is some.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => 'pg_fanout.max_tracked_tasks = 64');

# All memory but one place has tasks that run, and the share of a queue that were due and cannot leave it
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('busy', lease => '1 hour'), fanout.create_queue('full'), fanout.create_queue('paused');
SELECT fanout.pause_queue('full'), fanout.pause_queue('paused');
SELECT count(*) FROM fanout.enqueue_many('full', 't', array_fill('{}'::jsonb, '{16}'), delay => '1 ms');
SELECT count(*) FROM fanout.enqueue_many('busy', 't', array_fill('{}'::jsonb, '{47}'));
DO $$
DECLARE
	taken int := 0;
	more int := 1;
BEGIN
	WHILE taken < 47 AND more > 0 LOOP
		SELECT count(*) INTO more FROM fanout.dequeue('busy', 'w', max_tasks => 47 - taken, wait => '20 s');
		taken := taken + more;
		COMMIT;
	END LOOP;
	ASSERT taken = 47;
END $$;
EOS

ok($node->poll_query_until('postgres', "SELECT ready = 16 AND in_memory = 16 FROM fanout.queues WHERE queue = 'full'"), 'the share of a queue is due');

# The last place goes to a task that was due as well; the other one is on disk, and late first
my ($in_memory, $on_disk, $used) = split /[|\n]/, $node->safe_psql('postgres', <<'EOS');
SELECT fanout.enqueue('paused', 't', delay => '1 ms', deadline => now() + interval '6 s'),
       fanout.enqueue('full', 't', deadline => now() + interval '4 s');
SELECT value FROM fanout.status() WHERE item = 'tasks in memory';
EOS
is($used, '64 of 64', 'there is no memory for the task that is late first');

sub is_cancelled
{
	my ($task) = @_;
	return $node->poll_query_until('postgres', "SELECT status = 'cancelled' FROM fanout.result($task, '0')");
}

ok(is_cancelled($in_memory), 'the one in memory is cancelled, which has the deadlines from there on looked at');
ok(is_cancelled($on_disk), 'and with its place so is the one that had to be passed over');

$node->stop;
done_testing();
