# Tasks that wait are changed all the time, with memory for 64 tasks and 16 partitions: while windows evict and refill,
# while workers claim, while transactions and savepoints roll back, and while the server is killed.
#
# Whatever is claimed must be what its row says: a refill that has read the row as it was before a change must not bring
# that into memory. Promise 2: every task ends once, and in its order. Promise 7: what was committed survives a crash.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "pg_fanout.max_tracked_tasks = 64\npg_fanout.max_lanes = 16\nfsync = off");

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('a', backoff => '0', max_attempts => 1000);
SELECT fanout.create_queue('b', backoff => '0', max_attempts => 1000);
SELECT fanout.create_queue('lanes', backoff => '0', max_attempts => 1000, partition_concurrency => 1);

CREATE TABLE done (n bigserial, queue text, task bigint, priority int);
CREATE TABLE violation (what text);
CREATE TABLE changed (task bigint, what text);

-- Some tasks that have not ended; most of them wait on disk.
CREATE FUNCTION some_tasks(count int) RETURNS bigint[] LANGUAGE sql AS $$
	SELECT array_agg(id) FROM (SELECT id FROM fanout.task t WHERE NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id)
								ORDER BY random() LIMIT count) t
$$;

-- Changes some tasks in a way or another.
CREATE PROCEDURE change(tasks bigint[], way int) LANGUAGE plpgsql AS $$
DECLARE
	done bigint[];
BEGIN
	CASE way
		WHEN 0, 1, 2 THEN
			done := ARRAY(SELECT fanout.reprioritize(tasks, (random() * 8)::int - 4));
		WHEN 3 THEN
			done := ARRAY(SELECT fanout.reschedule(tasks, delay => random() * interval '100 ms'));
		WHEN 4 THEN
			done := ARRAY(SELECT fanout.reschedule(tasks, run_at => 'epoch'));
		WHEN 5 THEN
			done := ARRAY(SELECT fanout.move(tasks, CASE WHEN random() < 0.5 THEN 'a' ELSE 'b' END, unset => '{partition_key}'));
		ELSE
			done := ARRAY(SELECT fanout.move(tasks, 'lanes', 'key ' || (random() * 40)::int));
	END CASE;
	INSERT INTO changed SELECT t, way FROM unnest(done) t;
END $$;

-- Changes tasks at random, one and several times in a transaction, with what is rolled back in between.
-- A task whose time has come is in memory until it is claimed, so these take all of it where nobody works.
CREATE PROCEDURE change_at_random(rounds int, delays bool) LANGUAGE plpgsql AS $$
DECLARE
	ways int[] := CASE WHEN delays THEN '{0,1,2,3,4,5,6}'::int[] ELSE '{0,1,2,4,5,6,6}' END;
BEGIN
	FOR i IN 1 .. rounds LOOP
		DECLARE
			tasks bigint[] := some_tasks(1 + (random() * 4)::int);
		BEGIN
			EXIT WHEN tasks IS NULL;
			PERFORM pg_sleep(0.0001);	-- where a backend notices that its server was killed
			CALL change(tasks, ways[1 + random() * 6]);
			IF random() < 0.3 THEN
				BEGIN
					CALL change(tasks, ways[1 + random() * 6]);
					PERFORM fanout.cancel(tasks);
					RAISE EXCEPTION 'never mind' USING ERRCODE = 'XX999';
				EXCEPTION WHEN SQLSTATE 'XX999' THEN
					NULL;
				END;
			END IF;
			IF random() < 0.3 THEN
				CALL change(tasks, ways[1 + random() * 6]);
			END IF;
		EXCEPTION
			WHEN configuration_limit_exceeded OR deadlock_detected THEN
				INSERT INTO changed VALUES (0, SQLSTATE);
		END;
		IF random() < 0.2 THEN
			ROLLBACK;
		ELSE
			COMMIT;
		END IF;
	END LOOP;
END $$;

-- Looks at what was claimed: a task that runs cannot be changed, so its row says what it is.
CREATE PROCEDURE check_claims(queue_name text, claimed bigint[], priorities int[]) LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO violation
	SELECT format('task %s: claimed from %s with priority %s, its row says %s, %s, %s', t.id, queue_name, c.priority, q.name,
				  coalesce(t.priority, 0), t.run_at)
	  FROM unnest(claimed, priorities) c (task, priority) JOIN fanout.task t ON t.id = c.task JOIN fanout.queue q ON q.id = t.queue
	 WHERE q.name <> queue_name OR coalesce(t.priority, 0) <> c.priority OR t.run_at > clock_timestamp();
END $$;

CREATE PROCEDURE check_lanes() LANGUAGE plpgsql AS $$
DECLARE
	running bigint[] := ARRAY(SELECT task FROM fanout.leases WHERE queue = 'lanes');
BEGIN
	INSERT INTO violation
	SELECT format('%s run of partition %s', count(*), t.partition_key)
	  FROM unnest(running) r JOIN fanout.task t ON t.id = r JOIN fanout.leases l ON l.task = t.id
	 GROUP BY t.partition_key HAVING count(*) > 1;
