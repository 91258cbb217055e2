# At each step in which a segment is found to be finished, is moved on from and retired, the server is crashed, the keeper
# fails, and it is terminated. Who has chosen a segment that is retired before he has locked it finds the one that has the
# task by then. A keeper that takes over lets lanes go that nothing keeps. Needs a checked build (test/harness/run_tests
# makes one).
#
# Promise 7: no task that is unfinished is lost. Promise 2: each has one outcome, where it belongs.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use CrashPoints;
use FanoutTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = crash_points_node() or exit;

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('lasting', lease => '1 hour'), fanout.create_queue('brief', retention => '1 s'),
	   fanout.create_queue('rated', partition_rate_limit => 5, partition_rate_period => '300 ms');
CREATE TABLE wanted (task bigint, state text, attempt int, steps int);

-- Some of all kinds: one that is finished, and what has to stay.
CREATE PROCEDURE add_work() LANGUAGE plpgsql AS $$
DECLARE
	later bigint := fanout.enqueue('lasting', 'later', delay => '1 hour');
	claims bigint[];
	tasks bigint[];
BEGIN
	PERFORM fanout.enqueue('lasting', name) FROM unnest(ARRAY['finished', 'again', 'running']) name;
	COMMIT;
	SELECT array_agg(lease ORDER BY task), array_agg(task ORDER BY task) INTO claims, tasks FROM fanout.dequeue('lasting', 'w', 3);
	PERFORM fanout.checkpoint(lease, 'one', '1') FROM unnest(claims) lease;
	COMMIT;
	PERFORM fanout.complete(claims[1], '1');
	PERFORM fanout.fail(claims[2], 'no', retry_in => '1 hour');
	INSERT INTO wanted VALUES (tasks[2], 'scheduled', 1, 1), (tasks[3], 'running', 1, 1), (later, 'scheduled', 0, 0);
	COMMIT;
	CALL rest();
END $$;

CREATE PROCEDURE again() LANGUAGE plpgsql AS $$
BEGIN
	PERFORM fanout.retry(min(task)) FROM fanout.tasks WHERE name = 'old';
	COMMIT;
	PERFORM fanout.complete(lease) FROM fanout.dequeue('jobs', 'w', wait => '20 s');
END $$;

CREATE FUNCTION lost() RETURNS SETOF text LANGUAGE sql AS $$
	SELECT format('task %s is %s, attempt %s, with %s steps', w.task, t.state, t.attempt, c.steps)
	  FROM wanted w LEFT JOIN fanout.tasks t USING (task), LATERAL (SELECT count(*) AS steps FROM fanout.checkpoint c WHERE c.task = w.task) c
	 WHERE (t.state, t.attempt, c.steps) IS DISTINCT FROM (w.state, w.attempt, w.steps::bigint)
	UNION ALL
	SELECT format('task %s is in %s', r.task, r.relation)
	  FROM (SELECT id, tableoid::regclass::text FROM fanout.task
			UNION ALL SELECT task, tableoid::regclass::text FROM fanout.attempt
			UNION ALL SELECT task, tableoid::regclass::text FROM fanout.checkpoint
			UNION ALL SELECT task, tableoid::regclass::text FROM fanout.outcome) AS r (task, relation)
	 WHERE r.relation !~ format('_%s$', (SELECT slot FROM fanout.segment WHERE first_task <= r.task ORDER BY first_task DESC LIMIT 1))
	   -- what is kept for nobody stays in a segment that has been emptied until that is truncated
	   AND (r.task IN (SELECT task FROM wanted) OR NOT EXISTS (SELECT FROM fanout.segment WHERE first_task IS NULL AND r.relation ~ format('_%s$', slot)))
	UNION ALL
	SELECT * FROM broken()
$$;
EOS

sub set_retention
{
	my ($retention) = @_;

	ask("ALTER SYSTEM SET pg_fanout.retention = '$retention'; SELECT pg_reload_conf()");
	return;
}

# The keeper comes to the point, by itself or by what a client does: a crash, and an error or an end.
my $crossings = 0;
sub cross
{
	my ($point, $act, $until) = @_;

	foreach my $how ('kill', $crossings++ % 2 ? 'terminate' : 'error')
	{
		my $client;

		ask($act) if !defined $until;
		set_point($point, $how eq 'terminate' ? 'wait' : $how);
		$client = start_client($node, $act) if defined $until;
		if ($how eq 'kill')
		{
			ok(has_crashed(), "crash at $point");
		}
		elsif ($how eq 'error')
		{
			ok(becomes("SELECT action = 'nothing' AND reached > 0 FROM fanout._points() WHERE point = '$point'"), "error at $point");
		}
		else
		{
			stop_at($point, 'terminate');
		}
		finish_clients($client) if defined $client;
		ok(becomes($until), "$how at $point: done in the end") if defined $until;
		is(ask('SELECT * FROM lost() LIMIT 5'), '', "$how at $point: nothing is lost, nothing is out of its place");
	}
	return;
}

