# Concurrency limits, of the queue and of each worker, while many sessions claim, fail, release and roll back, and
# while the limits are being changed.
#
# Promise 4: exact at every moment. Each claim is logged with the time before it was asked for, after it was got, and
# before it was given up, so what the log shows as overlapping did overlap.

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
SELECT fanout.create_queue('steady', concurrency => 5, worker_concurrency => 2, backoff => '1 ms', backoff_max => '1 ms',
						   max_attempts => 1000);
SELECT fanout.create_queue('changing', concurrency => 6, worker_concurrency => 3, backoff => '1 ms', backoff_max => '1 ms',
						   max_attempts => 1000);
CREATE TABLE run (queue text, worker text, lease bigint PRIMARY KEY, asked timestamptz, got timestamptz, gave timestamptz);
CREATE TABLE all_is_enqueued ();
CREATE TABLE limits (queue text, kind text, value int, from_time timestamptz, in_force timestamptz);
INSERT INTO limits VALUES
	('steady', 'queue', 5, '-infinity', '-infinity'), ('steady', 'worker', 2, '-infinity', '-infinity'),
	('changing', 'queue', 6, '-infinity', '-infinity'), ('changing', 'worker', 3, '-infinity', '-infinity');

-- Works until all is done. Holding a claim takes some time, which is what overlaps.
CREATE PROCEDURE hold(queue_name text, worker_name text) LANGUAGE plpgsql AS $$
DECLARE
	claim record;
	asked timestamptz;
	got timestamptz;
BEGIN
	LOOP
		asked := clock_timestamp();
		SELECT array_agg(d.lease) AS leases, max(d.attempt) AS attempt INTO claim
		  FROM fanout.dequeue(queue_name, worker_name, max_tasks => 1 + (random() * 2)::int, wait => '5 ms') d;
		got := clock_timestamp();
		IF claim.leases IS NULL THEN
			COMMIT;
			EXIT WHEN EXISTS (SELECT FROM all_is_enqueued) AND
				NOT EXISTS (SELECT FROM fanout.queues q WHERE q.queue = queue_name AND q.scheduled + q.ready + q.running > 0);
			CONTINUE;
		END IF;
		-- Some hold an uncommitted claim, of these some for nothing.
		IF random() < 0.3 THEN
			PERFORM pg_sleep(0.004);
			IF random() < 0.5 THEN
				ROLLBACK;
				CONTINUE;
			END IF;
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.004);
		INSERT INTO run SELECT queue_name, worker_name, l, asked, got, clock_timestamp() FROM unnest(claim.leases) l;
		IF claim.attempt = 1 AND random() < 0.2 THEN
			PERFORM fanout.fail(claim.leases, 'again');
		ELSIF random() < 0.1 THEN
			PERFORM fanout.release(claim.leases);
		ELSE
			PERFORM fanout.complete(claim.leases);
		END IF;
		COMMIT;
	END LOOP;
END $$;

-- Changes both limits, again and again, as long as there is work.
CREATE PROCEDURE change_limits(queue_name text) LANGUAGE plpgsql AS $$
DECLARE
	started timestamptz;
	per_queue int;
	per_worker int;
BEGIN
	WHILE EXISTS (SELECT FROM fanout.queues q WHERE q.queue = queue_name AND q.ready > 20) LOOP
		per_queue := (ARRAY[2, 7, 1, 4, 10])[1 + (random() * 4)::int];
		per_worker := 1 + (random() * 2)::int;
		started := clock_timestamp();
		PERFORM fanout.alter_queue(queue_name, concurrency => per_queue, worker_concurrency => per_worker);
		COMMIT;
		INSERT INTO limits VALUES (queue_name, 'queue', per_queue, started, clock_timestamp()),
								  (queue_name, 'worker', per_worker, started, clock_timestamp());
		COMMIT;
		PERFORM pg_sleep(0.01);
	END LOOP;
END $$;

-- How many ran when each claim was got, itself included, and the highest limit that was in force while it was asked
-- for. Where one of those that ran was let in after this one, that too was between asking and getting.
CREATE VIEW seen AS
	SELECT r.queue, 'queue' AS kind, r.lease, (SELECT count(*) FROM run o WHERE o.queue = r.queue AND o.got <= r.got AND o.gave > r.got) AS running,
		   r.asked, r.got
	  FROM run r
	UNION ALL
	SELECT r.queue, 'worker', r.lease, (SELECT count(*) FROM run o WHERE o.queue = r.queue AND o.worker = r.worker AND o.got <= r.got AND o.gave > r.got),
		   r.asked, r.got
	  FROM run r;