END $$;

-- Works until so many tasks are done, or nothing waits.
CREATE PROCEDURE work(queue_name text, worker text, tasks int) LANGUAGE plpgsql AS $$
DECLARE
	claims record;
	n int := 0;
	turn int := 0;
BEGIN
	WHILE n < tasks LOOP
		turn := turn + 1;
		SELECT array_agg(d.task ORDER BY d.ordinality) AS tasks, array_agg(d.lease ORDER BY d.ordinality) AS leases,
			   array_agg(d.priority ORDER BY d.ordinality) AS priorities INTO claims
		  FROM fanout.dequeue(queue_name, worker, max_tasks => 1 + turn % 4, wait => '1 s') WITH ORDINALITY d;
		EXIT WHEN claims.tasks IS NULL AND NOT EXISTS (SELECT FROM fanout.queues q WHERE q.queue = queue_name AND q.scheduled + q.ready + q.running > 0);
		CONTINUE WHEN claims.tasks IS NULL;
		CALL check_claims(queue_name, claims.tasks, claims.priorities);
		IF turn % 7 = 0 THEN
			ROLLBACK;
			CONTINUE;
		END IF;
		COMMIT;
		IF queue_name = 'lanes' THEN
			CALL check_lanes();
		END IF;
		IF turn % 41 = 0 THEN
			PERFORM fanout.fail(claims.leases, 'once more', retry_in => '10 ms');
		ELSE
			PERFORM fanout.complete(claims.leases);
			INSERT INTO done (queue, task, priority) SELECT queue_name, c.task, c.priority FROM unnest(claims.tasks, claims.priorities) c (task, priority);
			n := n + cardinality(claims.tasks);
		END IF;
		COMMIT;
	END LOOP;
END $$;

-- What memory counts, and the tables have.
CREATE FUNCTION miscounts() RETURNS SETOF text LANGUAGE sql AS $$
	SELECT format('queue %s: %s scheduled, %s ready, %s running; %s have not ended', q.queue, q.scheduled, q.ready, q.running, c.count)
	  FROM fanout.queues q, LATERAL (SELECT count(*) FROM fanout.task t JOIN fanout.queue n ON n.id = t.queue
									  WHERE n.name = q.queue AND NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id)) c
	 WHERE q.scheduled + q.ready + q.running <> c.count
$$;

-- The first of the tasks done since that was not the one to be expected.
CREATE FUNCTION first_out_of_order(queue_name text, since bigint, OUT "position" bigint, OUT done bigint, OUT expected bigint)
LANGUAGE sql AS $$
	SELECT n, d.task, e.task
	  FROM (SELECT row_number() OVER (ORDER BY n) AS n, task FROM done WHERE queue = queue_name AND n > since) d
	  FULL JOIN (SELECT row_number() OVER (ORDER BY t.priority, t.task) AS n, t.task FROM fanout.tasks t JOIN done USING (task)
				  WHERE t.queue = queue_name AND n > since) e USING (n)
	 WHERE d.task IS DISTINCT FROM e.task
	 ORDER BY n LIMIT 1
$$;
EOS

sub violations
{
	return $node->safe_psql('postgres', "SELECT what FROM violation UNION ALL SELECT miscounts()");
}

sub fill
{
	$node->safe_psql('postgres', <<'EOS');
SELECT count(*) FROM unnest('{a,b}'::text[]) q, fanout.enqueue_many(q, 'x', array_fill('1'::jsonb, '{900}'));
SELECT count(*) FROM unnest('{a,b}'::text[]) q, fanout.enqueue_many(q, 'x', array_fill('1'::jsonb, '{150}'), priority => 2);
SELECT count(*) FROM unnest('{a,b}'::text[]) q, fanout.enqueue_many(q, 'x', array_fill('1'::jsonb, '{6}'), delay => '100 ms');
SELECT count(*) FROM fanout.enqueue_many('lanes', 'x', array_fill('1'::jsonb, '{600}'), partition_keys => ARRAY(SELECT 'key ' || i % 40 FROM generate_series(1, 600) i));
EOS
	return;
}

