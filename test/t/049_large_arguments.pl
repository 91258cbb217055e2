# Arguments, results and checkpoints that are as large as PostgreSQL lets a jsonb be, 256 MB: they work, or are refused
# and leave nothing; and checkpoints that are too large together do not keep a task, or its queue, from going on.
#
# Promises 1 and 2.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "fsync = off\nmax_wal_size = '2GB'");
my $session = session($node);
sub query { return $session->query_safe($_[0]); }
sub large { my ($letter) = @_; return "to_jsonb(repeat('$letter', 140000000))"; }

query("SELECT fanout.create_queue('jobs', lease => '10 min')");
query("SELECT fanout.enqueue('jobs', 'large', " . large('x') . ')');
query("SELECT fanout.enqueue('jobs', 'next')");
is(query("SELECT length(args #>> '{}'), checkpoints FROM fanout.dequeue('jobs', 'w')"), '140000000|{}', 'large arguments');
my ($task, $lease) = split /\|/, query('SELECT task, lease FROM fanout.leases');

is(session_sqlstate($session, "SELECT fanout.checkpoint($lease, 'a', to_jsonb(repeat('x', 300000000)))"), '54000', 'one that is too large for a jsonb is refused');
query("SELECT fanout.checkpoint($lease, step, " . large('y') . ") IS NULL FROM unnest('{a}'::text[]) step");
query("SELECT fanout.release($lease)");
is(query("SELECT length(checkpoints ->> 'a') FROM fanout.dequeue('jobs', 'w')"), 140000000, 'a large checkpoint');
$lease = query('SELECT lease FROM fanout.leases');
query("SELECT fanout.checkpoint($lease, 'b', " . large('z') . ') IS NULL');
query("SELECT fanout.release($lease)");
is(query("SELECT name, checkpoints IS NULL FROM fanout.dequeue('jobs', 'w')"), 'large|t', 'more than fit into one object: the task is given out without');
$lease = query('SELECT lease FROM fanout.leases');
is(query("SELECT left(fanout.checkpoint($lease, 'b', '0') #>> '{}', 3)"), 'zzz', 'and each can be asked for');
is(query("SELECT name FROM fanout.dequeue('jobs', 'w2')"), 'next', 'the queue goes on');
is(session_sqlstate($session, "SELECT fanout.complete($lease, to_jsonb(repeat('x', 300000000)))"), '54000', 'a result that is too large is refused');
is(query("SELECT state FROM fanout.tasks WHERE task = $task"), 'running', 'and the lease is held');
is(query("SELECT fanout.complete($lease, " . large('r') . ')'), 't', 'a large result');
is(query("SELECT length(result #>> '{}') FROM fanout.result($task)"), 140000000, 'can be read');

my $pid = query('SELECT pg_backend_pid()');
my ($rss) = slurp_file("/proc/$pid/status") =~ /^VmRSS:\s+(\d+) kB/m;
my ($shared) = slurp_file("/proc/$pid/status") =~ /^RssShmem:\s+(\d+) kB/m;
cmp_ok($rss - $shared, '<', 100 * 1024, 'memory is given back');
is($node->safe_psql('postgres', 'SELECT keeper_failures FROM fanout.stats'), 0, 'no keeper has failed');
$session->quit;

$node->stop;
done_testing();
