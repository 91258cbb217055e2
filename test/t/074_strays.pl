# Partitions that have no place in memory, of which there are far more than there are lanes: what is read of them comes into
# memory at once, while more of them is on disk. Needs a checked build (test/harness/run_tests makes one).
#
# Promise 2: every task is delivered, and once. The order within a partition is that of priorities, then that of enqueuing.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use CrashPoints;
use FanoutTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = crash_points_node() or exit;
my $lanes = 16;

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('front', lease => '1 hour');
CREATE TABLE came (n bigserial, task bigint);

-- Take all that comes, some at once, until nothing has come for a while
CREATE PROCEDURE take_all(queue_name text, number int) LANGUAGE plpgsql AS $$
DECLARE
	took record;
BEGIN
	FOR i IN 1 .. 1000000 LOOP
		SELECT array_agg(d.task ORDER BY d.ordinality) AS tasks, array_agg(d.lease) AS leases INTO took
		  FROM fanout.dequeue(queue_name, 'w', max_tasks => number, wait => '1 s') WITH ORDINALITY d;
		COMMIT;
		EXIT WHEN took.tasks IS NULL;
		INSERT INTO came (task) SELECT unnest(took.tasks);
		PERFORM fanout.complete(took.leases);
		-- others come meanwhile
		IF i % 3 = 0 AND i < 90 THEN
			PERFORM fanout.enqueue(queue_name, 'meanwhile', partition_key => 'p' || i * 7 % 40);
		END IF;
		COMMIT;
	END LOOP;
END $$;
EOS

# All lanes are taken by tasks that run: what is enqueued in other partitions has none
sub take_lanes
{
	ask("SELECT fanout.enqueue('front', 'x', partition_key => 'p' || n) FROM generate_series(1, $lanes) n");
	is(ask("SELECT count(*) FROM fanout.dequeue('front', 'w', max_tasks => $lanes)"), $lanes, 'all lanes are taken');
	return;
}

sub give_lanes
{
	ask("SELECT fanout.complete(l.lease) FROM fanout.leases l JOIN fanout.tasks USING (task) WHERE l.queue = 'front'");
	return;
}

# Have all tasks of the queue come, in the order of their partitions?
sub came_in_order
{
	my ($what, $queue) = @_;
	my $tasks = ask("SELECT count(*) FROM fanout.tasks WHERE queue = '$queue'");

	is(ask(<<'EOS'), "$tasks|0", "$what: in order");
SELECT count(*), count(*) FILTER (WHERE (priority, task) < (before_priority, before)) FROM
	(SELECT task, priority, lag(task) OVER w AS before, lag(priority) OVER w AS before_priority FROM came JOIN fanout.tasks USING (task)
	 WINDOW w AS (PARTITION BY partition_key ORDER BY n)) c
EOS
	is(ask('SELECT count(*) FROM (SELECT FROM came GROUP BY task HAVING count(*) > 1) twice'), 0, "$what: none twice");
	ask('TRUNCATE came');
	drain($what);
	return;
}

# Some tasks of each partition, with others between them
take_lanes();
ask("SELECT fanout.create_queue('some')");
ask("SELECT fanout.enqueue('some', 'x', partition_key => 'p' || n % 40) FROM generate_series(1, 400) n");
is(ask("SELECT more_on_disk FROM fanout._live_lanes() l JOIN fanout.queue q ON q.id = l.queue_id WHERE q.name = 'some'"), '', 'they are strays');
give_lanes();
is($node->psql('postgres', "CALL take_all('some', 5)"), 0, 'all are taken');
came_in_order('strays of many partitions', 'some');

# Far more of each than a lane takes as it comes
take_lanes();
ask("SELECT fanout.create_queue('many')");
ask("SELECT count(*) FROM generate_series(1, 20) n, fanout.enqueue_many('many', 'x', array_fill('1'::jsonb, '{100}'), partition_key => 'p' || n)");
give_lanes();
is($node->psql('postgres', "CALL take_all('many', 100)"), 0, 'all are taken');
came_in_order('many strays of each', 'many');

# Others come when a lane has the first of its partition, and the second one is on disk, behind that of a partition that finds
# no lane: some that are enqueued then, and one that was before, and commits then
{
	my $late = session($node);

	take_lanes();
	ask("SELECT fanout.create_queue('others')");
	ask("SELECT fanout.enqueue('others', 'x', partition_key => 'p' || n) FROM generate_series(1, 16) n");
	ask("SELECT fanout.enqueue('others', 'x', partition_key => 'last')");
	ask("SELECT fanout.enqueue('others', 'x', partition_key => 'p' || n) FROM generate_series(1, 16) n");
	$late->query_safe("BEGIN; SELECT fanout.enqueue('others', 'x', partition_key => 'p1')");
	give_lanes();
	ok(becomes("SELECT in_memory = 16 FROM fanout.queues WHERE queue = 'others'"), 'each lane has one');
	$late->query_safe('COMMIT');
	$late->quit;
	ask("SELECT fanout.enqueue('others', 'x', partition_key => 'p' || n) FROM generate_series(2, 16) n");
	is($node->psql('postgres', "CALL take_all('others', 1)"), 0, 'all are taken');
	came_in_order('others that come', 'others');
}

