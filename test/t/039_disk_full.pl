# A disk that is full: what fails, what goes on, what the log says, and that all of it goes on by itself when there is room.
# The database is on a small file system, which run_tests mounts where it may, and tells in FANOUT_SMALL_FS.
#
# Promises 1, 2 and 7. README says it under "When something runs out".

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $small = $ENV{FANOUT_SMALL_FS} // '';

plan skip_all => 'no small file system could be mounted' if $small eq '';

my $node = new_node('main', conf => "autovacuum = off\npg_fanout.retention = -1");
my $mark;

sub query { return $node->safe_psql('small', $_[0]); }
sub state_of { return sqlstate($node, $_[0], 'small'); }
sub becomes { my ($sql, $what) = @_; return ok($node->poll_query_until('small', "SELECT $sql"), $what); }
sub count_in_log { my ($pattern) = @_; my $log = substr(slurp_file($node->logfile), $mark); return scalar(() = $log =~ /$pattern/g); }

sub fill
{
	# a large one first: the last bytes are written slowly
	system("dd if=/dev/zero of='$small/filler' bs=64k 2>/dev/null; dd if=/dev/zero of='$small/filler.2' bs=512 2>/dev/null");
	$mark = -s $node->logfile;
	return;
}

sub make_room
{
	unlink "$small/filler", "$small/filler.2";
	return;
}

mkdir "$small/space" or die "cannot use $small: $!";
$node->safe_psql('postgres', "CREATE TABLESPACE small LOCATION '$small/space'");
$node->safe_psql('postgres', 'CREATE DATABASE small TABLESPACE small');
query('CREATE EXTENSION pg_fanout');
wait_for_memory($node, 'small');
query(<<'EOS');
SELECT fanout.create_queue('jobs', lease => '10 min');
SELECT fanout.create_queue('short', lease => '300 ms', max_attempts => 1000);
SELECT count(*) FROM fanout.enqueue_many('jobs', 'x', array_fill('1'::jsonb, '{3000}'));
CREATE FUNCTION broken() RETURNS SETOF text LANGUAGE sql VOLATILE AS $$
	SELECT format('queue %s counts %s, %s, %s, but has %s', q.queue, q.scheduled, q.ready, q.running, u.n)
	  FROM fanout.queues q, LATERAL (SELECT count(*) AS n FROM fanout.tasks t WHERE t.queue = q.queue AND t.finished_at IS NULL) u
	 WHERE q.scheduled + q.ready + q.running <> u.n
	UNION ALL
	SELECT 'lost: task ' || id FROM fanout.task WHERE NOT EXISTS (SELECT FROM fanout.tasks t WHERE t.task = id AND t.state IS NOT NULL)
$$;
EOS

# -- enqueue, and what had begun before
fill();
is(state_of(q{SELECT fanout.enqueue_many('jobs', 'large', array_fill(to_jsonb(repeat('x', 500)), '{1000}'))}), '53100', 'an enqueue that needs room fails');
is(query("SELECT ready FROM fanout.queues WHERE queue = 'jobs'"), 3000, 'and leaves nothing');
is(query("SELECT used FROM fanout.pools WHERE pool = 'uncommitted tasks'"), 0, 'nor in memory');

# -- journal and complete
is(query("SELECT count(*) FROM fanout.dequeue('jobs', 'w', max_tasks => 2000)"), 2000, 'a dequeue needs none');
becomes('(SELECT failed_in_a_row >= 3 FROM fanout.stats)', 'the journal does: keepers fail one after the other');
like(query('SELECT last_error FROM fanout.stats'), qr/could not extend file .* No space left on device/, 'the view says why');
is(count_in_log(qr/pg_fanout keeper of database \d+\n/), 1, 'the log says it once');
is(query("SELECT journal_lag BETWEEN 976 AND 2000 AND journal_lag_age > '1 s' FROM fanout.stats"), 't', 'the journal lags');
is(state_of('SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases))'), '53100', 'a complete that needs room fails');
is(query('SELECT count(*) FROM fanout.leases'), 2000, 'its leases are held');
is(query("SELECT count(fanout.extend(lease, '20 min')) FROM (SELECT lease FROM fanout.leases LIMIT 5) l"), 5, 'and can be extended');
is(query("SELECT count(*) FROM fanout.dequeue('jobs', 'w', max_tasks => 10)"), 10, 'dequeue goes on');
make_room();
becomes('(SELECT failed_in_a_row = 0 AND journal_lag = 0 FROM fanout.stats)', 'with room again, the journal catches up');
is(count_in_log(qr/works again/), 1, 'the log says so');
is(query('SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases LIMIT 1500))'), 1500, 'complete works');
is(query('SELECT * FROM broken() LIMIT 5'), '', 'memory and tables agree');

