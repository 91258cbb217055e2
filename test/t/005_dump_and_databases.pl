# What happens to a database as a whole: dump and restore, copies, a new name, dropping it; the extension dropped and
# created again. The process that serves the database must be in nobody's way.
#
# Promise 7 for what a dump has; promise 10: the grants are restored, too.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "max_worker_processes = 16\nstatement_timeout = '60 s'");

$node->safe_psql('postgres', <<'EOS');
CREATE ROLE app_owner;
CREATE ROLE app_worker;
CREATE ROLE stranger;
CREATE DATABASE app;
EOS
$node->safe_psql('app', <<'EOS');
CREATE EXTENSION pg_fanout;
SELECT fanout.grant_usage('app_owner');
SELECT fanout.grant_usage('stranger');
SET ROLE app_owner;
SELECT fanout.create_queue('jobs', concurrency => 8, lease => '10 min', backoff => '1 h', backoff_max => '1 h');
SELECT fanout.grant_queue('jobs', 'app_worker', '{dequeue}');
SELECT fanout.create_queue('paused', max_attempts => 2);
SELECT fanout.pause_queue('paused');
SELECT fanout.enqueue('paused', 'p');
SELECT fanout.fan_out('jobs', 'index', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 12) i));
SELECT fanout.create_batch() AS batch \gset
RESET ROLE;
SELECT fanout._next_segment();
SET ROLE app_owner;
SELECT fanout.enqueue('jobs', 'growing', batch => :batch);
SELECT fanout.enqueue('jobs', 'tomorrow', delay => '1 day');
EOS

# One each that is done, has failed for good, waits for a retry, runs with a checkpoint.
my @leases = split /\n/, $node->safe_psql('app', <<'EOS');
SET ROLE app_worker;
SELECT lease FROM fanout.dequeue('jobs', 'w1', max_tasks => 4);
EOS
$node->safe_psql('app', <<EOS);
SET ROLE app_worker;
SELECT fanout.complete($leases[0], '"done"');
SELECT fanout.fail($leases[1], 'hopeless', final => true);
SELECT fanout.fail($leases[2], 'not yet');
SELECT fanout.checkpoint($leases[3], 'read', '{"size": 42}');
SET ROLE app_owner;
SELECT fanout.enqueue('jobs', 'urgent', priority => -5);
EOS
$node->poll_query_until('app', "SELECT count(*) = 2 FROM fanout.attempts WHERE state = 'running' OR error = 'not yet'")
  or die 'the journal was not written';

my %look = (
	queues => 'SELECT queue, owner, paused, scheduled, ready, running, concurrency, lease, max_attempts FROM fanout.queues ORDER BY 1',
	tasks => 'SELECT task, queue, name, args, state, priority, batch, run_at, attempt, lease, worker, result, error FROM fanout.tasks ORDER BY 1',
	batches => 'SELECT batch, owner, "join", sealed, tasks, finished FROM fanout.batches ORDER BY 1',
	leases => 'SELECT lease, task, queue, worker, attempt FROM fanout.leases ORDER BY 1',
	attempts => 'SELECT task, lease, worker, state, error FROM fanout.attempts ORDER BY 1, 2',
	segments => 'SELECT t.tableoid::regclass, t.id FROM fanout.task t UNION ALL SELECT \'fanout.segment\', first_task FROM fanout.segment ORDER BY 2, 1',
);
my %was = look($node, \%look, 'app');

# The database is as it was when %was was taken, as soon as memory has been filled.
sub is_unchanged { my ($db, $what) = @_; return is_as_it_was($node, $what, \%look, \%was, $db); }

# All that can be done is done, by somebody who may.
sub work_off
{
	my ($db, $what) = @_;

	my $last_task = $node->safe_psql($db, 'SELECT max(task) FROM fanout.tasks');
	my $new = $node->safe_psql($db, "SELECT fanout.enqueue('jobs', 'new')");
	cmp_ok($new, '>', $last_task, "$what: a new task has a new id");
	my $batch = $node->safe_psql($db, "SELECT fanout.fan_out('jobs', 'new'::text, '{1, 2}'::jsonb[])");
	cmp_ok($batch, '>', 2, "$what: a new batch has a new id");
	$node->safe_psql($db, "SELECT fanout.create_queue('new')");

	my $urgent = $node->safe_psql($db, <<'EOS');
SET ROLE app_worker;
SELECT lease FROM fanout.dequeue('jobs', 'w2');
EOS
	cmp_ok($urgent, '>', $leases[3], "$what: a new lease has a new number");
	is(sqlstate($node, "SET ROLE app_worker; SELECT fanout.enqueue('jobs', 'x')", $db),
		'42501', "$what: promise 10: the worker may only work");
	is(sqlstate($node, "SET ROLE stranger; SELECT * FROM fanout.dequeue('jobs')", $db),
		'42501', "$what: promise 10: a stranger may nothing");
	$node->safe_psql($db, "SELECT fanout.complete($urgent)");
	is( $node->safe_psql($db, "SELECT fanout.checkpoint($leases[3], 'read', '{}')"),
		'{"size": 42}', "$what: the lease and the checkpoint are there");
	is($node->safe_psql($db, "SELECT fanout.complete($leases[3])"), 't', "$what: the lease completes");
	$node->safe_psql($db, "SELECT fanout.complete(lease) FROM fanout.dequeue('jobs', 'w2', max_tasks => 8)")
	  for 1 .. 4;
	is( $node->safe_psql($db,
			"SELECT name, state, count(*) FROM fanout.tasks WHERE queue = 'jobs' GROUP BY 1, 2 ORDER BY 1, 2"),
		join("\n",
			'growing|succeeded|1', 'index|failed|1', 'index|scheduled|1',
			'index|succeeded|10', 'new|succeeded|3', 'tomorrow|scheduled|1',
			'urgent|succeeded|1'),
		"$what: all is done that can be");
}

