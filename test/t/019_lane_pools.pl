# Pools of lanes and of rate entries that do not suffice: nothing is exceeded, nothing is forgotten, and no queue starves.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "pg_fanout.max_lanes = 16");
my $refills = "SELECT value::bigint FROM fanout.status() WHERE item = 'refills'";

install_work_off($node);

# A queue that has work in more partitions than there are lanes, and gives none out, leaves lanes to others
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue(q) FROM unnest('{paused,other}'::text[]) q;
SELECT fanout.pause_queue('paused');
SELECT count(*) FROM fanout.enqueue_many('paused', 'x', array_fill('{}'::jsonb, '{200}'),
	partition_keys => ARRAY(SELECT 'key' || n % 100 FROM generate_series(1, 200) n));
SELECT count(*) FROM fanout.enqueue_many('other', 'x', array_fill('{}'::jsonb, '{200}'),
	partition_keys => ARRAY(SELECT 'key' || n % 100 FROM generate_series(1, 200) n));
EOS
$node->safe_psql('postgres', "CALL work_off('other', 200)");
is($node->safe_psql('postgres', "SELECT succeeded FROM fanout.queues WHERE queue = 'other'"), 200, 'another queue works');

# While nothing can be done about what is on disk, the keeper sleeps
my $before = $node->safe_psql('postgres', $refills);
$node->safe_psql('postgres', 'SELECT pg_sleep(1)');
cmp_ok($node->safe_psql('postgres', $refills) - $before, '<', 100, 'the keeper does not go round in circles');
$node->safe_psql('postgres', "SELECT fanout.resume_queue('paused')");
$node->safe_psql('postgres', "CALL work_off('paused', 200)");
is($node->safe_psql('postgres', "SELECT succeeded FROM fanout.queues WHERE queue = 'paused'"), 200, 'and so does that one');

# The strays of a partition that can start none of them now are many reads long, and behind them is that of another one
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('many', partition_concurrency => 1, lease => '1 hour');
SELECT count(*) FROM fanout.enqueue_many('other', 'x', array_fill('{}'::jsonb, '{16}'), partition_keys => ARRAY(SELECT 'key' || n FROM generate_series(1, 16) n));
SELECT count(*) FROM fanout.dequeue('other', 'w', max_tasks => 16, lease => '1 hour');
SELECT count(*) FROM fanout.enqueue_many('many', 'one of many', array_fill('{}'::jsonb, '{400}'), partition_key => 'many');
SELECT fanout.enqueue('many', 'behind', partition_key => 'behind');
SELECT count(*) FROM fanout.complete((SELECT array_agg(lease) FROM fanout.leases WHERE queue = 'other'));
EOS
is($node->safe_psql('postgres', "SELECT name FROM fanout.dequeue('many', 'w', wait => '20 s')"), $_, "a task comes that is $_")
  foreach 'one of many', 'behind';
$node->safe_psql('postgres', "SELECT fanout.drop_queue('many', force => true)");

# A worker's word to wait keeps a partition in memory until it is over, not for ever
$node->safe_psql('postgres', "DO \$\$ BEGIN FOR n IN 1 .. 40 LOOP PERFORM fanout.backpressure('other', now(), 'key' || n); COMMIT; END LOOP; END \$\$");
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout._live_lanes()"), 0, 'no lane is left of words to wait');

# Settings come to a partition although a savepoint has taken others back
is( $node->safe_psql('postgres', <<'EOS'), '2', 'settings, and a savepoint that is rolled back');
BEGIN;
SELECT FROM fanout.set_partition('other', 'set', concurrency => 2);
SAVEPOINT s;
SELECT FROM fanout.set_partition('other', 'set', concurrency => 3);
ROLLBACK TO s;
SELECT FROM fanout.enqueue_many('other', 'x', array_fill('{}'::jsonb, '{40}'), partition_keys => ARRAY(SELECT 'key' || n FROM generate_series(1, 40) n));
COMMIT;
SELECT concurrency FROM fanout._live_lanes() WHERE concurrency > 0;
EOS
$node->safe_psql('postgres', "SELECT fanout.set_partition('other', 'set', unset => '{concurrency}')");
$node->safe_psql('postgres', "CALL work_off('other', 40)");

