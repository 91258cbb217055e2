# Segments are retired while tasks of theirs are claimed, checkpointed, failed and finished, in a small pool, over crashes.
#
# Promise 2 and 7: each task that was committed is done, once, and none is lost on its way from one segment to the next.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => <<'EOC');
pg_fanout.max_tracked_tasks = 128
pg_fanout.max_lanes = 16
pg_fanout.retention = 1
fsync = off
EOC
sub query { return $node->safe_psql('postgres', $_[0]); }

query(<<'EOS');
SELECT fanout.create_queue('jobs', lease => '1 hour', backoff => '0', backoff_max => '0', max_attempts => 100);
CREATE TABLE produced (task bigint);
CREATE TABLE step (task bigint);
CREATE TABLE effect (task bigint);
CREATE TABLE stop (reason text);
CREATE INDEX ON produced (task);

CREATE PROCEDURE produce(n int) LANGUAGE plpgsql AS $$
DECLARE
	made bigint;
BEGIN
	FOR i IN 1 .. n LOOP
		INSERT INTO produced SELECT task FROM fanout.enqueue_many('jobs', 'some', '{1,2,3}', priority => i % 3 - 1,
			partition_key => CASE WHEN i % 4 = 0 THEN 'p' || i % 20 END);
		made := fanout.enqueue('jobs', 'delayed', delay => random() * interval '2 s');
		INSERT INTO produced VALUES (made);
		IF i % 9 = 0 THEN
			ROLLBACK;
		ELSE
			COMMIT;
		END IF;
		PERFORM pg_sleep(random() * 0.05);
	END LOOP;
END $$;

-- It takes a while for each task, so that many are leased while their segment goes.
CREATE PROCEDURE work(worker text) LANGUAGE plpgsql AS $$
DECLARE
	claim record;
BEGIN
	LOOP
		SELECT * INTO claim FROM fanout.dequeue('jobs', worker, wait => '200 ms');
		COMMIT;
		IF claim.lease IS NULL THEN
			-- one may have been about to give a task its other life when all seemed to be worked off
			EXIT WHEN EXISTS (SELECT FROM stop) AND NOT EXISTS (SELECT FROM fanout.queues WHERE scheduled + ready + running > 0);
			CONTINUE;
		END IF;
		IF claim.task % 7 = 0 THEN
			PERFORM pg_sleep(random());
		END IF;
		BEGIN
			IF NOT coalesce(claim.checkpoints, '{}') ? 'read' THEN
				PERFORM fanout.checkpoint(claim.lease, 'read', '1');
				INSERT INTO step VALUES (claim.task);
			END IF;
			COMMIT;
		END;
		IF claim.attempt = 1 AND claim.task % 5 = 0 THEN
			PERFORM fanout.fail(claim.lease, 'once', retry_in => random() * interval '1 s');
		ELSIF claim.attempt = 1 AND claim.task % 11 = 0 AND random() < 0.5 THEN
			PERFORM fanout.release(claim.lease, random() * interval '1 s');
		ELSIF claim.task % 13 = 0 AND NOT EXISTS (SELECT FROM effect WHERE task = claim.task) AND random() < 0.7 THEN
			PERFORM fanout.fail(claim.lease, 'another life', final => true);
			COMMIT;
			PERFORM pg_sleep(random() * 0.5);
			BEGIN
				PERFORM fanout.retry(claim.task);
			EXCEPTION WHEN undefined_object THEN	-- on a machine that is busy it may be gone by now
				NULL;
			END;
		ELSIF fanout.complete(claim.lease, '1') THEN
			INSERT INTO effect VALUES (claim.task);
		END IF;
		COMMIT;
	END LOOP;
END $$;
EOS

my $retired = 0;
foreach my $round (1 .. 3)
{
	my @clients = (
		(map { start_client($node, "CALL produce(25)") } 1 .. 2),
		(map { start_client($node, "CALL work('w$_')") } 1 .. 6));
	ok($node->poll_query_until('postgres', "SELECT value::int >= 3 FROM fanout.status() WHERE item = 'retired segments'"),
		"round $round: segments are retired");
	if ($round < 3)
	{
		$node->stop('immediate');
		finish_clients(@clients);
		$node->start;
		wait_for_memory($node);
		next;
	}
	ok($node->poll_query_until('postgres', 'SELECT count(*) > 0 FROM effect'), 'some are done');
	my @producers = splice(@clients, 0, 2);
	ok(finish_clients(@producers), 'the producers end well');

	# those that were claimed by workers who have crashed, too
	query("SELECT count(fanout.release(lease)) FROM fanout.leases WHERE claimed_at < (SELECT value::timestamptz FROM fanout.status() WHERE item = 'ready since')");
	# a task that had failed for good when its worker crashed gets its other life now
	query("SELECT count(*) FROM fanout.retry(ARRAY(SELECT task FROM fanout.tasks WHERE state = 'failed'))");
	ok($node->poll_query_until('postgres', "SELECT ready + scheduled + running = 0 FROM fanout.queues"), 'all is worked off');
	query("INSERT INTO stop VALUES ('done')");
	ok(finish_clients(@clients), 'the workers end well');
}
# what had failed for good, and was gone before its worker could give it another life
is(query("SELECT count(*) FROM produced p WHERE task % 13 <> 0 AND NOT EXISTS (SELECT FROM effect e WHERE e.task = p.task)"), 0,
	'promise 7: no task is lost');
is(query("SELECT count(*) FROM (SELECT FROM effect GROUP BY task HAVING count(*) > 1) e"), 0, 'promise 2: none is done twice');
is(query("SELECT count(*) FROM (SELECT FROM step GROUP BY task HAVING count(*) > 1) e"), 0, 'promise 2: no step is done twice');
is(query("SELECT count(*) FROM effect e WHERE NOT EXISTS (SELECT FROM produced p WHERE p.task = e.task)"), 0, 'none that was rolled back');
cmp_ok(query("SELECT value FROM fanout.status() WHERE item = 'carried tasks'"), '>', 0, 'tasks were carried');
ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM fanout.task'), 'in the end nothing is left');

$node->stop;
done_testing();
