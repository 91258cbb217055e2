# PREPARE TRANSACTION is refused where the transaction has work pending in memory, as for LISTEN and NOTIFY.
#
# Promise 1: all or nothing, so such a transaction leaves nothing.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => 'max_prepared_transactions = 5');

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('jobs', lease => '10 min', concurrency => 2);
SELECT fanout.fan_out('jobs', 'index', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 5) i));
EOS
my $lease = $node->safe_psql('postgres', "SELECT lease FROM fanout.dequeue('jobs', 'w1')");
my $look = 'SELECT task, state, attempt, lease FROM fanout.tasks ORDER BY 1';
my $before = $node->safe_psql('postgres', $look);

my %pending = (
	enqueue => "fanout.enqueue('jobs', 'x')",
	enqueue_many => "fanout.enqueue_many('jobs', 'x', '{1, 2}')",
	fan_out => "fanout.fan_out('jobs', 'x'::text, '{1, 2}'::jsonb[])",
	dequeue => "fanout.dequeue('jobs', 'w2')",
	checkpoint => "fanout.checkpoint($lease, 'step', '1')",
	complete => "fanout.complete($lease)",
	complete_and_dequeue => "fanout.complete_and_dequeue($lease, NULL, 'jobs', 'w2')",
	fail => "fanout.fail($lease)",
	release => "fanout.release($lease)",
	cancel => 'fanout.cancel(5)',
	create_queue => "fanout.create_queue('new')",
	alter_queue => "fanout.alter_queue('jobs', concurrency => 1)",
	pause_queue => "fanout.pause_queue('jobs')",
	purge_queue => "fanout.purge_queue('jobs')",
	drop_queue => "fanout.drop_queue('jobs', force => true)",
);
foreach my $what (sort keys %pending)
{
	is(sqlstate($node, "BEGIN; SELECT $pending{$what}; PREPARE TRANSACTION '$what'"),
		'0A000', "PREPARE TRANSACTION after $what is refused");
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'), 0, 'nothing is prepared');
is($node->safe_psql('postgres', $look), $before, 'promise 1: and nothing has happened');
is( $node->safe_psql('postgres', 'SELECT queue, concurrency, paused, running FROM fanout.queues'),
	'jobs|2|f|1', 'nor to the queue');

# Others may.
is( sqlstate($node, "CREATE TABLE t (); BEGIN; INSERT INTO t DEFAULT VALUES; PREPARE TRANSACTION 'others'"),
	'', 'a transaction without our work can be prepared');
is( sqlstate($node, "BEGIN; SELECT * FROM fanout.queues; SELECT fanout.progress(1); INSERT INTO t DEFAULT VALUES; PREPARE TRANSACTION 'looked'"),
	'', 'so can one that only looked');
is( sqlstate($node, <<'EOS'), '', 'and one whose work was rolled back to a savepoint');
BEGIN;
INSERT INTO t DEFAULT VALUES;
SAVEPOINT s;
SELECT fanout.enqueue('jobs', 'x');
SELECT fanout.dequeue('jobs', 'w2');
ROLLBACK TO s;
PREPARE TRANSACTION 'rolled back';
EOS
is($node->safe_psql('postgres', "COMMIT PREPARED 'others'; COMMIT PREPARED 'looked'; COMMIT PREPARED 'rolled back'; SELECT count(*) FROM t"),
	3, 'they commit');

# In the session in which it was refused, work goes on.
my $session = session($node);
$session->query_safe('BEGIN');
$session->query_safe("SELECT fanout.dequeue('jobs', 'w2')");
is(session_sqlstate($session, "PREPARE TRANSACTION 'refused'"), '0A000', 'refused');
is($session->query_safe("SELECT count(*) FROM fanout.dequeue('jobs', 'w2', max_tasks => 5)"),
	1, 'promise 4: the permit that the refused transaction had taken is back');
is($session->query_safe("SELECT fanout.complete($lease)"), 't', 'the lease that it had used is still held');
$session->quit;

$node->stop;
done_testing();