# Promise 7: leases outlast a restart, whatever other partitions want lanes. Those that are tried again are first on disk.
$node->safe_psql('postgres', <<'EOS');
SELECT count(*) FROM fanout.enqueue_many('other', 'early', array_fill('{}'::jsonb, '{16}'), partition_keys => ARRAY(SELECT 'early' || n FROM generate_series(1, 16) n));
SELECT count(*) FROM fanout.cancel(ARRAY(SELECT task FROM fanout.tasks WHERE name = 'early'));
SELECT count(*) FROM fanout.enqueue_many('other', 'leased', array_fill('{}'::jsonb, '{16}'), partition_keys => ARRAY(SELECT 'leased' || n FROM generate_series(1, 16) n));
DO $$ BEGIN
	WHILE (SELECT count(*) < 16 FROM fanout.leases) LOOP
		PERFORM fanout.dequeue('other', 'w', max_tasks => 16, lease => '1 hour', wait => '100 ms');
		COMMIT;
	END LOOP;
END $$;
SELECT count(*) FROM fanout.retry(ARRAY(SELECT task FROM fanout.tasks WHERE name = 'early'));
EOS
$node->restart;
wait_for_memory($node);
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.leases JOIN fanout.tasks USING (task) WHERE name = 'leased'"), 16, 'promise 7: all leases are there after a restart');
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.complete((SELECT array_agg(lease) FROM fanout.leases))"), 16, 'and can be completed');
$node->safe_psql('postgres', "CALL work_off('other', 16)");
is($node->safe_psql('postgres', "SELECT ready + running FROM fanout.queues WHERE queue = 'other'"), 0, 'nothing is left over');

# Delayed tasks leave their lanes to those that are ready, of another queue and of their own, one or many of a partition
for my $each (1, 100)
{
	$node->safe_psql('postgres', <<"EOS");
SELECT fanout.create_queue('full'), fanout.create_queue('strays');
SELECT count(*) FROM fanout.enqueue_many('full', 'later', array_fill('{}'::jsonb, '{@{[16 * $each]}}'), delay => '1 hour',
	partition_keys => ARRAY(SELECT 'key' || n % 16 FROM generate_series(1, 16 * $each) n));
EOS
	is($node->safe_psql('postgres', 'SELECT count(*) FROM fanout._live_lanes()'), 16, "$each delayed tasks in each of 16 partitions have all lanes");
	$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('later still');
SELECT count(*) FROM fanout.enqueue_many('later still', 'x', array_fill('{}'::jsonb, '{40}'), delay => '1 hour', partition_keys => ARRAY(SELECT 'key' || n FROM generate_series(1, 40) n));
EOS
	is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.partitions WHERE queue = 'full'"), 16, 'and leave none to others that are delayed');
	$node->safe_psql('postgres', "SELECT fanout.drop_queue('later still', force => true)");
	$node->safe_psql('postgres', <<'EOS');
SELECT count(*) FROM fanout.enqueue_many('strays', 'x', array_fill('{}'::jsonb, '{40}'), partition_keys => ARRAY(SELECT 'key' || n FROM generate_series(1, 40) n));
EOS
	$node->safe_psql('postgres', "CALL work_off('strays', 40)");
	is($node->safe_psql('postgres', "SELECT succeeded FROM fanout.queues WHERE queue = 'strays'"), 40, 'tasks of another queue run');
	$node->safe_psql('postgres', <<'EOS');
SELECT count(*) FROM fanout.enqueue_many('full', 'now', array_fill('{}'::jsonb, '{40}'), partition_keys => ARRAY(SELECT 'new' || n FROM generate_series(1, 40) n));
EOS
	$node->safe_psql('postgres', "CALL work_off('full', 40)");
	is($node->safe_psql('postgres', "SELECT succeeded FROM fanout.queues WHERE queue = 'full'"), 40, 'and so do those of new partitions of the same queue');

	# what has left memory runs when its time has come
	is($node->safe_psql('postgres', "SELECT scheduled FROM fanout.queues WHERE queue = 'full'"), 16 * $each, 'the delayed ones wait');
	$node->safe_psql('postgres', <<'EOS');
SELECT count(*) FILTER (WHERE fanout.reschedule(task, delay => '1 s')) FROM fanout.tasks WHERE queue = 'full' AND state = 'scheduled';
EOS
	$node->safe_psql('postgres', "CALL work_off('full', @{[16 * $each]})");
	is($node->safe_psql('postgres', "SELECT succeeded FROM fanout.queues WHERE queue = 'full'"), 40 + 16 * $each, 'and run when they are due');
	$node->safe_psql('postgres', "SELECT fanout.drop_queue(q) FROM unnest('{full,strays}'::text[]) q");
}

