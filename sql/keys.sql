\i sql/include/helpers.sql
-- Admission by key: of the tasks of a queue that were enqueued with the same key, the latest one holds it
SELECT fanout.create_queue('keyed');
SELECT fanout.create_queue('other');

-- return, which is what happens if nothing is said
SELECT fanout.enqueue('keyed', 'first', '1', key => 'k') AS first \gset
SELECT fanout.enqueue('keyed', 'second', '2', key => 'k') = :first AS returned,
	fanout.enqueue('keyed', 'second', '2', key => 'k', on_conflict => 'return') = :first AS returned,
	fanout.enqueue('keyed', 'without', key => NULL) = :first AS no_key,
	fanout.enqueue('keyed', 'another', key => 'K') = :first AS another_key,
	fanout.enqueue('other', 'elsewhere', key => 'k') = :first AS another_queue;
SELECT test.states('keyed');
SELECT key FROM fanout.tasks WHERE queue = 'keyed' ORDER BY task;
-- while it is unfinished, whatever its state
SELECT lease FROM fanout.dequeue('keyed', 'w') \gset
SELECT fanout.enqueue('keyed', 'second', key => 'k') = :first AS while_it_runs;
SELECT fanout.fail(:lease, 'once', retry_in => '1 hour') IS NOT NULL AS again;
SELECT fanout.enqueue('keyed', 'second', key => 'k') = :first AS while_it_waits_again;
SELECT fanout.cancel(:first);
SELECT fanout.enqueue('keyed', 'second', key => 'k') AS second \gset
SELECT :second > :first AS new_task, fanout.enqueue('keyed', 'third', key => 'k') = :second AS holds_it;
-- one that is given another life is not the latest
SELECT fanout.retry(:first);
SELECT fanout.enqueue('keyed', 'third', key => 'k') = :second AS still;
SELECT fanout.purge_queue('keyed');

-- reject
SELECT fanout.enqueue('keyed', 'first', key => 'k') AS first \gset
SELECT test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'second', key => 'k', on_conflict => 'reject')$$);
CREATE FUNCTION test.error_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
BEGIN
	EXECUTE statement;
	RETURN 'none';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RETURN SQLERRM || '. ' || detail;
END $$;
SELECT replace(test.error_of($$SELECT fanout.enqueue('keyed', 'second', key => 'k', on_conflict => 'reject')$$), :'first', 'N');
SELECT fanout.cancel(:first);
SELECT fanout.enqueue('keyed', 'second', key => 'k', on_conflict => 'reject') > :first AS free;
SELECT fanout.purge_queue('keyed');

-- For a time since the enqueue, finished or not
SELECT fanout.enqueue('keyed', 'first', key => 't', key_ttl => '1 hour') AS first \gset
SELECT fanout.cancel(:first);
SELECT fanout.enqueue('keyed', 'second', key => 't', key_ttl => '1 hour') = :first AS returned,
	fanout.enqueue('keyed', 'second', key => 't') = :first AS by_the_terms_of_the_first;
SELECT test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'second', key => 't', key_ttl => '1 hour', on_conflict => 'reject')$$);
SELECT fanout.enqueue('keyed', 'first', key => 'short', key_ttl => '1 us') AS first \gset
SELECT fanout.enqueue('keyed', 'second', key => 'short', key_ttl => '1 hour') > :first AS time_is_over;
SELECT fanout.purge_queue('keyed');

