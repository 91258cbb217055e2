\i sql/include/helpers.sql
-- max_backlog of partitions: of each one, and of single ones
SELECT fanout.create_queue('tenants', partition_max_backlog => 3);
SELECT partition_max_backlog FROM fanout.queues WHERE queue = 'tenants';
CREATE FUNCTION test.backlog(queue_name text, key text) RETURNS text LANGUAGE sql AS $$
	SELECT format('%s of %s', backlog, max_backlog) FROM fanout.partitions WHERE queue = queue_name AND partition_key = key
$$;

SELECT count(*) FROM fanout.enqueue_many('tenants', 'a', '{1,2,3}', partition_key => 'a');
SELECT test.sqlstate_of($$SELECT fanout.enqueue('tenants', 'a', partition_key => 'a')$$),
	test.sqlstate_of($$SELECT fanout.enqueue('tenants', 'a', partition_key => 'a', delay => '1 hour')$$),
	test.sqlstate_of($$SELECT fanout.enqueue_many('tenants', 'b', '{1,2,3,4}', partition_key => 'b')$$),
	test.sqlstate_of($$SELECT fanout.enqueue_many('tenants', 'b', '{1,2,3}', partition_key => 'b')$$),
	test.sqlstate_of($$SELECT fanout.enqueue_many('tenants', 'without', '{1,2,3,4}')$$);
CREATE FUNCTION test.full_error_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
BEGIN
	EXECUTE statement;
	RETURN 'none';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RETURN SQLSTATE || ': ' || SQLERRM || '. ' || detail;
END $$;
SELECT test.full_error_of($$SELECT fanout.enqueue('tenants', 'a', partition_key => 'a')$$);
-- of a call with many keys each counts for itself
SELECT test.full_error_of($$SELECT fanout.fan_out('tenants', 'x', '{1,2,3,4,5,6}', partition_keys => '{b,c,b,NULL,b,b}')$$);
SELECT fanout.fan_out('tenants', 'x', '{1,2,3,4,5,6}', partition_keys => '{b,c,b,NULL,b,c}') IS NOT NULL AS fits;
SELECT partition_key, backlog, max_backlog FROM fanout.partitions WHERE queue = 'tenants' ORDER BY 1;

-- Settings of its own
SELECT fanout.set_partition('tenants', 'a', max_backlog => 4), fanout.set_partition('tenants', 'd', max_backlog => 1);
SELECT fanout.enqueue('tenants', 'a', partition_key => 'a', delay => '1 hour') IS NOT NULL AS fits;
SELECT test.sqlstate_of($$SELECT fanout.enqueue('tenants', 'a', partition_key => 'a')$$),
	test.sqlstate_of($$SELECT fanout.enqueue_many('tenants', 'd', '{1,2}', partition_key => 'd')$$);
SELECT fanout.set_partition('tenants', 'd', unset => '{max_backlog}');
SELECT test.sqlstate_of($$SELECT fanout.enqueue_many('tenants', 'd', '{1,2}', partition_key => 'd')$$);
SELECT partition_key, backlog, max_backlog FROM fanout.partitions WHERE queue = 'tenants' ORDER BY 1;

