# A few tasks of one queue among many of another one, with memory for 64: the keeper finds them in the rows of all queues,
# some thousand rows at a time, so that it is never long away from what else it has to do.
#
# Promise 8: the cost of a dequeue does not depend on how many tasks others have waiting.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "fsync = off\npg_fanout.max_tracked_tasks = 64\npg_fanout.max_lanes = 16");
my $session = session($node);
sub query { return $session->query_safe($_[0]); }
sub refills { return query("SELECT value FROM fanout.status() WHERE item = 'refills'"); }

query("SELECT fanout.create_queue(q) FROM unnest('{few,many}'::text[]) q");

# Those of "few" are the first, one in the middle and the last ones; each of the "many" stays on disk.
my $enqueue_many = "SELECT count(*) FROM fanout.enqueue_many('many', 'x', array_fill('1'::jsonb, '{200000}'))";
query("SELECT fanout.pause_queue('few'), fanout.pause_queue('many')");
query("SELECT count(*) FROM fanout.enqueue_many('few', 'x', array_fill('1'::jsonb, '{100}'))");
query($enqueue_many);
query("SELECT fanout.enqueue('few', 'x'), fanout.enqueue('few', 'in a partition', partition_key => 'p')");
query($enqueue_many);
query("SELECT count(*) FROM fanout.enqueue_many('few', 'x', array_fill('1'::jsonb, '{10}'))");
query("SELECT fanout.resume_queue('few')");
query('CREATE TEMP TABLE claimed (n serial, task bigint, name text)');

my $before = refills();
query(<<'EOS');
DO $$
BEGIN
	FOR i IN 1 .. 112 LOOP
		WITH d AS (SELECT * FROM fanout.dequeue('few', 'w', wait => '30 s'))
		INSERT INTO claimed (task, name) SELECT task, name FROM d WHERE fanout.complete(lease);
		EXIT WHEN NOT FOUND;
		COMMIT;
	END LOOP;
END $$;
EOS
is(query('SELECT count(*), count(DISTINCT task) FROM claimed'), '112|112', 'all of them are found');
is(query("SELECT count(*) FROM (SELECT task < lag(task) OVER (ORDER BY n) AS wrong FROM claimed WHERE name = 'x') c WHERE wrong"),
	0, 'in their order');
cmp_ok(refills() - $before, '>', 400000 / 32768, 'in some steps');

# One in 64, so that some are as far from each other as the keeper searches for outcomes at a time, where there are none
query("SELECT fanout.create_queue('some')");
query(<<'EOS');
DO $$
BEGIN
	FOR i IN 1 .. 100 LOOP
		PERFORM fanout.enqueue('some', 'x');
		PERFORM count(*) FROM fanout.enqueue_many('many', 'x', array_fill('1'::jsonb, '{63}'));
	END LOOP;
END $$;
EOS
is(query("SELECT count(*) FROM fanout.tasks t WHERE queue = 'some' AND task % 64 = (SELECT min(task) FROM fanout.tasks WHERE queue = 'some') % 64"), 100, 'one in 64');
install_work_off($node);
is($node->psql('postgres', "CALL work_off('some', 100)"), 0, 'all of them are found');

$session->quit;
$node->stop;
done_testing();
