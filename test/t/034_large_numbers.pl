# Ids of tasks and batches and numbers of leases beyond 2^31, 2^32 and 2^40, and work across each of these: nothing keeps
# a number in 32 bits.
#
# Promise 2: each task is delivered, in order, and has one outcome. Promise 7: a crash loses nothing. Promise 9: joins end.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# So little memory that most of what waits is on disk only
my $node = new_node('main', conf => <<EOC);
max_worker_processes = 16
pg_fanout.max_tracked_tasks = 64
pg_fanout.retention = '1 h'
pg_fanout.journal_interval = 2
EOC

sub query { return $node->safe_psql('postgres', $_[0]); }

install_misplaced($node);
query(<<'EOS');
CREATE TABLE delivered (n bigserial, task bigint, lease bigint);

-- Work off a queue, in transactions of several tasks each.
CREATE PROCEDURE work_off(queue_name text) LANGUAGE plpgsql AS $$
DECLARE
	claims record;
BEGIN
	WHILE EXISTS (SELECT FROM fanout.queues WHERE queue = queue_name AND ready > 0) LOOP
		SELECT array_agg(d.task ORDER BY d.ordinality) AS tasks, array_agg(d.lease ORDER BY d.ordinality) AS leases INTO claims
		  FROM fanout.dequeue(queue_name, 'w', max_tasks => 7, wait => '3 s') WITH ORDINALITY d;
		INSERT INTO delivered (task, lease) SELECT * FROM unnest(claims.tasks, claims.leases);
		PERFORM fanout.checkpoint(l, 'seen', to_jsonb(l)) FROM unnest(claims.leases) l;
		PERFORM fanout.complete(claims.leases, ARRAY(SELECT to_jsonb(t) FROM unnest(claims.tasks) t));
		COMMIT;
	END LOOP;
END $$;
SELECT fanout.create_queue('lane', partition_concurrency => 2);
SELECT fanout.create_queue('jobs', lease => '10 min', backoff => '0');
SELECT fanout.create_queue('short', lease => '50 ms', backoff => '0');
SELECT fanout.create_queue('rated', rate_limit => 1000, rate_period => '1 h', aging => '1 min');
SELECT fanout.create_queue('batches');
EOS

my %look = (
	queues => 'SELECT queue, scheduled, ready, running FROM fanout.queues ORDER BY 1',
	tasks => 'SELECT task, queue, name, state, priority, run_at, attempt, lease, worker, result, error FROM fanout.tasks ORDER BY 1',
	leases => 'SELECT lease, task, queue, worker, attempt FROM fanout.leases ORDER BY 1',
	attempts => 'SELECT task, lease, worker, state, error FROM fanout.attempts ORDER BY 1, 2',
	batches => 'SELECT batch, tasks, finished, sealed FROM fanout.batches ORDER BY 1',
	'rows out of their segments' => 'SELECT * FROM misplaced()',
);

# A connection that has the new value was made when the postmaster had told all others.
sub set_retention
{
	my ($retention) = @_;

	query("ALTER SYSTEM SET pg_fanout.retention = '$retention'");
	query('SELECT pg_reload_conf()');
	$node->poll_query_until('postgres', "SELECT current_setting('pg_fanout.retention')::interval = '$retention'") or die 'the retention is another one';
	return;
}

# The next ids of tasks and batches and numbers of leases are these.
sub go_on_at
{
	my ($task, $lease, $batch) = @_;

	# not while the keeper is about to set them, too
	$node->poll_query_until('postgres', "SELECT bool_and(CASE item WHEN 'next task' THEN t.last_value > value::bigint WHEN 'next lease' THEN l.last_value > value::bigint ELSE true END) FROM fanout.status(), fanout.task_id t, fanout.lease_id l")
	  or die 'the ceilings were not raised';
	query("SELECT setval('fanout.task_id', $task, false), setval('fanout.lease_id', $lease, false), setval('fanout.batch_id_seq', $batch, false)");
	$node->stop('immediate');
	$node->start;
	wait_for_memory($node);
	is(query("SELECT string_agg(value, ' ' ORDER BY item DESC) FROM fanout.status() WHERE item IN ('next task', 'next lease')"),
		"$task $lease", "tasks from $task, leases from $lease");
	return;
}

