# Promise 5 from both sides: no window ever holds one unit too many, and none is held back while a window has room for
# it; so a queue that is never empty starts what its limits allow, as soon as somebody asks. And fair shares: floods, trickles,
# weights.
#
# Each dequeue is written down with the time before and after it. It asks for more than the limit, so it was refused
# something at a moment in between; then a window that ends there must have been full.

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
CREATE TABLE started (queue text, at timestamptz, cost int);
CREATE TABLE asked (queue text, before timestamptz, after timestamptz, cost int);
CREATE TABLE allowed (queue text, units int, period interval);
CREATE INDEX ON started (queue, at);

CREATE PROCEDURE set_up(queue_name text, tasks int, cost int, units int[], periods interval[]) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM fanout.create_queue(queue_name, lease => '1 hour');
	FOR i IN 1 .. cardinality(units) LOOP
		PERFORM fanout.set_rate_limit(queue_name, units[i], periods[i]);
		INSERT INTO allowed VALUES (queue_name, units[i], periods[i]);
	END LOOP;
	PERFORM FROM fanout.enqueue_many(queue_name, 'x', array_fill('{}'::jsonb, ARRAY[tasks]), cost => set_up.cost);
END $$;

-- Ask for more than there is, again and again, for so long and until some have started
CREATE PROCEDURE saturate(queue_name text, cost int, seconds float8) LANGUAGE plpgsql AS $$
DECLARE
	finish timestamptz := clock_timestamp() + seconds * interval '1 s';
	before timestamptz;
	after timestamptz;
	took bigint[];
BEGIN
	WHILE clock_timestamp() < finish OR (SELECT count(*) <= 20 FROM started WHERE queue = queue_name) LOOP
		before := clock_timestamp();
		took := ARRAY(SELECT lease FROM fanout.dequeue(queue_name, max_tasks => 1000));
		after := clock_timestamp();
		INSERT INTO asked VALUES (queue_name, before, after, cost);
		IF took <> '{}' THEN
			INSERT INTO started SELECT queue_name, claimed_at, cost FROM fanout.leases WHERE lease = ANY (took);
			PERFORM fanout.complete(took);
		END IF;
		COMMIT;
	END LOOP;
END $$;

-- How far the fullest window is over its limit
CREATE FUNCTION excess(queue_name text) RETURNS bigint LANGUAGE sql AS $$
	SELECT max(w.used - a.units) FROM allowed a, LATERAL (
		SELECT sum(s.cost) OVER (ORDER BY s.at RANGE a.period PRECEDING) AS used FROM started s WHERE s.queue = a.queue) w
	 WHERE a.queue = queue_name
$$;

-- Dequeues that got less than every window had room for
CREATE FUNCTION held_back(queue_name text) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM asked q WHERE q.queue = queue_name AND NOT EXISTS (
		SELECT FROM allowed a WHERE a.queue = q.queue AND q.cost + (
			SELECT coalesce(sum(s.cost), 0) FROM started s
			 WHERE s.queue = q.queue AND s.at BETWEEN q.before - a.period AND q.after) > a.units)
$$;
EOS

my @shapes = (
	[ 'one window', 1, '{50}', '{500 ms}' ],
	[ 'two windows', 1, '{10,50}', '{100 ms,1 s}' ],
	[ 'three windows', 1, '{4,7,40}', '{30 ms,70 ms,700 ms}' ],
	[ 'costs', 3, '{10,50}', '{100 ms,1 s}' ],
	[ 'a cost of all', 5, '{5}', '{60 ms}' ]);

foreach my $shape (@shapes)
{
	my ($name, $cost, $units, $periods) = @$shape;

	$node->safe_psql('postgres', "CALL set_up('$name', 3000, $cost, '$units', '$periods')");
	ok(finish_clients(map { start_client($node, "CALL saturate('$name', $cost, 2.5)") } 1 .. 2), "$name: two are at it");
	cmp_ok($node->safe_psql('postgres', "SELECT excess('$name')"), '<=', 0, "promise 5: $name: never one too many");
	is($node->safe_psql('postgres', "SELECT held_back('$name')"), 0, "$name: and none is held back");
	cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM started WHERE queue = '$name'"), '>', 20, "$name: something has started");
}