# Their own time comes, too, although others have taken the lanes meanwhile, and after a restart
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('full'), fanout.create_queue('strays');
SELECT count(*) FROM fanout.enqueue_many('full', 'later', array_fill('{}'::jsonb, '{40}'), delay => '5 s', partition_keys => ARRAY(SELECT 'key' || n FROM generate_series(1, 40) n));
SELECT fanout.pause_queue('strays');
SELECT count(*) FROM fanout.enqueue_many('strays', 'x', array_fill('{}'::jsonb, '{40}'), partition_keys => ARRAY(SELECT 'key' || n FROM generate_series(1, 40) n));
EOS
$node->restart;
wait_for_memory($node);
$node->safe_psql('postgres', "CALL work_off('full', 40)");
is($node->safe_psql('postgres', "SELECT succeeded FROM fanout.queues WHERE queue = 'full'"), 40, 'delayed tasks take lanes when they are due');

# While no lane can go, as all wait for another attempt of a task, the keeper looks now and then, and not all the time
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.purge_queue('strays'), fanout.drop_queue('full');
SELECT fanout.resume_queue('strays');
SELECT fanout.create_queue('full', backoff => '1 hour');
SELECT count(*) FROM fanout.enqueue_many('full', 'x', array_fill('{}'::jsonb, '{16}'), partition_keys => ARRAY(SELECT 'key' || n FROM generate_series(1, 16) n));
SELECT count(*) FROM fanout.fail((SELECT array_agg(lease) FROM fanout.dequeue('full', max_tasks => 16)), 'not yet');
SELECT count(*) FROM fanout.enqueue_many('strays', 'x', array_fill('{}'::jsonb, '{5}'), partition_keys => ARRAY(SELECT 'key' || n FROM generate_series(1, 5) n));
EOS
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout._live_lanes()"), 16, 'retries stay in memory, and so do their lanes');
$before = $node->safe_psql('postgres', $refills);
$node->safe_psql('postgres', 'SELECT pg_sleep(1)');
cmp_ok($node->safe_psql('postgres', $refills) - $before, '<', 100, 'refills that find no lane have pauses');
$node->safe_psql('postgres', "SELECT fanout.purge_queue('full')");
$node->safe_psql('postgres', "CALL work_off('strays', 5)");
is($node->safe_psql('postgres', "SELECT ready + running FROM fanout.queues WHERE queue = 'strays'"), 0, 'and once there are lanes, all is done');
$node->safe_psql('postgres', "SELECT fanout.drop_queue(q) FROM unnest('{full,strays}'::text[]) q");

# Promise 5, with fewer rate entries than partitions that have started something
$node->append_conf('postgresql.conf', "pg_fanout.max_lanes = 4000\npg_fanout.max_rate_entries = 1024");
$node->restart;
wait_for_memory($node);
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('rated', partition_rate_limit => 1, partition_rate_period => '1 hour', lease => '2 hours');
SELECT count(*) FROM fanout.enqueue_many('rated', 'x', array_fill('{}'::jsonb, '{4000}'), partition_keys => ARRAY(SELECT 'key' || n % 2000 FROM generate_series(1, 4000) n));
EOS
my $took = 0;
$took += $node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('rated', 'w', max_tasks => 1000)") for 1 .. 6;
cmp_ok($took, '>', 900, 'as many start as can be remembered');
is( $node->safe_psql('postgres', "SELECT max(n) FROM (SELECT count(*) AS n FROM fanout.leases JOIN fanout.task t ON t.id = task GROUP BY t.lane) c"),
	1, 'promise 5: and no partition goes above its limit');
$node->restart;
wait_for_memory($node);
$node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('rated', 'w', max_tasks => 1000)");
is( $node->safe_psql('postgres', "SELECT max(n) FROM (SELECT count(*) AS n FROM fanout.leases JOIN fanout.task t ON t.id = task GROUP BY t.lane) c"),
	1, 'nor after a restart');

