# The order of queues with aging, with pools that are far too small, and over a crash.
#
# Each lane is served in the order of ranks; promise 2: all of it is delivered, and once.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "pg_fanout.max_tracked_tasks = 64\npg_fanout.max_lanes = 16");

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('plain', backoff => '0', max_attempts => 1000), fanout.create_queue('aged', aging => '1 ms', backoff => '0', max_attempts => 1000);
CREATE TABLE delivered (n bigserial, task bigint);

-- Priorities of all kinds, as far as they go, in the main lane and in partitions
CREATE PROCEDURE put(queue_name text, tasks int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. tasks LOOP
		PERFORM fanout.enqueue(queue_name, 'x', priority => CASE i % 50 WHEN 0 THEN -2147483648 WHEN 1 THEN 2147483647 ELSE (i * 37) % 11 - 5 END,
			partition_key => CASE WHEN i % 3 > 0 THEN 'key' || i % 3 END);
		PERFORM fanout.enqueue_many(queue_name, 'y', array_fill('{}'::jsonb, '{3}'), priority => -i % 2);
		COMMIT;
	END LOOP;
END $$;
CREATE PROCEDURE take(queue_name text, tasks int) LANGUAGE plpgsql AS $$
DECLARE
	took record;
BEGIN
	FOR i IN 1 .. tasks LOOP
		SELECT d.task, d.lease INTO took FROM fanout.dequeue(queue_name, 'w', wait => '20 s') d;
		EXIT WHEN took.lease IS NULL;
		IF i % 11 = 0 THEN
			ROLLBACK;
			CONTINUE;
		END IF;
		COMMIT;
		IF i % 7 = 0 THEN
			PERFORM fanout.fail(took.lease);
			COMMIT;
			CONTINUE;
		END IF;
		INSERT INTO delivered (task) VALUES (took.task);
		PERFORM fanout.complete(took.lease);
		COMMIT;
		EXIT WHEN (SELECT scheduled + ready + running = 0 FROM fanout.queues WHERE queue = queue_name);
	END LOOP;
END $$;
CREATE VIEW out_of_order AS
	SELECT count(*) FROM (SELECT coalesce(rank, priority, 0) AS place, id, lag(coalesce(rank, priority, 0)) OVER w AS place_before, lag(id) OVER w AS id_before
		FROM delivered JOIN fanout.task ON id = task WINDOW w AS (PARTITION BY queue, lane ORDER BY n)) d WHERE (place, id) < (place_before, id_before);
EOS

# Nothing else is enqueued while they are taken: the order is that of ranks
$node->safe_psql('postgres', "CALL put('aged', 200)");
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.task WHERE rank IS NULL"), 0, 'all have a rank');
$node->safe_psql('postgres', "CALL take('aged', 300)");
is($node->safe_psql('postgres', 'SELECT * FROM out_of_order'), 0, 'in the order of ranks');
crash($node);
start_after_crash($node);
wait_for_memory($node);
$node->safe_psql('postgres', "SELECT fanout.release(ARRAY(SELECT lease FROM fanout.leases))");
$node->safe_psql('postgres', "CALL take('aged', 1000)");
is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT task) FROM delivered'), '800|800', 'promise 2: all of them');
is($node->safe_psql('postgres', 'SELECT * FROM out_of_order'), 0, 'also what is read from disk, and after a crash');

# Time does count: some that were less urgent came first
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM (SELECT coalesce(priority, 0) AS priority, lag(coalesce(priority, 0)) OVER (PARTITION BY lane ORDER BY n) AS before FROM delivered JOIN fanout.task ON id = task) d WHERE priority < before'),
	'>', 10, 'and that is not the order of priorities');

# Without aging, as ever
$node->safe_psql('postgres', 'TRUNCATE delivered');
$node->safe_psql('postgres', "CALL put('plain', 100)");
$node->safe_psql('postgres', "CALL take('plain', 1000)");
is($node->safe_psql('postgres', 'SELECT count(*), count(rank) FROM delivered JOIN fanout.task ON id = task'), '400|0', 'a queue without has no ranks');
is($node->safe_psql('postgres', 'SELECT * FROM out_of_order'), 0, 'and the order of priorities');

$node->stop;
done_testing();