# Fair shares
$node->safe_psql('postgres', <<'EOS');
CREATE TABLE turn (n bigint GENERATED ALWAYS AS IDENTITY, queue text, lease bigint, key text);
CREATE PROCEDURE take(queue_name text, tasks int, at_once int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. tasks / at_once LOOP
		INSERT INTO turn (queue, lease, key) SELECT queue_name, d.lease, t.partition_key
		  FROM fanout.dequeue(queue_name, max_tasks => at_once) d JOIN fanout.task t ON t.id = d.task;
		PERFORM fanout.complete(ARRAY(SELECT lease FROM fanout.leases WHERE session_pid = pg_backend_pid()));
		COMMIT;
	END LOOP;
END $$;
CREATE FUNCTION jain(queue_name text) RETURNS float8 LANGUAGE sql AS $$
	SELECT sum(n) ^ 2 / (count(*) * sum(n ^ 2)) FROM (SELECT count(*)::float8 AS n FROM turn WHERE queue = queue_name GROUP BY key) s
$$;

SELECT fanout.create_queue('flood');
SELECT count(*) FROM fanout.enqueue_many('flood', 'x', array_fill('{}'::jsonb, '{10000}'), partition_key => 'flood');
SELECT count(*) FROM fanout.enqueue_many('flood', 'x', array_fill('{}'::jsonb, '{1900}'),
	partition_keys => ARRAY(SELECT 'key' || n % 19 FROM generate_series(1, 1900) n));
EOS
ok(finish_clients(map { start_client($node, "CALL take('flood', 400, 5)") } 1 .. 4), 'a flood of 100 to 1');
is($node->safe_psql('postgres', "SELECT count(DISTINCT key) FROM turn WHERE queue = 'flood'"), 20, 'all partitions have had turns');
cmp_ok($node->safe_psql('postgres', "SELECT jain('flood')"), '>=', 0.99, "fair shares: Jain's index");

# Who comes with one task while others have thousands has his turn before any of them has two
my $latest = 0;
for my $n (1 .. 5)
{
	my $after = $node->safe_psql('postgres', <<EOS);
SELECT coalesce(max(n), 0) AS before FROM turn \\gset
SELECT fanout.enqueue('flood', 'x', partition_key => 'trickle$n') AS task \\gset
CALL take('flood', 45, 1);
SELECT count(*) FROM turn WHERE n > :before AND n <= (SELECT n FROM turn WHERE key = 'trickle$n')
EOS
	$latest = $after if $after > $latest;
}
cmp_ok($latest, '>', 0, 'a trickle is served');
cmp_ok($latest, '<=', 21, 'within one turn of the others');

$node->safe_psql('postgres', <<'EOS');
SELECT fanout.create_queue('weighted', partition_concurrency => 50);
SELECT fanout.set_partition('weighted', 'w' || w, weight => w) FROM unnest('{1,2,4}'::int[]) w;
SELECT count(*) FROM fanout.enqueue_many('weighted', 'x', array_fill('{}'::jsonb, '{6000}'),
	partition_keys => ARRAY(SELECT 'w' || (ARRAY[1, 2, 4])[n % 3 + 1] FROM generate_series(1, 6000) n));
EOS
ok(finish_clients(map { start_client($node, "CALL take('weighted', 700, 7)") } 1 .. 4), 'weights of 1, 2 and 4');
is( $node->safe_psql('postgres', "SELECT key, abs(count(*) - 400 * right(key, 1)::int) <= 8 FROM turn WHERE queue = 'weighted' GROUP BY 1 ORDER BY 1"),
	"w1|t\nw2|t\nw4|t", 'shares by weight, to 2 in 100');

$node->stop;
done_testing();
