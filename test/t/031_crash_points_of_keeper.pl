# Between any two steps of the keeper's work, journal, expiry, joins, refill, rebuild and the moves of segments, the server
# is crashed, the keeper fails, and it is terminated. Needs a checked build (test/harness/run_tests makes one).
#
# Promise 6: a crash loses nothing that was committed; what the keeper was about to do is done by the next one.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use CrashPoints;
use FanoutTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = crash_points_node() or exit;
my $claim = claim_sql();

# What a client has the keeper do; "lasting" once a crash at the point has it done or done again.
my $reload = 'INSERT INTO fanout.queue SELECT * FROM fanout.queue WHERE false';
my @of_keeper = (
	{
		name => 'journal',
		prepare => "SELECT fanout.enqueue('jobs', 'TAG')",
		act => "SELECT lease FROM fanout.dequeue('jobs', 'w', max_tasks => 1000)",
		effect => "SELECT count(*) > 0 FROM fanout.attempt WHERE event = 'c' AND lease = lease_of('TAG')",
		points => [ 'journal-copied', 'journal-written', 'journal-committed', 'journal-settled' ],
		crash => {
			'journal-copied' => "SELECT state = 'ready' AND attempt = 0 FROM fanout.tasks WHERE name = 'TAG'",
			'journal-written' => "SELECT state = 'ready' AND attempt = 0 FROM fanout.tasks WHERE name = 'TAG'"
		}
	},
	{
		name => 'expiry',
		prepare => "SELECT fanout.enqueue('short', 'TAG')",
		act => "SELECT lease FROM fanout.dequeue('short', 'w', lease => '1 ms', max_tasks => 1000)",
		effect => "SELECT state = 'ready' AND attempt = 1 FROM fanout.tasks WHERE name = 'TAG'",
		points => ['expiry-told'],
		crash => { 'expiry-told' => "SELECT state = 'ready' FROM fanout.tasks WHERE name = 'TAG'" }
	},
	{
		name => 'the last expiry',
		prepare => "SELECT fanout.enqueue('once', 'TAG')",
		act => "SELECT lease FROM fanout.dequeue('once', 'w')",
		effect => "SELECT count(*) = 1 FROM fanout.tasks WHERE name = 'TAG' AND state = 'failed'",
		points => [ 'exhausted-held', 'exhausted-written' ]
	},
	{
		name => 'join',
		prepare => "SELECT fanout.fan_out('jobs', 'TAG'::text, '{1,2,3,4}'::jsonb[], \"join\" => 'any')",
		act => "SELECT fanout.complete(lease) FROM fanout.dequeue('jobs', 'w')",
		effect => "SELECT count(*) = 3 FROM fanout.tasks t JOIN fanout.batch b ON b.id = t.batch WHERE name = 'TAG' AND state = 'cancelled' AND b.ended_at IS NOT NULL",
		points => [ 'join-decided', 'join-cancelled', 'join-noted' ]
	},
	{
		name => 'refill',
		prepare => "SELECT fanout.enqueue_many('big', 'TAG', array_fill('1'::jsonb, '{600}'))",
		act => "SELECT fanout.complete(ARRAY(SELECT lease FROM fanout.dequeue('big', 'w', max_tasks => 600)))",
		meanwhile => "SELECT fanout.cancel(ARRAY(SELECT task FROM fanout.tasks WHERE name = 'TAG' AND state = 'ready' ORDER BY task LIMIT 9));"
		  . " SELECT fanout.reprioritize(ARRAY(SELECT task FROM fanout.tasks WHERE name = 'TAG' AND state = 'ready' ORDER BY task LIMIT 9), -3);"
		  . " SELECT fanout.enqueue_many('big', 'TAG.2', array_fill('1'::jsonb, '{20}'), priority => -7)",
		effect => "SELECT count(*) = 0 FROM fanout._points() WHERE action <> 'nothing'",
		points => [ 'refill-begun', 'refill-read', 'refill-chunk', 'refill-done' ],
		drain => 1
	},
	{
		# one read is for several of them
		name => 'refill of partitions',
		prepare => "SELECT fanout.enqueue_many('wide', 'TAG', array_fill('1'::jsonb, '{900}'), partition_keys => ARRAY(SELECT 'key' || n % 8 FROM generate_series(1, 900) n))",
		act => "SELECT fanout.complete(ARRAY(SELECT lease FROM fanout.dequeue('wide', 'w', max_tasks => 900)))",
		meanwhile => "SELECT fanout.cancel(ARRAY(SELECT task FROM fanout.tasks WHERE name = 'TAG' AND state = 'ready' ORDER BY task LIMIT 40));"
		  . " SELECT fanout.reprioritize(ARRAY(SELECT task FROM fanout.tasks WHERE name = 'TAG' AND state = 'ready' ORDER BY task LIMIT 40), -3);"
		  . " SELECT fanout.enqueue_many('wide', 'TAG.2', array_fill('1'::jsonb, '{60}'), priority => -7, partition_keys => ARRAY(SELECT 'key' || n % 8 FROM generate_series(1, 60) n))",
		effect => "SELECT count(*) = 0 FROM fanout._points() WHERE action <> 'nothing'",
		points => [ 'refill-begun', 'refill-read', 'refill-chunk', 'refill-done' ],
		drain => 1
	},
	{
		name => 'rebuild',
		prepare => "$claim SELECT fanout.enqueue('jobs', 'TAG.2'); SELECT fanout.enqueue('jobs', 'TAG.3', delay => '1 hour')",
		act => $reload,
		meanwhile_fails => "SET statement_timeout = '50 ms'; SELECT fanout.enqueue('jobs', 'never')",
		effect => "SELECT string_agg(state || attempt, ' ' ORDER BY name) = 'running1 ready0 scheduled0' FROM fanout.tasks WHERE name LIKE 'TAG%'",
		points => [
			'rebuild-begun', 'rebuild-queues', 'rebuild-starts', 'rebuild-histories',
			'rebuild-attempted', 'rebuild-unfinished', 'rebuild-committed', 'ceiling-committed', 'rebuild-ceilings'
		]
	});

