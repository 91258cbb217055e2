# More tasks are due at one time than memory holds. What is due cannot leave memory before it starts; so it is read as it is
# needed, and leaves room for other queues, whether it can start, is paused with its queue, or with its partition.
#
# Promise 8: the cost of a dequeue does not depend on how many tasks are delayed or blocked.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# a share of 256 tasks
my $pool = 1024;
my $waiting = 3000;
my $node = new_node('main', conf => "pg_fanout.max_tracked_tasks = $pool\npg_fanout.max_lanes = 64");

sub query { return $node->safe_psql('postgres', $_[0]); }
sub in_memory { return query("SELECT used FROM fanout.pools WHERE pool = 'tasks'"); }
sub all_come { my ($queue, $what) = @_; return is($node->psql('postgres', "CALL work_off('$queue', $waiting)"), 0, $what); }

install_work_off($node);
query("SELECT fanout.create_queue(q) FROM unnest('{due,usual,ranks,strays}'::text[]) q");

# who is blocked and how it ends, what is in memory meanwhile
my @cases = (
	[ 'due', '', '', $pool / 2 ],
	[ 'due and paused', "pause_queue('due')", "resume_queue('due')", $pool / 2 ],
	[ 'due in a paused partition', "pause_partition('due', 'p')", "resume_partition('due', 'p')", $pool - 1 ]);

foreach my $case (@cases)
{
	my ($name, $begin, $end, $most) = @$case;
	my $refills;

	query("SELECT fanout.$begin") if $begin ne '';
	query(<<EOS);
SELECT count(fanout.enqueue('due', 'x', partition_key => 'p', delay => make_interval(secs => i * 7919 % 1000 / 2000.0))) FROM generate_series(1, $waiting) i;
SELECT count(*) FROM fanout.enqueue_many('usual', 'x', array_fill('1'::jsonb, '{$waiting}'));
SELECT count(fanout.enqueue('ranks', 'x', priority => i % 10)) FROM generate_series(1, $waiting) i;
SELECT count(fanout.enqueue('strays', 'x', partition_key => i::text)) FROM generate_series(1, $waiting) i;
EOS
	$node->poll_query_until('postgres', 'SELECT max(run_at) < now() FROM fanout.task') or die;
	wait_until
	{
		my $before = $refills // -1;

		$refills = query('SELECT refills FROM fanout.stats');
		return $refills == $before;
	}
	'the keeper to have read what it wants';
	all_come($_, "$name: all of $_ come") foreach qw(strays ranks usual);
	cmp_ok(in_memory(), '<=', $most, "$name: what is due leaves room");
	query("SELECT fanout.$end") if $end ne '';
	all_come('due', "$name: all of it comes");
	ok($node->poll_query_until('postgres', "SELECT used = 0 FROM fanout.pools WHERE pool = 'tasks'"), "$name: nothing is left");
}

# Urgent tasks that are due, most of them on disk, do not wait for all that is ready.
query(<<EOS);
SELECT count(fanout.enqueue('due', 'urgent', priority => -1, delay => '0.5 s')) FROM generate_series(1, 600);
SELECT count(*) FROM fanout.enqueue_many('due', 'x', array_fill('1'::jsonb, '{$waiting}'));
EOS
$node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM fanout.task WHERE name = 'urgent' AND run_at > now())") or die;
is($node->psql('postgres', "CALL work_off('due', $waiting + 600)"), 0, 'all come, with urgent ones that are due');
my $last = query(<<'EOS');
SELECT max(n) FROM (SELECT t.name, row_number() OVER (ORDER BY o.lease) AS n
                      FROM fanout.task t JOIN fanout.outcome o ON o.task = t.id WHERE t.id >= (SELECT min(id) FROM fanout.task WHERE name = 'urgent')) c
 WHERE name = 'urgent'
EOS
cmp_ok($last, '<', 1500, 'which do not come last');

$node->stop;
done_testing();
