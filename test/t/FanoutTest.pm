# What the TAP tests share.
#
# new_node(name, conf => 'text', init => [...], new => [...])
#		a running server with pg_fanout preloaded and created in database postgres
# sqlstate(node, sql, db)
#		the SQLSTATE with which the SQL fails, '' if it does not
# try_query(node, sql, connstr)
#		what psql returns, answers and says, of a server that may not be there yet
# session(node, db), session_sqlstate(session, sql), drop_session(session)
#		a psql session that lives on after an error; forget one whose server has gone
# wait_until { condition } 'what for', seconds
#		poll until the block is true, or give up
# processes(node, kind)
#		pids of our background processes; kind is launcher or keeper
# stop_keeper(node)
#		stop the only keeper while it sleeps, and holds nothing; its pid, for kill('CONT', ...)
# wait_for_memory(node, db)
#		memory has been filled after a start: from now on views show what is, and no function waits for it
# crash(node), start_after_crash(node)
#		kill -9 the postmaster; start as soon as what it left behind is gone
# install_ledger(node, db)
#		tables, workers, producers and a checker, in SQL: see below
# install_misplaced(node, db)
#		a function misplaced(), in SQL: rows that are elsewhere than in the segment of their task
# look(node, queries, db), is_as_it_was(node, what, queries, was, db)
#		answers to queries, both by name; test that they are still the same, once memory has been filled and the counts are
# install_work_off(node)
#		a procedure work_off(queue, tasks) that completes so many; it fails if there is nothing to do for 20 seconds
# start_client(node, sql, db), finish_clients(clients...), client_output(client)
#		psql in the background, that writes to a file
package FanoutTest;

use strict;
use warnings FATAL => 'all';

use Exporter 'import';
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(
  new_node sqlstate try_query session session_sqlstate drop_session wait_until
  processes stop_keeper wait_for_memory crash start_after_crash
  install_ledger install_work_off install_misplaced look is_as_it_was start_client finish_clients client_output
);

my $clients = 0;

