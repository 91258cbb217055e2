# Pools of memory that are used up: what each call does then, and that all goes on by itself when there is room again.
# README says it under "When something runs out"; lanes and their limits are in 019 and 032.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => <<EOC);
pg_fanout.max_tracked_tasks = 64
pg_fanout.max_workers_tracked = 16
pg_fanout.max_queues = 6
EOC

sub query { return $node->safe_psql('postgres', $_[0]); }
sub used { return query("SELECT used FROM fanout.pools WHERE pool = '$_[0]'"); }
sub becomes { my ($sql, $what) = @_; return ok($node->poll_query_until('postgres', "SELECT $sql"), $what); }
sub nothing_left { return becomes("(SELECT sum(used) = 0 FROM fanout.pools WHERE pool IN ('tasks', 'uncommitted tasks', 'leases', 'workers', 'queues of workers'))", $_[0]); }

install_work_off($node);
query(<<'EOS');
SELECT fanout.create_queue(q, lease => '10 min') FROM unnest('{q1,q2,q3,q4,fifth}'::text[]) q;
EOS

# -- tasks of open transactions
my @open = map { session($node) } 1 .. 4;
$open[ $_ - 1 ]->query_safe("BEGIN; SELECT count(*) FROM fanout.enqueue_many('q$_', 'x', array_fill('1'::jsonb, '{30}'))") foreach 1 .. 4;
is(used('uncommitted tasks') . ' ' . used('tasks'), '32 32', 'open transactions hold half of the pool at most');
query("SELECT count(*) FROM fanout.enqueue_many('fifth', 'x', array_fill('1'::jsonb, '{200}'))");
is(sqlstate($node, "CALL work_off('fifth', 200)"), '', 'another queue is worked off meanwhile');
$_->query_safe('COMMIT') foreach @open[ 0 .. 2 ];
is(used('uncommitted tasks'), '0', 'what was committed counts no more, nor what had no place');
is(sqlstate($node, "CALL work_off('q$_', 30)"), '', "queue q$_: all are delivered") foreach 1 .. 3;
is(query("SELECT ready FROM fanout.queues WHERE queue = 'q4'"), 0, 'the last one is not committed');
$open[3]->query_safe('ROLLBACK; BEGIN; SELECT fanout.enqueue(\'q1\', \'more\'); SAVEPOINT s; SELECT count(*) FROM fanout.enqueue_many(\'q1\', \'x\', array_fill(\'1\'::jsonb, \'{30}\'))');
cmp_ok(used('uncommitted tasks'), '<=', 32, 'by several in one transaction neither');
$open[3]->query_safe('ROLLBACK');
becomes("(SELECT sum(used) = 0 FROM fanout.pools WHERE pool IN ('tasks', 'uncommitted tasks'))", 'a rollback gives back');
$open[3]->query_safe("BEGIN; SELECT count(*) FROM fanout.enqueue_many('q4', 'x', array_fill('1'::jsonb, '{30}'))");
query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'");
drop_session($open[3]);
becomes("(SELECT sum(used) = 0 FROM fanout.pools WHERE pool IN ('tasks', 'uncommitted tasks'))", 'so does the end of a session');
$_->quit foreach @open[ 0 .. 2 ];

# -- leases: each running task has one
query("SELECT count(*) FROM fanout.enqueue_many('q1', 'x', array_fill('1'::jsonb, '{100}'))");
my @leases;
for (my $n = 0; $n < 20 && @leases < 64; $n++)
{
	push @leases, split /\n/, query("SELECT lease FROM fanout.dequeue('q1', 'w', max_tasks => 64, wait => '20 s')");
}
is(scalar(@leases) . ' ' . used('leases'), '64 64', 'as many leases as there is memory for');
is(query("SELECT count(*) FROM fanout.dequeue('q1', 'w')"), 0, 'then a dequeue returns nothing');
is(query("SELECT code FROM fanout.why((SELECT min(task) FROM fanout.tasks WHERE state = 'ready'))"), 'on_disk', 'why() tells');
is(query("SELECT count(*) FROM fanout.enqueue_many('q2', 'x', array_fill('1'::jsonb, '{10}'))"), 10, 'enqueue goes on, to disk');
my $waiter = start_client($node, "SELECT fanout.complete(lease) FROM fanout.dequeue('q1', 'w2', wait => '20 s')");
becomes("(SELECT used = 1 FROM fanout.pools WHERE pool = 'waiting backends')", 'somebody waits');
query("SELECT fanout.complete($leases[0])");
ok(finish_clients($waiter), 'a lease ends');
is(client_output($waiter), "t\n", 'the one who waits gets a task');
query("SELECT count(fanout.complete(lease)) FROM fanout.leases");
is(sqlstate($node, "CALL work_off('q1', 35); CALL work_off('q2', 10)"), '', 'all the rest is delivered');
nothing_left('and nothing is left in memory');

