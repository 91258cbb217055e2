# A purge and a refill that are half way: what others find of them when the dispatcher lock is let go in between.
# Needs a checked build (test/harness/run_tests makes one).
#
# Promise 7: what is on disk is not forgotten.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use CrashPoints;
use FanoutTest;
use PostgreSQL::Test::Utils;
use Test::More;

# A queue's share is 512 tasks, and the lock is let go after each 256
my $node = crash_points_node('pg_fanout.max_tracked_tasks = 2048') or exit;

install_work_off($node);

sub reached { return becomes("SELECT reached > 0 FROM fanout._points() WHERE point = '$_[0]'"); }

# A purge has counted some of what it has cancelled, and is behind its commit: nothing is on disk any more, but still counts
# as waiting. A refill would note the former. While the keeper refills another queue, again and again, it does not read this one.
ask("SELECT fanout.create_queue('purged'), fanout.create_queue('other')");
ask("SELECT fanout.enqueue('other', 'x') FROM generate_series(1, 1500)");
ask("SELECT fanout.enqueue('purged', 'x', delay => '1 hour') FROM generate_series(1, 700)");
ask("SELECT fanout._set_point('notes-chunk', 'wait')");
my $purge = start_client($node, "SELECT fanout.purge_queue('purged')");
ok(reached('notes-chunk'), 'a purge is half way');
is(ask("SELECT scheduled BETWEEN 1 AND 699 FROM fanout.queues WHERE queue = 'purged'"), 't', 'some are counted, and some are not');
ask("CALL work_off('other', 1500)");
is(ask('SELECT string_agg(first, E\'\\n\') FROM fanout._violations() WHERE violations > 0'), '', 'no refill says that nothing is on disk');
stop_at('notes-chunk', 'go on');
ok(finish_clients($purge), 'it goes on');
is(ask("SELECT scheduled, cancelled FROM fanout.queues WHERE queue = 'purged'"), '0|700', 'all are counted');
drain('purge');

# A refill has loaded some of what is due: who waits has it at once, and not when the keeper comes to the end. (Of an order by
# rank nothing can be given out before.)
ask("SELECT fanout.create_queue('due')");
ask("SELECT fanout._set_point('refill-begun', 'wait')");
ask("SELECT fanout.enqueue('due', 'x', delay => '1 ms') FROM generate_series(1, 1500)");
my $done = 0;
while (my $more = ask("SELECT count(fanout.complete(lease)) FROM fanout.dequeue('due', 'w', max_tasks => 2000)")) { $done += $more; }
is($done, 512, 'all that is in memory is done');
ok(reached('refill-begun'), 'more is to be read');
my $sleeper = start_client($node, "SELECT fanout.complete(lease) FROM fanout.dequeue('due', 'sleeper', wait => '30 s')");
ok(becomes("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query ~ 'sleeper' AND wait_event_type = 'Extension')"), 'somebody waits for it');
my $wakeups = ask('SELECT wakeups FROM fanout.stats');
ask("SELECT fanout._set_point('refill-chunk', 'wait')");
stop_at('refill-begun', 'go on');
ok(reached('refill-chunk'), 'a refill is half way');
is(ask('SELECT wakeups FROM fanout.stats') - $wakeups, 1, 'who waits is woken');
ok(finish_clients($sleeper), 'he goes on');
is(client_output($sleeper), "t\n", 'with a task');
stop_at('refill-chunk', 'go on');
is($node->psql('postgres', "CALL work_off('due', 1499 - $done)"), 0, 'the others come');
drain('refill');

finish();
