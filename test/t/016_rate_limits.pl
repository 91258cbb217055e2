# Promise 5: rate limits are exact over any window, over all workers, and no start is forgotten, not even by a crash.
#
# Workers write down each start with its claim, in one transaction; every window that ends with a start is looked at.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('fleet', rate_limit => 50, rate_period => '1 s', lease => '1 hour');
SELECT fanout.set_rate_limit('fleet', 120, '3 s');
SELECT fanout.create_queue('each', partition_rate_limit => 5, partition_rate_period => '1 s', lease => '1 hour');
SELECT fanout.create_queue('busy', rate_limit => 50, rate_period => '5 s', lease => '1 hour', max_attempts => 100);
SELECT count(*) FROM fanout.enqueue_many('busy', 'x', array_fill('{}'::jsonb, '{1000}'));
SELECT count(*) FROM fanout.enqueue_many('fleet', 'x', array_fill('{}'::jsonb, '{2000}'));
SELECT count(*) FROM fanout.enqueue_many('each', 'x', array_fill('{}'::jsonb, '{400}'),
	partition_keys => ARRAY(SELECT 'key' || n % 4 FROM generate_series(1, 400) n));

CREATE TABLE started (queue text, partition_key text, at timestamptz);

-- Work until so many tasks of the queue have started: some are completed at once, some fail, some claims are rolled back
CREATE PROCEDURE work_until(queue_name text, starts bigint) LANGUAGE plpgsql AS $$
DECLARE
	took bigint[];
	turn int := 0;
BEGIN
	LOOP
		turn := turn + 1;
		took := ARRAY(SELECT lease FROM fanout.dequeue(queue_name, max_tasks => turn % 4 + 1, wait => '500 ms'));
		INSERT INTO started SELECT queue_name, t.partition_key, l.claimed_at
		  FROM fanout.leases l JOIN fanout.task t ON t.id = l.task WHERE l.lease = ANY (took);
		IF turn % 7 = 0 THEN
			ROLLBACK;
			CONTINUE;
		END IF;
		COMMIT;
		IF turn % 5 = 0 THEN
			PERFORM fanout.fail(took, retry_in => '0');
		ELSIF turn % 5 < 4 THEN
			PERFORM fanout.complete(took);
		END IF;
		COMMIT;
		EXIT WHEN (SELECT dequeued >= starts FROM fanout.queues WHERE queue = queue_name);
	END LOOP;
END $$;

-- The most starts in any window
CREATE FUNCTION most_starts(queue_name text, period interval, by_key boolean) RETURNS bigint LANGUAGE sql AS $$
	SELECT max(n) FROM (SELECT count(*) OVER (PARTITION BY CASE WHEN by_key THEN partition_key END
		ORDER BY at RANGE most_starts.period PRECEDING) AS n FROM started WHERE queue = queue_name) w
$$;
EOS

my @clients = map { start_client($node, "CALL work_until('fleet', 250)") } 1 .. 4;
ok(finish_clients(@clients), 'the fleet works');
cmp_ok($node->safe_psql('postgres', "SELECT most_starts('fleet', '1 s', false)"), '<=', 50, 'promise 5: in any second');
cmp_ok($node->safe_psql('postgres', "SELECT most_starts('fleet', '3 s', false)"), '<=', 120, 'promise 5: in any three seconds');
@clients = map { start_client($node, "CALL work_until('each', 60)") } 1 .. 3;
ok(finish_clients(@clients), 'partitions');
cmp_ok($node->safe_psql('postgres', "SELECT most_starts('each', '1 s', true)"), '<=', 5, 'promise 5: of any partition');
cmp_ok($node->safe_psql('postgres', "SELECT most_starts('each', '1 s', false)"), '>', 5, 'each has its own');

# A queue that is never empty comes close to its limit: what it starts after its first window, in one. That is long, so
# that it does not matter how late a worker is woken.
ok(finish_clients(map { start_client($node, "CALL work_until('busy', 140)") } 1 .. 4), 'a saturated queue');
cmp_ok($node->safe_psql('postgres', <<'EOS'), '>', 30, 'the limit is used, even where workers are woken late');
SELECT 5 * (count(*) - 50) / extract(epoch FROM max(at) - min(at)) FROM started WHERE queue = 'busy'
EOS
cmp_ok($node->safe_psql('postgres', "SELECT most_starts('busy', '5 s', false)"), '<=', 50, 'and never above');

