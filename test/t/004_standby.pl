# A standby can be looked at, refuses work, and after its promotion goes on where the primary was.
#
# Promise 7, with a failover in place of the crash.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = new_node('primary', init => [ allows_streaming => 1 ]);
$primary->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('jobs', concurrency => 5, lease => '10 min');
SELECT fanout.fan_out('jobs', 'index', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 20) i));
EOS

$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

# After the base backup: a task that is done, two that run, one of them with a checkpoint, another delayed and in the
# next segment of the log.
my @leases = split /\n/, $primary->safe_psql('postgres',
	"SELECT lease FROM fanout.dequeue('jobs', 'w1', max_tasks => 3)");
$primary->safe_psql('postgres', <<EOS);
SELECT fanout.complete($leases[0], '"indexed"');
SELECT fanout.checkpoint($leases[1], 'read', '{"size": 42}');
SELECT fanout._next_segment();
SELECT fanout.enqueue('jobs', 'tomorrow', delay => '1 day');
EOS
$primary->poll_query_until('postgres',
	"SELECT count(*) = 2 FROM fanout.attempts WHERE state = 'running'")
  or die 'the journal was not written';
my $state = $primary->safe_psql('postgres',
	'SELECT task, state, attempt, lease, worker, result FROM fanout.tasks ORDER BY task');
my $counts = $primary->safe_psql('postgres', 'SELECT scheduled, ready, running FROM fanout.queues');
my $last_task = $primary->safe_psql('postgres', 'SELECT max(task) FROM fanout.tasks');
$primary->wait_for_catchup($standby);

my %refused = (
	create_queue => "SELECT fanout.create_queue('new')",
	alter_queue => "SELECT fanout.alter_queue('jobs', concurrency => 1)",
	drop_queue => "SELECT fanout.drop_queue('jobs')",
	pause_queue => "SELECT fanout.pause_queue('jobs')",
	resume_queue => "SELECT fanout.resume_queue('jobs')",
	purge_queue => "SELECT fanout.purge_queue('jobs')",
	grant_queue => "SELECT fanout.grant_queue('jobs', current_user::regrole)",
	revoke_queue => "SELECT fanout.revoke_queue('jobs', current_user::regrole)",
	enqueue => "SELECT fanout.enqueue('jobs', 'x')",
	enqueue_many => "SELECT fanout.enqueue_many('jobs', 'x', '{1}')",
	fan_out => "SELECT fanout.fan_out('jobs', 'x'::text, '{1}'::jsonb[])",
	'fan_out with names' => "SELECT fanout.fan_out('jobs', '{x}'::text[], '{1}'::jsonb[])",
	create_batch => 'SELECT fanout.create_batch()',
	seal_batch => 'SELECT fanout.seal_batch(1)',
	cancel => 'SELECT fanout.cancel(5)',
	'cancel of several' => "SELECT fanout.cancel('{5}'::bigint[])",
	retry => 'SELECT fanout.retry(5)',
	'retry of several' => "SELECT fanout.retry('{5}'::bigint[])",
	dequeue => "SELECT * FROM fanout.dequeue('jobs', 'w2')",
	'dequeue that waits' => "SELECT * FROM fanout.dequeue('jobs', 'w2', wait => '1 min')",
	'dequeue from several' => "SELECT * FROM fanout.dequeue('{jobs}'::text[], 'w2')",
	complete_and_dequeue => "SELECT * FROM fanout.complete_and_dequeue($leases[1], NULL, 'jobs', 'w2')",
	dequeue_wait => "CALL fanout.dequeue_wait('jobs', 'w2', '1 min', NULL)",
	extend => "SELECT fanout.extend($leases[1])",
	heartbeat => "SELECT fanout.heartbeat('w1')",
	checkpoint => "SELECT fanout.checkpoint($leases[1], 'x', '1')",
	complete => "SELECT fanout.complete($leases[1])",
	'complete of several' => "SELECT fanout.complete('{$leases[1]}'::bigint[])",
	fail => "SELECT fanout.fail($leases[1])",
	release => "SELECT fanout.release($leases[1])",
);
is(sqlstate($standby, $refused{$_}), '25006', "a standby refuses $_") foreach sort keys %refused;

# Memory there has nothing, not even the segments of the log
is($standby->safe_psql('postgres', "SELECT status, count(*) FROM fanout.collect(1, '0') GROUP BY 1 ORDER BY 1"),
	"ready|19\nsucceeded|1", 'a batch can be collected on a standby, with what is unfinished');
is($standby->safe_psql('postgres', "SELECT status FROM fanout.result($last_task, '0')"), 'scheduled', 'and a task of another segment');
is($standby->safe_psql('postgres', "SELECT result FROM fanout.tasks WHERE state = 'succeeded'"),
	'"indexed"', 'outcomes can be read on a standby');
foreach my $view (qw(queues tasks batches leases workers attempts))
{
	is(sqlstate($standby, "SELECT * FROM fanout.$view"), '', "$view can be read on a standby");
}
is(sqlstate($standby, 'SELECT * FROM fanout.status()'), '', 'status() can be read on a standby');

# Failover
$primary->stop('immediate');
$standby->promote;
wait_for_memory($standby);

is( $standby->safe_psql('postgres', "SELECT fanout.checkpoint($leases[1], 'read', '{}')"),
	'{"size": 42}', 'promise 7: checkpoint and lease are there after the promotion');
is( $standby->safe_psql('postgres',
		'SELECT task, state, attempt, lease, worker, result FROM fanout.tasks ORDER BY task'),
	$state,
	'promise 7: every task is as it was on the primary');
is($standby->safe_psql('postgres', 'SELECT scheduled, ready, running FROM fanout.queues'),
	$counts, 'the counts are, too');
is( $standby->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('jobs', 'w2', max_tasks => 10)"),
	3, 'promise 4: the limit counts the leases that the primary gave');
cmp_ok($standby->safe_psql('postgres', 'SELECT min(lease) FROM fanout.leases WHERE worker = $$w2$$'),
	'>', $leases[2], 'no lease number is given again');
is($standby->safe_psql('postgres', "SELECT fanout.complete($_)"), 't', "lease $_ of the primary completes")
  foreach @leases[ 1, 2 ];
cmp_ok($standby->safe_psql('postgres', "SELECT fanout.enqueue('jobs', 'new')"),
	'>', $last_task, 'no task id is given again');

install_ledger($standby);
$standby->safe_psql('postgres', "SELECT fanout.alter_queue('jobs', concurrency => 10)");
$standby->safe_psql('postgres', "SELECT fanout.release(lease) FROM fanout.leases");
$standby->safe_psql('postgres', "SELECT fanout.cancel(task) FROM fanout.tasks WHERE name = 'tomorrow'");
ok( finish_clients(map { start_client($standby, "CALL work('jobs', 'rest.$_')") } 1 .. 2),
	'workers finish the rest');
is( $standby->safe_psql('postgres',
		"SELECT status, count(*) FROM fanout.collect(1, '10 s') GROUP BY 1"),
	'succeeded|20',
	'promise 9: the batch is complete');

$standby->stop;
done_testing();
