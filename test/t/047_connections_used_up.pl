# All of max_connections are used, by workers who wait: keepers need none of them, so leases end, delayed tasks come up and
# the journal is written; who waits gets his task, and whoever was refused comes in when another one has gone.
#
# Promise 2: each task is delivered, and once.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $connections = 10;
my $node = new_node('main', conf => <<EOC);
max_connections = $connections
superuser_reserved_connections = 0
max_worker_processes = 3
max_logical_replication_workers = 0
max_parallel_workers = 0
max_wal_senders = 0
autovacuum = off
pg_fanout.max_wait = '3 min'
EOC

sub query { return $node->safe_psql('postgres', $_[0]); }

query(<<'EOS');
SELECT fanout.create_queue('jobs', lease => '500 ms', backoff => '0');
SELECT fanout.create_queue('idle');
SELECT fanout.enqueue('jobs', 'expires');
EOS
my $control = session($node);
sub asked { return $control->query_safe($_[0]); }
sub refusal { my ($ret, $stdout, $stderr) = try_query($node, 'SELECT 1'); return $stderr; }

sub ok_until
{
	my ($sql, $what) = @_;
	my $came = wait_until { asked("SELECT $sql") eq 't' } $what;

	return ok($came, $what);
}

my @waiting = map { start_client($node, "SELECT name FROM fanout.dequeue('idle', 'w', wait => '170 s')") } 2 .. $connections;
ok_until("used = $connections - 1 FROM fanout.pools WHERE pool = 'waiting backends'", 'all connections are used');
like(refusal(), qr/too many clients/, 'one more is refused');

# the keeper, and another one that takes its place
asked("SELECT lease FROM fanout.dequeue('jobs', 'gone')");
ok_until("ready = 1 FROM fanout.queues WHERE queue = 'jobs'", 'a lease ends');
asked("SELECT fanout.complete(lease) FROM fanout.dequeue('jobs', 'w')");
my $starts = asked('SELECT keeper_starts FROM fanout.stats');
asked("SELECT pg_terminate_backend(keeper_pid) FROM fanout.stats");
ok_until("keeper_starts > $starts AND keeper_pid IS NOT NULL FROM fanout.stats", 'another keeper is started');
asked("SELECT fanout.enqueue('jobs', 'later', delay => '100 ms')");
is(asked("SELECT name FROM fanout.dequeue('jobs', 'w', lease => '10 min', wait => '20 s')"), 'later', 'timers work');
ok_until('journal_lag = 0 FROM fanout.stats', 'the journal is written');
asked("SELECT fanout.complete(lease) FROM fanout.leases");

# one after the other gets a task and goes
like(refusal(), qr/too many clients/, 'still nobody comes in');
asked("SELECT fanout.enqueue('idle', 'for you')");
my $came = wait_until { refusal() eq '' } 'a connection';
ok($came, 'one has his task, and another one comes in');
asked("SELECT fanout.enqueue_many('idle', 'for you', array_fill('1'::jsonb, ARRAY[$connections - 2]))");
ok(finish_clients(@waiting), 'all who wait end well');
is(join(' ', map { client_output($_) =~ s/\n//r } @waiting), join(' ', ('for you') x ($connections - 1)), 'each with a task');
is(asked('SELECT keeper_failures FROM fanout.stats'), 0, 'no keeper has failed');
$control->quit;

$node->stop;
done_testing();