# -- what the keeper itself writes: an outcome of a last attempt, of a deadline, a join that is decided, and what is refilled
query(<<'EOS');
SELECT fanout.create_queue('last', lease => '10 min', max_attempts => 1), fanout.create_queue('many', lease => '1 h');
SELECT count(*) FROM fanout.enqueue_many('last', 'x', array_fill('1'::jsonb, '{300}'));
SELECT count(*) FROM fanout.enqueue_many('last', 'late', array_fill('1'::jsonb, '{300}'), deadline => now() + '15 s');
SELECT count(*) FROM fanout.enqueue_many('many', 'x', array_fill('1'::jsonb, '{2000}'));
EOS
my $batch = query("SELECT fanout.fan_out('many', 'any'::text, array_fill('1'::jsonb, '{400}'), 'any', priority => -1)");
my $winner = query("SELECT lease FROM fanout.dequeue('many', 'w')");
query("SELECT count(*) FROM fanout.dequeue('last', 'w', max_tasks => 300)");
fill();
is(state_of("SELECT fanout.complete($winner)"), '', 'one outcome has room');
# Only now: what the keeper had room for would not wait.
query("SELECT count(fanout.extend(lease, '1 ms')) FROM fanout.leases WHERE queue = 'last'");
becomes('(SELECT failed_in_a_row >= 2 FROM fanout.stats)', 'the keeper needs more, and fails');
like(query('SELECT last_error FROM fanout.stats'), qr/No space left on device/, 'the view says why');
is(query("SELECT count(*) FROM fanout.dequeue('many', 'w', max_tasks => 100)"), 100, 'dequeue goes on');
is(query("SELECT count(*) FROM fanout.tasks WHERE queue = 'last' AND name = 'x' AND finished_at IS NULL"), 300, 'tasks wait for their outcome');
make_room();
becomes("(SELECT bool_and(state = CASE name WHEN 'x' THEN 'failed' ELSE 'cancelled' END) FROM fanout.tasks WHERE queue = 'last')", 'with room again, all have it');
is(query("SELECT fanout.wait($batch, '20 s')"), 't', 'and the join is decided');
is(query("SELECT count(*) FILTER (WHERE status = 'succeeded'), count(*) FILTER (WHERE status = 'cancelled') >= 299 FROM fanout.collect($batch, '0')"), '1|t', 'what waited of the batch is cancelled');
is(query('SELECT * FROM broken() LIMIT 5'), '', 'memory and tables agree');
query("SELECT count(fanout.complete(lease)) FROM fanout.leases WHERE queue = 'many'; SELECT fanout.purge_queue('many')");

# -- a start while the disk is full: the rebuild needs room to sort
query("ALTER DATABASE small SET work_mem = '64kB'");
query("SELECT count(*) FROM fanout.dequeue('jobs', 'w', max_tasks => 10000)");
becomes('(SELECT journal_lag = 0 FROM fanout.stats)', 'the journal is written');
my $held = query('SELECT count(*) FROM fanout.leases');
$node->stop;
fill();    # now: the server itself cannot recover from a crash without room
$node->start;
becomes("(SELECT state = 'failing' AND failed_in_a_row >= 2 FROM fanout.stats)", 'the rebuild fails');
is(state_of("SET statement_timeout = '1 s'; SELECT * FROM fanout.dequeue('jobs')"), '57014', 'functions wait');
is(query('SELECT count(*) FROM fanout.leases'), 0, 'views show what the tables tell');
is(count_in_log(qr/pg_fanout keeper of database \d+\n/), 1, 'the log says it once, though the words differ');
make_room();
becomes("(SELECT state = 'ready' AND failed_in_a_row = 0 FROM fanout.stats)", 'with room again, memory is filled');
is(query('SELECT count(*) FROM fanout.leases'), $held, 'promise 7: all journaled leases are held');
is(query('SELECT * FROM broken() LIMIT 5'), '', 'memory and tables agree');

query('ALTER DATABASE small RESET work_mem');

# -- retention: what has to stay cannot be moved
query(q{SELECT count(*) FROM fanout.enqueue_many('jobs', 'stays', array_fill(to_jsonb(repeat('x', 1000)), '{2000}'), delay => '1 day')});
is(query('SELECT fanout._next_segment()'), 2, 'another segment');
query("SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases))");
query("SELECT fanout.enqueue('short', 'x', delay => '5 s')");
my $failures = query('SELECT keeper_failures FROM fanout.stats');
fill();
$node->append_conf('postgresql.conf', "pg_fanout.retention = '1 s'");
$node->reload;
becomes("(SELECT keeper_failures > $failures FROM fanout.stats)", 'the keeper fails as it moves what has to stay');
my ($failed, $first) = split /\|/, query('SELECT keeper_failures, last_failure_at FROM fanout.stats');
is(query('SELECT failed_in_a_row FROM fanout.stats'), 0, 'that is no reason for a pause of all else');
becomes("(SELECT ready = 1 FROM fanout.queues WHERE queue = 'short')", 'another one goes on with all else: a task becomes due');
becomes("(SELECT keeper_failures > $failed FROM fanout.stats)", 'it is tried again');
my ($now, $last) = split /\|/, query('SELECT keeper_failures, last_failure_at FROM fanout.stats');
cmp_ok(query("SELECT extract(epoch FROM '$last'::timestamptz - '$first') / ($now - $failed)"), '>', 8, 'after a pause of 10 s');
is(count_in_log(qr/pg_fanout keeper of database \d+\n/), 1, 'the log has it once');
is(query('SELECT * FROM broken() LIMIT 5'), '', 'nothing is half done');
make_room();
becomes('(SELECT retired_segments >= 1 AND carried_tasks >= 2000 FROM fanout.stats)', 'with room again, the segment is retired');
is(query("SELECT count(*) FROM fanout.tasks WHERE name = 'stays' AND state = 'scheduled'"), 2000, 'promise 2: what had to stay is there');
is(query('SELECT * FROM broken() LIMIT 5'), '', 'memory and tables agree');

unlike(slurp_file($node->logfile), qr/PANIC|TRAP|pg_fanout violation/, 'no panic');
$node->safe_psql('postgres', 'DROP DATABASE small');
$node->stop;
done_testing();
