# pg_fanout.retention and pg_fanout.keep_failed are raised while the keeper is at removing what was old by then: what it
# has not removed stays, as README says under "Retention". Needs a checked build (test/harness/run_tests makes one).

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use CrashPoints;
use FanoutTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = crash_points_node() or exit;

install_work_off($node);
ask("SELECT fanout.create_queue('filler'), fanout.create_queue('failing'), fanout.create_queue('other')");

# A connection that has the new value was made when the postmaster had told all others.
sub set
{
	my ($setting, $value) = @_;

	ask("ALTER SYSTEM SET pg_fanout.$setting = '$value'");
	ask('SELECT pg_reload_conf()');
	$node->poll_query_until('postgres', "SELECT current_setting('pg_fanout.$setting') = '$value'") or die "$setting is not $value";
	return;
}

sub reaches
{
	my ($point) = @_;

	return becomes("SELECT reached > 0 FROM fanout._points() WHERE point = '$point'");
}

# What is in its turn after whatever the keeper was at
sub goes_on
{
	my $task = ask("SELECT fanout.enqueue('other', 'x')");

	ask("CALL work_off('other', 1)");
	return becomes("SELECT NOT EXISTS (SELECT FROM fanout.task WHERE id = $task)");
}

sub count_tasks { return ask("SELECT count(*) FROM fanout.task t JOIN fanout.queue q ON q.id = t.queue AND q.name = '$_[0]'"); }

# The keeper has deleted the first failed tasks of a queue when failed ones are to be kept for longer.
ask("SELECT count(*) FROM fanout.enqueue_many('failing', 'x', array_fill('1'::jsonb, ARRAY[5000]))");
ask("SELECT count(*) FROM fanout.fail(ARRAY(SELECT lease FROM fanout.dequeue('failing', 'w', max_tasks => 10000, wait => '1 s')), final => true)")
  until ask("SELECT ready + running = 0 FROM fanout.queues WHERE queue = 'failing'") eq 't';
ask("SELECT fanout._set_point('trim-deleted', 'wait'); SELECT fanout.alter_queue(q, retention => '1 ms') FROM unnest('{failing,other}'::text[]) q");
ok(reaches('trim-deleted'), 'the keeper has deleted some');
set('keep_failed', '1h');
stop_at('trim-deleted', 'no more');
ok(goes_on(), 'it goes on');
my $left = count_tasks('failing');
cmp_ok($left, '<', 5000, 'what it had looked at has gone');
cmp_ok($left, '>', 2500, 'what it had not looked at stays');

# It has begun to look at a segment when everything is to be kept.
ask("SELECT count(*) FROM fanout.enqueue_many('filler', 'x', array_fill('1'::jsonb, ARRAY[100]))");
ask("CALL work_off('filler', 100)");
is(ask('SELECT fanout._next_segment()'), 2, 'the next segment');
ask("SELECT fanout._set_point('look-begun', 'wait')");
set('retention', '1s');
ok(reaches('look-begun'), 'the keeper looks what has to stay of the first segment');
set('retention', '-1');
stop_at('look-begun', 'no more');
ok(goes_on(), 'it goes on');
is(count_tasks('filler'), 100, 'the segment stays');

is(ask('SELECT * FROM broken()'), '', 'nothing is broken');

finish();