foreach my $bits (31, 32, 40)
{
	my $edge = 2**$bits;
	my $what = "2^$bits";

	go_on_at($edge - 30, $edge - 20, $edge - 1);

	# A batch whose ids go across, one that grows; and what waits behind: far more than there is memory for
	my $batch = query("SELECT fanout.fan_out('batches', 'part', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 50) i))");
	my $growing = query("SELECT fanout.create_batch('any')");
	is("$batch $growing", join(' ', $edge - 1, $edge), "$what: batches");
	is(query("SELECT min(task), max(task) FROM fanout.tasks WHERE batch = $batch"), join('|', $edge - 30, $edge + 19), "$what: its tasks");
	query(<<EOS);
SELECT fanout.enqueue_many('jobs', 'job', array_fill('{}'::jsonb, '{60}'), priority => p, batch => CASE p WHEN 0 THEN $growing END) FROM unnest('{1,0,-1}'::int[]) p;
SELECT fanout.enqueue('lane', 'keyed', partition_key => (i % 5)::text) FROM generate_series(1, 40) i;
SELECT fanout.enqueue_many('rated', 'rated', array_fill('{}'::jsonb, '{20}'), priority => 1);
SELECT fanout.enqueue_many('short', 'short', '{1,2,3}');
SELECT fanout.enqueue('jobs', 'tomorrow', delay => '1 day', deadline => now() + '2 days', key => '$what');
SELECT fanout.seal_batch($growing);
EOS
	is(query("SELECT code FROM fanout.why((SELECT max(task) FROM fanout.tasks WHERE name = 'tomorrow'))"), 'scheduled', "$what: why a task waits");

	# Leases across, of all fates: these expire
	query("SELECT fanout.dequeue('short', 'w', max_tasks => 3)");
	$node->poll_query_until('postgres', "SELECT count(*) = 3 FROM fanout.attempts a JOIN fanout.tasks t USING (task) WHERE t.task > $edge AND t.queue = 'short' AND a.state = 'expired'")
	  or die 'leases did not expire';
	my @leases;
	while (@leases < 30)
	{
		my @more = split /\n/, query("SELECT lease FROM fanout.dequeue('jobs', 'w', max_tasks => 30 - @{[scalar @leases]}, wait => '20 s')");

		die 'no more tasks come' unless @more;
		push @leases, @more;
	}
	cmp_ok($leases[0], '<', $edge, "$what: leases before");
	cmp_ok($leases[-1], '>=', $edge, "$what: and after");
	my @parts = map { 'ARRAY[' . join(',', @leases[ 6 * $_ .. 6 * $_ + 5 ]) . ']::bigint[]' } 0 .. 4;
	query(<<EOS);
SELECT fanout.checkpoint(lease, 'read', to_jsonb(lease)) FROM fanout.leases;
SELECT fanout.complete($parts[0], '{1,2,3,4,5,6}');
SELECT fanout.fail($parts[1], 'not yet');
SELECT fanout.release($parts[2]);
SELECT fanout.fail($parts[3], 'hopeless', final => true);
SELECT fanout.retry(ARRAY(SELECT task FROM fanout.tasks WHERE lease = $leases[18]));
SELECT fanout.cancel(ARRAY(SELECT task FROM fanout.tasks WHERE lease = $leases[29]), 'not needed');
SELECT fanout.extend($leases[28], '20 min');
EOS
	$node->poll_query_until('postgres', "SELECT count(*) = 6 FROM fanout.attempts WHERE lease = ANY ($parts[4]) AND state = 'running'")
	  or die 'the journal was not written';
	is(query("SELECT min(lease), max(lease), count(*) FROM fanout.leases"), "$leases[24]|$leases[29]|6", "$what: leases that are held");
	is(sqlstate($node, "SELECT fanout.complete($leases[12])"), 'FO001', "$what: a lease that was released");
	is(query("SELECT fanout.complete($leases[0])"), 'f', "$what: a completion that is repeated");

	my %was = look($node, \%look);
	$node->stop('immediate');
	$node->start;
	is_as_it_was($node, "promise 7: $what", \%look, \%was);
	is(query("SELECT count(*) FROM fanout.checkpoint(" . ($leases[28]) . ", 'read', '0') x WHERE x = to_jsonb($leases[28])"), 1, "$what: its checkpoint");

	query("SELECT fanout.complete(ARRAY(SELECT lease FROM fanout.leases WHERE lease <> $leases[29]))");
	is(sqlstate($node, "SELECT fanout.complete($leases[29])"), '', "$what: what was to be cancelled may still complete");
	query("CALL work_off('batches')");
	is(query("SELECT count(*), bool_and(ordinal = args) FROM (SELECT c.ordinal, t.args::int AS args FROM fanout.collect($batch, '0') WITH ORDINALITY c JOIN fanout.tasks t USING (task) ORDER BY c.ordinal) o"),
		'50|t', "$what: promise 9: the batch, in order");
	is(query("SELECT total, succeeded, ended FROM fanout.progress($batch)"), '50|50|t', "$what: its progress");
	query("CALL work_off('jobs')");
	is(query("SELECT fanout.wait($growing, '10 s')"), 't', "$what: a join that ended early");
	query("CALL work_off('short')");
	is(query('SELECT fanout._next_segment() IS NOT NULL'), 't', "$what: the next segment");
	is(query('SELECT * FROM misplaced()'), '', "$what: no row is out of its segment");
}