-- supersede: of those that wait the newest wins
SELECT fanout.enqueue('keyed', 'first', '1', key => 's', on_conflict => 'supersede') AS first \gset
SELECT fanout.enqueue('keyed', 'second', '2', key => 's', on_conflict => 'supersede') AS second \gset
SELECT name, state, replace(error, :'second', 'N') AS error FROM fanout.tasks WHERE task IN (:first, :second) ORDER BY task;
SELECT scheduled, ready, running FROM fanout.queues WHERE queue = 'keyed';
-- what runs goes on
SELECT lease FROM fanout.dequeue('keyed', 'w') \gset
SELECT fanout.enqueue('keyed', 'third', '3', key => 's', on_conflict => 'supersede') AS third \gset
SELECT fanout.enqueue('keyed', 'fourth', '4', key => 's', on_conflict => 'supersede', delay => '1 hour') AS fourth \gset
SELECT test.states('keyed') LIKE '%second running, third cancelled, fourth scheduled' AS states;
-- what waits for another attempt does not
SELECT fanout.complete(:lease);
SELECT fanout.enqueue('keyed', 'fifth', '5', key => 's', on_conflict => 'supersede') AS fifth \gset
SELECT lease FROM fanout.dequeue('keyed', 'w') \gset
SELECT fanout.fail(:lease, 'once', retry_in => '0') IS NOT NULL AS again;
SELECT fanout.enqueue('keyed', 'sixth', '6', key => 's', on_conflict => 'supersede') AS sixth \gset
SELECT test.states('keyed') LIKE '%fifth cancelled, sixth ready' AS states;
-- it makes room for its successor
SELECT fanout.alter_queue('keyed', max_backlog => 1);
SELECT fanout.enqueue('keyed', 'seventh', key => 's', on_conflict => 'supersede') > :sixth AS fits;
SELECT test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'full', key => 'other', on_conflict => 'supersede')$$);
SELECT fanout.alter_queue('keyed', unset => '{max_backlog}');
SELECT fanout.purge_queue('keyed');

-- replace: what the call says, in the place of the one that waits
SELECT fanout.enqueue('keyed', 'before', '0') AS before \gset
SELECT fanout.enqueue('keyed', 'first', '1', key => 'r', on_conflict => 'replace', delay => '1 hour', max_attempts => 2, cost => 3,
	priority => 5, partition_key => 'p', deadline => clock_timestamp() + '1 day') AS first \gset
CREATE VIEW test.task AS SELECT task, name, args, state, priority, partition_key, cost, max_attempts, run_at IS NOT NULL AS timed,
	deadline IS NOT NULL AS has_deadline FROM fanout.tasks;
SELECT * FROM test.task WHERE task = :first \gset old_
SELECT :'old_state', :'old_args', :'old_priority', :'old_partition_key', :'old_cost', :'old_max_attempts', :'old_timed', :'old_has_deadline';
SELECT fanout.enqueue('keyed', 'second', '2', key => 'r', on_conflict => 'replace') = :first AS replaced;
SELECT name, args, state, priority, partition_key, cost, max_attempts, timed, has_deadline FROM test.task WHERE task = :first;
SELECT fanout.enqueue('keyed', 'third', NULL, key => 'r', on_conflict => 'replace', priority => -1, run_at => '2100-01-01', partition_key => 'q',
	cost => 2, max_attempts => 7, deadline => '2100-01-02') = :first AS replaced;
