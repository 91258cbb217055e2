# Between any two steps of enqueue, claim, checkpoint, complete, journal, refill, eviction and rebuild the server is
# crashed, the process fails, and the process is terminated. Needs a checked build (test/harness/run_tests makes one):
# src/points.h has the points.
#
# Promise 1: what was not committed when the server died never happened, what was committed has.
# Promise 2: each task has one outcome all the same.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => <<EOC);
pg_fanout.max_tracked_tasks = 1024
pg_fanout.max_lanes = 16
pg_fanout.max_workers_tracked = 16
pg_fanout.max_rate_entries = 1024
restart_after_crash = on
max_worker_processes = 16
EOC

if ($node->safe_psql('postgres', 'SELECT count(*) FROM fanout._points()') == 0)
{
	is(sqlstate($node, "SELECT fanout._set_point('claim-made', 'kill')"), '0A000', 'a build for users has no crash points');
	$node->stop;
	done_testing();
	exit;
}

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('jobs', lease => '10 min', max_attempts => 3);
SELECT fanout.create_queue('synchronous', lease => '10 min', synchronous_claims => true);
SELECT fanout.create_queue('once', lease => '50 ms', max_attempts => 1);
SELECT fanout.create_queue('short', lease => '50 ms', max_attempts => 1000);
SELECT fanout.create_queue('big', lease => '10 min');

CREATE FUNCTION lease_of(task_name text) RETURNS bigint LANGUAGE sql VOLATILE AS $$
	SELECT l.lease FROM fanout.leases l JOIN fanout.task t ON t.id = l.task WHERE t.name = task_name
$$;

-- What must hold whenever nobody is at work.
CREATE FUNCTION broken() RETURNS SETOF text LANGUAGE sql VOLATILE AS $$
	SELECT 'violation of ' || kind || ': ' || first FROM fanout._violations() WHERE violations > 0
	UNION ALL
	SELECT 'task ' || task || ' has ' || count(*) || ' outcomes' FROM fanout.outcome GROUP BY task HAVING count(*) > 1
	UNION ALL
	SELECT 'task ' || task || ' has two values of step ' || step FROM fanout.checkpoint GROUP BY task, step HAVING count(*) > 1
	UNION ALL
	SELECT 'lease ' || lease || ' was given twice' FROM fanout.attempt WHERE event IN ('c', 'b') GROUP BY lease HAVING count(DISTINCT task) > 1
	UNION ALL
	SELECT format('queue %s counts %s, %s, %s, but has %s', q.queue, q.scheduled, q.ready, q.running, u.n)
	  FROM fanout.queues q JOIN fanout.queue c ON c.name = q.queue,
		   LATERAL (SELECT count(*) AS n FROM fanout.task t
					 WHERE t.queue = c.id AND NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id)) u
	 WHERE q.scheduled + q.ready + q.running <> u.n OR q.running <> (SELECT count(*) FROM fanout.leases l WHERE l.queue = q.queue)
$$;

-- Nothing is left for the journal to write.
CREATE PROCEDURE rest() LANGUAGE plpgsql AS $$
BEGIN
	WHILE (SELECT value !~ '^0 ' FROM fanout.status() WHERE item = 'journal lag') LOOP
		PERFORM pg_sleep(0.005);
	END LOOP;
END $$;

-- Once somebody is at the point: terminate or cancel him, or do nothing; and let others pass.
CREATE PROCEDURE stop_at(the_point text, how text) LANGUAGE plpgsql AS $$
DECLARE
	who int;
BEGIN
	FOR i IN 1 .. 12000 LOOP
		SELECT pid INTO who FROM fanout._points() WHERE point = the_point AND reached > 0;
		EXIT WHEN who IS NOT NULL;
		PERFORM pg_sleep(0.005);
	END LOOP;
	IF who IS NULL THEN
		RAISE EXCEPTION 'nobody has come to %', the_point;
	END IF;
	IF how = 'terminate' THEN
		PERFORM pg_terminate_backend(who);
	ELSIF how = 'cancel' THEN
		PERFORM pg_cancel_backend(who);
	END IF;
	IF how IN ('terminate', 'cancel') THEN
		WHILE EXISTS (SELECT FROM pg_stat_activity WHERE pid = who AND wait_event = 'Extension' AND (backend_type ~ 'keeper' OR state = 'active')) LOOP
			PERFORM pg_sleep(0.005);
		END LOOP;
	END IF;
	PERFORM fanout._set_point(the_point, 'nothing');
