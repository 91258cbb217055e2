# A queue with more partitions than memory has tasks for slows down nobody else.
#
# Promise 8: the cost of a dequeue does not depend on how many tasks wait in other queues.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => 'pg_fanout.max_tracked_tasks = 1024');

sub status
{
	return $node->safe_psql('postgres', "SELECT value FROM fanout.status() WHERE item = '$_[0]'");
}

# Each partition would like to have its task in memory, and they may have all of it that nobody else wants
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('lanes'), fanout.create_queue('other');
SELECT count(*) FROM fanout.enqueue_many('lanes', 't', array_fill('{}'::jsonb, '{3000}'),
	partition_keys => (SELECT array_agg('key ' || i) FROM generate_series(1, 3000) AS i));
EOS
ok($node->poll_query_until('postgres', "SELECT in_memory > 900 FROM fanout.queues WHERE queue = 'lanes'"),
	'most of memory has tasks of partitions');

# Of 100 tasks each is there for a dequeue that does not wait: none was left on disk for want of memory
my $cycles = <<'EOS';
DO $$
DECLARE
	missed int := 0;
	one int;
BEGIN
	FOR i IN 1 .. 2000 LOOP
		PERFORM fanout.enqueue('other', 't');
		COMMIT;
		SELECT count(*) INTO one FROM fanout.dequeue('other', 'w') d, LATERAL fanout.complete(d.lease);
		missed := missed + 1 - one;
		COMMIT;
	END LOOP;
	PERFORM set_config('test.missed', missed::text, false);
END $$;
SELECT current_setting('test.missed');
EOS
$node->safe_psql('postgres',
	"SELECT count(*) FROM fanout.enqueue_many('other', 't', array_fill('{}'::jsonb, '{100}'))");
my $before = status('refills');
is($node->safe_psql('postgres', $cycles), 0, 'a small queue beside them finds each of its tasks in memory');
cmp_ok(status('refills') - $before, '<', 100, 'and the partitions do not read for the memory it uses');

# All of them have their turn
my $taken = $node->safe_psql('postgres', <<'EOS');
DO $$
DECLARE
	one int := 1;
BEGIN
	WHILE one > 0 AND (SELECT ready > 0 FROM fanout.queues WHERE queue = 'lanes') LOOP
		SELECT count(*) INTO one FROM fanout.dequeue('lanes', 'w', max_tasks => 10, wait => '20 s') d,
			LATERAL fanout.complete(d.lease);
		COMMIT;
	END LOOP;
END $$;
SELECT succeeded FROM fanout.queues WHERE queue = 'lanes';
EOS
is($taken, 3000, 'all partitions are served');

$node->stop;
done_testing();
