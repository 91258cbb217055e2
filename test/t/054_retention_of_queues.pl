# A queue's own retention that is taken away, or made longer, while the keeper walks through the log: what it has not come
# to by then stays, as README says under "Retention". Needs a checked build (test/harness/run_tests makes one).

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

ask("SELECT fanout.create_queue('filler'), fanout.create_queue('other')");

# The keeper has looked at the first tasks when they are to be kept after all
ask("SELECT count(*) FROM fanout.enqueue_many('filler', 'x', array_fill('1'::jsonb, ARRAY[5000]))");
ask("CALL work_off('filler', 5000)");
my $before = ask("SELECT count(*) FROM fanout.task t JOIN fanout.queue q ON q.id = t.queue AND q.name = 'filler'");
ask("SELECT fanout._set_point('trim-deleted', 'wait'); SELECT fanout.alter_queue('filler', retention => '1 ms')");
ok(becomes("SELECT reached > 0 FROM fanout._points() WHERE point = 'trim-deleted'"), 'the keeper has deleted some');
ask("SELECT fanout.alter_queue('filler', unset => '{retention}'), fanout.alter_queue('other', retention => '1 ms')");
my $later = ask("SELECT fanout.enqueue('other', 'x')");
ask("CALL work_off('other', 1)");
stop_at('trim-deleted', 'no more');
ok(becomes("SELECT NOT EXISTS (SELECT FROM fanout.task WHERE id = $later)"), 'it has gone on to other queues');
my $after = ask("SELECT count(*) FROM fanout.task t JOIN fanout.queue q ON q.id = t.queue AND q.name = 'filler'");
cmp_ok($after, '<', $before, 'what it had looked at has gone');
cmp_ok($after, '>', $before - 2500, 'what it had not looked at stays');
is(ask('SELECT * FROM broken()'), '', 'nothing is broken');

finish();
