# Thousands of tasks are moved while workers end them as fast as they can: whoever waits for the lock of a segment that is
# retired meanwhile must write to the one that has the task then.
#
# Promise 2: a task has one outcome, and all its rows are where they belong.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "pg_fanout.retention = -1\nfsync = off\n");
sub query { return $node->safe_psql('postgres', $_[0]); }

install_misplaced($node);
query(<<'EOS');
SELECT fanout.create_queue('jobs', lease => '10 min');
CREATE TABLE effect (task bigint);
CREATE TABLE stop (reason text);
CREATE PROCEDURE work(worker text) LANGUAGE plpgsql AS $$
DECLARE
	claim record;
BEGIN
	WHILE NOT EXISTS (SELECT FROM stop) LOOP
		SELECT * INTO claim FROM fanout.dequeue('jobs', worker);
		COMMIT;
		PERFORM pg_sleep(0.01);		-- while nobody uses its tables a segment can be retired
		COMMIT;
		CONTINUE WHEN claim.lease IS NULL;
		PERFORM fanout.checkpoint(claim.lease, 'read', '1');
		COMMIT;
		IF claim.attempt = 1 AND claim.task % 3 = 0 THEN
			PERFORM fanout.fail(claim.lease, 'once', retry_in => '0');
		ELSIF fanout.complete(claim.lease, '1') THEN
			INSERT INTO effect VALUES (claim.task);
		END IF;
		COMMIT;
	END LOOP;
END $$;
EOS

my $tasks = 4000;
query("SELECT count(*) FROM fanout.enqueue_many('jobs', 'some', array_fill('{}'::jsonb, '{$tasks}'))");
query('SELECT fanout._next_segment()');
query("ALTER SYSTEM SET pg_fanout.retention = '1s'");
query('SELECT pg_reload_conf()');
my @clients = map { start_client($node, "CALL work('w$_')") } 1 .. 4;
ok($node->poll_query_until('postgres', "SELECT value::int >= 1000 FROM fanout.status() WHERE item = 'carried tasks'"), 'tasks are moved');

# What stays for a while is looked at: new rows, since old ones go.
query("ALTER SYSTEM SET pg_fanout.retention = '1h'");
query('SELECT pg_reload_conf()');
ok($node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM fanout.segments WHERE state = 'emptied')"), 'what was emptied is truncated')
  or diag(query('SELECT * FROM fanout.segments'));
is(query('SELECT count(*) FROM misplaced()'), 0, 'no row is out of its segment');
ok($node->poll_query_until('postgres', "SELECT ready + scheduled + running = 0 FROM fanout.queues"), 'all is worked off');
query("INSERT INTO stop VALUES ('done')");
ok(finish_clients(@clients), 'the workers end well');
is(query("SELECT count(*), count(DISTINCT task) FROM effect"), "$tasks|$tasks", 'promise 2: each is done once');
is(query('SELECT count(*) FROM misplaced()'), 0, 'in the end no row is out of its segment');

$node->stop('immediate');
$node->start;
wait_for_memory($node);
is(query("SELECT ready + scheduled + running FROM fanout.queues"), 0, 'a rebuild finds nothing that was done');
is(query("SELECT count(*) FROM fanout.tasks WHERE state <> 'succeeded'"), 0, 'all that is kept has succeeded');

$node->stop;
done_testing();
