# Between any two steps of enqueue, claim, checkpoint, complete, commit, abort and eviction the server is
# crashed, the process fails, and the process is terminated. Needs a checked build (test/harness/run_tests makes one):
# src/points.h has the points.
#
# Promise 1: what was not committed when the server died never happened, what was committed has.
# Promise 2: each task has one outcome all the same.

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
my @before_commit = ('commit-begun');
my @after_commit = ('commit-recorded', 'commit-note', 'commit-applied');

# What a client does, with the points that it comes to before and after its commit; its effect, which is there or not.
my @of_clients = (
	{
		name => 'enqueue',
		act => "SELECT fanout.enqueue_many('jobs', 'TAG', '{1,2,3}')",
		effect => "SELECT count(*) = 3 FROM fanout.tasks WHERE name = 'TAG' AND state = 'ready'",
		none => "SELECT count(*) = 0 FROM fanout.task WHERE name = 'TAG'",
		before => [ 'enqueue-reserved', 'enqueue-written', @before_commit ],
		after => \@after_commit
	},
	{
		name => 'claim',
		prepare => "SELECT fanout.enqueue('jobs', 'TAG')",
		act => "SELECT lease FROM fanout.dequeue('jobs', 'w', max_tasks => 1000)",
		effect => "SELECT count(*) = 1 FROM fanout.leases WHERE lease = lease_of('TAG')",
		none => "SELECT state = 'ready' AND attempt = 0 FROM fanout.tasks WHERE name = 'TAG'",
		before => [ 'claim-made', 'claim-journaled', 'claim-returned', @before_commit ],
		forgotten => [ 'commit-recorded', 'commit-note' ],	# by a crash, since the journal cannot have come to it
		any => ['commit-applied']
	},
	{
		name => 'synchronous claim',
		prepare => "SELECT fanout.enqueue('synchronous', 'TAG')",
		act => "SELECT lease FROM fanout.dequeue('synchronous', 'w', max_tasks => 1000)",
		effect => "SELECT count(*) = 1 FROM fanout.leases WHERE lease = lease_of('TAG')",
		none => "SELECT state = 'ready' AND attempt = 0 FROM fanout.tasks WHERE name = 'TAG'",
		before => ['claim-journaled'],
		after => \@after_commit
	},
	{
		name => 'checkpoint',
		prepare => $claim,
		act => "SELECT fanout.checkpoint(lease_of('TAG'), 'read', '1')",
		effect => "SELECT count(*) = 1 FROM fanout.checkpoint c JOIN fanout.task t ON t.id = c.task WHERE t.name = 'TAG'",
		before => [ 'checkpoint-held', 'checkpoint-written' ],
		after => ['commit-recorded']
	},
	{
		name => 'complete',
		prepare => $claim,
		act => "SELECT fanout.complete(lease_of('TAG'), '1')",
		effect => "SELECT count(*) = 1 FROM fanout.tasks WHERE name = 'TAG' AND state = 'succeeded'",
		none => "SELECT count(*) = 1 FROM fanout.tasks WHERE name = 'TAG' AND state IN ('running', 'ready')",
		before => [ 'complete-held', 'complete-written', @before_commit ],
		after => \@after_commit
	},
	{
		name => 'fail',
		prepare => $claim,
		act => "SELECT fanout.fail(lease_of('TAG'), 'x', retry_in => '1 hour')",
		effect => "SELECT count(*) = 1 FROM fanout.tasks WHERE name = 'TAG' AND state = 'scheduled' AND attempt = 1",
		before => [ 'end-held', 'end-written' ],
		after => [ 'commit-recorded', 'commit-note' ]
	},
	{
		name => 'the last failure',
		prepare => $claim,
		act => "SELECT fanout.fail(lease_of('TAG'), 'x', final => true)",
		effect => "SELECT count(*) = 1 FROM fanout.tasks WHERE name = 'TAG' AND state = 'failed'",
		before => ['end-written'],
		after => ['commit-recorded']
	},
	{
		name => 'release',
		prepare => $claim,
		act => "SELECT fanout.release(lease_of('TAG'), delay => '1 hour')",
		effect => "SELECT count(*) = 1 FROM fanout.tasks WHERE name = 'TAG' AND state = 'scheduled' AND attempt = 0",
		before => ['end-written'],
		after => ['commit-recorded']
	},
	{
		name => 'complete and dequeue',
		prepare => "$claim SELECT fanout.enqueue('synchronous', 'TAG.2')",
		act => "SELECT lease FROM fanout.complete_and_dequeue(lease_of('TAG'), '1', 'synchronous', 'w', max_tasks => 1000)",
		effect => "SELECT string_agg(state, ' ' ORDER BY name) = 'succeeded running' FROM fanout.tasks WHERE name IN ('TAG', 'TAG.2')",
		before => [ 'complete-written', 'claim-made', @before_commit ],
		after => [ 'commit-recorded', 'commit-note' ]
	},
	{
		name => 'many at once',
		prepare => $claim,
		act => "BEGIN; SELECT fanout.enqueue('jobs', 'TAG.2'); SELECT fanout.cancel(task) FROM fanout.tasks WHERE name = 'TAG.2'; SAVEPOINT s;"
		  . " SELECT fanout.enqueue('jobs', 'TAG.3'); ROLLBACK TO s; SELECT fanout.enqueue('synchronous', 'TAG.4'); SELECT fanout.complete(lease_of('TAG')); COMMIT",
		effect => "SELECT string_agg(state, ' ' ORDER BY name) = 'succeeded cancelled ready' FROM fanout.tasks WHERE name LIKE 'TAG%'",
		before => [ 'abort-note', @before_commit ],
		after => \@after_commit
	},
	{
		name => 'rollback',
		prepare => "$claim SELECT fanout.enqueue('jobs', 'TAG.2')",
		act => "BEGIN; SELECT fanout.enqueue('jobs', 'TAG.3'); SELECT fanout.complete(lease_of('TAG')); SELECT lease FROM fanout.dequeue('jobs', 'w'); ROLLBACK",
		effect => "SELECT count(*) = 0 FROM fanout.tasks WHERE name = 'TAG.2' AND state = 'ready' AND attempt = 0",
		before => [ 'abort-begun', 'abort-note', 'abort-undone' ],
	},
	{
		name => 'hundreds at once',
		act => "SELECT fanout.enqueue('big', 'TAG') FROM generate_series(1, 300)",
		effect => "SELECT count(*) = 300 FROM fanout.tasks WHERE name = 'TAG' AND state = 'ready'",
		after => ['notes-chunk']
	},
	{
		name => 'a place for something urgent',
		prepare => "SELECT fanout.enqueue_many('big', 'TAG', array_fill('1'::jsonb, '{600}'))",
		act => "SELECT fanout.enqueue_many('big', 'TAG.2', array_fill('1'::jsonb, '{10}'), priority => -5)",
		any => [ 'evict-bound', 'evict-dropped' ]
	},
	{
		name => 'a place for a partition',
		prepare => "SELECT fanout.enqueue_many('big', 'TAG', array_fill('1'::jsonb, '{48}'), delay => '1 hour',"
		  . " partition_keys => ARRAY(SELECT 'TAG.' || i % 16 FROM generate_series(1, 48) i))",
		act => "SELECT fanout.enqueue('big', 'TAG.2', partition_key => 'TAG')",
		any => ['evict-lane']
	});

cross_for_client($_) foreach @of_clients;
finish();