# A segment whose tasks have all ended, until one of them gets another life.
set_retention(-1);
ask("SELECT fanout.enqueue('jobs', 'old')");
ask("SELECT fanout.complete(lease) FROM fanout.dequeue('jobs', 'w')");
ask('SELECT fanout._next_segment()');
my $finished = 'SELECT finished FROM fanout.segment WHERE slot = 1';
ok(becomes($finished), 'a segment is finished');
cross($_, 'CALL again()', $finished)
  foreach 'reopen-stored', 'reopen-committed', 'finish-looked', 'finish-stored', 'finish-committed';

# Tasks of a queue that keeps them for less.
cross('trim-deleted', "SELECT fanout.enqueue('brief', 'TAG'); SELECT fanout.complete(lease) FROM fanout.dequeue('brief', 'w')");
ok(becomes("SELECT count(*) = 0 FROM fanout.tasks WHERE queue = 'brief'"), 'trim-deleted: they are gone in the end');

# Who collects a batch that is removed when he has found that it has ended.
{
	my $batch = ask("SELECT fanout.fan_out('brief', 'TAG', ARRAY['1', '2']::jsonb[])");

	ask("SELECT fanout._set_point('collect-awaited', 'wait')");
	my $client = start_client($node, "SELECT count(*) FROM fanout.collect($batch)");
	ok(becomes("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query ~ 'collect.$batch' AND wait_event_type = 'Extension' AND pid <> pg_backend_pid())"), 'somebody waits for a batch');
	ask("SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.dequeue('brief', 'w', 2)))");
	ok(becomes("SELECT NOT EXISTS (SELECT FROM fanout.batch WHERE id = $batch)"), 'it ends, and is removed before he collects it');
	stop_at('collect-awaited', 'go on');
	finish_clients($client);
	like(client_output($client), qr/ERROR: .*batch $batch does not exist/, 'it is not taken for an empty one');
}

# Segments come and go, as all are kept for a second.
set_retention('1s');
cross($_, 'CALL add_work()')
  foreach 'look-begun', 'look-ended', 'retire-locked', 'retire-carried', 'retire-passed-on', 'retire-committed',
  'truncate-locked', 'truncate-done', 'truncate-committed', 'remains-deleted';
ok(becomes("SELECT count(*) = 0 FROM fanout.tasks WHERE name = 'finished'"), 'what is finished is gone in the end');
is(ask('SELECT * FROM lost() LIMIT 5'), '', 'the rest is there');

# Who chooses the segment of his task, and locks it when that has been retired.
{
	my $lease = ask("SELECT lease_of('running') LIMIT 1");
	my $task = ask("SELECT task FROM fanout.leases WHERE lease = $lease");

	foreach my $act ("fanout.checkpoint($lease, 'two', '2')", "fanout.complete($lease, '1')")
	{
		ask("SELECT fanout._set_point('segment-chosen', 'wait')");
		my $client = start_client($node, "SELECT $act");
		ok(becomes("SELECT reached > 0 FROM fanout._points() WHERE point = 'segment-chosen'"), "a segment is chosen for $act");
		my $was = segment_of($task);
		ok(becomes("SELECT NOT EXISTS (SELECT FROM fanout.task_$was WHERE id = $task)"), 'and gives its tasks to another one');
		stop_at('segment-chosen', 'go on');
		ok(finish_clients($client), 'the row is written');
		is(ask("SELECT * FROM lost() WHERE lost ~ ' is in ' LIMIT 5"), '', 'to where the task is by now');
	}
	ask("DELETE FROM wanted WHERE task = $task");
}

sub segment_of
{
	my ($task) = @_;

	return ask("SELECT slot FROM fanout.segment WHERE first_task <= $task ORDER BY first_task DESC LIMIT 1");
}

# The keeper is stopped until a rate limit has forgotten the start that keeps a lane.
{
	my $lanes = "SELECT split_part(value, ' ', 1) = '0' FROM fanout.status() WHERE item = 'lanes in memory'";

	ask("SELECT fanout._set_point('journal-copied', 'wait')");
	ask("SELECT fanout.enqueue('jobs', 'held'); SELECT lease FROM fanout.dequeue('jobs', 'w')");
	ok(becomes("SELECT reached > 0 FROM fanout._points() WHERE point = 'journal-copied'"), 'the keeper waits');
	ask("SELECT fanout.enqueue('rated', 'one', partition_key => 'k')");
	ask("SELECT fanout.complete(lease) FROM fanout.dequeue('rated', 'w')");
	ok(becomes("SELECT finished_at < clock_timestamp() - '400 ms'::interval FROM fanout.tasks WHERE name = 'one'"), 'a start is over');
	is(ask($lanes), 'f', 'that keeps a lane');
	stop_at('journal-copied', 'cancel');
	ok(becomes($lanes), 'the next keeper lets it go');
}

finish();
