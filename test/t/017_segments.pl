# The log in several segments: a crash, tables that are rewritten, a dump, and segments that are used again.
#
# Promise 7: a crash loses nothing, whatever segment it is in. Promise 2: each task is delivered, in order.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# So little memory that most tasks are on disk only, and yet enough for what a restored database has, too
my $node = new_node('main', conf => 'pg_fanout.max_tracked_tasks = 200');

install_misplaced($node);
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('jobs', lease => '10 min', backoff => '1 h', backoff_max => '1 h');
SELECT fanout.create_queue('backlog');
EOS

# What is due in the backlog is scheduled or ready, as the keeper has come to it.
my %look = (
	queues => 'SELECT queue, CASE queue WHEN \'jobs\' THEN scheduled END, scheduled + ready, running FROM fanout.queues ORDER BY 1',
	tasks => 'SELECT task, queue, name, state, priority, run_at, attempt, lease, worker, result, error FROM fanout.tasks WHERE queue = \'jobs\' OR state NOT IN (\'scheduled\', \'ready\') ORDER BY 1',
	leases => 'SELECT lease, task, queue, worker, attempt FROM fanout.leases ORDER BY 1',
	attempts => 'SELECT task, lease, worker, state, error FROM fanout.attempts ORDER BY 1, 2',
	segments => 'SELECT slot, first_task FROM fanout.segment ORDER BY 2',
	'no row out of its segment' => 'SELECT * FROM misplaced()',
);
my %was;

sub look_now
{
	%was = look($node, \%look);
	is($was{'no row out of its segment'}, '', 'no row is out of its segment');
	return;
}
sub is_unchanged { my ($what, $db) = @_; return is_as_it_was($node, $what, \%look, \%was, $db); }

# Six tasks, of a batch or not, a timed one, and a backlog of three priorities
sub fill
{
	my ($batch) = @_;

	$node->safe_psql('postgres', <<EOS);
SELECT fanout.enqueue_many('jobs', 'job', '{1,2,3,4,5,6}', batch => $batch);
SELECT fanout.enqueue('jobs', 'tomorrow', delay => '1 day');
SELECT fanout.enqueue('backlog', 'soon', delay => (7 - i) * interval '1 ms') FROM generate_series(1, 7) i;
SELECT fanout.enqueue_many('backlog', 'some', array_fill('{}'::jsonb, '{100}'), priority => p) FROM unnest('{1,0,-1}'::int[]) p;
EOS
	return;
}

# All of that in each of three segments
my $batch = $node->safe_psql('postgres', 'SELECT fanout.create_batch()');
fill($batch);
is($node->safe_psql('postgres', 'SELECT fanout._next_segment()'), 2, 'the second segment');
fill($batch);
is($node->safe_psql('postgres', 'SELECT fanout._next_segment()'), 3, 'the third segment');
fill($batch);
$node->safe_psql('postgres', "SELECT fanout.seal_batch($batch)");

# Of each six tasks: one is done, one has failed, one waits for its retry, three run with checkpoints.
my @leases;
push @leases, $node->safe_psql('postgres', "SELECT lease FROM fanout.dequeue('jobs', 'w1', wait => '10 s')") for 1 .. 18;
my ($done, $failed, $again, @held) = (
	map { my $nth = $_; 'ARRAY[' . join(',', map { $leases[ 6 * $_ + $nth ] } 0 .. 2) . ']' } 0 .. 5);
$node->safe_psql('postgres', <<EOS);
SELECT fanout.complete($done, '{1,2,3}');
SELECT fanout.fail($failed, 'hopeless', final => true);
SELECT fanout.fail($again, 'not yet');
SELECT fanout.checkpoint(lease, 'read', to_jsonb(lease)) FROM fanout.leases;
EOS
$node->poll_query_until('postgres',
	"SELECT count(*) FILTER (WHERE state = 'running') = 9 AND count(*) = 18 FROM fanout.attempts WHERE state <> 'released'")
  or die 'the journal was not written';

look_now();
$node->stop('immediate');
$node->start;
is_unchanged('promise 7: after a crash');

# A keeper that takes over memory as it is has the segments, too.
my ($keeper) = processes($node, 'keeper');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($keeper)");
my $another = wait_until { my @now = processes($node, 'keeper'); @now && $now[0] != $keeper } 'another keeper';
ok($another, 'another keeper');
is_unchanged('under another keeper');

# Tables are rewritten while a session knows where they and their rows were.
my $session = session($node);
is($session->query_safe("SELECT count(*) FROM fanout.complete($held[0], '{4,5,6}')"), 3, 'work in three segments');
$session->query_safe("SELECT fanout.checkpoint(unnest($held[1]), 'written', '0')");
foreach my $slot (1 .. 3)
{
	$node->safe_psql('postgres', "VACUUM FULL fanout.${_}_$slot") foreach qw(task attempt checkpoint outcome);
	$node->safe_psql('postgres', "CLUSTER fanout.outcome_$slot USING outcome_${slot}_pkey");
	$node->safe_psql('postgres', "REINDEX TABLE fanout.task_$slot");
}
is($session->query_safe("SELECT count(*) FROM fanout.complete($held[1], '{7,8,9}')"), 3, 'it goes on after that');
is( $session->query_safe("SELECT string_agg(x::text, ' ') FROM unnest($held[2]) l, fanout.checkpoint(l, 'written', to_jsonb(l)) x"),
	join(' ', @leases[ 5, 11, 17 ]), 'with checkpoints');
is($session->query_safe("SELECT count(*) FROM fanout.retry(ARRAY(SELECT task FROM fanout.tasks WHERE state = 'failed'))"),
	3, 'and retries');