# Promise 5, two windows: an entry that has left the short one takes a start for want of another
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('two', rate_limit => 4, rate_period => '1 s', synchronous_claims => true);
SELECT fanout.set_rate_limit('two', 1000, '1 hour');
EOS
$node->safe_psql('postgres', "SELECT fanout.drop_queue('rated', force => true)");
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('fill', partition_rate_limit => 1, partition_rate_period => '1 hour');
SELECT count(*) FROM fanout.enqueue_many('two', 'x', array_fill('{}'::jsonb, '{40}'));
SELECT count(*) FROM fanout.enqueue_many('fill', 'x', array_fill('{}'::jsonb, '{2000}'), partition_keys => ARRAY(SELECT 'key' || n FROM generate_series(1, 2000) n));
EOS
my $starts = "SELECT count(*) FROM fanout.dequeue('two', max_tasks => 1)";
$node->safe_psql('postgres', $starts) for 1 .. 4;
$node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('fill', max_tasks => 2000)");
$node->safe_psql('postgres', 'SELECT pg_sleep(1.1)');
$node->safe_psql('postgres', $starts) for 1 .. 4;
# what that one brings back into a window leaves it again
foreach my $round (1 .. 2)
{
	$node->safe_psql('postgres', 'SELECT pg_sleep(1.1)');
	$node->safe_psql('postgres', $starts) for 1 .. 12;
}
cmp_ok($node->safe_psql('postgres', "SELECT max(n) FROM (SELECT count(*) OVER (ORDER BY claimed_at RANGE '1 s' PRECEDING) AS n FROM fanout.leases WHERE queue = 'two') w"),
	'<=', 4, 'promise 5: of several windows');

# Promise 5: what started before there was a limit is not given back to it
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.drop_queue(q, force => true) FROM unnest('{two,fill}'::text[]) q;
SELECT fanout.create_queue('later', partition_rate_limit => 100, partition_rate_period => '1 hour', synchronous_claims => true);
SELECT count(*) FROM fanout.enqueue_many('later', 'x', array_fill('{}'::jsonb, '{5}'), partition_key => 'first');
EOS
my $open = session($node);
$open->query_safe("BEGIN; SELECT lease FROM fanout.dequeue('later', 'open')");
$node->safe_psql('postgres', "SELECT fanout.alter_queue('later', rate_limit => 1, rate_period => '1 hour')");
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('later', 'w', max_tasks => 5)"), 1, 'one starts');
$open->query_safe('ROLLBACK');
$open->quit;
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('later', 'w', max_tasks => 5)"), 0, 'and no more');

# nor is what a partition has started before
$open = session($node);
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.alter_queue('later', rate_limit => 100, rate_period => '1 hour', unset => '{partition_rate_limit}');
SELECT count(*) FROM fanout.enqueue_many('later', 'x', array_fill('{}'::jsonb, '{5}'), partition_key => 'p');
SELECT fanout.pause_partition('later', 'p');
SELECT count(*) FROM fanout.dequeue('later', 'w', max_tasks => 5);
SELECT fanout.resume_partition('later', 'p');
EOS
$open->query_safe("BEGIN; SELECT lease FROM fanout.dequeue('later', 'open')");
$node->safe_psql('postgres', "SELECT fanout.alter_queue('later', partition_rate_limit => 1, partition_rate_period => '1 hour')");
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('later', 'w', max_tasks => 5)"), 1, 'one of the partition starts');
$open->query_safe('ROLLBACK');
$open->quit;
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('later', 'w', max_tasks => 5)"), 0, 'and no more of it');

