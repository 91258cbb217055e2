# What an operator does to the log's tables while work goes on: they are rewritten, indexes are rebuilt, rows are frozen,
# and locked for long. Rows move, and memory knows where they were.
#
# Promises 1, 2 and 4: nothing is lost, nothing is done twice, no permit is left over.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# More tasks than memory, so that windows are refilled all the time
my $node = new_node('main', conf => <<EOC);
max_worker_processes = 16
pg_fanout.max_tracked_tasks = 100
pg_fanout.journal_interval = 2
pg_fanout.max_wait = '3min'
autovacuum_naptime = 1
autovacuum_freeze_max_age = 100000
vacuum_freeze_min_age = 0
synchronous_commit = off
max_prepared_transactions = 5
allow_in_place_tablespaces = on
EOC
install_ledger($node);
sub query { return $node->safe_psql('postgres', $_[0]); }

query("SELECT fanout.create_queue('busy', concurrency => 5, backoff => '10 ms', lease => '30 s', max_attempts => 30)");
query("SELECT fanout.create_queue('held', lease => '1 h')");
query("SELECT fanout.create_queue('idle')");
query("SELECT fanout.enqueue_many('held', 'held', array_fill('{}'::jsonb, '{10}')); SELECT fanout.enqueue('held', 'tomorrow', delay => '1 day')");
query("SELECT fanout.dequeue('held', 'holder', max_tasks => 10)");
query("CREATE TABLESPACE elsewhere LOCATION ''");

# Finished, running and waiting tasks in each segment; the second one is the current one in the end.
query("CALL produce('busy', 20)");
query('SELECT fanout._next_segment()');

my @commands = (
	(map { ("VACUUM FULL fanout.${_}_2", "REINDEX TABLE CONCURRENTLY fanout.${_}_2") } qw(task attempt checkpoint outcome)),
	(map { "CLUSTER fanout.${_}_2 USING ${_}_2_pkey" } qw(task checkpoint outcome)),
	'VACUUM FULL fanout.task_1', 'VACUUM FULL fanout.outcome_1', 'VACUUM (FREEZE, ANALYZE) fanout.task_2', 'VACUUM (FREEZE, ANALYZE) fanout.outcome_2',
	'REINDEX TABLE fanout.task_2', 'REINDEX TABLE fanout.outcome_2',
	(map { ("ALTER TABLE fanout.${_}_2 SET TABLESPACE elsewhere", "ALTER TABLE fanout.${_}_2 SET TABLESPACE pg_default") } qw(task attempt)));

# Workers, producers, and one who waits, all the while
my @producers = map { start_client($node, "CALL produce('busy', 120)") } 1 .. 2;
my @workers = map { start_client($node, "CALL work('busy', 'w$_')") } 1 .. 4;
# (REINDEX CONCURRENTLY waits for snapshots, which the function holds, but not the procedure)
my $waiter = start_client($node, "CALL fanout.dequeue_wait('idle', 'waiter', '150 s')");
my @failed;
foreach my $command (@commands)
{
	my $state = sqlstate($node, $command);
	push @failed, "$command: $state" if $state ne '';
}
is(join("\n", @failed), '', 'every command ends well');
query("SELECT fanout.enqueue('idle', 'for the waiter')");
ok(finish_clients($waiter), 'who waited') or diag(client_output($waiter));
is(client_output($waiter), "t\n", 'is told of its task');
ok(finish_clients(@producers, @workers), 'workers and producers') or diag(map { substr(client_output($_), -500) } @producers, @workers);
ok(finish_clients(start_client($node, "CALL work('busy', 'last')")), 'the rest');
is(join("\n", grep { !/ready|scheduled|running|held|idle|from a transaction/ } split /\n/, query('SELECT * FROM violations()')), '', 'promises 1 and 2: nothing is lost, nothing is done twice');
is(query("SELECT count(*), count(*) FILTER (WHERE t.state <> 'succeeded') FROM produced JOIN fanout.tasks t USING (task)"), query('SELECT count(*) FROM produced') . '|0', 'and all is done');
is(query("SELECT scheduled, ready, running FROM fanout.queues WHERE queue = 'busy'"), '0|0|0', 'promise 4: no permit is left');
is(query("SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases WHERE worker = 'holder'))"), 10, 'leases that were held over all that');
is(query("SELECT state FROM fanout.tasks WHERE name = 'tomorrow'"), 'scheduled', 'and what is for tomorrow');