# One of them comes before others of its partition, though it is the last one
take_lanes();
ask("SELECT fanout.create_queue('urgent')");
ask("SELECT fanout.enqueue('urgent', 'x', partition_key => 'p' || n % 40, priority => CASE WHEN n > 60 THEN -1 END) FROM generate_series(1, 80) n");
give_lanes();
is($node->psql('postgres', "CALL take_all('urgent', 1)"), 0, 'all are taken');
is(ask("SELECT count(*) FROM (SELECT row_number() OVER (PARTITION BY partition_key ORDER BY n) AS place, priority FROM came JOIN fanout.tasks USING (task)
	WHERE name = 'x') c WHERE priority < 0 AND place > 1"), 0, 'what is urgent comes first in its partition');
ask('TRUNCATE came');
drain('strays with priorities');

# One commits while the keeper has read the next of its partition: it was enqueued before that, and comes before it
{
	my $early = session($node);

	take_lanes();
	ask("SELECT fanout.create_queue('early')");
	$early->query_safe("BEGIN; SELECT fanout.enqueue('early', 'x', partition_key => 'p')");
	ask("SELECT fanout.enqueue('early', 'x', partition_key => 'p')");
	ask("SELECT fanout._set_point('refill-read', 'wait')");
	give_lanes();
	ok(becomes("SELECT reached > 0 FROM fanout._points() WHERE point = 'refill-read'"), 'a stray is read');
	$early->query_safe('COMMIT');
	$early->quit;
	ask("SELECT fanout._set_point('refill-done', 'wait')");
	stop_at('refill-read', 'go on');
	ok(becomes("SELECT reached > 0 FROM fanout._points() WHERE point = 'refill-done'"), 'and has a lane');
	is(ask("SELECT task FROM fanout.dequeue('early', 'w')"), '', 'it waits for the one before it');
	stop_at('refill-done', 'go on');
	is($node->psql('postgres', "CALL take_all('early', 1)"), 0, 'both are taken');
	came_in_order('one that commits meanwhile', 'early');
}

# All lanes have tasks that run, and others on disk behind that of a partition that finds no lane: each lane reads its own.
# So it is with one that had its last task in memory given out while there was much to give out.
sub all_but_one_run
{
	my ($what, $in_memory, $running) = @_;

	give_lanes();
	ok(becomes("SELECT in_memory = $in_memory FROM fanout.queues WHERE queue = 'running'"), "$what: some have come into memory");
	is(ask("SELECT count(*) FROM fanout.dequeue('running', 'w', max_tasks => 16)"), 16, "$what: the first of each runs");
	ok(becomes("SELECT value = '0 leases' FROM fanout.status() WHERE item = 'journal lag'"), "$what: and all is done with that");
	ok(becomes("SELECT count(*) IS NOT NULL AND (SELECT count(*) = $running FROM fanout.leases WHERE queue = 'running')
		FROM fanout.dequeue('running', 'w', max_tasks => 16)"), "$what: all that have a lane run");
	is(ask("SELECT string_agg(DISTINCT partition_key, ',') FROM fanout.tasks WHERE queue = 'running' AND state = 'ready'"), 'last', "$what: no other waits");
	drain($what);
	return;
}

take_lanes();
ask("SELECT fanout.create_queue('running', lease => '1 hour')");
ask("SELECT fanout.enqueue('running', 'x', partition_key => 'p' || n) FROM generate_series(1, 16) n");
ask("SELECT fanout.enqueue('running', 'x', partition_key => 'last')");
ask("SELECT fanout.enqueue('running', 'x', partition_key => 'p' || n) FROM generate_series(1, 16) n");
all_but_one_run('one of each', 16, 32);

take_lanes();
ask("SELECT fanout.enqueue('running', 'x', partition_key => 'p1')");
ask("SELECT fanout.enqueue('running', 'x', partition_key => 'p' || n / 8) FROM generate_series(16, 135) n");
ask("SELECT fanout.enqueue('running', 'x', partition_key => 'last')");
ask("SELECT fanout.enqueue('running', 'x', partition_key => 'p1')");
all_but_one_run('many of each but one', 1 + 15 * 8, 1 + 15 * 8 + 1);

finish();
