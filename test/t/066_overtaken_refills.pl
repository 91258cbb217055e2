# Refills that others overtake: what a refill has read is not what there is when it puts that into memory, and what was left
# on disk is not what there is when the keeper comes to read it. Needs a checked build (test/harness/run_tests makes one).
#
# Promise 2: what has ended is not given out again. Promise 7: no task that is unfinished is lost.

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

# A queue of which a refill has just read those tasks that are on disk, 44 or as many as there are beyond 256: the first one
# of its tasks, of which 200 are done.
sub refill_has_read
{
	my ($queue, $tasks) = @_;
	my $first;

	ask("SELECT fanout.create_queue('$queue')");
	$first = ask("SELECT min(task) FROM fanout.enqueue_many('$queue', 'x', array_fill('1'::jsonb, '{$tasks}'))");
	ask("SELECT fanout._set_point('refill-read', 'wait')");
	ask("CALL work_off('$queue', 200)");
	ok(becomes("SELECT reached > 0 FROM fanout._points() WHERE point = 'refill-read'"), "$queue: a refill has read");
	return $first;
}

# It goes on, and so many tasks come, and no other
sub come
{
	my ($queue, $tasks) = @_;

	stop_at('refill-read', 'go on');
	is($node->psql('postgres', "CALL work_off('$queue', $tasks)"), 0, "$queue: the others come");
	is(ask("SELECT ready + scheduled + running FROM fanout.queues WHERE queue = '$queue'"), 0, "$queue: and nothing else");
	is(ask("SELECT task FROM fanout.dequeue('$queue', 'w')"), '', "$queue: not even that");
	drain($queue);
	return;
}

# A task that was read moves to another queue, which is dropped: it is nowhere
my $first = refill_has_read('moved', 600);
ask("SELECT fanout.create_queue('dropped')");
is(ask("SELECT fanout.move($first + 300, 'dropped')"), 't', 'a task moves to a queue that is dropped then');
ask("SELECT fanout.drop_queue('dropped', force => true)");
come('moved', 399);

# One is cancelled, and one is to come later than others, of which there are more than memory has room for
$first = refill_has_read('cancelled', 600);
ask("SELECT fanout.enqueue_many('cancelled', 'later', array_fill('1'::jsonb, '{300}'), delay => '1 hour')");
is(ask("SELECT fanout.cancel($first + 300), fanout.reschedule($first + 310, delay => '1 day')"), 't|t', 'a task is cancelled, and one delayed');
stop_at('refill-read', 'go on');
is($node->psql('postgres', "CALL work_off('cancelled', 398)"), 0, 'the others come');
is(ask("SELECT task FROM fanout.dequeue('cancelled', 'w')"), '', 'neither of the two does');
is(ask("SELECT state FROM fanout.tasks WHERE task = $first + 310"), 'scheduled', 'the delayed one waits');
drain('cancelled');

# All are cancelled, and others come
refill_has_read('purged', 600);
is(ask("SELECT fanout.purge_queue('purged')"), 400, 'a queue is purged');
ask("SELECT fanout.enqueue_many('purged', 'x', '{1,2}')");
come('purged', 2);

# Others come while it reads all there are
refill_has_read('grown', 300);
ask("SELECT fanout.enqueue_many('grown', 'x', array_fill('1'::jsonb, '{5}'))");
come('grown', 105);

# Partitions leave memory, of which the task that is first in order and comes last by its id ends then: the others are found
{
	my $of_q = "FROM fanout.tasks WHERE queue = 'q'";

	ask("SELECT fanout.create_queue(q) FROM unnest('{q,full}'::text[]) q; SELECT fanout.create_queue('e' || n) FROM generate_series(1, 15) n");
	ask("SELECT fanout._set_point('journal-copied', 'wait')");
	ask("SELECT fanout.enqueue('jobs', 'held'); SELECT lease FROM fanout.dequeue('jobs', 'w')");
	ok(becomes("SELECT reached > 0 FROM fanout._points() WHERE point = 'journal-copied'"), 'the keeper reads nothing');
	ask("SELECT fanout.enqueue('q', 'last', partition_key => 'p' || n, priority => 5) FROM generate_series(1, 16) n");
	ask("SELECT fanout.enqueue('q', 'first', partition_key => 'p' || n, priority => 1) FROM generate_series(1, 16) n");
	ask("SELECT fanout.enqueue('full', 'x', partition_key => 'p' || n) FROM generate_series(1, 5) n");
	is(ask("SELECT count(fanout.complete(lease)) FROM fanout.dequeue('q', 'w', max_tasks => 100)"), 22, '5 of 16 partitions have left memory');
	ask("SELECT fanout.complete(lease) FROM fanout.dequeue('full', 'w', max_tasks => 100)");
	is(ask("SELECT count(fanout.cancel(task)) $of_q AND name = 'first' AND state = 'ready'"), 5, 'of each a task is cancelled');
	ask("SELECT fanout.enqueue('e' || n, 'x', partition_key => 'p') FROM generate_series(1, 15) n");
	is(ask("SELECT count(*) FROM fanout._live_lanes() l JOIN fanout.queue q ON q.id = l.queue_id AND q.name = 'q'"), 1, '4 of them leave memory again');
	stop_at('journal-copied', 'go on');
	is($node->psql('postgres', "CALL work_off('q', 5)"), 0, 'the other task of each comes');
	ask("SELECT fanout.drop_queue('e' || n, force => true) FROM generate_series(1, 15) n");
	drain('partitions that leave memory');
}