END $$;

-- All that is left, and what must hold then.
CREATE PROCEDURE drain() LANGUAGE plpgsql AS $$
BEGIN
	PERFORM fanout.reschedule(ARRAY(SELECT task FROM fanout.tasks WHERE state = 'scheduled'), delay => '0');
	COMMIT;
	FOR i IN 1 .. 300 LOOP
		PERFORM fanout.complete(ARRAY(SELECT lease FROM fanout.leases));
		COMMIT;
		PERFORM fanout.complete(ARRAY(SELECT d.lease FROM fanout.dequeue(ARRAY(SELECT queue FROM fanout.queues), 'drain', max_tasks => 300, wait => '20 ms') d));
		COMMIT;
		EXIT WHEN NOT EXISTS (SELECT FROM fanout.queues WHERE scheduled + ready + running > 0);
	END LOOP;
END $$;
CREATE FUNCTION left_over() RETURNS SETOF text LANGUAGE sql VOLATILE AS $$
	SELECT * FROM broken()
	UNION ALL
	SELECT 'task ' || id || ' has no outcome' FROM fanout.task t WHERE NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id)
	UNION ALL
	SELECT item || ' ' || value FROM fanout.status() WHERE item IN ('tasks in memory', 'leases in memory', 'workers in memory', 'lanes in memory', 'journal lag') AND value !~ '^0 '
$$;
EOS

# Whatever earlier crossings have left ready is claimed as well.
my $claim = "SELECT fanout.enqueue('jobs', 'TAG'); SELECT lease FROM fanout.dequeue('jobs', 'w', max_tasks => 1000);";
my @before_commit = ('commit-begun');
my @after_commit = ('commit-recorded', 'commit-note', 'commit-applied');