is($session->query_safe("SELECT count(*) FROM fanout.dequeue('backlog', 'w2', max_tasks => 20)"), 20, 'and rows that have moved');
is($session->query_safe("SELECT count(fanout.release(lease)) FROM fanout.leases WHERE worker = 'w2'"), 20, 'which are given back');
$session->quit;
look_now();
$node->stop('immediate');
$node->start;
is_unchanged('promise 7: after another crash');

# A dump has all segments, and where they begin.
my $dump = PostgreSQL::Test::Utils::tempdir() . '/segments.dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
sub restore
{
	my ($db) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr($db), $dump ], "pg_restore to $db");
	return;
}

# The whole backlog comes in the order of priority and id, or of time; then what was enqueued here.
sub work_off
{
	my ($db, $what) = @_;

	$node->safe_psql($db, "SELECT fanout.enqueue_many('backlog', 'last', array_fill('{}'::jsonb, '{70}'), priority => 1)");
	is($node->safe_psql($db, 'SELECT * FROM misplaced()'), '', "$what: new tasks are in the latest segment");
	$node->safe_psql($db, <<'EOS');
CREATE TABLE delivered (n bigserial, task bigint);
DO $$
DECLARE
	claims record;
BEGIN
	LOOP
		SELECT array_agg(d.task ORDER BY d.ordinality) AS tasks, array_agg(d.lease) AS leases INTO claims
		  FROM fanout.dequeue('backlog', 'w', max_tasks => 25, wait => '20 s') WITH ORDINALITY d;
		EXIT WHEN claims.tasks IS NULL;
		INSERT INTO delivered (task) SELECT unnest(claims.tasks);
		PERFORM fanout.complete(claims.leases);
		COMMIT;
		EXIT WHEN (SELECT ready + scheduled = 0 FROM fanout.queues WHERE queue = 'backlog');
	END LOOP;
END $$;
EOS
	is( $node->safe_psql($db, "SELECT count(*), count(DISTINCT task), (SELECT count(*) FROM fanout.tasks WHERE queue = 'backlog') FROM delivered"),
		'991|991|991', "promise 2: $what: all is delivered, once");
	is( $node->safe_psql($db, <<'EOS'), '', "promise 2: $what: in order");
SELECT * FROM (SELECT row_number() OVER (ORDER BY n) AS n, task FROM delivered JOIN fanout.tasks USING (task) WHERE name <> 'soon') d
 FULL JOIN (SELECT row_number() OVER (ORDER BY priority, task) AS n, task FROM fanout.tasks WHERE queue = 'backlog' AND name <> 'soon') e USING (n)
 WHERE d.task IS DISTINCT FROM e.task ORDER BY n LIMIT 1
EOS
	return;
}

restore('restored');
is_unchanged('restored', 'restored');
is($node->safe_psql('restored', 'SELECT fanout._next_segment()'), 4, 'restored: the fourth segment');
work_off('restored', 'restored');
is(sqlstate($node, 'SELECT fanout._next_segment()', 'restored'), '55000', 'restored: none is free');
$node->safe_psql('postgres', 'DROP DATABASE restored WITH (FORCE)');

is($node->safe_psql('postgres', 'SELECT fanout._next_segment()'), 4, 'the fourth segment');
work_off('postgres', 'the original');
$node->safe_psql('postgres', "SELECT count(fanout.complete(lease)) FROM fanout.leases");
is( $node->safe_psql('postgres', "SELECT fanout.purge_queue('jobs')"),
	9, 'purged: what was to be tried again, had another life, or was for tomorrow');
is( $node->safe_psql('postgres', "SELECT string_agg(left(status, 1), '' ORDER BY ordinal) FROM fanout.collect($batch, '0')"),
	'sccsss' x 3, 'a batch over three segments, in order');

# Retired by hand, the first is used again: the order of segments is not that of their slots any more.
sub retire
{
	my ($slot) = @_;
	my $since = $node->safe_psql('postgres', "SELECT value FROM fanout.status() WHERE item = 'ready since'");

	$node->safe_psql('postgres', <<EOS);
BEGIN;
TRUNCATE fanout.task_$slot, fanout.attempt_$slot, fanout.checkpoint_$slot, fanout.outcome_$slot;
DELETE FROM fanout.segment WHERE slot = $slot;
COMMIT;
EOS
	$node->poll_query_until('postgres', "SELECT value <> '$since' FROM fanout.status() WHERE item = 'ready since'")
	  or die 'memory was not rebuilt';
	return;
}
is(sqlstate($node, 'SELECT fanout._next_segment()'), '55000', 'none is free');
$node->safe_psql('postgres', 'DROP TABLE delivered');
retire($_) foreach 1 .. 3;
$node->safe_psql('postgres', "SELECT fanout.purge_queue('backlog')");
fill('NULL');
foreach my $slot (1, 2)
{
	is($node->safe_psql('postgres', 'SELECT fanout._next_segment()'), $slot, "segment $slot once more");
	fill('NULL');
}
is($node->safe_psql('postgres', 'SELECT string_agg(slot::text, \' \' ORDER BY first_task) FROM fanout.segment'),
	'4 1 2', 'the order of segments');
look_now();
$node->stop('immediate');
$node->start;
is_unchanged('promise 7: a crash after the wrap');
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ], 'pg_dump after the wrap');
restore('wrapped');
is_unchanged('restored after the wrap', 'wrapped');
is($node->safe_psql('wrapped', 'SELECT fanout._next_segment()'), 3, 'restored after the wrap: the next segment');
$node->safe_psql('wrapped', "SELECT fanout.enqueue('jobs', 'new')");
is($node->safe_psql('wrapped', 'SELECT * FROM misplaced()'), '', 'restored after the wrap: new tasks go there');

$node->stop;
done_testing();
