# Many partitions of a few tasks each, more than there is memory for: one read brings tasks of many of them.
#
# Promise 8: what a dequeue costs does not depend on how many partitions wait.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => <<EOC);
pg_fanout.max_tracked_tasks = 4096
pg_fanout.max_lanes = 256
EOC

sub ask
{
	return $node->safe_psql('postgres', $_[0]);
}

sub refills
{
	return ask("SELECT value FROM fanout.status() WHERE item = 'refills'");
}

install_work_off($node);

# One task each
ask(<<'EOS');
SELECT fanout.create_queue('strays');
SELECT count(*) FROM fanout.enqueue_many('strays', 'x', array_fill('{}'::jsonb, '{3000}'),
	partition_keys => ARRAY(SELECT 'key ' || n FROM generate_series(1, 3000) n));
EOS
my $before = refills();
is($node->psql('postgres', "CALL work_off('strays', 3000)"), 0, 'tasks of 3000 partitions, with memory for 256');
my $reads = refills() - $before;
cmp_ok($reads, '<', 500, "take far fewer reads than there are partitions ($reads)");

# Several tasks each, in an order of their own, in two segments of the log
ask(<<'EOS');
SELECT fanout.create_queue('ordered', partition_concurrency => 1);
SELECT count(*) FROM fanout.enqueue_many('ordered', 'x', array_fill('{}'::jsonb, '{2400}'), priority => 1,
	partition_keys => ARRAY(SELECT 'key ' || n % 800 FROM generate_series(1, 2400) n));
SELECT fanout._next_segment();
EOS
$node->poll_query_until('postgres', 'SELECT count(*) = 2 FROM fanout.segment') or die 'no second segment';
ask(<<'EOS');
SELECT count(*) FROM fanout.enqueue_many('ordered', 'x', array_fill('{}'::jsonb, '{1600}'), priority => 2,
	partition_keys => ARRAY(SELECT 'key ' || n % 800 FROM generate_series(1, 1600) n));
SELECT count(*) FROM fanout.enqueue_many('ordered', 'x', array_fill('{}'::jsonb, '{1600}'),
	partition_keys => ARRAY(SELECT 'key ' || n % 800 FROM generate_series(1, 1600) n));
EOS
$before = refills();
is($node->psql('postgres', "CALL work_off('ordered', 5600)"), 0, '800 partitions with 7 tasks each, in two segments');
$reads = refills() - $before;
cmp_ok($reads, '<', 500, "take few reads as well ($reads)");

is(ask(<<'EOS'), 0, 'in the order of each partition');
SELECT count(*) FROM (
	SELECT lag((coalesce(t.priority, 0), t.id)) OVER (PARTITION BY t.lane ORDER BY a.lease) > (coalesce(t.priority, 0), t.id) AS wrong
	  FROM fanout.task t JOIN fanout.attempts a ON a.task = t.id WHERE a.queue = 'ordered') o WHERE wrong
EOS

# What commits while a read for several partitions goes on is missed by it; each of them remembers that. Needs a checked build.
SKIP:
{
	skip 'a build for users has no points', 2 if ask('SELECT count(*) FROM fanout._points()') == 0;
	ask(<<'EOS');
SELECT fanout.create_queue('overtaken');
SELECT count(*) FROM fanout.enqueue_many('overtaken', 'x', array_fill('{}'::jsonb, '{300}'), priority => 1,
	partition_keys => ARRAY(SELECT 'key ' || n FROM generate_series(1, 300) n));
-- the first read is that of strays, which enters lanes; as there are priorities, these are read on their own then
SELECT fanout._set_point('refill-read', 'wait', skip => 1);
SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.dequeue('overtaken', max_tasks => 60)));
EOS
	ok($node->poll_query_until('postgres', "SELECT reached > 0 FROM fanout._points() WHERE point = 'refill-read'"),
		'the keeper has read for partitions');
	ask(<<'EOS');
SELECT count(*) FROM fanout.enqueue_many('overtaken', 'x', array_fill('{}'::jsonb, '{44}'), priority => 1,
	partition_keys => ARRAY(SELECT 'key ' || n FROM generate_series(257, 300) n));
SELECT fanout._set_point('refill-read', 'nothing');
EOS
	is($node->psql('postgres', "CALL work_off('overtaken', 284)"), 0, 'what it has missed comes as well');
}

$node->stop;

# The pool is full, with other queues that do not move: a place that one partition leaves is not worth a read for another
# while there is much to give out.
$node = new_node('full', conf => <<EOC);
pg_fanout.max_tracked_tasks = 16384
pg_fanout.max_lanes = 16384
EOC
install_work_off($node);
ask(<<'EOS');
SELECT fanout.create_queue(q) FROM unnest('{wide,ready,later}'::text[]) q;
SELECT count(*) FROM fanout.enqueue_many('wide', 'x', array_fill('{}'::jsonb, '{16000}'),
	partition_keys => ARRAY(SELECT 'key ' || n FROM generate_series(1, 16000) n));
SELECT count(*) FROM fanout.enqueue_many('ready', 'x', array_fill('{}'::jsonb, '{10000}'));
SELECT count(*) FROM fanout.enqueue_many('later', 'x', array_fill('{}'::jsonb, '{10000}'), delay => '1 day');
EOS
ok($node->poll_query_until('postgres', "SELECT used >= 16384 - 16384 / 32 FROM fanout.pools WHERE pool = 'tasks'"), 'the pool is full');
$before = refills();
is($node->psql('postgres', "CALL work_off('wide', 8000)"), 0, '8000 tasks of as many partitions, some at a time');
$reads = refills() - $before;
cmp_ok($reads, '<', 8000 / 20, "take a read for many of them ($reads)");
is($node->psql('postgres', "CALL work_off('wide', 8000)"), 0, 'and so come the rest');

$node->stop;
done_testing();