# A statement that wants the database for itself.
sub ends_well
{
	my ($sql, $what) = @_;

	is(sqlstate($node, $sql), '', $what);
}

# A dump, restored beside the original
my $dump = PostgreSQL::Test::Utils::tempdir() . '/app.dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('app') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), $dump ], 'pg_restore');
is_unchanged('restored', 'restored');
work_off('restored', 'restored');

# A copy, with the process that serves the original at work.
ends_well('CREATE DATABASE copied TEMPLATE app', 'CREATE DATABASE ... TEMPLATE');
is_unchanged('copied', 'copied');
work_off('copied', 'copied');
is_unchanged('app', 'the original of the copy');

ends_well('ALTER DATABASE copied RENAME TO renamed', 'ALTER DATABASE ... RENAME');
$node->safe_psql('renamed', "SELECT fanout.enqueue('jobs', 'after')");
is($node->safe_psql('renamed', "SELECT fanout.complete(lease) FROM fanout.dequeue('jobs', 'w3', wait => '10 s')"),
	't', 'the renamed database goes on working');

ends_well('ALTER DATABASE renamed ALLOW_CONNECTIONS false', 'ALTER DATABASE ... ALLOW_CONNECTIONS');
ends_well('DROP DATABASE renamed', 'DROP DATABASE');
ends_well('DROP DATABASE restored WITH (FORCE)', 'DROP DATABASE ... FORCE');
foreach my $round (1 .. 5)
{
	ends_well('CREATE DATABASE brief TEMPLATE app', "CREATE DATABASE ... TEMPLATE, round $round");
	ends_well('DROP DATABASE brief', "DROP DATABASE, round $round");
}

# Nobody else sends the process away.
my $keeper = "SELECT pid FROM pg_stat_activity WHERE datname = 'app' AND backend_type ~ 'keeper'";
$node->poll_query_until('postgres', "SELECT EXISTS ($keeper)") or die 'the keeper does not come back';
my $pid = $node->safe_psql('postgres', $keeper);
is(sqlstate($node, "SET ROLE stranger; $_", 'postgres'), '42501', "not for a stranger: $_")
  foreach 'DROP DATABASE app', 'ALTER DATABASE app RENAME TO mine', 'CREATE DATABASE brief TEMPLATE app';
is($node->safe_psql('postgres', $keeper), $pid, 'and the keeper is still there');

# Whoever runs such a command may be gone before it ends: here, while it waits for another session to leave.
my $guest = session($node, 'app');
my $template_user = start_client($node, 'CREATE DATABASE brief TEMPLATE app');
$node->poll_query_until('postgres',
	"SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'app' AND backend_type ~ 'keeper'")
  or die 'the keeper does not leave';
$node->safe_psql('postgres',
	"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ '^CREATE DATABASE' AND backend_type = 'client backend'");
ok( $node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = 'app' AND backend_type ~ 'keeper'"),
	'the keeper comes back when the session is terminated that had sent it away');
$guest->quit;
finish_clients($template_user);

is_unchanged('app', 'the original after all that');
work_off('app', 'the original');

# The extension, dropped and created again.
is(sqlstate($node, "BEGIN; DROP EXTENSION pg_fanout; ROLLBACK; SELECT fanout.enqueue('jobs', 'x')", 'app'),
	'', 'a DROP EXTENSION that is rolled back did not happen');
is($node->safe_psql('app', "SELECT fanout.complete(lease) FROM fanout.dequeue('jobs', 'w4')"), 't', 'work goes on');
$node->safe_psql('app', "SELECT fanout.enqueue('jobs', 'waits')");
foreach my $round (1 .. 3)
{
	is(sqlstate($node, 'DROP EXTENSION pg_fanout', 'app'), '', "DROP EXTENSION, round $round");
	is($node->safe_psql('app', "SELECT count(*) FROM pg_namespace WHERE nspname = 'fanout'"),
		0, "the schema is gone, round $round");
	is(sqlstate($node, 'CREATE EXTENSION pg_fanout', 'app'), '', "CREATE EXTENSION, round $round");
	is($node->safe_psql('app', 'SELECT count(*) FROM fanout.queues'), 0, "there is no queue, round $round");
	is(sqlstate($node, "SELECT * FROM fanout.dequeue('jobs')", 'app'), '42704', "not the old one either, round $round");
	$node->safe_psql('app', "SELECT fanout.create_queue('jobs', concurrency => 1)");
	$node->safe_psql('app', "SELECT fanout.enqueue('jobs', 'a'), fanout.enqueue('jobs', 'b')");
	is($node->safe_psql('app', "SELECT name FROM fanout.dequeue('jobs', 'w5', max_tasks => 5)"),
		'a', "nothing of the old extension is left in memory, round $round");
}

# Somebody else's database without the extension, and one that the extension leaves for good.
is(sqlstate($node, "SELECT fanout.enqueue('jobs', 'x')", 'template1'), '3F000', 'a database without the extension');
is(sqlstate($node, 'DROP EXTENSION pg_fanout', 'app'), '', 'DROP EXTENSION at last');
ends_well('DROP DATABASE app', 'DROP DATABASE after it');
ok( $node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type ~ 'fanout.*keeper'"),
	'one process is left, for the database that has the extension');

$node->stop;
done_testing();