cross_for_keeper($_) foreach @of_keeper;

# The next segment, of which there are not many.
{
	my %segment = (name => 'segment', act => 'SELECT fanout._next_segment()');

	crash_at(\%segment, 'segment-committed');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM fanout.segment'), 2, 'segment, crash when it is on disk: it is used');
	$node->safe_psql('postgres', "SELECT fanout.enqueue_many('jobs', 'after', '{1,2,3}')");
	# the next keeper was to begin it once more, at the same id, and so was every one after that
	my ($tag, $client) = begin(\%segment, 'segment-committed', 'error');
	ok(finish_clients($client), 'segment, error when it is on disk: another keeper goes on');
	$node->safe_psql('postgres', "SELECT fanout.enqueue_many('jobs', 'after', '{1,2,3}')");
	settles('the segment that was asked for is not asked for again', $tag, 'SELECT count(*) = 3 FROM fanout.segment');
	drain('segments');
}

# Who drops a queue waits for the keeper, which is ending a task of it, and for whoever else does.
{
	my $control = session($node);

	$control->query_safe("SELECT fanout.create_queue('doomed', lease => '50 ms', max_attempts => 1), fanout.enqueue('doomed', 'doomed'), pg_advisory_lock(7)");
	my $failures = $control->query_safe('SELECT keeper_failures FROM fanout.stats');
	$control->query_safe("SELECT fanout._set_point('exhausted-held', 'wait', times => 1)");
	$control->query_safe("SELECT lease FROM fanout.dequeue('doomed', 'w')");
	ok(becomes("SELECT EXISTS (SELECT FROM fanout._points() WHERE point = 'exhausted-held' AND reached > 0)"), 'drop: the keeper is about to end a task');
	# should it not wait for the keeper, it waits at the lock, and the keeper for it
	my $dropper = start_client($node, "SELECT fanout.drop_queue('doomed', force => true); SELECT pg_advisory_xact_lock(7)");
	ok(becomes("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query ~ 'drop_queue' AND pid <> pg_backend_pid() AND wait_event_type = 'Lock')"), 'who drops the queue waits');
	$control->query_safe("SELECT fanout._set_point('exhausted-held', 'nothing')");
	ok(becomes("SELECT EXISTS (SELECT FROM fanout.outcome o JOIN fanout.task t ON t.id = o.task WHERE t.name = 'doomed')"
			  . " OR EXISTS (SELECT FROM pg_stat_activity WHERE backend_type ~ 'fanout keeper' AND wait_event_type = 'Lock')"), 'the keeper goes on');
	$control->query_safe('SELECT pg_advisory_unlock(7)');
	ok(finish_clients($dropper), 'then it is dropped');
	ok(becomes("SELECT count(*) = 1 FROM fanout.outcome o JOIN fanout.task t ON t.id = o.task WHERE t.name = 'doomed'"), 'the task has one outcome');
	is($control->query_safe('SELECT keeper_failures FROM fanout.stats'), $failures, 'and no keeper has failed');
	$control->quit;
}

finish();