# Crashes in the middle of it: what has started counts, whether it was journaled or not
for my $crash (1 .. 2)
{
	@clients = map { start_client($node, "CALL work_until('$_', 100000)") } qw(fleet fleet each each);
	$node->poll_query_until('postgres', "SELECT count(*) = 4 FROM pg_stat_activity WHERE query ~ '^CALL work_until' AND state = 'active'") or die 'nobody works';
	my $before = $node->safe_psql('postgres', 'SELECT count(*) FROM started');
	$node->poll_query_until('postgres', "SELECT count(*) > $before + 20 FROM started") or die 'nothing starts';
	$node->stop('immediate');
	finish_clients(@clients);
	$node->start;
	wait_for_memory($node);
}
@clients = map { start_client($node, "CALL work_until('$_', 40)") } qw(fleet fleet each each);
ok(finish_clients(@clients), 'on after the crashes');
cmp_ok($node->safe_psql('postgres', "SELECT most_starts('fleet', '1 s', false)"), '<=', 50, 'promise 5: in any second, over crashes');
cmp_ok($node->safe_psql('postgres', "SELECT most_starts('fleet', '3 s', false)"), '<=', 120, 'promise 5: in any three seconds, over crashes');
cmp_ok($node->safe_psql('postgres', "SELECT most_starts('each', '1 s', true)"), '<=', 5, 'promise 5: of any partition, over crashes');

# What costs much is on disk with its claim, however late the journal is; and what earlier crashes may have swallowed still
# counts after the next one
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('large', rate_limit => 100, rate_period => '1 hour', lease => '1 hour');
SELECT fanout.enqueue('large', 'x', cost => 60) FROM generate_series(1, 3);
SELECT fanout.create_queue('large of a partition', partition_rate_limit => 100, partition_rate_period => '1 hour', lease => '1 hour');
SELECT fanout.enqueue('large of a partition', 'x', partition_key => 'p', cost => 60) FROM generate_series(1, 3);
SELECT fanout.create_queue('again', rate_limit => 160, rate_period => '1 hour', lease => '1 hour');
SELECT count(*) FROM fanout.enqueue_many('again', 'x', array_fill('{}'::jsonb, '{1000}'));
SELECT fanout.create_queue('parts', partition_rate_limit => 2, partition_rate_period => '1 hour', lease => '1 hour');
SELECT count(*) FROM fanout.enqueue_many('parts', 'x', array_fill('{}'::jsonb, '{5}'), partition_key => 'p');
SELECT fanout.create_queue('both', rate_limit => 16, rate_period => '1 hour', lease => '1 hour');
SELECT fanout.set_rate_limit('both', 1600, '2 hours');
SELECT count(*) FROM fanout.enqueue_many('both', 'x', array_fill('{}'::jsonb, '{100}'));
EOS
$node->append_conf('postgresql.conf', "pg_fanout.journal_interval = '10 s'");
$node->reload;
wait_until { $node->safe_psql('postgres', 'SHOW pg_fanout.journal_interval') eq '10s' } 'another setting';
my $large = "SELECT count(*) FROM unnest(ARRAY['large', 'large of a partition']) q, fanout.dequeue(q, max_tasks => 3)";
my $starts = $node->safe_psql('postgres', $large);
my $others = 0;
for my $crash (1 .. 4)
{
	$others += $node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('again', max_tasks => 45)");
	$node->stop('immediate');
	$node->start;
	wait_for_memory($node);
	$starts += $node->safe_psql('postgres', $large);
}
is($starts, 2, 'promise 5: a start of a large cost is not forgotten');
$others += $node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('again', max_tasks => 200)");
cmp_ok($others, '<=', 160, 'promise 5: over several crashes within a window');
cmp_ok($others, '>', 100, 'most of the window is used all the same');
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('parts', max_tasks => 5)"), 1, 'of a partition they may have swallowed one');
$node->safe_psql('postgres', "SELECT fanout.enqueue('parts', 'x', partition_key => 'new') FROM generate_series(1, 5)");
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('parts', max_tasks => 5)"), 1, 'also of one that comes later');
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('both', max_tasks => 100)"), 10,
	'of two windows six crashes have each taken what the smaller one may forget');

$node->stop;
done_testing();
