# Long orders on disk: by rank, by partition and rank, by id, and by time, over many pages of their indexes and over three
# segments, with tasks between them that have ended. Each task is given out once, and in its order.
# Needs a checked build, which looks at the counts of what waits meanwhile.
#
# Promise 2: each task has one outcome. Promise 7: none is lost.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# A refill of a queue reads more than a page of an index has
my $node = new_node('main', conf => "fsync = off\npg_fanout.max_tracked_tasks = 16384\npg_fanout.retention = -1");

# Of every five tasks one is cancelled, and so are many that follow on each other
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue(q), fanout.pause_queue(q) FROM unnest('{rank,partition,id,time}'::text[]) q;
CREATE PROCEDURE enqueue_all() LANGUAGE plpgsql AS $$
BEGIN
	FOR part IN 1 .. 30 LOOP
		PERFORM fanout.enqueue('rank', 't', priority => (random() * 2000)::int - 1000),
			fanout.enqueue('partition', 't', priority => (random() * 20)::int - 10, partition_key => 'p' || i % 7),
			fanout.enqueue('id', 't'),
			fanout.enqueue('time', 't', delay => random() * interval '2 s')
		FROM generate_series(1, 500) AS i;
		COMMIT;
		IF part % 10 = 0 AND part < 30 THEN
			PERFORM fanout._next_segment();
			COMMIT;
		END IF;
	END LOOP;
END $$;
CREATE PROCEDURE cancel_some() LANGUAGE plpgsql AS $$
BEGIN
	FOR part IN 0 .. (SELECT max(id) / 1000 FROM fanout.task) LOOP
		PERFORM fanout.cancel(ARRAY(SELECT id FROM fanout.task
		WHERE id BETWEEN part * 1000 AND part * 1000 + 999 AND (id % 5 = 0 OR part / 4 % 3 = 1)));
		COMMIT;
	END LOOP;
END $$;
CALL enqueue_all();
CALL cancel_some();
EOS
is($node->safe_psql('postgres', 'SELECT count(*) FROM fanout.segment WHERE first_task IS NOT NULL'), 3, 'three segments');

$node->safe_psql('postgres', <<'EOS');
CREATE TABLE given (n serial, queue text, task bigint);
CREATE PROCEDURE work_off_in_order(queue_name text) LANGUAGE plpgsql AS $$
BEGIN
	WHILE EXISTS (SELECT FROM fanout.queues WHERE queue = queue_name AND scheduled + ready > 0) LOOP
		WITH d AS (SELECT * FROM fanout.dequeue(queue_name, 'w', max_tasks => 250, wait => '30 s'))
		INSERT INTO given (queue, task) SELECT queue, task FROM d WHERE fanout.complete(lease);
		IF NOT FOUND THEN
			RAISE 'nothing came of queue %', queue_name;
		END IF;
		COMMIT;
	END LOOP;
END $$;
EOS

my %order = (
	rank => 'coalesce(priority, 0), id',
	partition => 'partition_key, coalesce(priority, 0), id',
	id => 'id',
);

foreach my $queue (qw(rank partition id time))
{
	$node->safe_psql('postgres', "SELECT fanout.resume_queue('$queue')");
	$node->safe_psql('postgres', "CALL work_off_in_order('$queue')");
	is($node->safe_psql('postgres', <<EOS), '0|t', "$queue: each task is given out once");
SELECT count(*) FILTER (WHERE g.count IS DISTINCT FROM CASE WHEN o.status = 'c' THEN NULL ELSE 1 END), count(g.count) > 5000
FROM fanout.task t JOIN fanout.queue q ON q.id = t.queue LEFT JOIN fanout.outcome o ON o.task = t.id
	LEFT JOIN (SELECT task, count(*) FROM given GROUP BY task) g ON g.task = t.id
WHERE q.name = '$queue'
EOS
	next if !exists $order{$queue};
	my $partition = $queue eq 'partition' ? 'PARTITION BY partition_key' : '';
	is($node->safe_psql('postgres', <<EOS), 0, "$queue: in its order");
SELECT count(*) FROM (
	SELECT row_number() OVER ($partition ORDER BY $order{$queue}) AS place, row_number() OVER ($partition ORDER BY n) AS given
	FROM given g JOIN fanout.task t ON t.id = g.task WHERE g.queue = '$queue') p
WHERE place <> given
EOS
}

is($node->safe_psql('postgres', "SELECT coalesce(sum(violations), -1) FROM fanout._violations()"), 0, 'nothing is violated');

$node->stop;
done_testing();
