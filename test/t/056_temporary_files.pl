# What the keeper reads while work goes on, it reads by the tasks that it is for, in the order in which they stand: with a
# long history and a long backlog, and little memory to work with, it sorts and hashes nothing that would not fit, so it
# needs no temporary files, for which there might be no room. (A rebuild and retention do: see 039.)
#
# Promise 8: the cost does not depend on how many tasks have finished, or wait.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use List::Util qw(min);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# a share of 256 tasks; each temporary file is logged
my $node = new_node('main', conf => <<EOC);
pg_fanout.max_tracked_tasks = 1024
pg_fanout.max_lanes = 64
work_mem = '64kB'
log_temp_files = 0
log_line_prefix = '%m [%p] %b '
EOC

sub query { return $node->safe_psql('postgres', $_[0]); }

install_work_off($node);

# a history
my $finished = 20000;
query("SELECT fanout.create_queue('past'); SELECT count(*) FROM fanout.enqueue_many('past', 'x', array_fill('1'::jsonb, '{$finished}'))");
query("CALL work_off('past', $finished)");
is(query('SELECT count(*) FROM fanout.outcome'), $finished, 'many tasks have finished');

# a backlog of each order: that of ids, of ranks, of partitions, those for which there is no lane, and of times
my $waiting = 3000;
query(<<EOS);
SELECT fanout.create_queue(q) FROM unnest('{usual,ranks,partitions,strays,times}'::text[]) q;
SELECT fanout.create_queue('aging', aging => '1 s');
SELECT count(*) FROM fanout.enqueue_many('usual', 'x', array_fill('1'::jsonb, '{$waiting}'));
SELECT count(fanout.enqueue('ranks', 'x', priority => i * 7919 % 1000 - 500)) FROM generate_series(1, $waiting) i;
SELECT count(fanout.enqueue('aging', 'x', priority => i * 7919 % 1000 - 500)) FROM generate_series(1, $waiting) i;
SELECT count(fanout.enqueue('partitions', 'x', partition_key => (i % 10)::text, priority => i * 7919 % 10)) FROM generate_series(1, $waiting) i;
SELECT count(fanout.enqueue('strays', 'x', partition_key => i::text)) FROM generate_series(1, $waiting) i;
EOS

# what passes its deadline beside them
query(q{SELECT fanout.create_queue('late'), fanout.pause_queue('late')});
query(q{SELECT count(*) FROM fanout.enqueue_many('late', 'x', array_fill('1'::jsonb, '{1000}'), deadline => now() + '1 s')});

foreach my $queue (qw(usual ranks aging partitions strays times))
{
	# those of this one stay in memory once they are due
	query("SELECT count(fanout.enqueue('times', 'x', delay => make_interval(secs => i * 7919 % 1000 / 1000.0))) FROM generate_series(1, $waiting) i")
	  if $queue eq 'times';
	is($node->psql('postgres', "CALL work_off('$queue', $waiting)"), 0, "$queue: all of a backlog comes");
}
cmp_ok(query('SELECT refills FROM fanout.stats'), '>', 20, 'most of it was left on disk');
ok( $node->poll_query_until('postgres', "SELECT count(*) = 1000 FROM fanout.outcome WHERE status = 'c'"),
	'what is late is cancelled');

# a join that is decided
foreach my $tasks (3, 300)
{
	my $batch = query("SELECT fanout.fan_out('past', 'x'::text, array_fill('1'::jsonb, '{$tasks}'), 'any')");

	query("SELECT fanout.complete(lease) FROM fanout.dequeue('past', 'w', wait => '20 s')");
	is(query("SELECT fanout.wait($batch, '20 s')"), 't', "the join of $tasks tasks is decided");
	ok($node->poll_query_until('postgres', "SELECT cancelled = $tasks - 1 FROM fanout.progress($batch)"), 'what waits of it is cancelled');
}

my @spilled = slurp_file($node->logfile) =~ /fanout keeper LOG: +temporary file.*\n.* CONTEXT: +(.*)/g;
is(join("\n", @spilled[ 0 .. min(2, $#spilled) ]), '', 'the keeper needs no temporary files');

# one would be seen
query("SELECT count(*) FROM (SELECT * FROM fanout.outcome ORDER BY finished_at) o");
like(slurp_file($node->logfile), qr/client backend LOG: +temporary file/, 'the log has them');

$node->stop;
done_testing();
