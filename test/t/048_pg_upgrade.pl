# pg_upgrade of a cluster with work in flight: what is queued, delayed, leased, finished and batched is there afterwards,
# and work goes on. From this version of PostgreSQL to the same one, which pg_upgrade takes like any other; or from an older
# one that has this version of the extension: FANOUT_OLD_PG=/usr/lib/postgresql/15
#
# Promise 7: as after a restart. Promise 2: no number is given again.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = "max_worker_processes = 16\npg_fanout.retention = -1\n";
my $old_path = $ENV{FANOUT_OLD_PG};
my $old = new_node('old', conf => $conf, new => [ $old_path ? (install_path => $old_path) : () ]);
my %look = (
	queues => 'SELECT queue, scheduled, ready, running FROM fanout.queues ORDER BY 1',
	tasks => 'SELECT task, queue, name, args, state, priority, partition_key, key, batch, run_at, deadline, attempt, lease, worker, finished_at, result, error FROM fanout.tasks ORDER BY 1',
	leases => 'SELECT lease, task, queue, worker, attempt FROM fanout.leases ORDER BY 1',
	attempts => 'SELECT task, lease, worker, state, error FROM fanout.attempts ORDER BY 1, 2',
	checkpoints => 'SELECT task, step, value FROM fanout.checkpoint ORDER BY 1, 2',
	batches => 'SELECT batch, owner, tasks, finished, sealed FROM fanout.batches ORDER BY 1',
	segments => 'SELECT slot, first_task FROM fanout.segment ORDER BY 2',
	partitions => 'SELECT queue, partition_key, concurrency FROM fanout.partitions WHERE concurrency IS NOT NULL',
	grants => "SELECT has_schema_privilege('worker', 'fanout', 'USAGE'), count(*) FROM fanout.queue_grant",
	misplaced => 'SELECT * FROM misplaced()',
);

# What is in flight, in two segments; in a second database as well, and a third one that has had the extension
install_misplaced($old);
$old->safe_psql('postgres', <<'EOS');
CREATE ROLE worker;
SELECT fanout.grant_usage('worker');
SELECT fanout.create_queue('jobs', lease => '1 h', backoff => '1 h', backoff_max => '1 h', rate_limit => 1000, rate_period => '1 h');
SELECT fanout.create_queue('keyed', partition_concurrency => 2, aging => '1 min');
SELECT fanout.grant_queue('jobs', 'worker');
SELECT fanout.set_partition('keyed', 'p', concurrency => 1);
SELECT fanout.fan_out('jobs', 'part', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 10) i));
SELECT fanout.enqueue('jobs', 'tomorrow', delay => '1 day', deadline => now() + '2 days', key => 'k');
SELECT fanout.enqueue_many('keyed', 'keyed', '{1,2,3,4}', partition_keys => '{p,p,q,q}');
EOS
my @leases = split /\n/, $old->safe_psql('postgres', "SELECT lease FROM fanout.dequeue('jobs', 'w', max_tasks => 4)");
$old->safe_psql('postgres', <<EOS);
SELECT fanout.checkpoint($leases[0], 'read', '{"bytes": 42}');
SELECT fanout.complete($leases[1], '"done"');
SELECT fanout.fail($leases[2], 'not yet');
SELECT fanout._next_segment();
EOS
$old->safe_psql('postgres', "SELECT fanout.enqueue('jobs', 'late')");
$old->safe_psql('postgres', 'CREATE DATABASE other; CREATE DATABASE without');
$old->safe_psql('other', "CREATE EXTENSION pg_fanout; SELECT fanout.create_queue('jobs'); SELECT fanout.enqueue('jobs', 'x')");
$old->safe_psql('without', 'CREATE EXTENSION pg_fanout; DROP EXTENSION pg_fanout CASCADE');
$old->poll_query_until('postgres', "SELECT count(*) = 2 FROM fanout.attempts WHERE state = 'running'")
  or die 'the journal was not written';
my %was = look($old, \%look);
my ($last_task, $last_batch) = split /\|/, $old->safe_psql('postgres', 'SELECT max(task), max(batch) FROM fanout.tasks');
$old->stop;

my $new = PostgreSQL::Test::Cluster->new('new');
# pg_upgrade wants both with checksums or both without, and initdb has other ideas about them from 18 on
$new->init(extra => [ $new->pg_version >= 18 && $old->pg_version < 18 ? '--no-data-checksums' : () ]);
$new->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_fanout'\nmax_connections = 50\n$conf");
chdir PostgreSQL::Test::Utils::tempdir() or die;
foreach my $check ([ '--check' ], [])
{
	command_ok([
			'pg_upgrade', '-d', $old->data_dir, '-D', $new->data_dir, '-b', $old->config_data('--bindir'), '-B', $new->config_data('--bindir'),
			'-s', $new->host, '-p', $old->port, '-P', $new->port, @$check
		],
		"pg_upgrade @$check");
}

$new->start;
is_as_it_was($new, 'promise 7: after pg_upgrade', \%look, \%was);
wait_for_memory($new, 'other');
sub query { return $new->safe_psql($_[1] // 'postgres', $_[0]); }
is(query("SELECT fanout.checkpoint($leases[0], 'read', '0')"), '{"bytes": 42}', 'a lease is held, its checkpoint known');
is(query("SELECT fanout.complete($leases[$_])"), 't', 'leases complete') foreach 0, 3;
is(query("SELECT fanout.complete($leases[1])"), 'f', 'a completion that is repeated');
cmp_ok(query("SELECT fanout.enqueue('jobs', 'new')"), '>', $last_task, 'promise 2: ids of tasks go on');
cmp_ok(query('SELECT fanout.create_batch()'), '>', $last_batch, 'those of batches as well');
cmp_ok(query("SET ROLE worker; SELECT min(lease) FROM fanout.dequeue('jobs', 'w', max_tasks => 3)"), '>', $leases[-1], 'and numbers of leases; grants are there');
is(query("SELECT fanout.enqueue('jobs', 'again', key => 'k') = task FROM fanout.tasks WHERE name = 'tomorrow'"), 't', 'keys are held');
is(query("SELECT count(*) FROM fanout.dequeue('keyed', 'w', max_tasks => 10)"), 3, 'limits of partitions count');
query("SELECT fanout.complete(ARRAY(SELECT lease FROM fanout.leases))");
is(query("SELECT fanout.complete(lease) FROM fanout.dequeue('keyed', 'w')"), 't', 'all of them are given out');
is(query('SELECT fanout._next_segment()'), 3, 'the next segment');
is(query("SELECT name FROM fanout.dequeue('jobs', 'w')", 'other'), 'x', 'another database');
is(query("CREATE EXTENSION pg_fanout; SELECT fanout.create_queue('jobs')", 'without'), 't', 'one that had no extension gets one');
is(query('SELECT * FROM misplaced()'), '', 'no row is out of its segment');

$new->stop;
done_testing();