SELECT name, args, state, priority, partition_key, cost, max_attempts, timed, has_deadline FROM test.task WHERE task = :first;
SELECT fanout.enqueue('keyed', 'fourth', '4', key => 'r', on_conflict => 'replace', priority => -1) = :first AS replaced;
SELECT name, args FROM fanout.dequeue('keyed', 'w', 10);
-- one that has started is not
SELECT fanout.enqueue('keyed', 'fifth', '5', key => 'r', on_conflict => 'replace') AS fifth \gset
SELECT :fifth > :first AS new_task, fanout.enqueue('keyed', 'sixth', '6', key => 'r') = :fifth AS holds_it;
SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases));
SELECT lease FROM fanout.dequeue('keyed', 'w') \gset
SELECT fanout.fail(:lease, 'once', retry_in => '0') IS NOT NULL AS again;
SELECT fanout.enqueue('keyed', 'seventh', '7', key => 'r', on_conflict => 'replace') AS seventh \gset
SELECT :seventh > :fifth AS new_task;
SELECT fanout.cancel(:fifth);
-- nor one that has checkpoints, of what it was to do
SELECT lease FROM fanout.dequeue('keyed', 'w') \gset
SELECT fanout.checkpoint(:lease, 'step', '1'), fanout.release(:lease);
SELECT fanout.enqueue('keyed', 'eighth', '8', key => 'r', on_conflict => 'replace') > :seventh AS new_task;
SELECT fanout.purge_queue('keyed');
-- one with a time to hold its key holds it until it has ended then
SELECT fanout.enqueue('keyed', 'first', key => 'r', key_ttl => '1 hour') AS first \gset
SELECT fanout.enqueue('keyed', 'second', key => 'r', on_conflict => 'replace') = :first AS replaced;
SELECT fanout.cancel(:first);
SELECT fanout.enqueue('keyed', 'third', key => 'r') > :first AS new_task;
-- in the transaction that has enqueued it, with savepoints
BEGIN;
SELECT fanout.enqueue('keyed', 'a', '1', key => 'rtx', on_conflict => 'replace', delay => '1 hour') AS first \gset
SAVEPOINT s;
SELECT fanout.enqueue('keyed', 'b', '2', key => 'rtx', on_conflict => 'replace', priority => 3) = :first AS replaced;
ROLLBACK TO s;
SELECT name, args, state FROM test.task WHERE task = :first;
SELECT fanout.enqueue('keyed', 'c', '3', key => 'rtx', on_conflict => 'replace', priority => -5) = :first AS replaced;
COMMIT;
SELECT name, args, state, priority FROM test.task WHERE task = :first;
SELECT name, args FROM fanout.dequeue('keyed', 'w');
SELECT fanout.complete(lease) FROM fanout.leases;
SELECT fanout.purge_queue('keyed');
-- an error leaves it as it was
SELECT fanout.alter_queue('keyed', partition_max_backlog => 1);
SELECT fanout.enqueue('keyed', 'full', partition_key => 'p') IS NOT NULL AS full;
SELECT fanout.enqueue('keyed', 'first', key => 'r') AS first \gset
SELECT test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'second', key => 'r', on_conflict => 'replace', partition_key => 'p')$$);
SELECT fanout.enqueue('keyed', 'second', key => 'r', on_conflict => 'replace', partition_key => 'q') = :first AS replaced;
SELECT fanout.enqueue('keyed', 'third', key => 'r', on_conflict => 'replace', partition_key => 'q') = :first AS in_its_own_place;
SELECT fanout.enqueue('keyed', 'third', key => 's', on_conflict => 'supersede', partition_key => 's') AS third \gset
SELECT fanout.enqueue('keyed', 'fourth', key => 's', on_conflict => 'supersede', partition_key => 's') > :third AS in_its_place;
SELECT partition_key, backlog FROM fanout.partitions WHERE queue = 'keyed' ORDER BY 1;
SELECT fanout.alter_queue('keyed', unset => '{partition_max_backlog}');
SELECT fanout.purge_queue('keyed');
SELECT count(*) FROM fanout._live_lanes() WHERE backlog > 0;

