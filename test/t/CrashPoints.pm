# What the tests of crash points share: a story is something that a client does, or has the keeper do, with the points
# that are met on the way. See 030_crash_points.pl and src/points.h.
#
# crash_points_node(conf)
#		a running server with queues to cross points in, or undef if the build has no points; conf says what is different
# claim_sql()
#		SQL that enqueues the task TAG and claims it
# cross_for_client(story), cross_for_keeper(story)
#		crash, fail and stop the process at each of the story's points, and look what has come of it
# crash_at(story, point), fail_at(story, point, how), begin(story, point, action)
#		the same for one point
# set_point(point, action)
#		what happens to who comes to the point; if he is to be killed, that may be before we hear of it
# ask(sql), becomes(sql)
#		by a session that is there until the server crashes: the answer; true once that is true
# stop_at(point, how), has_crashed()
#		terminate or cancel who is at the point; true once the server has begun anew
# settles(what, tag, expected), drain(what), finish()
#		tests that it came out as expected; that all that is left can be done, and leaves nothing; that the log is good
#
# TAG in SQL stands for a name that is different for each crossing.
package CrashPoints;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  crash_points_node claim_sql cross_for_client cross_for_keeper crash_at fail_at begin settles drain finish
  set_point ask becomes has_crashed stop_at
);

my ($node, $control, $last_launcher);
my $crossings = 0;

sub crash_points_node
{
	my ($conf) = @_;

	$node = new_node('main', conf => <<EOC . ($conf // ''));
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
		return;
	}
	install();
	($last_launcher) = processes($node, 'launcher');
	return $node;
}

sub install
{
	$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('jobs', lease => '10 min', max_attempts => 3);
SELECT fanout.create_queue('synchronous', lease => '10 min', synchronous_claims => true);
SELECT fanout.create_queue('once', lease => '50 ms', max_attempts => 1);
SELECT fanout.create_queue('short', lease => '50 ms', max_attempts => 1000);
SELECT fanout.create_queue(q, lease => '10 min') FROM unnest('{big,wide}'::text[]) q;

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
	-- a keeper that is terminated ends when it has done what it is at, everybody else at once
	WHILE how = 'cancel' AND EXISTS (SELECT FROM fanout.status() WHERE item = 'keeper pid' AND value = who::text)
		OR how IN ('terminate', 'cancel') AND EXISTS (SELECT FROM pg_stat_activity WHERE pid = who AND backend_type = 'client backend' AND state = 'active') LOOP
		PERFORM pg_sleep(0.005), pg_stat_clear_snapshot();
	END LOOP;
	PERFORM fanout._set_point(the_point, 'nothing');
END $$;

-- All that is left, and what must hold then.
CREATE PROCEDURE drain() LANGUAGE plpgsql AS $$
BEGIN
	PERFORM fanout.reschedule(ARRAY(SELECT task FROM fanout.tasks WHERE state = 'scheduled'), delay => '0');
	COMMIT;
	LOOP
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
	return;
}

# Whatever earlier crossings have left ready is claimed as well.
sub claim_sql
{
	return "SELECT fanout.enqueue('jobs', 'TAG'); SELECT lease FROM fanout.dequeue('jobs', 'w', max_tasks => 1000);";
}

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

	if (!defined $control)
	{
		$control = session($node);
		$control->set_query_timer_restart;
	}
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

sub set_point
{
	my ($point, $action) = @_;

	return if eval { ask("SELECT fanout._set_point('$point', '$action')"); 1 };
	die $@ if $action ne 'kill';
	return;
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
		my ($rc, $out) = try_query($node, "SELECT pid FROM pg_stat_activity WHERE backend_type ~ 'fanout launcher'"
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

my @ways = ('disk full', 'terminate', 'cancel', 'error');

sub cross_for_client
{
	my ($story) = @_;
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
		my $how = $ways[ $crossings % @ways ];

		settles("$name, $how at $point: nothing", fail_at($story, $point, $how), $none);
	}
	drain($name);
	return;
}

sub cross_for_keeper
{
	my ($story) = @_;
	my $name = $story->{name};

	foreach my $point (@{ $story->{points} })
	{
		settles("$name, crash at $point: as promised", crash_at($story, $point), $story->{crash}{$point} // $story->{effect});
		drain("$name, crash at $point") if $story->{drain};
		fail_keeper_at($story, $point);
		stop_keeper_at($story, $point, 'go on') if defined $story->{meanwhile} || $point eq $story->{points}[0];
		stop_keeper_at($story, $point, $crossings % 2 ? 'terminate' : 'cancel');
	}
	drain($name);
	return;
}

# A keeper that fails, or two, and the one after it.
sub fail_keeper_at
{
	my ($story, $point) = @_;
	my $name = $story->{name};
	my ($how, $times) = $name eq 'journal' ? ('disk full', 2) : ('error', 1);
	my ($tag, $client) = begin($story, $point, $how, $times);

	ok(finish_clients($client), "$name: $how at $point of the keeper");
	stop_at($point, 'no more') if $times == 1;
	settles("$name, $how at $point: another keeper goes on", $tag, $story->{effect});
	drain("$name, $how at $point") if $story->{drain};
	return;
}

# A keeper that waits while others go on, as far as they can, and goes on itself or ends.
sub stop_keeper_at
{
	my ($story, $point, $how) = @_;
	my $name = $story->{name};
	my ($tag, $client) = begin($story, $point, 'wait');

	ok(finish_clients($client), "$name: $how at $point of the keeper");
	ask(tagged($story->{meanwhile}, $tag)) if defined $story->{meanwhile};
	is(sqlstate($node, $story->{meanwhile_fails}), '57014', "$name: others wait while the keeper is at $point")
	  if defined $story->{meanwhile_fails} && $how eq 'go on';
	stop_at($point, $how);
	settles("$name, $how at $point: done in the end", $tag, $story->{effect});
	drain("$name, $how at $point") if $story->{drain};
	return;
}

sub finish
{
	$control->quit;
	$node->stop;
	unlike(slurp_file($node->logfile), qr/PANIC:|TRAP:|pg_fanout violation/, 'no panic, no violation in the log');
	note("$crossings crossings");
	done_testing();
	return;
}

1;