# What has waited in partitions since the first of these, as far apart as these are
query("CALL work_off('$_')") foreach 'lane', 'rated';
is(query("SELECT queue, count(*), count(DISTINCT d.task), count(*) FILTER (WHERE state <> 'succeeded') FROM delivered d JOIN fanout.tasks USING (task) WHERE queue <> 'jobs' GROUP BY 1 ORDER BY 1"),
	"batches|150|150|0\nlane|120|120|0\nrated|60|60|0\nshort|9|9|0", 'promise 2: all is delivered, once');
is(query(<<'EOS'), '', 'promise 2: in each partition in order');
SELECT * FROM (SELECT task, lag(task) OVER (PARTITION BY partition_key ORDER BY n) AS previous FROM delivered JOIN fanout.tasks USING (task) WHERE queue = 'lane') d WHERE previous > task
EOS
is(query("SELECT count(*) FROM fanout.outcome GROUP BY lease HAVING count(*) > 1 AND lease IS NOT NULL"), '', 'no lease has ended two tasks');

# Old segments are retired, and what has to stay goes to the next one.
my $left = "SELECT name, count(*), min(state) FROM fanout.tasks WHERE state = 'scheduled' GROUP BY 1";
set_retention('2 s');
ok($node->poll_query_until('postgres', "SELECT value::int >= 3 FROM fanout.status() WHERE item = 'retired segments'"), 'segments are retired');
is(query($left), 'tomorrow|3|scheduled', 'what is for tomorrow stays');
is(query('SELECT * FROM misplaced()'), '', 'in its segment');
$node->stop('immediate');
$node->start;
wait_for_memory($node);
is(query($left), 'tomorrow|3|scheduled', 'and after a crash');
set_retention('1 h');
query("SELECT fanout.reschedule(ARRAY(SELECT task FROM fanout.tasks WHERE name = 'tomorrow'), delay => '0')");
query("CALL work_off('jobs')");
is(query("SELECT count(*) FROM delivered JOIN fanout.tasks USING (task) WHERE name = 'tomorrow' AND state = 'succeeded'"), 3, 'and can be done today');

# A dump knows the numbers.
my $dump = PostgreSQL::Test::Utils::tempdir() . '/large.dump';
query("SELECT fanout.enqueue('jobs', 'of the dump')");
my $last = query('SELECT max(task) FROM fanout.tasks');
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
query('CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), $dump ], 'pg_restore');
wait_for_memory($node, 'restored');
ok($node->poll_query_until('restored', "SELECT ready = 1 FROM fanout.queues WHERE queue = 'jobs'"), 'restored');
cmp_ok($node->safe_psql('restored', "SELECT fanout.enqueue('jobs', 'new')"), '>', $last, 'restored: ids go on');
is($node->safe_psql('restored', "SELECT count(fanout.complete(lease)) FROM fanout.dequeue('jobs', 'w', max_tasks => 9)"), 2, 'restored: work goes on');

$node->stop;
done_testing();