# Partitions that left memory come back, and leave it again before anything of them is read
{
	my $lanes = 'SELECT count(*) FROM fanout._live_lanes() l JOIN fanout.queue q ON q.id = l.queue_id AND q.name';

	ask("SELECT fanout.create_queue('back'); SELECT fanout.create_queue('e' || n) FROM generate_series(1, 15) n");
	ask("SELECT fanout.set_partition('back', 'stays', concurrency => 5)");
	ask("SELECT fanout.enqueue('back', 'x', partition_key => 'r' || n) FROM generate_series(1, 15) n");
	ask("SELECT count(*) FROM fanout.dequeue('back', 'w', max_tasks => 100)");
	ask("SELECT fanout.enqueue('back', 'x', partition_key => 'p' || n) FROM generate_series(1, 15) n");
	is(ask("SELECT count(*) FROM fanout.partitions WHERE queue = 'back' AND partition_key LIKE 'p%'"), 0, 'there is room for none of 15 partitions');
	# a keeper that fails meanwhile leaves nothing behind
	ask("SELECT fanout._set_point('refill-read', 'error'), fanout._set_point('refill-done', 'wait')");
	ask("SELECT count(fanout.complete(lease)) FROM fanout.leases");
	ok(becomes("SELECT reached > 0 FROM fanout._points() WHERE point = 'refill-done'"), 'the keeper has found that there are some');
	is(ask("$lanes = 'back'"), 16, 'all have room now');
	ask("SELECT fanout.enqueue('e' || n, 'x', partition_key => 'p') FROM generate_series(1, 15) n");
	is(ask("$lanes = 'back'"), 1, 'and leave memory again');
	ask("SELECT fanout.drop_queue('e' || n, force => true) FROM generate_series(1, 15) n");
	stop_at('refill-done', 'go on');
	is($node->psql('postgres', "CALL work_off('back', 15)"), 0, 'the task of each comes');
	ask("SELECT fanout.set_partition('back', 'stays', unset => '{concurrency}')");
	drain('partitions that come back');
}

# One that leaves memory when the first of its tasks have been read, and have ended: what comes last has smaller ids, and was
# not read
{
	ask("SELECT fanout.create_queue(q) FROM unnest('{mixed,e1,e2,e3}'::text[]) q");
	ask("SELECT fanout.enqueue('mixed', 'x', partition_key => 'r' || n) FROM generate_series(1, 16) n");
	ask("SELECT count(*) FROM fanout.dequeue('mixed', 'w', max_tasks => 100)");
	ask("SELECT fanout.enqueue_many('mixed', 'last', array_fill('1'::jsonb, '{20}'), partition_key => 'p', priority => 5)");
	ask("SELECT fanout.enqueue_many('mixed', 'first', array_fill('1'::jsonb, '{100}'), partition_key => 'p')");
	ask("SELECT fanout._set_point('refill-done', 'wait', skip => 1)");
	ask("SELECT fanout.complete(min(lease)) FROM fanout.leases");
	ok(becomes("SELECT reached > 0 FROM fanout._points() WHERE point = 'refill-done'"), 'the keeper has read of a partition');
	is(ask("SELECT ready FROM fanout.partitions WHERE queue = 'mixed' AND partition_key = 'p'"), 64, 'what comes first of it is in memory');
	is(ask("SELECT count(fanout.cancel(task)) FROM fanout.tasks WHERE queue = 'mixed' AND name = 'first'"), 100, 'and is cancelled');
	ask("SELECT fanout.enqueue('e' || n, 'x', partition_key => 'p') FROM generate_series(1, 3) n");
	is(ask("SELECT count(*) FROM fanout.partitions WHERE queue = 'mixed'"), 15, 'the partition leaves memory');
	stop_at('refill-done', 'go on');
	ask("SELECT count(*) FROM fanout.complete((SELECT array_agg(lease) FROM fanout.leases))");
	is($node->psql('postgres', "CALL work_off('mixed', 20)"), 0, 'what comes last comes');
	ask("SELECT fanout.drop_queue('e' || n, force => true) FROM generate_series(1, 3) n");
	drain('a partition that leaves memory again');
}

# Nobody overtakes one that reads the first tasks of each of two segments: of the second one there are more, also when it has
# room for all that it has read
ask("SELECT fanout.create_queue('segments')");
ask("SELECT fanout.enqueue_many('segments', 'x', array_fill('1'::jsonb, '{300}'), partition_key => 'p')");
ask('SELECT fanout._next_segment()');
ask("SELECT fanout.enqueue_many('segments', 'x', array_fill('1'::jsonb, '{300}'), partition_key => 'p')");
is($node->psql('postgres', "CALL work_off('segments', 600)"), 0, 'all tasks of a partition in two segments come');
drain('segments');

# nor before it has come to the end of what has ended in one of them
my $put = "SELECT count(*) FROM fanout.enqueue_many('segments', 'x', array_fill('1'::jsonb, '{%d}'), partition_key => 'q', priority => %d)";
ask(sprintf($put, 1000, 0));
is($node->psql('postgres', "CALL work_off('segments', 1000)"), 0, 'a segment with many that have ended,');
ask(sprintf($put, 10, 9));
ask('SELECT fanout._next_segment()');
ask(sprintf($put, 200, 9));
ask(sprintf($put, 300, -9));
is($node->psql('postgres', "CALL work_off('segments', 510)"), 0, 'and few that come first of what waits in both');
drain('what has ended');

finish();