-- debounce: once no call has come for the period, with the last args
SELECT fanout.debounce('keyed', 'index', 'doc', '1', '1 hour') AS first \gset
SELECT run_at - enqueued_at = '1 hour' AS due, state FROM fanout.tasks WHERE task = :first;
SELECT fanout.debounce('keyed', 'index', 'doc', '2', '0.2 s', priority => 2, partition_key => 'p', max_attempts => 3, cost => 4) = :first AS same;
SELECT name, args, priority, partition_key, cost, max_attempts FROM test.task WHERE task = :first;
SELECT args FROM fanout.dequeue('keyed', 'w', wait => '30 s');
SELECT finished_at IS NULL AND clock_timestamp() >= enqueued_at + '0.2 s' AS not_before FROM fanout.tasks WHERE task = :first;
-- it has started: another series
SELECT fanout.debounce('keyed', 'index', 'doc', '3', '1 hour') AS second \gset
SELECT :second > :first AS another;
SELECT fanout.complete(lease) FROM fanout.leases;
-- at the latest max_wait after the first call
SELECT fanout.debounce('keyed', 'index', 'doc', '4', '1 hour', '10 min') = :second AS same;
SELECT run_at - enqueued_at = '10 min' AS bound FROM fanout.tasks WHERE task = :second;
SELECT fanout.debounce('keyed', 'index', 'doc', '5', '1 hour', '1 us') = :second AS same;
SELECT args FROM fanout.dequeue('keyed', 'w');
SELECT fanout.complete(lease) FROM fanout.leases;
SELECT fanout.debounce('keyed', 'index', 'doc', '6', '1 hour', '5 min') AS third \gset
SELECT run_at - enqueued_at = '5 min' AS bound FROM fanout.tasks WHERE task = :third;
-- the key is one of those that enqueue uses
SELECT fanout.enqueue('keyed', 'plain', key => 'doc') = :third AS returned;
SELECT fanout.cancel(:third);
SELECT fanout.enqueue('keyed', 'plain', '7', key => 'doc') AS plain \gset
SELECT fanout.debounce('keyed', 'index', 'doc', '8', '1 hour') = :plain AS replaced;
SELECT name, args, state FROM test.task WHERE task = :plain;
-- many calls of one transaction, as by a trigger
BEGIN;
SELECT count(DISTINCT fanout.debounce('keyed', 'index', 'many', to_jsonb(n), '1 hour', '2 hours')) FROM generate_series(1, 100) n;
COMMIT;
SELECT args, state FROM fanout.tasks WHERE queue = 'keyed' AND key = 'many';
SELECT scheduled, ready FROM fanout.queues WHERE queue = 'keyed';
SELECT test.sqlstate_of($$SELECT fanout.debounce('keyed', 'index', NULL, '1', '1 s')$$),
	test.sqlstate_of($$SELECT fanout.debounce('keyed', 'index', '', '1', '1 s')$$),
	test.sqlstate_of($$SELECT fanout.debounce('keyed', 'index', 'x', '1', NULL)$$),
	test.sqlstate_of($$SELECT fanout.debounce('keyed', 'index', 'x', '1', '0')$$),
	test.sqlstate_of($$SELECT fanout.debounce('keyed', 'index', 'x', '1', '1 s', '0')$$),
	test.sqlstate_of($$SELECT fanout.debounce('keyed', 'index', 'x', '1', '-1 s')$$),
	test.sqlstate_of($$SELECT fanout.debounce('keyed', '', 'x', '1', '1 s')$$),
	test.sqlstate_of($$SELECT fanout.debounce('nowhere', 'index', 'x', '1', '1 s')$$),
	test.sqlstate_of($$SELECT fanout.debounce('keyed', 'index', 'x', NULL, '1 s')$$);
SELECT fanout.purge_queue('keyed');

-- In one transaction, and with savepoints
BEGIN;
SELECT fanout.enqueue('keyed', 'first', key => 'tx', on_conflict => 'supersede') AS first \gset
SELECT fanout.enqueue('keyed', 'second', key => 'tx') = :first AS returned;
SAVEPOINT s;
SELECT fanout.enqueue('keyed', 'second', key => 'tx', on_conflict => 'supersede') AS second \gset
SELECT state, replace(error, :'second', 'N') AS error FROM fanout.tasks WHERE task = :first;
ROLLBACK TO s;
SELECT fanout.enqueue('keyed', 'third', key => 'tx') = :first AS the_savepoint_never_was;
SELECT fanout.enqueue('keyed', 'third', key => 'tx', on_conflict => 'supersede') AS third \gset
SELECT fanout.enqueue('keyed', 'fourth', key => 'tx', on_conflict => 'supersede') AS fourth \gset
COMMIT;
SELECT name, state, replace(error, :'fourth', 'N') LIKE '%N' AS by_the_last FROM fanout.tasks WHERE task IN (:first, :third, :fourth) ORDER BY task;
SELECT scheduled, ready, running FROM fanout.queues WHERE queue = 'keyed';
BEGIN;
SELECT fanout.enqueue('keyed', 'fifth', key => 'tx', on_conflict => 'supersede') > :fourth AS new_task;
ROLLBACK;
SELECT state FROM fanout.tasks WHERE task = :fourth;
SELECT fanout.enqueue('keyed', 'fifth', key => 'tx') = :fourth AS holds_it;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT fanout.enqueue('keyed', 'fifth', key => 'tx') = :fourth AS holds_it;
COMMIT;
SELECT name FROM fanout.dequeue('keyed', 'w', 10);
SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases));
SELECT scheduled, ready, running FROM fanout.queues WHERE queue = 'keyed';

