# A backlog of thousands with memory for 64 tasks: windows that evict, bounds, refills.
#
# Promise 2: every task is delivered, and once. Its place in the order, priority before the order of enqueueing, does
# not depend on what fits into memory. Promise 1: what was rolled back or cancelled never comes.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "pg_fanout.max_tracked_tasks = 64\nlog_min_duration_statement = 1000");
is($node->safe_psql('postgres', 'SHOW pg_fanout.max_tracked_tasks'), 64, 'the pool is as small as it gets');

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue(q) FROM unnest('{a,b,c,delayed}'::text[]) q;
SELECT fanout.create_queue('load', lease => '5 s', max_attempts => 1000);

CREATE TABLE delivered (n bigserial, queue text, task bigint, at timestamptz);

-- A cancel needs memory for the task, which may be used up (53400) for a moment: try again, as the hint says.
CREATE FUNCTION cancel_all(tasks bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	LOOP
		BEGIN
			PERFORM fanout.cancel(tasks);
			RETURN;
		EXCEPTION WHEN configuration_limit_exceeded THEN
			PERFORM pg_sleep(0.01);
		END;
	END LOOP;
END $$;

-- Mostly the usual priority, some ahead, some behind; some are cancelled, some were never committed.
CREATE PROCEDURE enqueue_mixed(queue_name text, transactions int) LANGUAGE plpgsql AS $$
DECLARE
	made bigint[];
BEGIN
	FOR i IN 1 .. transactions LOOP
		PERFORM fanout.enqueue_many(queue_name, 'bulk', array_fill('{}'::jsonb, ARRAY[40]));
		PERFORM fanout.enqueue(queue_name, 'single', priority => (i * 7) % 5 - 2);
		made := ARRAY(SELECT m.task FROM fanout.enqueue_many(queue_name, 'some', array_fill('{}'::jsonb, ARRAY[6]),
															 priority => (i * 3) % 4 - 1) m);
		COMMIT;
		PERFORM cancel_all(made[1:3]);
		COMMIT;
		PERFORM fanout.enqueue_many(queue_name, 'rolled back', array_fill('{}'::jsonb, ARRAY[20]), priority => -9);
		PERFORM cancel_all(made[4:6]);
		ROLLBACK;
	END LOOP;
END $$;

-- Takes so many tasks, by turns one, a few and many; now and then a claim is rolled back. Fails if nothing comes for long.
CREATE PROCEDURE take(queue_name text, tasks int) LANGUAGE plpgsql AS $$
DECLARE
	claims record;
	n int := 0;
	turn int := 0;
	at_once int;
BEGIN
	WHILE n < tasks LOOP
		turn := turn + 1;
		at_once := least(tasks - n, (ARRAY[1, 3, 10, 40])[turn % 4 + 1]);
		SELECT array_agg(d.task ORDER BY d.ordinality) AS tasks, array_agg(d.lease) AS leases INTO claims
		  FROM fanout.dequeue(queue_name, 'w', max_tasks => at_once, wait => '30 s') WITH ORDINALITY d;
		IF turn % 5 = 0 THEN
			ROLLBACK;
			CONTINUE;
		END IF;
		IF claims.tasks IS NULL THEN
			RAISE 'only % of % tasks of % came', n, tasks, queue_name;
		END IF;
		INSERT INTO delivered (queue, task, at) SELECT queue_name, t, clock_timestamp() FROM unnest(claims.tasks) t;
		PERFORM fanout.complete(claims.leases);
		COMMIT;
		n := n + cardinality(claims.tasks);
	END LOOP;
END $$;

-- The first delivery of the queue that is not the one to be expected, if there is one.
CREATE FUNCTION first_out_of_order(queue_name text, OUT "position" bigint, OUT delivered bigint, OUT expected bigint)
LANGUAGE sql AS $$
	SELECT n, d.task, e.task
	  FROM (SELECT row_number() OVER (ORDER BY n) AS n, task FROM delivered WHERE queue = queue_name) d
	  LEFT JOIN (SELECT row_number() OVER (ORDER BY priority, task) AS n, task FROM fanout.tasks
				  WHERE queue = queue_name AND state <> 'cancelled') e USING (n)
	 WHERE d.task IS DISTINCT FROM e.task
	 ORDER BY n LIMIT 1
$$;
EOS

sub delivered
{
	my ($queue) = @_;

	return $node->safe_psql('postgres', "SELECT count(*) FROM delivered WHERE queue = '$queue'");
}

# What the queue has still, and gives out
sub left
{
	my ($queue) = @_;

	return $node->safe_psql('postgres',
		"SELECT scheduled + ready + running + (SELECT count(*) FROM fanout.dequeue('$queue', 'w')) FROM fanout.queues WHERE queue = '$queue'");
}

sub in_order
{
	my ($queue, $what) = @_;

	is($node->safe_psql('postgres', "SELECT * FROM first_out_of_order('$queue')"), '||', $what);
}

# 50 transactions of 44 tasks that stay, in each of three queues at once; meanwhile the log goes on in other segments
foreach my $segment (1 .. 2)
{
	my @backlogs = map { start_client($node, "CALL enqueue_mixed('$_', 20)") } qw(a b c);
	$node->poll_query_until('postgres', "SELECT count(*) > 0 FROM fanout.task_$segment") or die 'nothing is enqueued';
	is($node->safe_psql('postgres', 'SELECT fanout._next_segment()'), $segment + 1, 'another segment of the log');
	ok(finish_clients(@backlogs), 'three backlogs');
}
ok(finish_clients(map { start_client($node, "CALL enqueue_mixed('$_', 10)") } qw(a b c)), 'more of each');
is($node->safe_psql('postgres', 'SELECT count(DISTINCT tableoid) FROM fanout.task'), 3, 'in three segments');
is( $node->safe_psql('postgres', "SELECT queue, scheduled, ready, running FROM fanout.queues WHERE queue IN ('a', 'b', 'c') ORDER BY 1"),
	"a|0|2200|0\nb|0|2200|0\nc|0|2200|0",
	'the counts include what is not in memory');
cmp_ok($node->safe_psql('postgres', 'SELECT sum(in_memory) FROM fanout.queues'), '<=', 64, 'most of it is not');

# One after another, with no other work going on
$node->safe_psql('postgres', "CALL take('a', 2200)");
is(delivered('a') . ' ' . left('a'), '2200 0', 'promise 2: all of one queue is delivered');
in_order('a', 'promise 2: in order, each once');
is($node->safe_psql('postgres', "SELECT state, count(*) FROM fanout.tasks WHERE queue = 'a' GROUP BY 1 ORDER BY 1"),
	"cancelled|150\nsucceeded|2200", 'promise 1: and nothing else is');

# A task that was delayed is due at once when it is retried, whether there is room for it or not
my $delayed = $node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('put off') \gset
SELECT count(*) FROM fanout.enqueue_many('put off', 'x', array_fill('{}'::jsonb, '{200}')) \gset
SELECT fanout.enqueue('put off', 'x', delay => '1 hour');
EOS
$node->safe_psql('postgres', "SELECT fanout.cancel($delayed)");
$node->safe_psql('postgres', "SELECT fanout.retry($delayed)");
is($node->safe_psql('postgres', "SELECT state FROM fanout.tasks WHERE task = $delayed"), 'ready', 'retried: it is due');
$node->safe_psql('postgres', "CALL take('put off', 201)");
is(delivered('put off'), 201, 'and is delivered with the others');
$node->safe_psql('postgres', "DELETE FROM delivered WHERE queue = 'put off'; SELECT fanout.drop_queue('put off')");

# More arrives in the middle: ahead of the whole backlog, amid it, behind it.
$node->safe_psql('postgres', "CALL take('b', 700)");
in_order('b', 'the first part of a backlog');
$node->safe_psql('postgres', "DELETE FROM delivered WHERE queue = 'b'");
$node->safe_psql('postgres', <<'EOS');
SELECT count(*) FROM fanout.enqueue_many('b', 'behind', array_fill('{}'::jsonb, ARRAY[150]), priority => 50);
SELECT count(*) FROM fanout.enqueue_many('b', 'ahead', array_fill('{}'::jsonb, ARRAY[150]), priority => -50);
SELECT count(*) FROM fanout.enqueue_many('b', 'amid', array_fill('{}'::jsonb, ARRAY[150]), priority => 1);
CREATE TABLE before AS SELECT task FROM fanout.tasks WHERE queue = 'b' AND state = 'succeeded';
CREATE OR REPLACE FUNCTION first_out_of_order(queue_name text, OUT "position" bigint, OUT delivered bigint, OUT expected bigint)
LANGUAGE sql AS $$
	SELECT n, d.task, e.task
	  FROM (SELECT row_number() OVER (ORDER BY n) AS n, task FROM delivered WHERE queue = queue_name) d
	  LEFT JOIN (SELECT row_number() OVER (ORDER BY priority, task) AS n, task FROM fanout.tasks
				  WHERE queue = queue_name AND state <> 'cancelled' AND task NOT IN (SELECT task FROM before)) e USING (n)
	 WHERE d.task IS DISTINCT FROM e.task
	 ORDER BY n LIMIT 1
$$;
EOS
$node->safe_psql('postgres', "CALL take('b', 150)");
is( $node->safe_psql('postgres', "SELECT name, count(*) FROM delivered d JOIN fanout.tasks t USING (task) WHERE d.queue = 'b' GROUP BY 1"),
	'ahead|150', 'what arrives ahead of all others comes at once');

# A crash, and on with the other two at the same time
$node->stop('immediate');
$node->start;
wait_for_memory($node);
is( $node->safe_psql('postgres', "SELECT queue, ready FROM fanout.queues WHERE queue IN ('b', 'c') ORDER BY 1"),
	"b|1800\nc|2200", 'promise 7: the counts after a crash');
ok(finish_clients(start_client($node, "CALL take('b', 1800)"), start_client($node, "CALL take('c', 2200)")),
	'two queues at once');
is(join(' ', delivered('b'), left('b'), delivered('c'), left('c')), '1950 0 2200 0', 'promise 2: all is delivered');
in_order('b', 'promise 2: in order, with what arrived in the middle');
in_order('c', 'promise 2: in order, beside another queue');

# Everything at once: producers and workers, failures and retries
install_ledger($node);
$node->safe_psql('postgres', 'INSERT INTO produced SELECT task FROM fanout.tasks');
$node->safe_psql('postgres', "INSERT INTO effect SELECT task FROM fanout.tasks WHERE state = 'succeeded'");
my @producers = map { start_client($node, "CALL produce('load', 150)") } 1 .. 2;
$node->poll_query_until('postgres', "SELECT enqueued > 300 FROM fanout.queues WHERE queue = 'load'")
  or die 'nothing is produced';
$node->safe_psql('postgres', 'SELECT fanout._next_segment()');
ok(finish_clients(@producers, map { start_client($node, "CALL work('load', 'w$_')") } 1 .. 4),
	'producers and workers');
ok(finish_clients(start_client($node, "CALL work('load', 'last')")), 'the rest');
is( $node->safe_psql('postgres', "SELECT * FROM violations() v WHERE v !~ 'cancelled' LIMIT 20"),
	'', 'promises 1 and 2: nothing lost, nothing twice');

# Delayed tasks, more than memory holds, beside those that are ready
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.enqueue('delayed', 'later', run_at => now() + (i * 37 % 1500) * interval '1 ms', priority => i % 3)
  FROM generate_series(1, 300) i;
SELECT fanout.enqueue_many('delayed', 'now', array_fill('{}'::jsonb, ARRAY[300]));
EOS
$node->safe_psql('postgres', "CALL take('delayed', 600)");
is( $node->safe_psql('postgres', "SELECT count(*), count(DISTINCT task) FROM delivered WHERE queue = 'delayed'"),
	'600|600', 'promise 2: delayed tasks are delivered, once');
is( $node->safe_psql('postgres', "SELECT count(*) FROM delivered d JOIN fanout.task t ON t.id = d.task WHERE d.at < t.run_at"),
	0, 'and none before its time');

# A join that ends a batch of which memory holds a part only: all the rest is cancelled
my $any = $node->safe_psql('postgres',
	qq{SELECT fanout.fan_out('a', 'search', array_fill('1'::jsonb, '{500}'), "join" => 'any')});
$node->safe_psql('postgres', "SELECT fanout.complete(lease) FROM fanout.dequeue('a', 'w1', wait => '30 s')");
ok($node->poll_query_until('postgres', "SELECT cancelled = 499 FROM fanout.progress($any)"),
	'a join cancels more tasks than memory holds');
is($node->safe_psql('postgres', 'SELECT sum(ready + running) FROM fanout.queues'), 0, 'and nothing is left over');

# A purge of what is on disk leaves no count behind
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('purged');
SELECT count(*) FROM fanout.enqueue_many('purged', 'x', array_fill('{}'::jsonb, ARRAY[200]), delay => '1 hour');
SELECT fanout.purge_queue('purged');
SELECT count(*) FROM fanout.enqueue_many('purged', 'x', array_fill('{}'::jsonb, ARRAY[10]));
EOS
is($node->safe_psql('postgres', "SELECT scheduled, ready FROM fanout.queues WHERE queue = 'purged'"), '0|10', 'counts after a purge');

# What was read back from disk ends its batch early, whatever the order that it was read in
foreach my $terms ('', ', priority => 1', ", partition_key => 'k'", ", delay => '1 ms'")
{
	my $first = $terms =~ /delay/ ? '' : $terms;

	$node->safe_psql('postgres', "SELECT fanout.create_queue('joins')");
	$node->safe_psql('postgres', "SELECT fanout.enqueue_many('joins', 'fills', array_fill('{}'::jsonb, ARRAY[16])$first)");
	my $batch = $node->safe_psql('postgres', "SELECT fanout.fan_out('joins', 'x'::text, '{1,2}', 'any'$terms)");
	$node->safe_psql('postgres', "CALL take('joins', 16)");
	$node->safe_psql('postgres', "SELECT fanout.complete(lease) FROM fanout.dequeue('joins', 'w', wait => '20 s')");
	is($node->safe_psql('postgres', "SELECT r.status FROM fanout.collect($batch, '0') c, fanout.result(c.task, '20 s') r WHERE c.ordinal = 2"), 'cancelled',
		"the first of two ends the batch, and so the second$terms");
	$node->safe_psql('postgres', "SELECT fanout.drop_queue('joins', force => true)");
}

# While a queue has all that it may have in memory, and something to give out, the keeper reads nothing
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.drop_queue(queue, force => true) FROM fanout.queues;
SELECT fanout.create_queue('full');
SELECT count(*) FROM fanout.enqueue_many('full', 'x', array_fill('{}'::jsonb, ARRAY[14]), partition_key => 'key');
SELECT count(*) FROM fanout.enqueue_many('full', 'x', array_fill('{}'::jsonb, ARRAY[30]));
EOS
my $refills = "SELECT value::bigint FROM fanout.status() WHERE item = 'refills'";
my $refills_before = $node->safe_psql('postgres', $refills);
$node->safe_psql('postgres', 'SELECT pg_sleep(1)');
cmp_ok($node->safe_psql('postgres', $refills) - $refills_before, '<=', 2, 'the keeper sleeps');

$node->stop;
done_testing();