CREATE VIEW highest AS
	SELECT s.*, (SELECT max(l.value) FROM (SELECT *, lead(in_force, 1, 'infinity') OVER (PARTITION BY queue, kind ORDER BY in_force) AS until FROM limits) l
				  WHERE l.queue = s.queue AND l.kind = s.kind AND l.from_time <= s.got AND l.until >= s.asked) AS admitted
	  FROM seen s;

SELECT fanout.fan_out(q, 'index', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, 500) i)) FROM unnest('{steady,changing}'::text[]) q;
EOS

my $changer = start_client($node, "CALL change_limits('changing')");
$node->poll_query_until('postgres', "SELECT count(*) > 4 FROM limits WHERE queue = 'changing'") or die 'nothing changes';
my @steady = map { start_client($node, "CALL hold('steady', 'w" . ($_ % 4) . "')") } 1 .. 10;
my @changing = map { start_client($node, "CALL hold('changing', 'w" . ($_ % 4) . "')") } 1 .. 10;

# Meanwhile some with more urgency arrive, some are cancelled.
foreach my $queue (qw(steady changing))
{
	$node->safe_psql('postgres', "SELECT fanout.enqueue_many('$queue', 'urgent', array_fill('{}'::jsonb, ARRAY[20]), priority => -1)");
	$node->safe_psql('postgres', "SELECT count(*) FROM fanout.cancel(ARRAY(SELECT task FROM fanout.tasks WHERE queue = '$queue' AND name = 'index' ORDER BY task DESC LIMIT 30))");
}

$node->safe_psql('postgres', 'INSERT INTO all_is_enqueued DEFAULT VALUES');

# What anybody can see at any time is within the limit, too.
my $over = 0;
for (1 .. 20)
{
	$over += $node->safe_psql('postgres', "SELECT count(*) FROM fanout.queues WHERE queue = 'steady' AND running > concurrency");
	$over += $node->safe_psql('postgres', "SELECT count(*) FROM fanout.workers w WHERE queues = '{steady}' AND leases > 2");
}
is($over, 0, 'promise 4: the views never show more than the limit');
ok(finish_clients(@steady, @changing, $changer), 'all is worked off');

# Fast workers leave less to cancel.
is( $node->safe_psql('postgres', "SELECT queue, count(*), count(*) FILTER (WHERE state = 'succeeded') >= 490, bool_and(state IN ('succeeded', 'cancelled')) FROM fanout.tasks GROUP BY 1 ORDER BY 1"),
	"changing|520|t|t\nsteady|520|t|t",
	'all is done, and once');
foreach my $queue (qw(steady changing))
{
	is($node->safe_psql('postgres', "SELECT * FROM highest WHERE queue = '$queue' AND running > admitted LIMIT 5"),
		'', "promise 4: $queue: no claim above a limit");
}
is( $node->safe_psql('postgres', "SELECT kind, max(running) FROM seen WHERE queue = 'steady' GROUP BY 1 ORDER BY 1"),
	"queue|5\nworker|2",
	'promise 4: and the limits are made use of');
cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM limits WHERE queue = 'changing'"), '>', 10, 'the limits were changed');
is($node->safe_psql('postgres', 'SELECT sum(running), sum(ready), sum(scheduled) FROM fanout.queues'), '0|0|0', 'no permit is left over');
is($node->safe_psql('postgres', 'SELECT count(*) FROM fanout.workers'), 0, 'no worker either');

# Lowering revokes nothing, and admits nothing until the count is under it.
$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('lowered', concurrency => 4);
SELECT fanout.enqueue_many('lowered', 'x', array_fill('{}'::jsonb, ARRAY[10]));
EOS
my @leases = split /\n/, $node->safe_psql('postgres', "SELECT lease FROM fanout.dequeue('lowered', 'w1', max_tasks => 10)");
is(scalar @leases, 4, 'four run');
$node->safe_psql('postgres', "SELECT fanout.alter_queue('lowered', concurrency => 2)");
foreach my $lease (@leases[ 0 .. 1 ])
{
	is($node->safe_psql('postgres', "SELECT fanout.complete($lease)"), 't', 'promise 4: no lease is revoked');
	is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('lowered', 'w1', max_tasks => 10)"), 0, 'nothing is admitted');
}
is($node->safe_psql('postgres', "SELECT fanout.complete($leases[2])"), 't', 'under the limit');
is($node->safe_psql('postgres', "SELECT count(*) FROM fanout.dequeue('lowered', 'w1', max_tasks => 10)"), 1, 'one is admitted');

$node->stop;
done_testing();
