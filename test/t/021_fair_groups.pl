# Fair groups over restarts, with far more of them than there is memory for: 64 tasks, 16 lanes, 4 groups.
#
# Promise 2: every task is delivered, and once, whatever group its partition is in.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');
my $groups = "SELECT value FROM fanout.status() WHERE item = 'fair groups in memory'";

sub shares
{
	my ($queue, $tasks) = @_;

	return $node->safe_psql('postgres', <<"EOS");
SELECT string_agg(name || ' ' || n, ', ' ORDER BY name)
  FROM (SELECT name, count(*) AS n FROM fanout.dequeue('$queue', 'w', $tasks) GROUP BY 1) s
EOS
}

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('g', max_attempts => 1000);
CREATE PROCEDURE put(queue_name text, fair_group text, keys int, each int) LANGUAGE sql AS $$
	SELECT count(*) FROM fanout.enqueue_many(queue_name, fair_group, array_fill('{}'::jsonb, ARRAY[keys * each]),
		partition_keys => ARRAY(SELECT fair_group || n % keys FROM generate_series(1, keys * each) n), fair_group => fair_group);
$$;
CALL put('g', 'many', 50, 10);
CALL put('g', 'a', 1, 200);
CALL put('g', 'b', 2, 100);
EOS
is(shares('g', 60), 'a 20, b 20, many 20', 'a share each');
$node->restart;
wait_for_memory($node);
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT fair_group), count(DISTINCT partition_key) FROM fanout.partitions WHERE fair_group IS NOT NULL'),
	'53|3|53', 'a restart knows groups');
is(shares('g', 60), 'a 20, b 20, many 20', 'and so a share each');
crash($node);
start_after_crash($node);
wait_for_memory($node);
is(shares('g', 60), 'a 20, b 20, many 20', 'a crash as well');
$node->safe_psql('postgres', "SELECT fanout.drop_queue('g', force => true)");
is($node->safe_psql('postgres', $groups), '0 of 2048', 'no group is left');

# Pools that are far too small
$node->append_conf('postgresql.conf', "pg_fanout.max_tracked_tasks = 64\npg_fanout.max_lanes = 16");
$node->restart;
wait_for_memory($node);
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('g', max_attempts => 1000, backoff => '1 ms', backoff_max => '5 ms');
DO $$ BEGIN FOR n IN 1 .. 20 LOOP CALL put('g', 'group' || n, 1 + n % 3, 10); COMMIT; END LOOP; END $$;
CREATE TABLE delivered (n bigserial, task bigint);
-- Work until nothing is left
CREATE PROCEDURE work_off(worker_name text) LANGUAGE plpgsql AS $$
DECLARE
	took record;
	turn int := 0;
BEGIN
	LOOP
		turn := turn + 1;
		SELECT array_agg(d.task) AS tasks, array_agg(d.lease) AS leases INTO took FROM fanout.dequeue('g', worker_name, max_tasks => turn % 5 + 1, wait => '200 ms') d;
		IF took.leases IS NULL THEN
			COMMIT;
			EXIT WHEN (SELECT scheduled + ready + running = 0 FROM fanout.queues WHERE queue = 'g');
			CONTINUE;
		END IF;
		IF turn % 7 = 0 THEN
			ROLLBACK;
			CONTINUE;
		END IF;
		COMMIT;
		IF turn % 5 = 0 THEN
			PERFORM fanout.fail(took.leases);
		ELSE
			INSERT INTO delivered (task) SELECT unnest(took.tasks);
			PERFORM fanout.complete(took.leases);
		END IF;
		-- partitions that change their group, some by transactions that come to nothing
		IF turn < 200 THEN
			PERFORM fanout.enqueue('g', 'late', partition_key => 'group' || turn % 10 || '0', fair_group => 'group' || turn % 4);
		END IF;
		IF turn % 3 = 0 THEN
			COMMIT;
			PERFORM fanout.enqueue('g', 'never', partition_key => 'group' || turn % 10 || '0');
			ROLLBACK;
		END IF;
		COMMIT;
	END LOOP;
END $$;
EOS
is($node->safe_psql('postgres', $groups), '4 of 4', 'more groups than there is room for');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM fanout.partitions WHERE fair_group IS NULL'), '>', 0, 'others take turns as partitions');
my @clients = map { start_client($node, "CALL work_off('w$_')") } 1 .. 3;
$node->poll_query_until('postgres', 'SELECT count(*) > 100 FROM delivered') or die 'nothing is delivered';
$node->stop('immediate');
finish_clients(@clients);
$node->start;
wait_for_memory($node);
$node->safe_psql('postgres', 'SELECT fanout.release(ARRAY(SELECT lease FROM fanout.leases))');
ok(finish_clients(map { start_client($node, "CALL work_off('w$_')") } 1 .. 3), 'workers');
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.tasks WHERE state <> 'succeeded' AND queue = 'g'"), 0, 'promise 2: all is delivered');
is($node->safe_psql('postgres', 'SELECT count(*) - count(DISTINCT task) FROM delivered'), 0, 'promise 2: each once');
ok($node->poll_query_until('postgres', $groups, '0 of 4'), 'no group is left');
ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM fanout._live_lanes()'), 'and no lane');

# Five groups where there is room for four: each partition of the fifth has a turn of its own, until one of the others has
# gone and it gets another task.
$node->append_conf('postgresql.conf', 'pg_fanout.max_tracked_tasks = 1024');
$node->restart;
wait_for_memory($node);
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('h', max_attempts => 1000);
DO $$ BEGIN FOR n IN 1 .. 5 LOOP CALL put('h', ('{a,b,c,d,fifth}'::text[])[n], 2, 12); END LOOP; END $$;
EOS
is($node->safe_psql('postgres', $groups), '4 of 4', 'four groups of five');
is(shares('h', 12), 'a 2, b 2, c 2, d 2, fifth 4', 'a share each, but one for each partition of the fifth');
$node->safe_psql('postgres', "SELECT fanout.cancel(ARRAY(SELECT task FROM fanout.tasks WHERE queue = 'h' AND name = 'd'))");
$node->safe_psql('postgres', "SELECT fanout.complete(lease) FROM fanout.tasks WHERE name = 'd' AND state = 'running'");
is($node->safe_psql('postgres', $groups), '3 of 4', 'one of them goes');
$node->safe_psql('postgres', "CALL put('h', 'fifth', 2, 1)");
is($node->safe_psql('postgres', $groups), '4 of 4', 'with its next tasks the fifth comes');
is(shares('h', 8), 'a 2, b 2, c 2, fifth 2', 'and has one share');

$node->stop;
done_testing();