sub new_node
{
	my ($name, %params) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, @{ $params{new} // [] });

	$node->init(@{ $params{init} // [] });
	$node->append_conf('postgresql.conf', <<EOC);
shared_preload_libraries = 'pg_fanout'
max_connections = 50
log_statement = none
EOC
	$node->append_conf('postgresql.conf', $params{conf})
	  if defined $params{conf};
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION pg_fanout');
	wait_for_memory($node);
	return $node;
}

sub sqlstate
{
	my ($node, $sql, $db) = @_;
	my ($ret, $stdout, $stderr) = $node->psql($db // 'postgres', $sql,
		extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);

	return $stderr =~ /(?:ERROR|FATAL):\s+(\w{5})/ ? $1 : $ret ? $stderr : '';
}

sub session
{
	my ($node, $db) = @_;

	return $node->background_psql($db // 'postgres', on_error_stop => 0);
}

sub session_sqlstate
{
	my ($session, $sql) = @_;

	$session->query_safe('\set VERBOSITY sqlstate');
	$session->query($sql);
	my $stderr = $session->{stderr};
	$session->{stderr} = '';
	return $stderr =~ /(?:ERROR|FATAL):\s+(\w{5})/ ? $1 : $stderr;
}

sub drop_session
{
	my ($session) = @_;

	eval { $session->{run}->kill_kill };
	return;
}

sub wait_until (&$;$)
{
	my ($condition, $what, $seconds) = @_;

	for (1 .. 20 * ($seconds // $PostgreSQL::Test::Utils::timeout_default))
	{
		return 1 if $condition->();
		usleep(50_000);
	}
	die "gave up waiting for: $what" unless defined wantarray;
	diag("gave up waiting for: $what");
	return 0;
}

sub processes
{
	my ($node, $kind) = @_;
	my $pids = $node->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type ~ 'fanout.*$kind' ORDER BY pid"
	);

	return split /\n/, $pids;
}

# Stopped at any other moment it might have a lock that others want.
sub stop_keeper
{
	my ($node) = @_;
	my $sleeps = "SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE backend_type = 'pg_fanout keeper'";
	my $keeper;
	my $stopped = wait_until
	{
		($keeper) = processes($node, 'keeper');
		return 0 unless defined $keeper && $node->safe_psql('postgres', $sleeps) eq 't';
		kill 'STOP', $keeper;
		return 1 if $node->safe_psql('postgres', $sleeps) eq 't';
		kill 'CONT', $keeper;
		return 0;
	}
	'a keeper that sleeps';

	die 'the keeper does not sleep' unless $stopped;
	return $keeper;
}

# Without an input: a psql that finds no server may be gone before it could be written, which would be an error of our own.
sub try_query
{
	my ($node, $sql, $connstr) = @_;
	my ($out, $err);

	IPC::Run::run([ $node->installed_command('psql'), '-XAtq', '-d', $connstr // $node->connstr('postgres'), '-c', $sql ],
		'<', \undef, '>', \$out, '2>', \$err);
	chomp($out, $err);
	return ($? >> 8, $out, $err);
}

sub wait_for_memory
{
	my ($node, $db) = @_;

	wait_until { (try_query($node, "SELECT value = 'ready' FROM fanout.status() WHERE item = 'state'", $node->connstr($db // 'postgres')))[1] eq 't' }
	'memory'
	  or die 'memory is not filled';
	return;
}

sub crash
{
	my ($node) = @_;

	$node->kill9;
	return;
}

# Start, and wait for memory. Orphans of the old postmaster hold its shared memory until they notice, which keeps a new one from starting.
sub start_after_crash
{
	my ($node) = @_;

	my $started = wait_until
	{
		return 1 if $node->start(fail_ok => 1);
		$node->stop('fast', fail_ok => 1);	# in case it came up late
		return 0;
	}
	'a start after the crash';
	wait_for_memory($node) if $started;
	return $started;
}

sub install_work_off
{
	my ($node) = @_;

	$node->safe_psql('postgres', <<'EOS');
CREATE PROCEDURE work_off(queue_name text, expected int) LANGUAGE plpgsql AS $$
DECLARE
	leases bigint[];
	done int := 0;
BEGIN
	WHILE done < expected LOOP
		SELECT array_agg(lease) INTO leases FROM fanout.dequeue(queue_name, 'w', max_tasks => 8, wait => '20 s');
		COMMIT;
		IF leases IS NULL THEN
			RAISE 'only % of % tasks of % came', done, expected, queue_name;
		END IF;
		done := done + cardinality(leases);
		PERFORM fanout.complete(leases);
		COMMIT;
	END LOOP;
END $$;
EOS
	return;
}

sub start_client
{
	my ($node, $sql, $db) = @_;
	my $output = sprintf('%s/client_%s_%03d.out',
		$PostgreSQL::Test::Utils::log_path, $node->name, ++$clients);
	my $run = IPC::Run::start(
		[
			$node->installed_command('psql'), '-XAtq',
			'-d',                             $node->connstr($db // 'postgres'),
			'-c',                             $sql
		],
		'<', \undef, '>', $output, '2>&1',
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));

	return { run => $run, output => $output };
}

# True if all of them ended well.
sub finish_clients
{
	my $failed = 0;

	foreach my $client (@_)
	{
		$client->{run}->finish;
		$failed++ if $client->{run}->result(0) != 0;
	}
	return $failed == 0;
}

sub client_output
{
	my ($client) = @_;

	return slurp_file($client->{output});
}

# produce() enqueues, and work() works, in the same transactions in which they write to the ledger; each tells its
# client what has been committed, as soon as it has. violations() compares the ledger with the extension's tables,
# once all the work is done.
sub install_ledger
{
	my ($node, $db) = @_;

	$node->safe_psql($db // 'postgres', <<'EOS');
CREATE TABLE produced (task bigint PRIMARY KEY);
CREATE TABLE step_effect (task bigint, step text);
CREATE TABLE effect (task bigint);

CREATE PROCEDURE produce(queue_name text, transactions int) LANGUAGE plpgsql AS $$
DECLARE
	made bigint[];
	late bigint;
BEGIN
	FOR i IN 1 .. transactions LOOP
		SELECT array_agg(m.task ORDER BY m.ordinal) INTO made
		  FROM fanout.enqueue_many(queue_name, 'some', array_fill('{"size": 1}'::jsonb, ARRAY[5]),
								   priority => i % 3 - 1) m;
		late := fanout.enqueue(queue_name, 'late', delay => '50 ms');
		BEGIN
			PERFORM fanout.enqueue(queue_name, 'never');
			RAISE EXCEPTION USING ERRCODE = 'RB000';
		EXCEPTION WHEN SQLSTATE 'RB000' THEN
			NULL;
		END;
		made := made || late;
		INSERT INTO produced SELECT unnest(made);
		IF i % 7 = 0 THEN
			ROLLBACK;
		ELSE
			COMMIT;
			RAISE NOTICE 'produced %', made;
		END IF;
	END LOOP;
END $$;

-- A worker leaves when nothing is left, which may be so for a moment while others produce; one that stays does not.
CREATE PROCEDURE work(queue_name text, worker_name text, stays boolean DEFAULT false) LANGUAGE plpgsql AS $$
DECLARE
	claim record;
	ended text;
BEGIN
	LOOP
		SELECT * INTO claim FROM fanout.dequeue(queue_name, worker_name, wait => '200 ms');
		COMMIT;
		IF claim.lease IS NULL THEN
			EXIT WHEN NOT stays AND NOT EXISTS (SELECT FROM fanout.queues q
								   WHERE q.queue = queue_name AND q.scheduled + q.ready + q.running > 0);
			CONTINUE;
		END IF;
		RAISE NOTICE 'claimed %', claim.lease;

		ended := 'lost';
		BEGIN
			IF NOT coalesce(claim.checkpoints, '{}') ? 'read' THEN
				PERFORM fanout.checkpoint(claim.lease, 'read', to_jsonb(claim.lease));
				INSERT INTO step_effect VALUES (claim.task, 'read');
			END IF;
		EXCEPTION WHEN SQLSTATE 'FO001' THEN
			NULL;
		END;
		COMMIT;

		BEGIN
			IF claim.attempt = 1 AND claim.task % 11 = 0 THEN
				PERFORM fanout.fail(claim.lease, 'the first attempt', retry_in => '20 ms');
				ended := 'failed';
			ELSIF claim.attempt = 1 AND claim.task % 13 = 0 AND random() < 0.5 THEN
				PERFORM fanout.release(claim.lease);
				ended := 'released';
			ELSIF fanout.complete(claim.lease, to_jsonb(worker_name)) THEN
				INSERT INTO effect VALUES (claim.task);
				ended := 'completed';
			END IF;
		EXCEPTION WHEN SQLSTATE 'FO001' THEN
			NULL;
		END;
		COMMIT;
		RAISE NOTICE '% %', ended, claim.task;
	END LOOP;
END $$;

CREATE FUNCTION violations() RETURNS SETOF text LANGUAGE sql AS $$
	SELECT 'lost: task ' || p.task FROM produced p
	 WHERE NOT EXISTS (SELECT FROM fanout.tasks t WHERE t.task = p.task)
	UNION ALL
	SELECT 'from a transaction that rolled back: task ' || t.task FROM fanout.tasks t
	 WHERE NOT EXISTS (SELECT FROM produced p WHERE p.task = t.task)
	UNION ALL
	SELECT 'not succeeded: task ' || t.task || ', ' || coalesce(t.state, 'without a state') FROM fanout.tasks t
	 WHERE t.state IS DISTINCT FROM 'succeeded'
	UNION ALL
	SELECT 'done ' || count(e.task) || ' times: task ' || t.task
	  FROM fanout.tasks t LEFT JOIN effect e ON e.task = t.task
	 WHERE t.state = 'succeeded' GROUP BY t.task HAVING count(e.task) <> 1
	UNION ALL
	SELECT 'step done ' || count(e.task) || ' times: task ' || c.task
	  FROM fanout.checkpoint c JOIN fanout.tasks t ON t.task = c.task
	  LEFT JOIN step_effect e ON e.task = c.task AND e.step = c.step
	 GROUP BY c.task, c.step HAVING count(e.task) <> 1
	UNION ALL
	SELECT 'step without a checkpoint: task ' || e.task FROM step_effect e
	 WHERE NOT EXISTS (SELECT FROM fanout.checkpoint c WHERE c.task = e.task AND c.step = e.step)
	UNION ALL
	SELECT 'lease given twice: ' || a.lease FROM fanout.attempt a
	 WHERE a.event IN ('c', 'b') GROUP BY a.lease HAVING count(*) > 1
	UNION ALL
	SELECT 'still held: lease ' || l.lease FROM fanout.leases l
	UNION ALL
	SELECT 'queue ' || q.queue || ' counts ' || q.scheduled || ', ' || q.ready || ', ' || q.running FROM fanout.queues q
	 WHERE q.scheduled + q.ready + q.running <> 0
$$;
EOS
	return;
}

# A database that has never moved on has no row in fanout.segment, and one segment. What is left in one that was emptied
# is about to be truncated.
sub install_misplaced
{
	my ($node, $db) = @_;

	$node->safe_psql($db // 'postgres', <<'EOS');
CREATE FUNCTION misplaced(OUT task bigint, OUT relation text) RETURNS SETOF record LANGUAGE sql AS $$
	SELECT r.task, r.relation
	  FROM (SELECT id, tableoid::regclass::text FROM fanout.task
			UNION ALL SELECT task, tableoid::regclass::text FROM fanout.attempt
			UNION ALL SELECT task, tableoid::regclass::text FROM fanout.checkpoint
			UNION ALL SELECT task, tableoid::regclass::text FROM fanout.outcome) AS r (task, relation)
	 WHERE r.relation !~ format('_%s$', (SELECT slot FROM fanout.segment WHERE first_task <= r.task ORDER BY first_task DESC LIMIT 1))
	   AND EXISTS (SELECT FROM fanout.segment)
	   AND NOT EXISTS (SELECT FROM fanout.segment e WHERE e.first_task IS NULL AND r.relation ~ format('_%s$', e.slot))
$$;
EOS
	return;
}

sub look
{
	my ($node, $queries, $db) = @_;

	return map { $_ => $node->safe_psql($db // 'postgres', $queries->{$_}) } keys %$queries;
}

# The counts of queues, if these are asked for, may be a moment late: leases end, delayed tasks come up.
sub is_as_it_was
{
	my ($node, $what, $queries, $was, $db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_memory($node, $db);
	if (defined $queries->{queues})
	{
		wait_until { $node->safe_psql($db // 'postgres', $queries->{queues}) eq $was->{queues} } "$what: the counts", 20;
	}
	is($node->safe_psql($db // 'postgres', $queries->{$_}), $was->{$_}, "$what: $_") foreach sort keys %$queries;
	return;
}

1;
