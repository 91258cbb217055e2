# A queue whose share of memory is full of delayed tasks gives out ready ones from memory all the same.
#
# Promise 8: the cost of a dequeue does not depend on how many tasks are delayed.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# a share of 256 tasks
my $node = new_node('main', conf => 'pg_fanout.max_tracked_tasks = 1024');

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('q');
SELECT count(*) FROM fanout.enqueue_many('q', 'later', array_fill('{}'::jsonb, '{1000}'), delay => '1 day');
EOS

# A refill would bring them by and by; a dequeue that does not wait has no time for one
my $taken = $node->safe_psql('postgres', <<'EOS');
SELECT count(*) FROM fanout.enqueue_many('q', 'now', array_fill('{}'::jsonb, '{100}'));
SELECT count(*) FROM fanout.dequeue('q', 'w', max_tasks => 100);
EOS
is($taken, "100\n100", 'tasks that are ready take the place of delayed ones');

# More than these may have: the rest is read, and again much at a time
$node->safe_psql('postgres', <<'EOS');
SELECT count(*) FROM fanout.enqueue_many('q', 'now', array_fill('{}'::jsonb, '{1000}'));
EOS
my $refills = "SELECT value FROM fanout.status() WHERE item = 'refills'";
my $before = $node->safe_psql('postgres', $refills);
$taken = $node->safe_psql('postgres', <<'EOS');
DO $$
DECLARE
	n int := 0;
	lost int := 0;
	one int;
BEGIN
	WHILE n < 1000 AND lost < 2 LOOP
		SELECT count(*) INTO one FROM fanout.dequeue('q', 'w', wait => '20 s') d, LATERAL fanout.complete(d.lease);
		COMMIT;
		n := n + one;
		lost := lost + (one = 0)::int;
	END LOOP;
	RAISE NOTICE '%', n;
END $$;
SELECT count(*) FROM fanout.outcome;
EOS
is($taken, 1000, 'all of a backlog are given out beside delayed ones');
cmp_ok($node->safe_psql('postgres', $refills) - $before, '<', 100, 'with few refills');

$node->stop('immediate');
$node->start;
$taken = $node->safe_psql('postgres', <<'EOS');
SELECT count(*) FROM fanout.enqueue_many('q', 'now', array_fill('{}'::jsonb, '{100}'));
SELECT count(*) FROM fanout.dequeue('q', 'w', max_tasks => 100);
SELECT scheduled FROM fanout.queues WHERE queue = 'q';
EOS
is($taken, "100\n100\n1000", 'and also after a rebuild');

$node->stop;
done_testing();