# Fewer places for limits than partitions that have started something, which 40 have before the server is told so
my $starts_of = "SELECT count(*) FROM fanout.dequeue('limited', 'w', max_tasks => 100)";
my $limited = "SELECT value FROM fanout.status() WHERE item = 'limited lanes in memory'";
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.drop_queue('later', force => true);
SELECT fanout.create_queue('limited', partition_rate_limit => 1, partition_rate_period => '1 hour', lease => '2 hours');
SELECT count(*) FROM fanout.enqueue_many('limited', 'x', array_fill('{}'::jsonb, '{80}'), partition_keys => ARRAY(SELECT 'key' || n % 40 FROM generate_series(1, 80) n));
EOS
is($node->safe_psql('postgres', $starts_of), 40, 'one start a partition');
is($node->safe_psql('postgres', $limited), '40 of 16384', 'each has a place');
$node->append_conf('postgresql.conf', "pg_fanout.max_limited_lanes = 16\npg_fanout.max_rate_entries = 65536");
$node->restart;
wait_for_memory($node);
is($node->safe_psql('postgres', $limited), '16 of 16', 'after a restart there are 16 places');
is($node->safe_psql('postgres', $starts_of), 0, 'promise 5: but no start is forgotten');
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.partitions WHERE next_start BETWEEN now() + '50 min' AND now() + '61 min'"), 40,
	'of no partition');
is($node->safe_psql('postgres', "SELECT code FROM fanout.tasks t, fanout.why(t.task) WHERE state = 'ready' GROUP BY 1"), 'partition_rate_limit',
	'and each of them says so');

# Partitions that have not started anything wait for a place
$node->safe_psql('postgres', "SELECT count(*) FROM fanout.enqueue_many('limited', 'x', array_fill('{}'::jsonb, '{20}'), partition_keys => ARRAY(SELECT 'new' || n FROM generate_series(1, 20) n))");
is($node->safe_psql('postgres', $starts_of), 0, 'without a place nothing starts');
my ($result, undef, $error) = $node->psql('postgres', "SELECT fanout.set_partition('limited', 'new1', concurrency => 2)", extra_params => ['-v', 'VERBOSITY=verbose']);
like($error, qr/53400: too many partitions\nHINT:  Raise pg_fanout.max_lanes or pg_fanout.max_limited_lanes/, 'nor are there settings');
$node->safe_psql('postgres', "SELECT fanout.alter_queue('limited', unset => '{partition_rate_limit}')");
is($node->safe_psql('postgres', $limited), '0 of 16', 'without the rate limit all places are free');
is($node->safe_psql('postgres', $starts_of), 60, 'and all may start');

# They come and go: partitions take turns for the places
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.drop_queue('limited', force => true);
SELECT fanout.create_queue('limited', partition_rate_limit => 1, partition_rate_period => '200 ms');
SELECT count(*) FROM fanout.enqueue_many('limited', 'x', array_fill('{}'::jsonb, '{200}'), partition_keys => ARRAY(SELECT 'key' || n % 100 FROM generate_series(1, 200) n));
EOS
$node->safe_psql('postgres', "CALL work_off('limited', 200)");
is($node->safe_psql('postgres', "SELECT succeeded FROM fanout.queues WHERE queue = 'limited'"), 200, 'all get their places in time');
is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT claimed_at - lag(claimed_at) OVER (PARTITION BY lane ORDER BY claimed_at) AS apart FROM fanout.attempts a JOIN fanout.task t ON t.id = a.task WHERE a.queue = 'limited') s WHERE apart <= '200 ms'"),
	0, 'promise 5: and none more than its limit');
ok($node->poll_query_until('postgres', $limited, '0 of 16'), 'all places are given back');

# Settings take places, also by transactions that come to nothing
$node->safe_psql('postgres', <<'EOS');
BEGIN;
SELECT count(fanout.set_partition('limited', 'set' || n, concurrency => 2)) FROM generate_series(1, 16) n;
ROLLBACK;
SELECT count(fanout.set_partition('limited', 'set' || n, concurrency => 2)) FROM generate_series(1, 16) n;
EOS
($result, undef, $error) = $node->psql('postgres', "SELECT fanout.set_partition('limited', 'set17', concurrency => 2)", extra_params => ['-v', 'VERBOSITY=verbose']);
like($error, qr/53400: too many partitions/, 'settings for one partition too many');
is($node->safe_psql('postgres', 'SELECT count(*) FROM fanout._live_lanes()'), 16, 'which takes no lane');
$node->safe_psql('postgres', "SELECT fanout.set_partition('limited', 'set1', unset => '{concurrency}')");
$node->safe_psql('postgres', "SELECT fanout.set_partition('limited', 'set17', concurrency => 2)");
is($node->safe_psql('postgres', $limited), '16 of 16', 'one gives its place to another');

$node->stop;
done_testing();
