# A worker that comes for its next task at once has the permit that it gave back, without a switch to one that waits;
# and one that does not come keeps it from nobody.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('q', concurrency => 1);
CREATE TABLE waited (seconds float);

-- Works off so many tasks, each as soon as somebody else waits for it to end
CREATE PROCEDURE hurry(tasks int) LANGUAGE plpgsql AS $$
DECLARE
	held bigint;
BEGIN
	FOR i IN 1 .. tasks LOOP
		SELECT lease INTO STRICT held FROM fanout.dequeue('q', 'hurry', wait => '30 s');
		COMMIT;
		WHILE (SELECT waiting_workers FROM fanout.queues WHERE queue = 'q') = 0 LOOP
			COMMIT;
		END LOOP;
		PERFORM fanout.complete(held);
		COMMIT;
	END LOOP;
END $$;

-- Works off what it gets until there is nothing for 20 seconds
CREATE PROCEDURE wait() LANGUAGE plpgsql AS $$
DECLARE
	held bigint;
	began timestamptz;
BEGIN
	LOOP
		began := clock_timestamp();
		SELECT lease INTO held FROM fanout.dequeue('q', 'wait', wait => '20 s');
		COMMIT;
		EXIT WHEN held IS NULL;
		INSERT INTO waited SELECT extract(epoch FROM clock_timestamp() - began);
		PERFORM fanout.complete(held);
		COMMIT;
		EXIT WHEN (SELECT ready = 0 FROM fanout.queues WHERE queue = 'q');
	END LOOP;
END $$;
EOS

sub wakeups
{
	my $value = $node->safe_psql('postgres', "SELECT value FROM fanout.status() WHERE item = 'wake-ups'");
	return $value =~ /^(\d+)/ ? $1 : die $value;
}

# One who hurries, beside one who waits
$node->safe_psql('postgres', "SELECT count(*) FROM fanout.enqueue_many('q', 't', array_fill('{}'::jsonb, '{20000}'))");
my $waiter = start_client($node, 'CALL wait()');
wait_until { $node->safe_psql('postgres', 'SELECT count(*) > 0 FROM waited') eq 't' } 'it works';
my $before = wakeups();
$node->safe_psql('postgres', 'CALL hurry(200)');
cmp_ok(wakeups() - $before, '<', 100, 'a worker that comes back at once has its permit again');

# It came at once, but for the last time
ok(finish_clients($waiter), 'and when it comes no more, work goes on');
is($node->safe_psql('postgres', 'SELECT max(seconds) < 10 FROM waited'), 't', 'without delay');
is($node->safe_psql('postgres', "SELECT succeeded FROM fanout.queues WHERE queue = 'q'"), 20000, 'to its end');

$node->stop;
done_testing();