# What a client does, with the points that it comes to before and after its commit; its effect, which is there or not.
my @of_clients = (
	{
		name => 'enqueue',
		act => "SELECT fanout.enqueue_many('jobs', 'TAG', '{1,2,3}')",
		effect => "SELECT count(*) = 3 FROM fanout.tasks WHERE name = 'TAG' AND state = 'ready'",
		none => "SELECT count(*) = 0 FROM fanout.task WHERE name = 'TAG'",
		before => [ 'enqueue-reserved', 'enqueue-written', @before_commit ],
		after => \@after_commit
	},
	{
		name => 'claim',
		prepare => "SELECT fanout.enqueue('jobs', 'TAG')",
		act => "SELECT lease FROM fanout.dequeue('jobs', 'w', max_tasks => 1000)",
		effect => "SELECT count(*) = 1 FROM fanout.leases WHERE lease = lease_of('TAG')",
		none => "SELECT state = 'ready' AND attempt = 0 FROM fanout.tasks WHERE name = 'TAG'",
		before => [ 'claim-made', 'claim-journaled', 'claim-returned', @before_commit ],
		forgotten => [ 'commit-recorded', 'commit-note' ],	# by a crash, since the journal cannot have come to it
		any => ['commit-applied']
	},
	{
		name => 'synchronous claim',
		prepare => "SELECT fanout.enqueue('synchronous', 'TAG')",
		act => "SELECT lease FROM fanout.dequeue('synchronous', 'w', max_tasks => 1000)",
		effect => "SELECT count(*) = 1 FROM fanout.leases WHERE lease = lease_of('TAG')",
		none => "SELECT state = 'ready' AND attempt = 0 FROM fanout.tasks WHERE name = 'TAG'",
		before => ['claim-journaled'],
		after => \@after_commit
	},
	{
		name => 'checkpoint',
		prepare => $claim,
		act => "SELECT fanout.checkpoint(lease_of('TAG'), 'read', '1')",
		effect => "SELECT count(*) = 1 FROM fanout.checkpoint c JOIN fanout.task t ON t.id = c.task WHERE t.name = 'TAG'",
		before => [ 'checkpoint-held', 'checkpoint-written' ],
		after => ['commit-recorded']
	},
	{
		name => 'complete',
		prepare => $claim,
		act => "SELECT fanout.complete(lease_of('TAG'), '1')",
		effect => "SELECT count(*) = 1 FROM fanout.tasks WHERE name = 'TAG' AND state = 'succeeded'",
		none => "SELECT count(*) = 1 FROM fanout.tasks WHERE name = 'TAG' AND state IN ('running', 'ready')",
		before => [ 'complete-held', 'complete-written', @before_commit ],
		after => \@after_commit
	},
	{
		name => 'fail',
		prepare => $claim,
		act => "SELECT fanout.fail(lease_of('TAG'), 'x', retry_in => '1 hour')",
		effect => "SELECT count(*) = 1 FROM fanout.tasks WHERE name = 'TAG' AND state = 'scheduled' AND attempt = 1",
		before => [ 'end-held', 'end-written' ],
		after => [ 'commit-recorded', 'commit-note' ]
	},
	{
		name => 'the last failure',
		prepare => $claim,
		act => "SELECT fanout.fail(lease_of('TAG'), 'x', final => true)",
		effect => "SELECT count(*) = 1 FROM fanout.tasks WHERE name = 'TAG' AND state = 'failed'",
		before => ['end-written'],
		after => ['commit-recorded']
	},
	{
		name => 'release',
		prepare => $claim,
		act => "SELECT fanout.release(lease_of('TAG'), delay => '1 hour')",
		effect => "SELECT count(*) = 1 FROM fanout.tasks WHERE name = 'TAG' AND state = 'scheduled' AND attempt = 0",
		before => ['end-written'],
		after => ['commit-recorded']
	},
	{
		name => 'complete and dequeue',
		prepare => "$claim SELECT fanout.enqueue('synchronous', 'TAG.2')",
		act => "SELECT lease FROM fanout.complete_and_dequeue(lease_of('TAG'), '1', 'synchronous', 'w', max_tasks => 1000)",
		effect => "SELECT string_agg(state, ' ' ORDER BY name) = 'succeeded running' FROM fanout.tasks WHERE name IN ('TAG', 'TAG.2')",
		before => [ 'complete-written', 'claim-made', @before_commit ],
		after => [ 'commit-recorded', 'commit-note' ]
	},
	{
		name => 'many at once',
		prepare => $claim,
		act => "BEGIN; SELECT fanout.enqueue('jobs', 'TAG.2'); SELECT fanout.cancel(task) FROM fanout.tasks WHERE name = 'TAG.2'; SAVEPOINT s;"
		  . " SELECT fanout.enqueue('jobs', 'TAG.3'); ROLLBACK TO s; SELECT fanout.enqueue('synchronous', 'TAG.4'); SELECT fanout.complete(lease_of('TAG')); COMMIT",
		effect => "SELECT string_agg(state, ' ' ORDER BY name) = 'succeeded cancelled ready' FROM fanout.tasks WHERE name LIKE 'TAG%'",
		before => [ 'abort-note', @before_commit ],
		after => \@after_commit
	},
	{
		name => 'rollback',
		prepare => "$claim SELECT fanout.enqueue('jobs', 'TAG.2')",
		act => "BEGIN; SELECT fanout.enqueue('jobs', 'TAG.3'); SELECT fanout.complete(lease_of('TAG')); SELECT lease FROM fanout.dequeue('jobs', 'w'); ROLLBACK",
		effect => "SELECT count(*) = 0 FROM fanout.tasks WHERE name = 'TAG.2' AND state = 'ready' AND attempt = 0",
		before => [ 'abort-begun', 'abort-note', 'abort-undone' ],
	},
	{
		name => 'a place for something urgent',
		prepare => "SELECT fanout.enqueue_many('big', 'TAG', array_fill('1'::jsonb, '{600}'))",
		act => "SELECT fanout.enqueue_many('big', 'TAG.2', array_fill('1'::jsonb, '{10}'), priority => -5)",
		any => [ 'evict-bound', 'evict-dropped' ]
	},
	{
		name => 'a place for a partition',
		prepare => "SELECT fanout.enqueue_many('big', 'TAG', array_fill('1'::jsonb, '{48}'), delay => '1 hour',"
		  . " partition_keys => ARRAY(SELECT 'TAG.' || i % 16 FROM generate_series(1, 48) i))",
		act => "SELECT fanout.enqueue('big', 'TAG.2', partition_key => 'TAG')",
		any => ['evict-lane']
	});

