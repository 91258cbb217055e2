# Batches of many tasks in a queue with its own retention: to ask whether one has ended may be to read all of it, so the
# keeper does that once in a walk through the log, and not for each part of it. Needs a checked build
# (test/harness/run_tests makes one).

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use CrashPoints;
use FanoutTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = crash_points_node() or exit;

# parts of a walk, of 2000 tasks each
my $parts = 4;
my $tasks = 2000 * $parts;

install_work_off($node);

# How often somebody has asked for the tasks of a batch. A process tells when it ends, and we do before we look.
sub asked { ask('SELECT pg_stat_force_next_flush()'); return ask("SELECT seq_scan + idx_scan FROM pg_stat_all_tables WHERE relid = 'fanout.batch_part'::regclass"); }

sub keeper { return ask('SELECT keeper_pid FROM fanout.stats WHERE keeper_pid IS NOT NULL'); }
sub has_ended { return becomes("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $_[0])"); }

# A keeper walks through a queue that keeps nothing, up to the last part, and ends: how often has it asked?
sub asked_by_walk
{
	my ($queue) = @_;
	my $last = keeper();

	ask("SELECT pg_terminate_backend($last)");
	has_ended($last) or die 'the last keeper does not end';
	becomes('SELECT keeper_pid IS NOT NULL FROM fanout.stats') or die 'there is no keeper';
	my $before = asked();
	my $keeper = keeper();

	ask("SELECT fanout._set_point('trim-deleted', 'wait', skip => $parts - 1); SELECT fanout.alter_queue('$queue', retention => '1 ms')");
	ok(becomes("SELECT reached > 0 FROM fanout._points() WHERE point = 'trim-deleted'"), "$queue: the keeper has come to the last part");
	stop_at('trim-deleted', 'terminate');
	ok(has_ended($keeper), "$queue: it ends");
	return asked() - $before;
}

sub count_tasks { return ask("SELECT count(*) FROM fanout.task t JOIN fanout.queue q ON q.id = t.queue AND q.name = '$_[0]'"); }

ask("SELECT fanout.create_queue(q) FROM unnest('{unfinished,ended}'::text[]) q");

# One that has unfinished tasks
ask("SELECT fanout.fan_out('unfinished', 'x', array_fill('1'::jsonb, ARRAY[$tasks]))");
ask("CALL work_off('unfinished', $tasks - 8)");
is(asked_by_walk('unfinished'), 1, 'unfinished: it asks once');
is(count_tasks('unfinished'), $tasks, 'unfinished: all of it stays');
is(ask("SELECT count(fanout.cancel(task)) FROM fanout.tasks WHERE queue = 'unfinished' AND state = 'ready'"), 8, 'unfinished: some were');
ok(becomes("SELECT NOT EXISTS (SELECT FROM fanout.task)"), 'unfinished: when it has ended it goes');

# Two of which each part has tasks
ask("SELECT fanout.alter_queue('unfinished', unset => '{retention}')");
ask('SELECT fanout.create_batch(), fanout.create_batch()');
ask(<<'EOS') for 1 .. $tasks / 1000;
SELECT count(*) FROM generate_series(1, 10) i,
	fanout.enqueue_many('ended', 'x', array_fill('1'::jsonb, '{100}'), batch => (SELECT max(batch) FROM fanout.batches) - i % 2)
EOS
ask('SELECT count(fanout.seal_batch(batch)) FROM fanout.batches WHERE NOT sealed');
ask("CALL work_off('ended', $tasks)");
is(asked_by_walk('ended'), 2, 'ended: it asks once for each');
ok(becomes("SELECT NOT EXISTS (SELECT FROM fanout.task)"), 'ended: both go');

is(ask('SELECT * FROM broken()'), '', 'nothing is broken');

finish();
