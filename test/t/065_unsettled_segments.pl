# What the keeper has learned of a segment is out of date when it acts on that: a task that had ended got another life in
# between. Needs a checked build (test/harness/run_tests makes one).
#
# Promise 7: no task that is unfinished is lost.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use CrashPoints;
use FanoutTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = crash_points_node() or exit;

sub set_retention
{
	my ($retention) = @_;

	ask("ALTER SYSTEM SET pg_fanout.retention = '$retention'; SELECT pg_reload_conf()");
	return;
}

sub keeper_is_at { return ok(becomes("SELECT reached > 0 FROM fanout._points() WHERE point = '$_[0]'"), "the keeper is at $_[0]"); }

sub failed_task
{
	my $task = ask("SELECT fanout.enqueue('jobs', 'failed')");

	ask("SELECT fanout.fail(lease, 'no', final => true) FROM fanout.dequeue('jobs', 'w')");
	return $task;
}

sub get_another_life { return is(ask("SELECT fanout.retry($_[0])"), 't', 'a task gets another life'); }

# What tables say is found by a rebuild; then nothing is left, in one segment
sub crash_and_do
{
	my ($task, $what) = @_;
	my $client;

	set_retention(-1);
	ask("SELECT fanout._set_point('enqueue-reserved', 'kill')");
	$client = start_client($node, "SELECT fanout.enqueue('big', 'x')");
	$client->{run}->finish;
	ok(has_crashed(), "$what: a crash");
	is(ask("SELECT state FROM fanout.tasks WHERE task = $task"), 'ready', "$what: the task is there");
	is(ask("SELECT task FROM fanout.dequeue('jobs', 'w', wait => '20 s')"), $task, "$what: it is given out");
	is(ask("SELECT fanout.complete(lease) FROM fanout.leases WHERE task = $task"), 't', "$what: it is completed");

	ask('SELECT fanout.cancel(task) FROM fanout.tasks');
	ask('SELECT fanout.complete(lease) FROM fanout.leases');
	set_retention('1s');
	ok(becomes('SELECT count(*) = 1 FROM fanout.segments'), "$what: what has ended goes");
	set_retention(-1);
	return;
}

# The keeper is about to retire a segment that has this task and one more, or has found reason not to begin
sub look_for_old
{
	ask("SELECT fanout._set_point('look-ended', 'wait')");
	set_retention('1s');
	return;
}

sub retires
{
	my ($what) = @_;
	my $was = ask('SELECT retired_segments FROM fanout.stats');

	stop_at('look-ended', 'go on');
	ok(becomes("SELECT retired_segments > $was FROM fanout.stats"), "$what: it is retired in the end");
	return;
}

# The keeper notes that all tasks of a segment have ended, so that a rebuild need not read it, if they have
sub is_not_finished
{
	my ($what) = @_;

	# once the keeper has journaled a claim it has come past that
	ask("SELECT fanout.enqueue('wide', 'x')");
	ask("SELECT lease FROM fanout.dequeue('wide', 'w')");
	ask('CALL rest()');
	is(ask('SELECT count(*) FROM fanout.segment WHERE finished'), 0, "$what: it is not finished");
	return;
}

set_retention(-1);

# Of a segment that is to be retired the keeper knows what has to stay, and that this task is none of it
{
	my $task = failed_task();

	ask("SELECT fanout.enqueue('jobs', 'later', delay => '1 hour')");
	ask('SELECT fanout._next_segment()');
	look_for_old();
	keeper_is_at('look-ended');
	get_another_life($task);
	retires('retry after the look');
	crash_and_do($task, 'retry after the look');
}

# The same, but the transaction was open when the keeper was to look
{
	my $task = failed_task();
	my $open = session($node);

	ask("SELECT fanout.enqueue('jobs', 'later', delay => '1 hour')");
	ask('SELECT fanout._next_segment()');
	$open->query_safe("BEGIN; SELECT fanout.retry($task)");
	look_for_old();
	ok( becomes("SELECT EXISTS (SELECT FROM fanout._points() WHERE point = 'look-ended' AND reached > 0)"
			  . ' OR EXISTS (SELECT FROM fanout.segments WHERE kept_because IS NOT NULL)'),
		'retry during the look: the keeper looks, or will do so later');
	$open->query_safe('COMMIT');
	$open->quit;
	retires('retry during the look');
	crash_and_do($task, 'retry during the look');
}

# All of a segment has ended, and the keeper is about to note that
{
	my $task = failed_task();

	ask("SELECT fanout._set_point('finish-looked', 'wait')");
	ask('SELECT fanout._next_segment()');
	keeper_is_at('finish-looked');
	get_another_life($task);
	stop_at('finish-looked', 'go on');
	is_not_finished('retry before it is noted');
	crash_and_do($task, 'retry before it is noted');
}

# The same, but the transaction was open when the keeper was to look
{
	my $task = failed_task();
	my $open = session($node);

	$open->query_safe("BEGIN; SELECT fanout.retry($task)");
	ask('SELECT fanout._next_segment()');
	is_not_finished('retry is open');
	$open->query_safe('COMMIT');
	$open->quit;
	ask('SELECT fanout._next_segment()');	# it looks again
	is_not_finished('retry was open');
	crash_and_do($task, 'retry was open');
}

finish();
