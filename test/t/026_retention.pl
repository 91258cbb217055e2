# What is finished goes after its retention, with its segment; what is not, or has to be kept for longer, stays.
#
# Promise 7: a task that is unfinished is never lost, and an outcome not before its time. Promise 8: joins end all the same.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Little memory, so that most of what waits is on disk only
my $node = new_node('main', conf => <<'EOC');
pg_fanout.max_tracked_tasks = 64
pg_fanout.max_lanes = 16
pg_fanout.retention = -1
autovacuum = off
EOC

sub query { return $node->safe_psql($_[1] // 'postgres', $_[0]); }
sub set
{
	my (%settings) = @_;

	query("ALTER SYSTEM SET pg_fanout.$_ = '$settings{$_}'") foreach sort keys %settings;
	query('SELECT pg_reload_conf()');
	return;
}

# The keeper retires segments until this is true.
sub becomes
{
	my ($sql, $what, $db) = @_;

	ok($node->poll_query_until($db // 'postgres', $sql), $what);
	return;
}
sub tasks { return query("SELECT count(*) FROM fanout.task WHERE queue = (SELECT id FROM fanout.queue WHERE name = '$_[0]')", $_[1]); }
sub retired { return query("SELECT value FROM fanout.status() WHERE item = 'retired segments'"); }

install_misplaced($node);
query(<<'EOS');
CREATE TABLE wanted (what text, task bigint);
SELECT fanout.create_queue('done'), fanout.create_queue('jobs', lease => '1 h', backoff => '1 h', backoff_max => '1 h');
SELECT fanout.create_queue('keyed');
CREATE PROCEDURE work_off(queue text) LANGUAGE plpgsql AS $$
DECLARE
	leases bigint[];
BEGIN
	WHILE EXISTS (SELECT FROM fanout.queues q WHERE q.queue = work_off.queue AND ready > 0) LOOP
		SELECT array_agg(lease) INTO leases FROM fanout.dequeue(queue, 'w', max_tasks => 50, wait => '20 s');
		IF leases IS NULL THEN
			RAISE 'nothing comes of queue %', queue;
		END IF;
		PERFORM fanout.complete(leases);
		COMMIT;
	END LOOP;
END $$;
EOS

# One of each kind that has to stay, and a lot that has not.
my $enough = query("SELECT fanout.fan_out('done', 'n', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 300) i))");
query("CALL work_off('done')");
my ($runs, $again, $fails, $cancelled) = split /\n/, query(<<'EOS');
SELECT fanout.enqueue('jobs', unnest('{runs,again,fails,cancelled}'::text[]));
EOS
my $lease = query("SELECT lease FROM fanout.dequeue('jobs', 'w1')");
query("SELECT fanout.fail(lease, 'not yet') FROM fanout.dequeue('jobs', 'w2')");
query("SELECT fanout.fail(lease, 'hopeless', final => true) FROM fanout.dequeue('jobs', 'w3')");
query("SELECT fanout.cancel($cancelled)");
query("SELECT fanout.checkpoint($lease, 'read', '42')");
my $throttled = query("SELECT fanout.enqueue('keyed', 'throttled', key => 'a', key_ttl => '1 h')");
my $free = query("SELECT fanout.enqueue('keyed', 'over', key => 'b', key_ttl => '1 ms')");
query("SELECT fanout.complete(lease) FROM fanout.dequeue('keyed', 'w', max_tasks => 2)");
my $growing = query("SELECT fanout.create_batch()");
my $early = query("SELECT fanout.enqueue('done', 'early', batch => $growing)");
query("CALL work_off('done')");
my $late = query("SELECT fanout.enqueue('jobs', 'late', priority => 1, batch => $growing)");
query("SELECT fanout.seal_batch($growing)");
query("SELECT fanout.enqueue_many('jobs', 'waits', array_fill('{}'::jsonb, '{200}'), priority => 2)");
query("SELECT fanout.enqueue('jobs', 'tomorrow', delay => '1 day')");
$node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM fanout.attempt WHERE task = $runs AND event = 'c')")
  or die 'the journal was not written';
is(query('SELECT fanout._next_segment()'), 2, 'the next segment');
my $kept = join(', ', $runs, $again, $fails, $throttled, $early, $late);

my %look = (
	tasks => "SELECT task, name, state, attempt, lease, worker, run_at, key, result, error FROM fanout.tasks WHERE task IN ($kept) ORDER BY 1",
	waits => "SELECT count(*), min(task), max(task) FROM fanout.tasks WHERE name = 'waits' AND state = 'ready'",
	tomorrow => "SELECT task, run_at FROM fanout.tasks WHERE name = 'tomorrow' AND state = 'scheduled'",
	leases => 'SELECT lease, task, worker, attempt FROM fanout.leases',
	attempts => "SELECT task, lease, worker, state, error FROM fanout.attempts WHERE task IN ($kept) ORDER BY 1, 2",
	checkpoint => "SELECT value FROM fanout.checkpoint WHERE task = $runs",
	misplaced => 'SELECT * FROM misplaced()',
);
my %was = look($node, \%look);

# A reader holds a lock: the segment stays, nobody waits behind the keeper, and the current segment goes on.
my $reader = session($node);
$reader->query_safe('BEGIN');
$reader->query_safe('SELECT count(*) FROM fanout.outcome_1');
set(retention => '1s', keep_failed => '1h');
becomes("SELECT kept_because = 'a transaction uses its tables' FROM fanout.segments WHERE segment = 1", 'a reader keeps the segment');
is(sqlstate($node, "SET lock_timeout = '2s'; SELECT count(*) FROM fanout.tasks; SELECT fanout.retry($fails); SELECT fanout.cancel($fails, 'again')"),
	'', 'nobody waits behind the keeper');
is(query("SELECT state FROM fanout.tasks WHERE task = $fails"), 'cancelled', 'a task of the segment had another life');
query("SELECT fanout.retry($fails)");
query("SELECT fanout.fail(lease, 'hopeless', final => true) FROM fanout.dequeue('jobs', 'w3')");
is(query("SELECT count(*) FROM fanout.collect($enough, '0')"), 300, 'its outcomes are still there');
$was{$_} = query($look{$_}) foreach 'tasks', 'attempts';
my $before = retired();
$reader->query_safe('COMMIT');
$reader->quit;
becomes("SELECT value::int > $before FROM fanout.status() WHERE item = 'retired segments'", 'the segment is retired when the reader has gone');
becomes("SELECT NOT EXISTS (SELECT FROM fanout.batch WHERE id = $enough)", 'the batch goes with its last task');
is(tasks('done'), 1, 'what was finished is gone, but for a task of a batch that goes on');
is(query("SELECT count(*) FROM fanout.task WHERE id IN ($cancelled, $free)"), 0, 'so is what was cancelled, and a key that is free');
is_as_it_was($node, 'carried', \%look, \%was);

# No row that is written to a segment widens a range, whether it is new or has been truncated.
query('CREATE EXTENSION pageinspect');
is(query(<<'EOS'), '8|8', 'indexes of block ranges know none of an empty table');
SELECT count(*), count(*) FILTER (WHERE (SELECT pages FROM brin_revmap_data(get_raw_page(c.oid::regclass::text, 1)) pages LIMIT 1) = '(4294967295,0)')
  FROM pg_class c JOIN pg_am a ON a.oid = c.relam
 WHERE c.relnamespace = 'fanout'::regnamespace AND a.amname = 'brin' AND c.relname ~ '_[1-4]_'
EOS
$node->restart;
wait_for_memory($node);
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM fanout.leases") or die 'no lease after the restart';
is_as_it_was($node, 'carried, and a restart', \%look, \%was);
is(sqlstate($node, "SELECT * FROM fanout.collect($enough, '0')"), '42704', 'the batch is unknown now');
is(sqlstate($node, "SELECT * FROM fanout.$_($cancelled)"), '42704', "a task that is gone is unknown: $_")
  foreach qw(result retry cancel why);
is(query("SELECT fanout.enqueue('keyed', 'again', key => 'a')"), $throttled, 'the key is held by the task that is kept');
cmp_ok(query("SELECT fanout.enqueue('keyed', 'free', key => 'b')"), '>', $free, 'the other one is free');
query("SELECT fanout.complete(lease) FROM fanout.dequeue('keyed', 'w')");
is(query("SELECT count(*) FROM fanout.batch_part WHERE batch = $enough"), 0, 'nothing is left of the batch');

# Again and again, with crashes, while what has to stay stays; it is carried from one to the next.
foreach my $round (1 .. 3)
{
	my $begun = retired();
	query("SELECT fanout.fan_out('done', 'n', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 100) i))");
	query("CALL work_off('done')");
	becomes("SELECT value::int >= $begun + 1 FROM fanout.status() WHERE item = 'retired segments'", "round $round: retired");
	$node->stop('immediate');
	$node->start;
	wait_for_memory($node);
	is_as_it_was($node, "promise 7: round $round, after a crash", \%look, \%was);
}

# A dump, while segments come and go. pg_dump locks its tables a moment after it took its snapshot; with this retention a
# snapshot alone keeps what is moved for a quarter of a second, and a moment may be longer. So the locks are there before.
my $dump = PostgreSQL::Test::Utils::tempdir() . '/retention.dump';
my $dumper = session($node);
$dumper->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
$dumper->query_safe('LOCK TABLE fanout.task, fanout.attempt, fanout.checkpoint, fanout.outcome IN ACCESS SHARE MODE');
my $snapshot = $dumper->query_safe('SELECT pg_export_snapshot()');
$node->command_ok([ 'pg_dump', '-Fc', "--snapshot=$snapshot", '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
$dumper->quit;
query('CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), $dump ], 'pg_restore');
wait_for_memory($node, 'restored');
$node->poll_query_until('restored', 'SELECT count(*) = 1 FROM fanout.leases') or die 'no lease in the restored database';
is(query($look{$_}, 'restored'), $was{$_}, "restored: $_") foreach qw(tasks waits tomorrow leases attempts checkpoint);
query('DROP DATABASE restored WITH (FORCE)');

# What was carried is worked off in its order, and its joins end.
is(query("SELECT fanout.complete($lease, '1')"), 't', 'the lease is live');
is(query("SELECT fanout.complete($lease, '1')"), 'f', 'and its completion may be repeated');
is(query("SELECT name, checkpoints FROM fanout.dequeue('jobs', 'w4', wait => '20 s')"), 'late|{}', 'what is next');
query("SELECT fanout.complete(lease) FROM fanout.leases");
is(query("SELECT string_agg(status, ' ' ORDER BY ordinal) FROM fanout.collect($growing, '10 s')"),
	'succeeded succeeded', 'promise 8: the batch ends with all of its outcomes');
query("CALL work_off('jobs')");
is(query("SELECT ready FROM fanout.queues WHERE queue = 'jobs'"), 0, 'all is done');
becomes("SELECT string_agg(name, ' ' ORDER BY id) = 'again fails throttled tomorrow' FROM fanout.task",
	'what is left has failed, holds a key, waits for tomorrow or another attempt');

# Failed ones are kept as long as others now; without unfinished tasks a segment is passed over by a rebuild.
set(keep_failed => -1);
becomes("SELECT NOT EXISTS (SELECT FROM fanout.task WHERE id = $fails)", 'a failed task goes when its time has come');
query("SELECT fanout.purge_queue('jobs')");
becomes("SELECT string_agg(name, ' ' ORDER BY id) = 'throttled' FROM fanout.task", 'and what was purged');
set(retention => '2min');
becomes("SELECT NOT EXISTS (SELECT FROM fanout.segments WHERE state = 'emptied')", 'there are segments to go on in');
my $old = query("SELECT fanout.enqueue('done', 'old')");
query("CALL work_off('done')");
my $slot = query('SELECT fanout._next_segment()');
becomes("SELECT finished FROM fanout.segment WHERE slot <> $slot ORDER BY first_task DESC LIMIT 1", 'a segment is finished');
query("SELECT fanout.enqueue('done', 'to fail')");
query("SELECT fanout.fail(lease, 'no', final => true) FROM fanout.dequeue('done', 'w')");
my $failed = query("SELECT task FROM fanout.tasks WHERE name = 'to fail'");
my $next = query('SELECT fanout._next_segment()');
becomes("SELECT finished FROM fanout.segment WHERE slot = $slot", 'so is the next one');
is(query("SELECT fanout.retry($failed)"), 't', 'a task of a finished segment gets another life');
is(query("SELECT finished FROM fanout.segment WHERE slot = $slot"), 'f', 'which is not finished then');
$node->stop('immediate');
$node->start;
wait_for_memory($node);
is(query("SELECT task FROM fanout.dequeue('done', 'w', wait => '10 s')"), $failed, 'promise 7: a rebuild finds it');
query("SELECT fanout.complete(lease) FROM fanout.leases");
becomes("SELECT finished FROM fanout.segment WHERE slot = $slot", 'finished again');

# A savepoint that takes the other life back
query("BEGIN; SAVEPOINT s; SELECT fanout.retry($failed); ROLLBACK TO s; COMMIT");
becomes("SELECT finished FROM fanout.segment WHERE slot = $slot", 'and once more, after a retry that was rolled back');

# A restore fills one table after the other, and all that the keeper knew is out of date then: not even a segment that was
# empty, or in which all had ended, is one that a rebuild may pass over.
query('CREATE DATABASE filled');
query("CREATE EXTENSION pg_fanout; SELECT fanout.create_queue('jobs')", 'filled');
query(<<'EOS', 'filled');
INSERT INTO fanout.segment VALUES (1, 0, NULL, false), (2, 1000, now(), false), (3, 2000, now(), false);
INSERT INTO fanout.task_2 (id, enqueued_at, queue, name) SELECT 1500, now(), id, 'ended' FROM fanout.queue;
INSERT INTO fanout.outcome_2 (task, finished_at, attempt, status) VALUES (1500, now(), 1, 's');
EOS
becomes('SELECT finished FROM fanout.segment WHERE slot = 2', 'a segment that was filled is looked at', 'filled');
is(query('SELECT finished FROM fanout.segment WHERE slot = 1', 'filled'), 'f', 'one before it that is empty is not finished');
sub fill { query("INSERT INTO fanout.task_1 (id, enqueued_at, queue, name) SELECT $_[0], now(), id, 'filled' FROM fanout.queue", 'filled'); return; }
sub filled_task { return query("SELECT task FROM fanout.dequeue('jobs', 'w', wait => '10 s')", 'filled'); }
fill(500);
is(filled_task(), 500, 'a task that comes to it is found');
query('SELECT fanout.complete(lease) FROM fanout.leases', 'filled');
becomes('SELECT finished FROM fanout.segment WHERE slot = 1', 'it is finished when that has ended', 'filled');
fill(501);
is(filled_task(), 501, 'and another one is found all the same');

$node->stop;
done_testing();
