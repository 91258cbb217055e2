# Keepers that cannot start, or fail again and again: what others can do meanwhile, what the log says, and that all goes on
# by itself when the cause has gone. README says it under "When something runs out".

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use POSIX qw(floor);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => <<EOC);
max_worker_processes = 3
max_logical_replication_workers = 0
max_parallel_workers = 0
autovacuum = off	# its workers would fail by these settings as well
pg_fanout.max_databases = 3
EOC
my $mark;    # what the log has before the test in question

sub query { return $node->safe_psql(@_); }
sub log_since { return substr(slurp_file($node->logfile), $mark); }
sub count_in_log { my ($pattern) = @_; return scalar(() = log_since() =~ /$pattern/g); }
sub begin { my ($what) = @_; note($what); $mark = -s $node->logfile; return; }
sub stat_becomes { my ($db, $condition) = @_; return $node->poll_query_until($db, "SELECT $condition FROM fanout.stats"); }

sub ok_until (&$)
{
	my ($condition, $what) = @_;

	return ok(wait_until(\&$condition, $what), $what);
}

sub terminate_keeper
{
	my ($db) = @_;

	query('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_fanout keeper' AND datname = '$db'");
	return;
}

# -- a keeper that fails each time it starts
begin('broken catalogue');
query('postgres', <<'EOS');
SELECT fanout.create_queue('jobs', lease => '10 min');
SELECT fanout.enqueue('jobs', 'x');
ALTER TABLE fanout.segment RENAME TO segment_elsewhere;
EOS
terminate_keeper('postgres');

# what is between the third one and the next is looked at before anything else
my @failed_at;
foreach my $nth (3, 4)
{
	ok_until { $failed_at[$nth] = query('postgres', "SELECT last_failure_at FROM fanout.stats WHERE failed_in_a_row = $nth") } "failure $nth";
}
cmp_ok(query('postgres', "SELECT extract(epoch FROM timestamptz '$failed_at[4]' - '$failed_at[3]')"),
	'>', 2.5, 'with longer pauses: 4 s from the start of the third one');
is(count_in_log(qr/ERROR:  relation "fanout.segment" does not exist/), 1, 'the error is logged once');
is(count_in_log(qr/exited with exit code/), 0, 'and nothing else of each of them');
is( query('postgres', "SELECT state, last_error, last_failure_at > now() - interval '1 min', keeper_failures >= 3, keeper_starts > keeper_failures FROM fanout.stats"),
	'ready|relation "fanout.segment" does not exist|t|t|t', 'the view tells of it');
query('postgres', "CREATE ROLE reader; SELECT fanout.grant_usage('reader')");
is(query('postgres', "SET ROLE reader; SELECT last_error IS NULL, last_failure_at IS NOT NULL FROM fanout.stats"), 't|t', 'the words of an error are for those who may read all statistics');
is( query('postgres', <<'EOS'), "succeeded\nsucceeded\nready", 'enqueue, dequeue and complete go on');
SELECT fanout.enqueue('jobs', 'y') \g /dev/null
SELECT count(fanout.complete(lease)) FROM fanout.dequeue('jobs', 'w', max_tasks => 10) \g /dev/null
SELECT fanout.enqueue('jobs', 'z') \g /dev/null
SELECT fanout.enqueue('jobs', 'later', delay => '10 ms') \g /dev/null
SELECT state FROM fanout.tasks WHERE name <> 'later' ORDER BY task;
EOS
query('postgres', "SELECT count(*) FROM fanout.dequeue('jobs', 'w', max_tasks => 1)");
ok(stat_becomes('postgres', "journal_lag = 1 AND journal_lag_age > '1 s'"), 'the journal lags, and for how long');
query('postgres', 'ALTER TABLE fanout.segment_elsewhere RENAME TO segment');
ok(stat_becomes('postgres', 'failed_in_a_row = 0 AND keeper_pid IS NOT NULL AND journal_lag = 0 AND journal_lag_age IS NULL'), 'one works again, by itself');
is(count_in_log(qr/LOG:  pg_fanout keeper of database \d+ works again/), 1, 'and the log says so');
is(query('postgres', "SELECT name FROM fanout.dequeue('jobs', 'w', wait => '20 s')"), 'later', 'timers work');

# -- settings of the database and the role
begin('settings');
query('postgres', 'CREATE DATABASE victim');
query('victim', <<'EOS');
CREATE EXTENSION pg_fanout;
CREATE ROLE nobody;
EOS
wait_for_memory($node, 'victim');
query('victim', <<'EOS');
SELECT fanout.create_queue('jobs', lease => '10 min');
SELECT fanout.create_queue('short', lease => '500 ms', max_attempts => 1);
SELECT count(*) FROM fanout.enqueue_many('jobs', 'x', array_fill('1'::jsonb, '{5000}'));
SELECT count(*) FROM fanout.dequeue('jobs', 'w', max_tasks => 5000);
SELECT fanout.enqueue_many('jobs', 'later', '{1,2,3}', delay => '10 ms');
EOS
ok(stat_becomes('victim', 'journal_lag = 0'), 'there is much to be read at a rebuild');
my $session = session($node, 'victim');
my $parallel = $node->pg_version >= 16 ? 'debug_parallel_query' : 'force_parallel_mode';
my %hostile = (
	statement_timeout => '1ms', lock_timeout => '1ms', idle_in_transaction_session_timeout => '1ms',
	default_transaction_isolation => 'serializable', default_transaction_read_only => 'on', default_transaction_deferrable => 'on',
	temp_file_limit => 0, work_mem => '64kB', row_security => 'off', session_replication_role => 'replica', exit_on_error => 'on',
	synchronous_commit => 'off', transform_null_equals => 'on', $parallel => 'on',
	(map { ("enable_$_" => 'off') } qw(indexscan indexonlyscan bitmapscan nestloop sort)));

$hostile{transaction_timeout} = '1ms' if $node->pg_version >= 17;
query('postgres', join '', map { "ALTER DATABASE victim SET $_ = '$hostile{$_}';\n" } sort keys %hostile);
query('postgres', "ALTER DATABASE victim SET search_path = nowhere; ALTER DATABASE victim CONNECTION LIMIT 0; ALTER ROLE CURRENT_USER IN DATABASE victim SET role = nobody");

sub works_in_spite_of_settings
{
	my ($what) = @_;
	my $since = $session->query_safe('SELECT keeper_failures FROM fanout.stats');

	is($session->query_safe("SELECT count(*) FROM fanout.enqueue_many('short', 'x', '{1,2}')"), 2, "$what: enqueue");
	is($session->query_safe("SELECT count(*) FROM fanout.dequeue('short', 'w', max_tasks => 2, wait => '20 s')"), 2, "$what: dequeue");
	ok_until { $session->query_safe("SELECT count(*) FROM fanout.tasks WHERE queue = 'short' AND state <> 'failed'") eq '0' } "$what: leases end";
	ok_until { $session->query_safe('SELECT journal_lag FROM fanout.stats') eq '0' } "$what: the journal is written";
	is($session->query_safe("SELECT ready + running FROM fanout.queues WHERE queue = 'jobs'"), 5003, "$what: nothing is forgotten");
	is($session->query_safe('SELECT keeper_failures FROM fanout.stats'), $since, "$what: no keeper has failed");
	return;
}

terminate_keeper('victim');
ok_until { $session->query_safe('SELECT keeper_starts >= 2 AND keeper_pid IS NOT NULL FROM fanout.stats') eq 't' } 'a keeper starts with them';
works_in_spite_of_settings('a keeper that takes over');
my $rebuilds = $session->query_safe('SELECT rebuilds FROM fanout.stats');
$session->query_safe('INSERT INTO fanout.queue SELECT * FROM fanout.queue WHERE false');    # others have filled the tables
ok_until { $session->query_safe("SELECT rebuilds > $rebuilds AND state = 'ready' FROM fanout.stats") eq 't' } 'a rebuild';
is($session->query_safe("SELECT rebuilt_tasks, rebuild_time > '0', rebuild_began <= ready_since FROM fanout.stats"), '5003|t|t', 'all is read');
works_in_spite_of_settings('a rebuild');
$session->quit;
is(count_in_log(qr/(ERROR|FATAL|WARNING):/), 0, 'nobody has failed');

# -- no worker slot
begin('worker slots');
query('postgres', 'CREATE DATABASE second');
query('second', 'BEGIN; CREATE EXTENSION pg_fanout; SELECT fanout.create_queue($$jobs$$); COMMIT');
ok_until { count_in_log(qr/could not start a keeper/) > 0 } 'there is no slot for a third keeper';
is(query('second', 'SELECT state, keeper_pid IS NULL, launcher_pid IS NOT NULL FROM fanout.stats'), 'no keeper|t|t', 'the view says that there is none');
my $waiting = start_client($node, "SELECT fanout.enqueue('jobs', 'x')", 'second');
is(query('second', 'SELECT queue, ready FROM fanout.queues'), 'jobs|', 'views do not wait');
is(sqlstate($node, "SET statement_timeout = '2 s'; SELECT * FROM fanout.dequeue('jobs')", 'second'), '57014', 'functions do');
is(query('postgres', "SELECT fanout.enqueue('jobs', 'a'); SELECT count(fanout.complete(lease)) FROM fanout.dequeue('jobs', 'w')") =~ /^1$/m, 1, 'other databases work');
is(count_in_log(qr/could not start a keeper/), 1, 'the log says it once');
query('postgres', 'DROP DATABASE victim');
ok(stat_becomes('second', "state = 'ready'"), 'a slot is free: a keeper starts by itself');
ok(finish_clients($waiting), 'who has waited goes on');
is(count_in_log(qr/LOG:  pg_fanout can start keepers again/), 1, 'the log says that it is over');

# -- a database that lets nobody in
begin('closed');
query('postgres', 'ALTER DATABASE second ALLOW_CONNECTIONS false');
terminate_keeper('second');
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'second'"), 'a keeper ends');
foreach (1, 2)
{
	# the second one comes a second after the first: by then the launcher has been at all databases
	my $starts = query('postgres', 'SELECT keeper_starts FROM fanout.stats');
	terminate_keeper('postgres');
	ok(stat_becomes('postgres', "keeper_starts > $starts AND keeper_pid IS NOT NULL"), 'another database gets a keeper');
}
is(count_in_log(qr/FATAL/), 0, 'none is started where it could not connect');
query('postgres', 'ALTER DATABASE second ALLOW_CONNECTIONS true');
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = 'second' AND backend_type = 'pg_fanout keeper'"), 'it comes back by itself');

# -- a database that no keeper can connect to: it ends before it could tell of its failure
begin('unreachable');
my $version = $node->data_dir . '/base/' . query('postgres', "SELECT oid FROM pg_database WHERE datname = 'second'") . '/PG_VERSION';
rename $version, "$version.elsewhere" or die "$version: $!";
terminate_keeper('second');
ok_until { count_in_log(qr/FATAL:  .* is not a valid data directory/) >= 5 } 'a keeper cannot connect, and is started anew';
my @attempts = log_since() =~ /^\S+ \d+:(\d+:\d+\.\d+) .*FATAL:  .* is not a valid data directory/mg;
my @seconds = map { my ($minutes, $seconds) = split /:/; 60 * $minutes + $seconds } @attempts;
cmp_ok(($seconds[4] - $seconds[3]) - 3600 * floor(($seconds[4] - $seconds[3]) / 3600), '>', 2.5, 'with longer pauses: 4 s from the fourth one');
rename "$version.elsewhere", $version or die "$version: $!";
ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = 'second' AND backend_type = 'pg_fanout keeper'"), 'one comes when it can');

# -- slots that are missing at the start of the server, and databases without a place
begin('start');
$node->append_conf('postgresql.conf', "max_worker_processes = 2\npg_fanout.max_databases = 1");
$node->restart;
my ($served, $left);
ok_until { ($served) = grep { query($_, 'SELECT state FROM fanout.stats') eq 'ready' } 'postgres', 'second' } 'one of two has the only place';
$left = $served eq 'second' ? 'postgres' : 'second';
is(sqlstate($node, "SELECT fanout.enqueue('jobs', 'x')", $left), '53400', 'too many databases');
is(count_in_log(qr/ERROR:  too many databases use pg_fanout/), 1, 'it is told to who asks');
query($served, 'DROP EXTENSION pg_fanout CASCADE');
ok_until { sqlstate($node, "SELECT fanout.enqueue('jobs', 'x')", $left) eq '' } 'there is a place when another one goes';

# -- no launcher, for want of a slot for it
$node->append_conf('postgresql.conf', 'max_worker_processes = 0');
$node->restart;
is(query($left, 'SELECT state, launcher_pid IS NULL FROM fanout.stats'), 'no keeper|t', 'without any slot there is no launcher');
like(slurp_file($node->logfile), qr/too many background workers/, 'the server says it');

$node->stop;
done_testing();