# -- workers
query("SELECT count(*) FROM fanout.enqueue_many('q1', 'x', array_fill('1'::jsonb, '{18}'))");
query(join '', map { "SELECT count(*) FROM fanout.dequeue('q1', 'worker $_');\n" } 1 .. 16);
is(used('workers'), 16, 'as many workers as there is memory for');
is(query("SELECT count(*) FROM fanout.dequeue('q1', 'another')"), 0, 'another one gets nothing');
is(query("SELECT count(*) FROM fanout.dequeue('q1', 'worker 1')"), 1, 'one that is known does');
my $another = start_client($node, "SELECT fanout.complete(lease) FROM fanout.dequeue('q1', 'another', wait => '20 s')");
becomes("(SELECT used = 1 FROM fanout.pools WHERE pool = 'waiting backends')", 'it waits');
query("SELECT count(fanout.complete(lease)) FROM fanout.leases WHERE worker = 'worker 2'");
ok(finish_clients($another), 'a worker has gone');
is(client_output($another), "t\n", 'the other one gets a task');
query("SELECT count(fanout.complete(lease)) FROM fanout.leases");
nothing_left('nothing is left in memory');

# -- queues
is(query("SELECT fanout.create_queue('sixth')"), 't', 'as many queues as there is memory for');
is(sqlstate($node, "SELECT fanout.create_queue('seventh')"), '53400', 'one more is refused');
is(sqlstate($node, "SELECT fanout.enqueue('seventh', 'x')"), '42704', 'and is not there');
query("SELECT fanout.drop_queue('sixth')");
is(query("SELECT fanout.create_queue('seventh')"), 't', 'when another one was dropped there is a place');

# -- wake-ups, and those for nothing: a waiter that is stopped looks when others have taken the task
my $before = query('SELECT wakeups, idle_wakeups FROM fanout.stats');
my $sleeper = session($node);
my $pid = $sleeper->query_safe('SELECT pg_backend_pid()');
$sleeper->query_until(qr/waiting/, "\\echo waiting\nSELECT fanout.complete(lease) FROM fanout.dequeue('q1', 'sleeper', wait => '30 s');\n");
becomes("(SELECT used = 1 FROM fanout.pools WHERE pool = 'waiting backends')", 'one waits');
kill 'STOP', $pid;
query("SELECT fanout.enqueue('q1', 'x')");
is(query("SELECT count(fanout.complete(lease)) FROM fanout.dequeue('q1', 'quick')"), 1, 'another one takes the task');
kill 'CONT', $pid;
becomes("(SELECT used = 1 FROM fanout.pools WHERE pool = 'waiting backends') AND (SELECT idle_wakeups > " . (split /\|/, $before)[1] . ' FROM fanout.stats)', 'the first one waits again');
query("SELECT fanout.enqueue('q1', 'x')");
$sleeper->query_until(qr/^t$/m, '');
is(query('SELECT wakeups || $$|$$ || idle_wakeups FROM fanout.stats'), join('|', map { $_ } ((split /\|/, $before)[0] + 2, (split /\|/, $before)[1] + 1)), 'two wake-ups, one for nothing');
$sleeper->quit;

# -- memory of a backend
SKIP:
{
	skip 'there is no prlimit', 5 if system('prlimit --version >/dev/null 2>&1') != 0;
	my $poor = session($node);
	my $poor_pid = $poor->query_safe('SELECT pg_backend_pid()');
	$poor->query_safe("SELECT fanout.complete(lease) FROM fanout.dequeue('q1') WHERE fanout.enqueue('q1', 'warm') > 0");
	query("SELECT count(fanout.complete(lease)) FROM fanout.dequeue('q1', max_tasks => 10)");
	my ($pages) = slurp_file("/proc/$poor_pid/statm") =~ /^(\d+)/;
	my $limit = $pages * 4096 + 32 * 1024 * 1024;
	my $many = "SELECT count(*) FROM fanout.enqueue_many('q1', 'x', array_fill('1'::jsonb, '{1000000}'))";

	is(system("prlimit --pid=$poor_pid --as=$limit:unlimited"), 0, 'a backend is given little memory');
	is(session_sqlstate($poor, "SELECT 1; $many"), '53200', 'a call that needs more fails');
	nothing_left('it has left nothing');
	is(query("SELECT ready FROM fanout.queues WHERE queue = 'q1'"), 0, 'nor is anything counted');
	is($poor->query_safe("SELECT fanout.enqueue('q1', 'x') > 0"), 't', 'the session goes on');
	query("SELECT count(fanout.complete(lease)) FROM fanout.dequeue('q1', max_tasks => 10)");
	$poor->quit;
}
nothing_left('nothing is left in memory');

$node->stop;
done_testing();