-- Under a step a replay returns what the first call did, whoever holds the key by then
SELECT fanout.enqueue('keyed', 'parent') AS parent \gset
SELECT lease FROM fanout.dequeue('keyed', 'w') \gset
SELECT fanout.enqueue('other', 'held', key => 'step') AS held \gset
SELECT fanout.enqueue('other', 'child', key => 'step', lease => :lease, step => 'one') = :held AS returned;
SELECT fanout.cancel(:held);
SELECT fanout.enqueue('other', 'child', key => 'step', lease => :lease, step => 'one') = :held AS replayed;
SELECT fanout.enqueue('other', 'child', key => 'step', lease => :lease, step => 'two') > :held AS another_step;
SELECT test.sqlstate_of(format($$SELECT fanout.enqueue('other', 'child', lease => %s, step => 'one')$$, :lease)),
	test.sqlstate_of(format($$SELECT fanout.enqueue('other', 'child', key => 'x', lease => %s, step => 'one')$$, :lease)),
	test.sqlstate_of(format($$SELECT fanout.enqueue('other', 'child', key => 'step', on_conflict => 'reject', lease => %s, step => 'one')$$, :lease)),
	test.sqlstate_of(format($$SELECT fanout.enqueue('other', 'child', key => 'step', key_ttl => '1 s', lease => %s, step => 'one')$$, :lease));
SELECT fanout.complete(:lease);

-- A batch takes new tasks only
SELECT fanout.create_batch() AS batch \gset
SELECT test.sqlstate_of(format($$SELECT fanout.enqueue('keyed', 'x', key => 'b', batch => %s)$$, :batch)),
	test.sqlstate_of(format($$SELECT fanout.enqueue('keyed', 'x', key => 'b', on_conflict => 'replace', batch => %s)$$, :batch));
SELECT fanout.enqueue('keyed', 'x', key => 'b', on_conflict => 'reject', batch => :batch) IS NOT NULL AS added,
	fanout.enqueue('keyed', 'y', key => 'b', on_conflict => 'supersede', batch => :batch) IS NOT NULL AS added;
SELECT fanout.seal_batch(:batch);
SELECT fanout.complete(lease) FROM fanout.dequeue('keyed', 'w', 10);
SELECT ordinal, status FROM fanout.collect(:batch, '30 s');

-- Bad input
SELECT test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'x', key => '')$$),
	test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'x', key => repeat('x', 256))$$),
	test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'x', key => repeat('x', 255))$$),
	test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'x', key => 'x', on_conflict => 'ignore')$$),
	test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'x', on_conflict => 'return')$$),
	test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'x', key_ttl => '1 s')$$),
	test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'x', key => 'x', key_ttl => '0')$$),
	test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'x', key => 'x', key_ttl => '-1 s')$$),
	test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'x', key => 'x', key_ttl => '200 years')$$),
	test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'x', key => 'x', key_ttl => '1 s', on_conflict => 'replace')$$),
	test.sqlstate_of($$SELECT fanout.enqueue('keyed', 'x', key => 'x', key_ttl => '1 s', on_conflict => 'supersede')$$);

-- In each segment of the log; who has no key pays for no index entry
SELECT count(*) FROM pg_indexes WHERE schemaname = 'fanout' AND indexdef LIKE '%(queue, key, id)%WHERE (key IS NOT NULL)%';
SELECT fanout.drop_queue('keyed', true), fanout.drop_queue('other', true);
DROP VIEW test.task;