# What a client has the keeper do; "lasting" once a crash at the point has it done or done again.
my $reload = 'INSERT INTO fanout.queue SELECT * FROM fanout.queue WHERE false';
my @of_keeper = (
	{
		name => 'journal',
		prepare => "SELECT fanout.enqueue('jobs', 'TAG')",
		act => "SELECT lease FROM fanout.dequeue('jobs', 'w', max_tasks => 1000)",
		effect => "SELECT count(*) > 0 FROM fanout.attempt WHERE event = 'c' AND lease = lease_of('TAG')",
		points => [ 'journal-copied', 'journal-written', 'journal-committed', 'journal-settled' ],
		crash => {
			'journal-copied' => "SELECT state = 'ready' AND attempt = 0 FROM fanout.tasks WHERE name = 'TAG'",
			'journal-written' => "SELECT state = 'ready' AND attempt = 0 FROM fanout.tasks WHERE name = 'TAG'"
		}
	},
	{
		name => 'expiry',
		prepare => "SELECT fanout.enqueue('short', 'TAG')",
		act => "SELECT lease FROM fanout.dequeue('short', 'w', lease => '1 ms', max_tasks => 1000)",
		effect => "SELECT state = 'ready' AND attempt = 1 FROM fanout.tasks WHERE name = 'TAG'",
		points => ['expiry-told'],
		crash => { 'expiry-told' => "SELECT state = 'ready' FROM fanout.tasks WHERE name = 'TAG'" }
	},
	{
		name => 'the last expiry',
		prepare => "SELECT fanout.enqueue('once', 'TAG')",
		act => "SELECT lease FROM fanout.dequeue('once', 'w')",
		effect => "SELECT count(*) = 1 FROM fanout.tasks WHERE name = 'TAG' AND state = 'failed'",
		points => [ 'exhausted-held', 'exhausted-written' ]
	},
	{
		name => 'join',
		prepare => "SELECT fanout.fan_out('jobs', 'TAG'::text, '{1,2,3,4}'::jsonb[], \"join\" => 'any')",
		act => "SELECT fanout.complete(lease) FROM fanout.dequeue('jobs', 'w')",
		effect => "SELECT count(*) = 3 FROM fanout.tasks t JOIN fanout.batch b ON b.id = t.batch WHERE name = 'TAG' AND state = 'cancelled' AND b.ended_at IS NOT NULL",
		points => [ 'join-decided', 'join-cancelled', 'join-noted' ]
	},
	{
		name => 'refill',
		prepare => "SELECT fanout.enqueue_many('big', 'TAG', array_fill('1'::jsonb, '{600}'))",
		act => "SELECT fanout.complete(ARRAY(SELECT lease FROM fanout.dequeue('big', 'w', max_tasks => 600)))",
		meanwhile => "SELECT fanout.cancel(ARRAY(SELECT task FROM fanout.tasks WHERE name = 'TAG' AND state = 'ready' ORDER BY task LIMIT 9));"
		  . " SELECT fanout.reprioritize(ARRAY(SELECT task FROM fanout.tasks WHERE name = 'TAG' AND state = 'ready' ORDER BY task LIMIT 9), -3);"
		  . " SELECT fanout.enqueue_many('big', 'TAG.2', array_fill('1'::jsonb, '{20}'), priority => -7)",
		effect => "SELECT count(*) = 0 FROM fanout._points() WHERE action <> 'nothing'",
		points => [ 'refill-begun', 'refill-read', 'refill-chunk', 'refill-done' ],
		drain => 1
	},
	{
		name => 'rebuild',
		prepare => "$claim SELECT fanout.enqueue('jobs', 'TAG.2'); SELECT fanout.enqueue('jobs', 'TAG.3', delay => '1 hour')",
		act => $reload,
		meanwhile_fails => "SET statement_timeout = '50 ms'; SELECT fanout.enqueue('jobs', 'never')",
		effect => "SELECT string_agg(state || attempt, ' ' ORDER BY name) = 'running1 ready0 scheduled0' FROM fanout.tasks WHERE name LIKE 'TAG%'",
		points => [
			'rebuild-begun', 'rebuild-queues', 'rebuild-starts', 'rebuild-histories',
			'rebuild-attempted', 'rebuild-unfinished', 'rebuild-committed', 'ceiling-committed', 'rebuild-ceilings'
		]
	});

