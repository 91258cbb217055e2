# The whole cycle of a worker through PgBouncer in transaction mode: no call needs what an earlier one left in its
# session.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($pgbouncer) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin', '/usr/local/sbin';
plan skip_all => 'pgbouncer is not installed' unless $pgbouncer;

my $node = new_node('main');
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('jobs', worker_concurrency => 2, backoff => '1 ms', backoff_max => '1 ms');
SELECT fanout.create_queue('load', concurrency => 3, worker_concurrency => 1);
EOS

# Two server connections for any number of clients
my $dir = PostgreSQL::Test::Utils::tempdir_short();
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $user = $node->safe_psql('postgres', 'SELECT current_user');
append_to_file("$dir/pgbouncer.ini", <<EOC);
[databases]
postgres = host=@{[ $node->host ]} port=@{[ $node->port ]} dbname=postgres user=$user
[pgbouncer]
pool_mode = transaction
default_pool_size = 2
max_client_conn = 100
listen_addr =
listen_port = $port
unix_socket_dir = $dir
auth_type = any
logfile = $PostgreSQL::Test::Utils::log_path/pgbouncer.log
ignore_startup_parameters = extra_float_digits
EOC
my $bouncer = IPC::Run::start([ $pgbouncer, "$dir/pgbouncer.ini" ],
	'<', \undef, '>', "$PostgreSQL::Test::Utils::log_path/pgbouncer.out", '2>&1');
END
{
	local $?;
	$bouncer->kill_kill if $bouncer;
}

my $connstr = "host=$dir port=$port dbname=postgres user=$user";
wait_until { (try_query($node, 'SELECT 1', $connstr))[0] == 0 } 'pgbouncer'
  or die 'pgbouncer did not start';

# One statement in a connection of its own
sub bounced
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql, connstr => $connstr);
}

# Every call is a statement of its own, and goes to whichever server connection is free.
sub pooled_session
{
	return $node->background_psql('postgres',
		extra_params => [ '-d', $connstr ], on_error_stop => 0);
}

my $batch = bounced("SELECT fanout.fan_out('jobs', 'index', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 7) i))");

# A lease that is got through one server connection is used through the other: one is kept busy at a time.
my $worker = pooled_session();
my @blockers = map { pooled_session() } 1 .. 2;
my $first_pid = $blockers[0]->query_safe("BEGIN; SELECT pg_backend_pid()");
my ($pid, $lease) = split /\|/, $worker->query_safe(
	"SELECT pg_backend_pid(), lease FROM fanout.dequeue('jobs', 'w1')");
isnt($pid, $first_pid, 'claimed through one server connection');
is($blockers[1]->query_safe("BEGIN; SELECT pg_backend_pid()"), $pid, 'which is then busy');
$blockers[0]->query_safe('COMMIT');
is( $worker->query_safe("SELECT pg_backend_pid() || ' ' || fanout.checkpoint($lease, 'read', '42')"),
	"$first_pid 42", 'a checkpoint through the other');
is( $worker->query_safe("SELECT pg_backend_pid() || ' ' || (fanout.extend($lease, '1 h') > now() + '59 min')::text"),
	"$first_pid true", 'an extension');
is( $worker->query_safe("SELECT pg_backend_pid() || ' ' || fanout.complete($lease, '\"done\"')::text"),
	"$first_pid true", 'the completion');
$blockers[1]->query_safe('COMMIT');
$_->quit foreach ($worker, @blockers);

# The rest of the cycle
is( bounced("SELECT count(*) FROM fanout.dequeue('jobs', 'w1', max_tasks => 5)"),
	2, 'promise 4: the limit of the worker holds, whatever sessions it has');
is(bounced("SELECT fanout.heartbeat('w1', '1 h')"), 2, 'a heartbeat extends both leases');
my @leases = split /\n/, bounced('SELECT lease FROM fanout.leases ORDER BY lease');
is(bounced("SELECT fanout.fail($leases[0], 'broken') IS NOT NULL"), 't', 'one fails');
is(bounced("SELECT fanout.release($leases[1])"), 't', 'one is given back');
($lease) = split /\n/, bounced("SELECT lease FROM fanout.dequeue('jobs', 'w1', wait => '10 s')");
foreach my $round (1 .. 5)
{
	$lease = bounced("SELECT lease FROM fanout.complete_and_dequeue($lease, '\"done\"', 'jobs', 'w1', wait => '20 s')");
	isnt($lease, '', "complete_and_dequeue, round $round");
}
is(bounced("SELECT lease FROM fanout.complete_and_dequeue($lease, '\"done\"', 'jobs', 'w1')"), '', 'that was the rest');
is( bounced("SELECT ordinal, status, result FROM fanout.collect($batch, '10 s')"),
	join("\n", map { "$_|succeeded|\"done\"" } 1 .. 7),
	'the results, in order');

# A waiting worker gets what another client enqueues.
my $waiter = pooled_session();
$waiter->query_until(qr/waiting/, "\\echo waiting\nSELECT name FROM fanout.dequeue('jobs', 'w2', wait => '20 s');\n");
$node->poll_query_until('postgres', "SELECT waiting_workers = 1 FROM fanout.queues WHERE queue = 'jobs'")
  or die 'nobody waits';
bounced("SELECT fanout.enqueue('jobs', 'for the waiter')");
is($waiter->query_until(qr/for the waiter/, ''), "for the waiter\n", 'a dequeue that waits');
$waiter->quit;

# Many clients on the two connections, each for itself
bounced("SELECT fanout.fan_out('load', 'index', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 120) i))");
append_to_file("$dir/worker.sql", <<'EOS');
SELECT count(*) AS found, max(lease) AS lease FROM fanout.dequeue('load', 'w' || :client_id, wait => '50 ms') \gset
\if :found
SELECT fanout.checkpoint(:lease, 'read', to_jsonb(:client_id));
SELECT fanout.complete(:lease, to_jsonb(:client_id));
\endif
EOS
$node->command_ok(
	[ 'pgbench', '-n', '-c', '6', '-j', '2', '-t', '40', '-f', "$dir/worker.sql", $connstr ],
	'six workers work');
$node->command_ok(
	[ 'pgbench', '-n', '-c', '1', '-t', '1', '-f', "$dir/worker.sql", $connstr ],
	'one more looks for what is left')
  while bounced("SELECT ready > 0 FROM fanout.queues WHERE queue = 'load'") eq 't';
is( bounced("SELECT state, count(*), count(DISTINCT lease) FROM fanout.tasks WHERE queue = 'load' GROUP BY 1"),
	'succeeded|120|120',
	'promise 2: every task was done, and once');
is( bounced("SELECT count(*) FROM fanout.checkpoint c JOIN fanout.tasks t USING (task) WHERE t.queue = 'load' AND c.value = t.result"),
	120, 'by one worker each');
is( $node->safe_psql('postgres', "SELECT count(*) <= 2 FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"),
	't', 'all through two connections');

$node->stop;
done_testing();
