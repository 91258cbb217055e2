# Tables of ours that an operator or a prepared transaction has locked, and a synchronous standby that is not there: what
# is in other tables goes on, and the server and the database can go away. Needs a checked build (test/harness/run_tests
# makes one).
#
# Promise 7: what had been committed is there afterwards. README says it under "Maintenance of the log's tables".

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => <<EOC, init => [ allows_streaming => 1 ]);
max_prepared_transactions = 5
max_worker_processes = 16
pg_fanout.retention = -1
pg_fanout.journal_interval = 2
EOC
my $waits_for_lock = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type ~ 'keeper' AND datname = '%s' AND wait_event_type = 'Lock')";

sub query { return $node->safe_psql($_[1] // 'postgres', $_[0]); }
sub becomes { my ($sql, $what, $db) = @_; return ok($node->poll_query_until($db // 'postgres', $sql), $what); }

sub lock_tables
{
	my ($tables, $db) = @_;
	my $operator = session($node, $db);

	$operator->query_safe("BEGIN; LOCK TABLE $tables IN ACCESS EXCLUSIVE MODE");
	return $operator;
}

query(<<'EOS');
SELECT fanout.create_queue('jobs', lease => '10 min');
SELECT fanout.create_queue('short', lease => '200 ms', max_attempts => 1000);
EOS

# -- retention is due: three segments, of which the second could go
query("SELECT fanout.enqueue('jobs', 'tomorrow', delay => '1 day')");
query('SELECT fanout._next_segment()');
query(<<'EOS');
SELECT count(*) FROM fanout.enqueue_many('jobs', 'done', array_fill('{}'::jsonb, '{100}'));
SELECT count(fanout.complete(lease)) FROM fanout.dequeue('jobs', 'w', max_tasks => 100);
SELECT fanout._next_segment();
EOS
my $operator = lock_tables('fanout.task_1, fanout.outcome_1, fanout.attempt_1, fanout.checkpoint_1');
query("ALTER SYSTEM SET pg_fanout.retention = '2 s'");
query('SELECT pg_reload_conf()');
becomes("SELECT kept_because = 'a transaction uses its tables' FROM fanout._live_segments() WHERE slot = 2",
	'a segment that could go stays while another one is locked, as it has to be asked');
query("SELECT fanout.enqueue('short', 'x')");
query("SELECT lease FROM fanout.dequeue('short', 'w')");
becomes("SELECT ready = 1 FROM fanout.queues WHERE queue = 'short'", 'leases of tasks in other segments expire');
query("SELECT fanout.enqueue('jobs', 'x')");
is(query("SELECT name FROM fanout.dequeue('jobs', 'w')"), 'x', 'work goes on');
becomes('SELECT journal_lag = 0 FROM fanout.stats', 'and is journaled');
is(query('SELECT keeper_failures, retired_segments FROM fanout.stats'), '0|0', 'no keeper has failed');
$operator->query_safe('COMMIT');
$operator->quit;
becomes('SELECT retired_segments >= 2 FROM fanout.stats', 'the lock is free: segments are retired');
is(query("SELECT state FROM fanout.tasks WHERE name = 'tomorrow'"), 'scheduled', 'what has to stay is there');
query('ALTER SYSTEM RESET pg_fanout.retention');
query('SELECT pg_reload_conf()');

# -- the keeper is terminated shortly before it comes to a lock
my $journal = query("SELECT string_agg('fanout.attempt_' || n, ', ') FROM generate_series(1, 4) n");
query("SELECT fanout._set_point('journal-copied', 'wait')");
query("SELECT fanout.enqueue('jobs', 'y'); SELECT fanout.dequeue('jobs', 'y')");
becomes("SELECT reached > 0 FROM fanout._points() WHERE point = 'journal-copied'", 'the keeper is about to write');
$operator = lock_tables($journal);
my ($keeper) = processes($node, 'keeper');
query("SELECT pg_terminate_backend($keeper)");
query("SELECT fanout._set_point('journal-copied', 'nothing')");
becomes("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $keeper)", 'it goes, although the journal is locked by now');
$operator->query_safe('COMMIT');
$operator->quit;
becomes('SELECT journal_lag = 0 FROM fanout.stats', 'another one writes it');

# -- it is told twice to go, as a postmaster that shuts down does: what it does at the end is done
$operator = lock_tables($journal);
query("SELECT fanout.enqueue('jobs', 'twice'); SELECT fanout.dequeue('jobs', 'y')");
becomes(sprintf($waits_for_lock, 'postgres'), 'the keeper waits for the journal');
($keeper) = processes($node, 'keeper');
my $wait_began = "SELECT waitstart FROM pg_locks WHERE pid = $keeper AND NOT granted AND waitstart IS NOT NULL";
becomes("SELECT EXISTS ($wait_began)", 'since some time');
my $first_wait = query($wait_began);
query("SELECT pg_terminate_backend($keeper)");
becomes("SELECT EXISTS ($wait_began AND waitstart > '$first_wait') OR NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $keeper)", 'and once more, for a second at most, to write it at the end');
query("SELECT pg_terminate_backend($keeper)");
$operator->query_safe('COMMIT');
$operator->quit;
becomes("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $keeper)", 'it goes');
unlike(slurp_file($node->logfile), qr/due to user request/, 'when it has written it, or could not');

# -- DROP DATABASE WITH (FORCE)
query('CREATE DATABASE other');
query("CREATE EXTENSION pg_fanout; SELECT fanout.create_queue('jobs'); SELECT fanout.enqueue('jobs', 'x')", 'other');
$operator = lock_tables($journal, 'other');
query("SELECT lease FROM fanout.dequeue('jobs', 'w')", 'other');
becomes(sprintf($waits_for_lock, 'other'), 'a keeper waits for a lock');
is(sqlstate($node, "SET statement_timeout = '60 s'; DROP DATABASE other WITH (FORCE)"), '', 'its database can be dropped');
drop_session($operator);
becomes("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type ~ 'keeper'", 'the keeper has gone with it');

# -- DROP EXTENSION, which locks all tables, and so does a keeper that has just come
query('CREATE DATABASE brief');
is(join(' ', map { sqlstate($node, 'CREATE EXTENSION pg_fanout; DROP EXTENSION pg_fanout CASCADE', 'brief') } 1 .. 10), ' ' x 9, 'the extension is dropped as soon as it is there');
query("CREATE EXTENSION pg_fanout; SELECT fanout.create_queue('jobs')", 'brief');
my $brief_keeper = "SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'keeper' AND datname = 'brief'";
my $dropper = session($node, 'brief');
$dropper->query_safe('BEGIN; DROP EXTENSION pg_fanout CASCADE');
is(query($brief_keeper), 0, 'before it is dropped the keeper goes');
$dropper->query_safe('ROLLBACK');
$dropper->quit;
becomes("SELECT ($brief_keeper) = 1", 'and comes again if it is not');
wait_for_memory($node, 'brief');
query('CREATE ROLE stranger');
my $starts = query('SELECT keeper_starts FROM fanout.stats', 'brief');
is(sqlstate($node, 'SET ROLE stranger; DROP EXTENSION pg_fanout CASCADE', 'brief'), '42501', 'a stranger may not drop it');
is(query('SELECT keeper_starts FROM fanout.stats', 'brief'), $starts, 'and sends no keeper away');
query('DROP DATABASE brief');

# -- a synchronous standby that is not there
query("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
query('SELECT pg_reload_conf()');
my $held = session($node);
$held->query_safe("SET synchronous_commit = 'local'; SELECT fanout.enqueue_many('jobs', 'z', '{1,2}')");
my @leases = $held->query_safe("SELECT lease FROM fanout.dequeue('jobs', 'z')");
becomes("SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE backend_type ~ 'keeper'", 'the keeper waits for a standby');
push @leases, $held->query_safe("SELECT lease FROM fanout.dequeue('jobs', 'z')");
$held->quit;
$node->stop('fast', timeout => 60);
ok(1, 'a shutdown does not wait for it');
$node->append_conf('postgresql.auto.conf', "synchronous_standby_names = ''");
$node->start;
wait_for_memory($node);
is(query("SELECT count(*) FROM fanout.leases WHERE lease IN ($leases[0], $leases[1])"), 2, 'promise 7: leases were journaled, also the one that came while it waited');

# -- promotion, while a prepared transaction has tables locked, and a reader of the standby has some
query('SELECT count(fanout.complete(lease)) FROM fanout.leases');
query("SELECT fanout.enqueue('jobs', 'of the primary')");
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
query("BEGIN; LOCK TABLE fanout.attempt, fanout.outcome IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'lock'");
$node->wait_for_catchup($standby);
my $reader = session($standby);
$reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM fanout.segment');
$node->stop('immediate');
$standby->promote;
$standby->poll_query_until('postgres', sprintf($waits_for_lock, 'postgres')) or die 'the keeper does not wait';
is(sqlstate($standby, "SET statement_timeout = '1 s'; SELECT fanout.enqueue('jobs', 'x')"), '57014', 'functions wait for the rebuild, which waits for the lock');
($keeper) = processes($standby, 'keeper');
$standby->safe_psql('postgres', "SELECT pg_terminate_backend($keeper)");
ok($standby->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $keeper)"), 'a keeper that rebuilds can be terminated');
$standby->safe_psql('postgres', "ROLLBACK PREPARED 'lock'");
wait_for_memory($standby);
is($standby->safe_psql('postgres', "SELECT keeper_failures FROM fanout.stats"), 0, 'that was no failure');
is($standby->safe_psql('postgres', "SELECT name FROM fanout.dequeue('jobs', 'w', wait => '20 s')"), 'of the primary', 'promise 7: when the lock is free, the standby has all');
$reader->query_safe('COMMIT');
$reader->quit;

$standby->stop;
done_testing();