# What the row does not tell is in the journal: times of tasks that were attempted, and where starts were that count in a
# rate limit. One that has been given another life is told by its row alone.
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('rated', rate_limit => 10, rate_period => '1 day');
SELECT fanout.create_queue('moved');
SELECT fanout.create_queue('unrated');
SELECT fanout.create_queue('joined', rate_limit => 10, rate_period => '1 day');
SELECT fanout.enqueue_many('unrated', 'x', array_fill('1'::jsonb, '{20}'));
SELECT fanout.fail(lease, retry_in => '0') FROM fanout.dequeue('unrated', max_tasks => 20);
SELECT fanout.move(task, 'joined') FROM fanout.tasks WHERE queue = 'unrated';
SELECT fanout.enqueue_many('rated', 'x', array_fill('1'::jsonb, '{20}'));
SELECT fanout.fail(lease, retry_in => '1 day') FROM fanout.dequeue('rated', max_tasks => 5);
SELECT fanout.move(task, 'moved') FROM fanout.tasks WHERE queue = 'rated' AND attempt = 1;
SELECT fanout.reschedule(min(task), delay => '0'), fanout.reschedule(max(task), delay => '2 days') FROM fanout.tasks WHERE queue = 'moved';
SELECT fanout.enqueue('moved', 'lives again', delay => '1 hour');
SELECT fanout.cancel(task) FROM fanout.tasks WHERE name = 'lives again';
SELECT fanout.retry(task) FROM fanout.tasks WHERE name = 'lives again';
SELECT fanout.reschedule(task, delay => '3 days') FROM fanout.tasks WHERE name = 'lives again';
EOS
my $due = "SELECT row_number() OVER (ORDER BY task), name, state, attempt, round(extract(epoch FROM run_at - now()) / 86400) FROM fanout.tasks WHERE queue = 'moved' ORDER BY 1";
my $before = $node->safe_psql('postgres', $due);
is($before, "1|x|ready|1|\n2|x|scheduled|1|1\n3|x|scheduled|1|1\n4|x|scheduled|1|1\n5|x|scheduled|1|2\n6|lives again|scheduled|0|3", 'rescheduled and moved');
crash($node);
start_after_crash($node);
is($node->safe_psql('postgres', $due), $before, 'promise 7: and so after a crash');
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('rated', max_tasks => 20)"), 4,
	'promise 5: tasks that have moved started where they were, and one may have before the crash');
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('joined', max_tasks => 20)"), 9,
	'promise 5: and so did those that came from a queue without a limit');
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('moved', max_tasks => 20)"), 1, 'one is due');
$node->safe_psql('postgres', 'SELECT fanout.drop_queue(q, true) FROM unnest(ARRAY[\'rated\', \'moved\', \'unrated\', \'joined\']) q');

# What is on disk is changed, and the order by which it comes is that of the rows.
fill();
$node->safe_psql('postgres', 'SELECT fanout._next_segment()');
fill();
cmp_ok($node->safe_psql('postgres', 'SELECT sum(in_memory) FROM fanout.queues'), '<=', 64, 'most tasks are on disk');
ok(finish_clients(map { start_client($node, 'CALL change_at_random(100, false)') } 1 .. 2), 'changes while nobody works');
is(violations(), '', 'the counts after changes');
$node->safe_psql('postgres', 'SELECT count(*) FROM fanout.reschedule(some_tasks(5), run_at => now())');
my $since = 0;
$node->safe_psql('postgres', "CALL work('a', 'w', 700)");
is(violations(), '', 'what was claimed is what its row says');
is($node->safe_psql('postgres', "SELECT count(*) >= 700 FROM done WHERE queue = 'a'"), 't', 'some were done');

# Everything at once
foreach my $round (1 .. 2)
{
	fill();
	my @workers = map { start_client($node, "CALL work('$_', '$_$round', 1000000)") } qw(a b lanes);
	my @changers = map { start_client($node, 'CALL change_at_random(150, true)') } 1 .. 3;
	ok(finish_clients(@changers, @workers), "changes while workers work, $round");
	is(violations(), '', 'what was claimed is what its row says');
		cmp_ok($node->safe_psql('postgres', 'SELECT count(DISTINCT what) FROM changed WHERE task > 0'), '>=', 7, 'changes of all kinds');
}

# Killed in the middle of it
foreach my $round (1 .. 3)
{
	fill();
	$node->safe_psql('postgres', 'TRUNCATE changed');
	my @clients = map { start_client($node, 'CALL change_at_random(1000000, true)') } 1 .. 2;
	push @clients, map { start_client($node, "CALL work('$_', '$_ killed', 1000000)") } qw(a b lanes);
	$node->poll_query_until('postgres', 'SELECT count(*) > 60 FROM changed') or die 'nothing is changed';
	crash($node);
	ok(!finish_clients(@clients), "killed, $round");
	start_after_crash($node);
	is(violations(), '', 'promise 7: the counts are those of the tables');
}

# And all of it to its end
$node->safe_psql('postgres', 'SELECT fanout.release(lease) FROM fanout.leases');
$since = $node->safe_psql('postgres', 'SELECT max(n) FROM done');
ok(finish_clients(map { start_client($node, "CALL work('$_', 'last', 1000000)") } qw(a b lanes)), 'all is done');
is(violations(), '', 'what was claimed is what its row says');
is($node->safe_psql('postgres', 'SELECT state, count(*) FROM fanout.tasks GROUP BY 1'),
	'succeeded|' . $node->safe_psql('postgres', 'SELECT count(DISTINCT task) FROM done'), 'promise 2: each task once');
is($node->safe_psql('postgres', 'SELECT count(*) - count(DISTINCT task) FROM done'), 0, 'and none twice');

$node->stop;
done_testing();