my $crossings = 0;
my $control;
my ($last_launcher) = processes($node, 'launcher');

sub tagged
{
	my ($sql, $tag) = @_;

	$sql =~ s/TAG/$tag/g;
	return $sql;
}

# By a session that lives until the server crashes: a psql for each question would take most of the time.
sub ask
{
	my ($sql) = @_;

	$control //= session($node);
	return $control->query_safe($sql);
}

sub becomes
{
	my ($sql) = @_;

	return wait_until { ask($sql) eq 't' } $sql, 60;
}

# Begin: prepare, set the point, act. The client may be stopped at the point.
sub begin
{
	my ($story, $point, $action, $times) = @_;
	my $tag = sprintf 'c%03d', ++$crossings;

	$times //= 1;
	ask(tagged(($story->{prepare} // 'SELECT') . "; CALL rest(); SELECT fanout._set_point('$point', '$action', times => $times);", $tag));
	return ($tag, start_client($node, tagged($story->{act}, $tag)));
}

sub stop_at
{
	my ($point, $how) = @_;

	ask("CALL stop_at('$point', '$how')");
	return;
}

# It comes out as expected, and nothing is broken.
sub settles
{
	my ($what, $tag, $expected) = @_;
	my $settled = becomes(tagged("SELECT ($expected) AND NOT EXISTS (SELECT FROM broken())", $tag));

	ok($settled, $what);
	diag(ask(tagged("SELECT task, name, state, attempt FROM fanout.tasks WHERE name LIKE 'TAG%' LIMIT 5; SELECT * FROM broken() LIMIT 5", $tag)))
	  if !$settled;
	return;
}

sub drain
{
	my ($what) = @_;

	ask('CALL drain(); CALL rest()');
	# the keeper may have something to write
	becomes('SELECT count(*) = 0 FROM left_over()');
	is(ask('SELECT * FROM left_over() LIMIT 5'), '', "$what: all is done, and nothing is left over");
	return;
}

# A process was killed, and the postmaster has begun anew, with another launcher.
sub has_crashed
{
	drop_session($control);
	$control = undef;
	return wait_until
	{
		my ($rc, $out) = $node->psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type ~ 'fanout launcher'"
			  . " AND (SELECT value = 'ready' FROM fanout.status() WHERE item = 'state')");
		return 0 if $rc != 0 || $out eq '' || $out eq $last_launcher;
		$last_launcher = $out;
		return 1;
	}
	'another launcher', 60;
}

# The process at the point: killed by itself, or by another.
sub crash_at
{
	my ($story, $point) = @_;
	my ($tag, $client) = begin($story, $point, 'kill');

	$client->{run}->finish;
	ok(has_crashed(), "$story->{name}: crash at $point");
	return $tag;
}

# The backend at the point fails or is stopped; how is error, disk full, terminate or cancel.
sub fail_at
{
	my ($story, $point, $how) = @_;
	my $stopped = $how =~ /^(terminate|cancel)$/;
	my ($tag, $client) = begin($story, $point, $stopped ? 'wait' : $how);

	stop_at($point, $how) if $stopped;
	ok(!finish_clients($client), "$story->{name}: $how at $point");
	return $tag;
}

foreach my $story (@of_clients)
{
	my $name = $story->{name};
	my $none = $story->{none} // (defined $story->{effect} && "SELECT NOT ($story->{effect})");
	my @rows = (
		(map { [ $_, $none ] } @{ $story->{before} // [] }, @{ $story->{forgotten} // [] }),
		(map { [ $_, $story->{effect} ] } @{ $story->{after} // [] }),
		(map { [ $_, 'SELECT true' ] } @{ $story->{any} // [] }));

	foreach my $row (@rows)
	{
		my ($point, $expected) = @$row;

		settles("$name, crash at $point: all or nothing", crash_at($story, $point), $expected);
	}
	foreach my $point (grep { !/^abort/ } @{ $story->{before} // [] })
	{
		foreach my $how ($point eq 'commit-begun' ? ('error', 'terminate') : ('disk full', $crossings % 2 ? 'terminate' : 'cancel'))
		{
			settles("$name, $how at $point: nothing", fail_at($story, $point, $how), $none);
		}
	}
	drain($name);
}

foreach my $story (@of_keeper)
{
	my $name = $story->{name};

	foreach my $point (@{ $story->{points} })
	{
		settles("$name, crash at $point: as promised", crash_at($story, $point), $story->{crash}{$point} // $story->{effect});
		drain("$name, crash at $point") if $story->{drain};

		# a keeper that fails, or two, and the one after it
		{
			my ($how, $times) = $name eq 'journal' ? ('disk full', 2) : ('error', 1);
			my ($tag, $client) = begin($story, $point, $how, $times);

			ok(finish_clients($client), "$name: $how at $point of the keeper");
			stop_at($point, 'no more') if $times == 1;
			settles("$name, $how at $point: another keeper goes on", $tag, $story->{effect});
			drain("$name, $how at $point") if $story->{drain};
		}
		foreach my $how ('go on', 'terminate', $name eq 'journal' ? ('cancel') : ())
		{
			my ($tag, $client) = begin($story, $point, 'wait');

			ok(finish_clients($client), "$name: $how at $point of the keeper");
			ask(tagged($story->{meanwhile}, $tag)) if defined $story->{meanwhile};
			is(sqlstate($node, $story->{meanwhile_fails}), '57014', "$name: others wait while the keeper is at $point")
			  if defined $story->{meanwhile_fails} && $how eq 'go on';
			stop_at($point, $how);
			settles("$name, $how at $point: done in the end", $tag, $story->{effect});
			drain("$name, $how at $point") if $story->{drain};
		}
	}
	drain($name);
}

# The next segment, of which there are not many.
{
	my %segment = (name => 'segment', act => 'SELECT fanout._next_segment()');

	crash_at(\%segment, 'segment-committed');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM fanout.segment'), 2, 'segment, crash when it is on disk: it is used');
	$node->safe_psql('postgres', "SELECT fanout.enqueue_many('jobs', 'after', '{1,2,3}')");
	my ($tag, $client) = begin(\%segment, 'segment-committed', 'error');
	ok(finish_clients($client), 'segment, error when it is on disk: another keeper goes on');
	$node->safe_psql('postgres', "SELECT fanout.enqueue_many('jobs', 'after', '{1,2,3}')");
	settles('segments', $tag, 'SELECT count(*) = 4 FROM fanout.segment');
	drain('segments');
}

$control->quit;
$node->stop;
my $log = slurp_file($node->logfile);
unlike($log, qr/PANIC:|TRAP:|pg_fanout violation/, 'no panic, no violation in the log');
my @points = keys %{ { map { $_ => 1 } map { (@{ $_->{before} // [] }, @{ $_->{after} // [] }, @{ $_->{any} // [] }, @{ $_->{points} // [] }) } (@of_clients, @of_keeper) } };
note(scalar @points + 1, " points, $crossings crossings");

done_testing();
