# Far more partitions than there is memory for: 64 tasks, 16 lanes, 100 partitions.
#
# Promise 2: every task is delivered, and once. Promise 4: never more of a partition at one time than its limit. A
# partition with a limit of one is first-in, first-out whatever fits into memory. Promise 1: what was rolled back or
# cancelled never comes.

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
SELECT fanout.create_queue('p', partition_concurrency => 1, lease => '1 hour');
CREATE TABLE delivered (n bigserial, task bigint, worker text, began timestamptz, ended timestamptz);

-- Tasks of all partitions in one call, of one partition, of none, of another priority, and some that come to nothing
CREATE PROCEDURE produce_for(partitions int, transactions int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. transactions LOOP
		PERFORM fanout.enqueue_many('p', 'mixed', array_fill('{}'::jsonb, ARRAY[partitions]),
			partition_keys => ARRAY(SELECT 'key' || k FROM generate_series(1, partitions) k ORDER BY (k * i) % 7, k));
		PERFORM fanout.enqueue_many('p', 'one', array_fill('{}'::jsonb, ARRAY[5]), partition_key => 'key' || i % partitions + 1);
		PERFORM fanout.enqueue('p', 'first', partition_key => 'key' || i % 3 + 1, priority => -i % 3);
		PERFORM fanout.enqueue('p', 'main');
		PERFORM fanout.enqueue('p', 'delayed', partition_key => 'key' || i % 5 + 1, delay => '5 ms');
		COMMIT;
		PERFORM fanout.enqueue_many('p', 'rolled back', array_fill('{}'::jsonb, ARRAY[20]), partition_key => 'key' || i);
		ROLLBACK;
	END LOOP;
END $$;

-- Work until nothing is left: some at once, now and then rolled back, failed or released
CREATE PROCEDURE work_off(worker_name text) LANGUAGE plpgsql AS $$
DECLARE
	took record;
	turn int := 0;
	since timestamptz;
BEGIN
	LOOP
		turn := turn + 1;
		SELECT array_agg(d.task ORDER BY d.ordinality) AS tasks, array_agg(d.lease ORDER BY d.ordinality) AS leases INTO took
		  FROM fanout.dequeue('p', worker_name, max_tasks => turn % 7 + 1, wait => '200 ms') WITH ORDINALITY d;
		since := clock_timestamp();
		IF took.tasks IS NULL THEN
			COMMIT;
			EXIT WHEN (SELECT scheduled + ready + running = 0 FROM fanout.queues);
			CONTINUE;
		END IF;
		IF turn % 11 = 0 THEN
			ROLLBACK;
			CONTINUE;
		END IF;
		COMMIT;
		IF turn % 13 = 0 THEN
			PERFORM fanout.release(took.leases);
		ELSE
			INSERT INTO delivered (task, worker, began, ended)
				SELECT t, worker_name, since, clock_timestamp() FROM unnest(took.tasks) t;
			PERFORM fanout.complete(took.leases);
		END IF;
		COMMIT;
	END LOOP;
END $$;
EOS

ok(finish_clients(map { start_client($node, 'CALL produce_for(100, 10)') } 1 .. 2), 'producers');
is($node->safe_psql('postgres', "SELECT ready + scheduled FROM fanout.queues"), 2 * 10 * 108, 'the counts include what is not in memory');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM fanout.partitions'), '<=', 16, 'most partitions are not in memory');

# On with it at once, with more that arrives, and a crash in the middle
my @clients = map { start_client($node, "CALL work_off('w$_')") } 1 .. 3;
push @clients, start_client($node, 'CALL produce_for(60, 10)');
$node->poll_query_until('postgres', 'SELECT count(*) > 500 FROM delivered') or die 'nothing is delivered';
is($node->safe_psql('postgres', <<'EOS'), 0, 'promise 4: no partition runs more than one at a time');
SELECT count(*) FROM (SELECT t.partition_key FROM fanout.leases l JOIN fanout.task t ON t.id = l.task
	WHERE t.partition_key IS NOT NULL GROUP BY 1 HAVING count(*) > 1) more
EOS
$node->stop('immediate');
finish_clients(@clients);
$node->start;
wait_for_memory($node);
$node->safe_psql('postgres', 'SELECT fanout.release(coalesce(array_agg(lease), \'{}\')) FROM fanout.leases');
ok(finish_clients(map { start_client($node, "CALL work_off('w$_')") } 1 .. 3), 'workers');

is($node->safe_psql('postgres', "SELECT state, count(*) FROM fanout.tasks WHERE state <> 'succeeded' GROUP BY 1"),
	'', 'promise 2: all is delivered');
is($node->safe_psql('postgres', 'SELECT count(*) - count(DISTINCT task) FROM delivered'), 0, 'promise 2: each once');
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.tasks WHERE name = 'rolled back'"), 0, 'promise 1');
ok($node->poll_query_until('postgres', "SELECT bool_and(value = '0 of 64') FROM fanout.status() WHERE item IN ('tasks in memory', 'leases in memory')"),
	'memory is empty again');
ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM fanout.partitions'), 'and so are the lanes');

# One worker, one partition after the other: in order, although most of it was left on disk
$node->safe_psql('postgres', <<'EOS');
TRUNCATE delivered;
SELECT count(fanout.enqueue('p', 'ordered', to_jsonb(i), partition_key => 'key' || i % 90)) FROM generate_series(1, 1800) i;
EOS
$node->safe_psql('postgres', "CALL work_off('w')");
is($node->safe_psql('postgres', <<'EOS'), "1800|0", 'promise 4: with a limit of one, a partition is first-in, first-out');
SELECT count(*), count(*) FILTER (WHERE task < before) FROM
	(SELECT task, lag(task) OVER (PARTITION BY partition_key ORDER BY n) AS before FROM delivered JOIN fanout.tasks USING (task)) d
EOS

# A partition with a rate limit goes on from disk while others that cannot leave have more than the queue's share of memory
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('rated', partition_rate_limit => 10, partition_rate_period => '1 hour');
SELECT count(*) FROM fanout.enqueue_many('rated', 'x', array_fill('{}'::jsonb, '{24}'));
DO $$ BEGIN
	WHILE (SELECT scheduled < 24 FROM fanout.queues WHERE queue = 'rated') LOOP
		PERFORM fanout.fail(lease, retry_in => '1 hour') FROM fanout.dequeue('rated', wait => '5 s');
		COMMIT;
	END LOOP;
END $$;
EOS
foreach my $n (1 .. 3)
{
	$node->safe_psql('postgres', "SELECT fanout.enqueue('rated', 'n$n', partition_key => 'p')");
	is($node->safe_psql('postgres', "SELECT name FROM fanout.dequeue('rated', wait => '20 s')"), "n$n", "task $n of a partition that is on disk");
}

# A purge takes all that waits off the backlog of a partition, on disk as well, and only that
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('purged', partition_max_backlog => 100);
SELECT count(*) FROM fanout.enqueue_many('purged', 'x', array_fill('{}'::jsonb, '{100}'), partition_key => 'p');
SELECT count(*) FROM fanout.dequeue('purged', max_tasks => 2);
EOS
is($node->safe_psql('postgres', "SELECT running, backlog FROM fanout.partitions WHERE queue = 'purged'"), '2|98', 'two tasks of a partition run');
is($node->safe_psql('postgres', "SELECT fanout.purge_queue('purged')"), 98, 'the others are cancelled');
is($node->safe_psql('postgres', "SELECT running, backlog FROM fanout.partitions WHERE queue = 'purged'"), '2|0', 'none waits');

$node->stop;
done_testing();