-- What runs does not wait; what is given back does, and is let in whatever the limit says
SELECT count(*) FROM fanout.dequeue('tenants', 'w', 100);
SELECT test.backlog('tenants', 'a'), test.backlog('tenants', 'c');
SELECT count(*) FROM fanout.enqueue_many('tenants', 'a', '{1,2,3}', partition_key => 'a');
SELECT count(fanout.release(l.lease)) FROM fanout.leases l JOIN fanout.tasks USING (task) WHERE partition_key = 'a';
SELECT test.backlog('tenants', 'a');
SELECT test.sqlstate_of($$SELECT fanout.enqueue('tenants', 'a', partition_key => 'a')$$);
SELECT count(fanout.fail(l.lease, 'gone', final => true)) FROM fanout.leases l JOIN fanout.tasks USING (task) WHERE partition_key = 'b';
SELECT count(fanout.fail(l.lease, 'again', retry_in => '1 hour')) FROM fanout.leases l JOIN fanout.tasks USING (task) WHERE partition_key = 'c';
SELECT test.backlog('tenants', 'c');
SELECT count(*) FROM fanout.retry(ARRAY(SELECT task FROM fanout.tasks WHERE queue = 'tenants' AND partition_key = 'b'));
SELECT test.backlog('tenants', 'b');
SELECT test.sqlstate_of($$SELECT fanout.enqueue('tenants', 'b', partition_key => 'b')$$);
-- a claim that is rolled back
BEGIN;
SELECT count(*) FROM fanout.dequeue('tenants', 'w', 100);
SELECT test.backlog('tenants', 'a'), test.backlog('tenants', 'b');
ROLLBACK;
SELECT test.backlog('tenants', 'a'), test.backlog('tenants', 'b');

-- Open transactions count, and what is rolled back does not
SELECT count(*) FROM fanout.cancel(ARRAY(SELECT task FROM fanout.tasks WHERE queue = 'tenants' AND partition_key IN ('a', 'b', 'c')));
SELECT count(*) FROM fanout.partitions WHERE queue = 'tenants' AND backlog > 0;
BEGIN;
SELECT count(*) FROM fanout.enqueue_many('tenants', 'b', '{1,2}', partition_key => 'b');
SAVEPOINT s;
SELECT count(*) FROM fanout.enqueue_many('tenants', 'b', '{1}', partition_keys => '{b}');
SELECT test.sqlstate_of($$SELECT fanout.enqueue('tenants', 'b', partition_key => 'b')$$);
ROLLBACK TO s;
SELECT test.sqlstate_of($$SELECT fanout.enqueue('tenants', 'b', partition_key => 'b')$$);
ROLLBACK;
SELECT count(*) FROM fanout._live_lanes() WHERE backlog > 0;
BEGIN;
SELECT count(*) FROM fanout.enqueue_many('tenants', 'b', '{1,2}', partition_key => 'b');
SELECT fanout.purge_queue('tenants');
COMMIT;
SELECT test.backlog('tenants', 'b');
SELECT fanout.purge_queue('tenants');
SELECT count(*) FROM fanout._live_lanes() WHERE backlog > 0;

-- A limit that comes later counts what is there
SELECT fanout.alter_queue('tenants', unset => '{partition_max_backlog}');
SELECT count(*) FROM fanout.enqueue_many('tenants', 'e', array_fill('{}'::jsonb, '{600}'), partition_keys => array_fill('e'::text, '{600}'));
SELECT fanout.alter_queue('tenants', partition_max_backlog => 601);
SELECT fanout.enqueue('tenants', 'e', partition_key => 'e') IS NOT NULL AS fits;
SELECT test.sqlstate_of($$SELECT fanout.enqueue('tenants', 'e', partition_key => 'e')$$);
SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.dequeue('tenants', 'w', 1000)));
SELECT count(*) FROM fanout._live_lanes() WHERE backlog > 0;

-- Bad input
SELECT test.sqlstate_of($$SELECT fanout.alter_queue('tenants', partition_max_backlog => 0)$$),
	test.sqlstate_of($$SELECT fanout.create_queue('bad', partition_max_backlog => -1)$$),
	test.sqlstate_of($$SELECT fanout.set_partition('tenants', 'a', max_backlog => 0)$$),
	test.sqlstate_of($$SELECT fanout.set_partition('tenants', 'a', max_backlog => 5, unset => '{max_backlog}')$$),
	test.sqlstate_of($$SELECT fanout.alter_queue('tenants', partition_max_backlog => 5, unset => '{partition_max_backlog}')$$);
SELECT fanout.drop_queue('tenants', true);
