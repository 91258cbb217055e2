# Partitions that run one task at a time keep their order over retries, crashes, and pools that are far too small.
#
# Promise 2: every task is delivered. A partition with a limit of one is first-in, first-out over retries.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "pg_fanout.max_tracked_tasks = 64\npg_fanout.max_lanes = 16");

sub names
{
	return $node->safe_psql('postgres', "SELECT string_agg(name, ' ' ORDER BY name) FROM fanout.dequeue('p', 'w', max_tasks => 20)");
}

# What a crash finds: a partition that waits for a failed task, one for a released one, one that lets others pass
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('p', partition_concurrency => 1, max_attempts => 1000, backoff => '1 hour', backoff_max => '1 hour');
SELECT fanout.enqueue('p', key || n, partition_key => key) FROM unnest('{a,b,c}'::text[]) key, generate_series(1, 3) n;
EOS
is(names(), 'a1 b1 c1', 'the first of each');
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.fail(lease) FROM fanout.tasks WHERE name = 'a1';
SELECT fanout.release(lease, delay => '1 hour') FROM fanout.tasks WHERE name = 'b1';
SELECT fanout.fail(lease, retry_in => '1 s') FROM fanout.tasks WHERE name = 'c1';
EOS
crash($node);
start_after_crash($node);
wait_for_memory($node);
is( $node->safe_psql('postgres', <<'EOS'), "a1\nb1", 'after a crash partitions wait for what they waited for');
SELECT name FROM fanout.partitions JOIN fanout.tasks ON task = awaits_task WHERE name <> 'c1' ORDER BY 1
EOS
is($node->safe_psql('postgres', "SELECT name FROM fanout.dequeue('p', 'w', max_tasks => 20, wait => '20 s')"), 'c1', 'the one that is due comes, and none behind it');
$node->safe_psql('postgres', "SELECT fanout.cancel(task) FROM fanout.tasks WHERE name = 'b1'");
is(names(), 'b2', 'a cancel lets those behind it go on');
$node->safe_psql('postgres', "SELECT fanout.alter_queue('p', partition_retries => 'pass')");
is(names(), 'a2', 'and so does the setting');
$node->restart;
wait_for_memory($node);
$node->safe_psql('postgres', "SELECT fanout.complete(ARRAY(SELECT lease FROM fanout.leases))");
is(names(), 'a3 b3 c2', 'which a restart knows');
$node->safe_psql('postgres', "SELECT fanout.drop_queue('p', force => true)");

# Far more partitions and tasks than there is memory for, and most attempts fail
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('p', partition_concurrency => 1, max_attempts => 1000, backoff => '1 ms', backoff_max => '10 ms', lease => '1 hour');
CREATE TABLE delivered (n bigserial, task bigint);
-- Work until nothing is left
CREATE PROCEDURE work_off(worker_name text) LANGUAGE plpgsql AS $$
DECLARE
	took record;
	turn int := 0;
BEGIN
	LOOP
		turn := turn + 1;
		SELECT d.task, d.lease, d.attempt INTO took FROM fanout.dequeue('p', worker_name, wait => '200 ms') d;
		IF took.lease IS NULL THEN
			COMMIT;
			EXIT WHEN (SELECT scheduled + ready + running = 0 FROM fanout.queues);
			CONTINUE;
		END IF;
		IF turn % 11 = 0 THEN
			ROLLBACK;
			CONTINUE;
		END IF;
		COMMIT;
		IF took.attempt < 3 AND (turn + took.task) % 3 <> 0 THEN
			PERFORM fanout.fail(took.lease);
		ELSIF turn % 7 = 0 THEN
			PERFORM fanout.release(took.lease, delay => '3 ms');
		ELSE
			INSERT INTO delivered (task) VALUES (took.task);
			PERFORM fanout.complete(took.lease);
		END IF;
		COMMIT;
	END LOOP;
END $$;
SELECT count(*) FROM fanout.enqueue_many('p', 'x', array_fill('{}'::jsonb, '{600}'), partition_keys => ARRAY(SELECT 'key' || n % 40 FROM generate_series(1, 600) n));
EOS
my @clients = map { start_client($node, "CALL work_off('w$_')") } 1 .. 3;
$node->poll_query_until('postgres', 'SELECT count(*) > 100 FROM delivered') or die 'nothing is delivered';
$node->stop('immediate');
finish_clients(@clients);
$node->start;
wait_for_memory($node);

# what was claimed when it stopped is held by nobody now
$node->safe_psql('postgres', 'SELECT fanout.release(ARRAY(SELECT lease FROM fanout.leases))');
ok(finish_clients(map { start_client($node, "CALL work_off('w$_')") } 1 .. 3), 'workers');
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.tasks WHERE state = 'succeeded' AND name = 'x'"), 600, 'promise 2: all is delivered');
is( $node->safe_psql('postgres', <<'EOS'), "600|0", 'in the order of each partition');
SELECT count(*), count(*) FILTER (WHERE task < before) FROM
	(SELECT task, lag(task) OVER (PARTITION BY partition_key ORDER BY n) AS before FROM delivered JOIN fanout.tasks USING (task)) d
EOS
ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM fanout._live_lanes()'), 'no lane is left');

# A pool that is too small for what has been attempted: that is forgotten, but the tasks come
$node->append_conf('postgresql.conf', 'pg_fanout.max_tracked_tasks = 1000');
$node->restart;
wait_for_memory($node);
$node->safe_psql('postgres', <<'EOS');
TRUNCATE delivered;
SELECT count(*) FROM fanout.enqueue_many('p', 'y', array_fill('{}'::jsonb, '{200}'));
EOS
$node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('p', 'w', max_tasks => 200)");
$node->safe_psql('postgres', "SELECT count(*) FROM fanout.fail(ARRAY(SELECT lease FROM fanout.leases), retry_in => '4 s')");
$node->append_conf('postgresql.conf', 'pg_fanout.max_tracked_tasks = 64');
$node->restart;
wait_for_memory($node);
ok(finish_clients(start_client($node, "CALL work_off('w')")), 'a worker');
is($node->safe_psql('postgres', "SELECT count(*), count(DISTINCT task) FROM delivered"), '200|200', 'promise 2: all of them');

$node->stop;
done_testing();