# A refill is kept from reading, a retry from its outcome, by a table that is locked: they go on afterwards.
query("SELECT fanout.enqueue_many('busy', 'refilled', array_fill('{}'::jsonb, '{300}'))");
my $operator = session($node);
$operator->query_safe('BEGIN; LOCK TABLE fanout.task_1, fanout.task_2 IN ACCESS EXCLUSIVE MODE');
my $blocked = start_client($node, "SELECT count(*) FROM fanout.dequeue('busy', 'w', max_tasks => 5)");
$node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query ~ 'fanout.dequeue' AND wait_event_type = 'Lock')") or die 'nobody waits for the lock';
is(query('SELECT value FROM fanout.status() WHERE item = \'state\''), 'ready', 'status() waits for nobody');
$operator->query_safe('COMMIT');
ok(finish_clients($blocked), 'who was blocked');
is(client_output($blocked), "5\n", 'goes on');
query("SELECT fanout.complete(ARRAY(SELECT lease FROM fanout.leases))");
query("DO \$\$ BEGIN LOOP PERFORM fanout.complete(ARRAY(SELECT lease FROM fanout.dequeue('busy', 'w', max_tasks => 20, wait => '1 s'))); COMMIT; EXIT WHEN (SELECT ready = 0 FROM fanout.queues WHERE queue = 'busy'); END LOOP; END \$\$");
is(query("SELECT count(*) FROM fanout.tasks WHERE name = 'refilled' AND state = 'succeeded'"), 300, 'and all of it is done');

# The journal is locked for long: claims and ends go on, the lag shows, and nothing else of the keeper's does.
query("SELECT fanout.enqueue_many('held', 'journal', array_fill('{}'::jsonb, '{4}'))");
$operator->query_safe('BEGIN; LOCK TABLE fanout.attempt_1, fanout.attempt_2 IN ACCESS EXCLUSIVE MODE');
my @leases = split /\n/, query("SELECT lease FROM fanout.dequeue('held', 'w', max_tasks => 4)");
ok($node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type ~ 'keeper' AND wait_event_type = 'Lock')"), 'the keeper waits for the journal');
is(query("SELECT value FROM fanout.status() WHERE item = 'journal lag'"), '4 leases', 'the lag shows');
is(query("SELECT fanout.complete($leases[0])"), 't', 'an end goes on');
my ($keeper) = processes($node, 'keeper');
query("SELECT pg_terminate_backend($keeper)");
ok( $node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $keeper)"), 'a keeper that waits for a lock can be terminated');
$operator->query_safe('COMMIT');
ok($node->poll_query_until('postgres', "SELECT value = '0 leases' FROM fanout.status() WHERE item = 'journal lag'"), 'and its successor catches up');
is(query("SELECT count(*) FROM fanout.attempt WHERE lease IN ($leases[1], $leases[2], $leases[3])"), 3, 'all of it');

# Nor does it keep the server or the database from going away.
$operator->query_safe('BEGIN; LOCK TABLE fanout.attempt_1, fanout.attempt_2 IN ACCESS EXCLUSIVE MODE');
query("SELECT fanout.enqueue('held', 'journal'); SELECT fanout.dequeue('held', 'w')");
$node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type ~ 'keeper' AND wait_event_type = 'Lock')") or die 'the keeper does not wait';
$node->stop('fast', timeout => 60);
drop_session($operator);
$node->start;
wait_for_memory($node);
is(query("SELECT count(*) FROM fanout.leases WHERE worker = 'w'"), 4, 'a shutdown with the journal locked: it was written at the end');
query("SELECT fanout.complete(ARRAY(SELECT lease FROM fanout.leases))");
query("SELECT fanout.enqueue('held', 'journal')");
query("BEGIN; LOCK TABLE fanout.attempt_1, fanout.attempt_2 IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'lock'");
query("SELECT fanout.dequeue('held', 'w')");
$node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type ~ 'keeper' AND wait_event_type = 'Lock')") or die 'the keeper does not wait';
ok($node->stop('fast'), 'a shutdown while a prepared transaction has the journal locked');
$node->start;
query("ROLLBACK PREPARED 'lock'");
wait_for_memory($node);
is(query("SELECT string_agg(state, ' ') FROM fanout.tasks WHERE name = 'journal' AND state <> 'succeeded'"), 'ready', 'what could not be written is given out once more');

# Against wrap-around autovacuum freezes the segments, while all that goes on.
my $oldest = "SELECT max(age(relfrozenxid)) FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid WHERE i.inhparent IN ('fanout.task'::regclass, 'fanout.attempt'::regclass, 'fanout.checkpoint'::regclass, 'fanout.outcome'::regclass)";
query("CREATE TABLE burnt (n int); CREATE PROCEDURE burn() LANGUAGE plpgsql AS 'BEGIN FOR i IN 1 .. 110000 LOOP INSERT INTO burnt VALUES (i); COMMIT; END LOOP; END'");
my $burner = start_client($node, 'CALL burn()');
query("CALL produce('busy', 30)");
query("CALL work('busy', 'w9')");
ok(finish_clients($burner), 'many transactions');
ok($node->poll_query_until('postgres', "SELECT ($oldest) < 100000"), 'the segments are frozen');
is(query("SELECT count(*) FROM produced p LEFT JOIN fanout.tasks t USING (task) WHERE t.state IS DISTINCT FROM 'succeeded'"), 0, 'and nothing is lost');
query("SELECT fanout.reschedule(task, delay => '0') FROM fanout.tasks WHERE name = 'tomorrow'");
is(query("SELECT name FROM fanout.dequeue('held', 'w', wait => '5 s')"), 'tomorrow', 'nor what was for tomorrow');

$node->stop;
done_testing();
