-- Changing the mind about tasks that wait: reprioritize, reschedule, move, cancel_matching.
\i sql/include/helpers.sql
SELECT fanout.create_queue('q', backoff => '1 hour', max_attempts => 9, lease => '1 hour');
SELECT fanout.create_queue('other');
CREATE FUNCTION test.name(task bigint) RETURNS text LANGUAGE sql RETURN (SELECT t.name FROM fanout.tasks t WHERE t.task = $1);
CREATE VIEW test.counts AS SELECT queue, scheduled, ready, running FROM fanout.queues WHERE scheduled + ready + running > 0 ORDER BY 1;

--
-- reprioritize
--
SELECT fanout.enqueue('q', name) > 0 FROM unnest('{a,b,c,d,e}'::text[]) name;
SELECT fanout.reprioritize(test.task('d'), -1), fanout.reprioritize(test.task('a'), 1);
SELECT name, priority, state FROM fanout.tasks WHERE queue = 'q' ORDER BY task;
SELECT name, priority FROM fanout.dequeue('q', 'w', max_tasks => 2);
-- Not what runs or has ended
SELECT fanout.complete(test.lease('d'));
SELECT fanout.reprioritize(test.task('d'), 0), fanout.reprioritize(test.task('b'), 0);
SELECT test.name(task) FROM fanout.reprioritize(ARRAY[test.task('a'), 0, test.task('b'), test.task('e'), test.task('e')], -7) task;
SELECT name, priority FROM fanout.dequeue('q', 'w', max_tasks => 9);
SELECT * FROM test.counts;
SELECT count(*) FROM fanout.reprioritize('{}'::bigint[], 1);
SELECT fanout.reprioritize(0::bigint, 1);
SELECT fanout.reprioritize(NULL::bigint, 1);
SELECT fanout.reprioritize(test.task('a'), NULL);
SELECT fanout.reprioritize(NULL::bigint[], 1);
SELECT fanout.reprioritize(ARRAY[1, NULL]::bigint[], 1);
SELECT count(fanout.complete(lease)) FROM fanout.leases;

--
-- reschedule
--
SELECT fanout.enqueue('q', 'now') > 0, fanout.enqueue('q', 'later', delay => '1 hour') > 0, fanout.enqueue('q', 'much later', priority => -1, delay => '1 day') > 0;
SELECT fanout.reschedule(test.task('now'), delay => '1 hour'), fanout.reschedule(test.task('later'), delay => '0'),
       fanout.reschedule(test.task('much later'), run_at => now() - interval '1 hour');
SELECT name, state, run_at > now() + interval '50 min' AS in_an_hour FROM fanout.tasks WHERE name IN ('now', 'later', 'much later') ORDER BY task;
SELECT name FROM fanout.dequeue('q', 'w', max_tasks => 9);
SELECT * FROM test.counts;
SELECT fanout.reschedule(test.task('later'), delay => '0');
SELECT test.name(task) FROM fanout.reschedule(ARRAY[test.task('now'), test.task('later'), 0], run_at => now() + interval '100 ms') task;
SELECT name FROM fanout.dequeue('q', 'w', wait => '30 s');
SELECT count(fanout.complete(lease)) FROM fanout.leases;
SELECT fanout.reschedule(1::bigint);
SELECT fanout.reschedule(1::bigint, run_at => now(), delay => '1 s');
SELECT fanout.reschedule(1::bigint, run_at => 'infinity');
SELECT fanout.reschedule(1::bigint, run_at => '-infinity');
SELECT fanout.reschedule(1::bigint, delay => '-1 s');
SELECT fanout.reschedule(1::bigint, delay => '200 years');
SELECT fanout.reschedule(0::bigint, delay => '1 s');
SELECT fanout.reschedule(NULL::bigint, delay => '1 s');
SELECT fanout.reschedule(NULL::bigint[], delay => '1 s');
-- One that waits for its next attempt: the time is the journal's, and everything else stays
SELECT fanout.enqueue('q', 'tried', priority => 5) > 0 AS enqueued;
SELECT name FROM fanout.dequeue('q', 'w');
SELECT fanout.checkpoint(test.lease('tried'), 'step', '1');
SELECT fanout.fail(test.lease('tried'), 'once', retry_in => '1 hour') > now() + interval '20 min' AS later;
SELECT fanout.reprioritize(test.task('tried'), 3);
SELECT name, state, attempt, priority FROM fanout.tasks WHERE name = 'tried';
SELECT fanout.reschedule(test.task('tried'), delay => '0');
SELECT name, attempt, priority, checkpoints FROM fanout.dequeue('q', 'w');
SELECT test.becomes($$ (SELECT count(*) FROM fanout.attempts WHERE task = (SELECT test.task('tried'))) = 2 $$) AS journaled;
SELECT state, error FROM fanout.attempts WHERE task = (SELECT test.task('tried')) ORDER BY lease;
SELECT count(fanout.complete(lease)) FROM fanout.leases;
-- One that has been given another life
SELECT fanout.enqueue('q', 'again', delay => '1 hour') > 0 AS enqueued;
SELECT fanout.cancel(test.task('again'));
SELECT fanout.retry(test.task('again'));
SELECT name, state FROM fanout.tasks WHERE name = 'again';
SELECT fanout.reschedule(test.task('again'), delay => '1 day');
SELECT name, state, run_at > now() + interval '23 hours' AS tomorrow FROM fanout.tasks WHERE name = 'again';
SELECT fanout.reschedule(test.task('again'), delay => '0');
SELECT name FROM fanout.dequeue('q', 'w');
SELECT count(fanout.complete(lease)) FROM fanout.leases;

--
-- move
--
SELECT fanout.enqueue('q', name, partition_key => 'k1') > 0 FROM unnest('{m1,m2,m3}'::text[]) name;
SELECT fanout.enqueue('q', 'm4', priority => 2, delay => '1 hour') > 0 AS enqueued;
SELECT fanout.move(test.task('m1'), 'other'), fanout.move(test.task('m2'), partition_key => 'k2'),
       fanout.move(test.task('m3'), 'other', unset => '{partition_key}'), fanout.move(test.task('m4'), 'other', 'k4');
SELECT name, queue, partition_key, state, priority FROM fanout.tasks WHERE name LIKE 'm_' ORDER BY task;
SELECT queue, partition_key, ready FROM fanout.partitions ORDER BY 1, 2;
SELECT * FROM test.counts;
SELECT name, queue FROM fanout.dequeue('other', 'w', max_tasks => 9);
SELECT name, queue FROM fanout.dequeue('q', 'w', max_tasks => 9);
SELECT fanout.move(test.task('m1'), 'q');
SELECT count(fanout.complete(lease)) FROM fanout.leases;
SELECT fanout.reschedule(test.task('m4'), delay => '0');
SELECT name, priority, queue FROM fanout.dequeue('other', 'w', max_tasks => 9);
SELECT count(fanout.complete(lease)) FROM fanout.leases;
SELECT queue, partition_key, ready FROM fanout.partitions ORDER BY 1, 2;
-- A queue that is full; what goes back where it came from has its place there
SELECT fanout.create_queue('small', max_backlog => 2);
SELECT count(*) FROM fanout.enqueue_many('q', 'n', '{1,2,3}');
SELECT array_agg(task ORDER BY task) AS t FROM fanout.tasks WHERE name = 'n' \gset
SELECT test.sqlstate_of(format('SELECT fanout.move(%L::bigint[], ''small'')', :'t'));
SELECT * FROM test.counts;
SELECT count(*) FROM fanout.move((:'t'::bigint[])[1:2], 'small');
SELECT fanout.move((:'t'::bigint[])[3], 'small');
BEGIN;
SELECT fanout.move((:'t'::bigint[])[1], 'q');
SELECT fanout.move((:'t'::bigint[])[1], 'small');
SELECT test.sqlstate_of('SELECT fanout.enqueue(''small'', ''x'')');
COMMIT;
SELECT * FROM test.counts;
-- All of it to another queue, and the old one dropped, or purged, in one transaction
BEGIN;
SELECT count(*) FROM fanout.move((:'t'::bigint[])[1:2], 'other');
SELECT fanout.drop_queue('small');
COMMIT;
SELECT * FROM test.counts;
BEGIN;
SELECT count(*) FROM fanout.move((:'t'::bigint[])[1:2], 'q');
SELECT fanout.purge_queue('q');
COMMIT;
SELECT name, queue, state, error FROM fanout.tasks WHERE name = 'n' ORDER BY task;
SELECT * FROM test.counts;
BEGIN;
SELECT fanout.create_queue('short-lived');
SELECT fanout.enqueue('q', 'gone') > 0 AS enqueued;
SELECT fanout.move(test.task('gone'), 'short-lived');
SELECT fanout.drop_queue('short-lived', force => true);
COMMIT;
SELECT name FROM fanout.dequeue('q');
SELECT * FROM test.counts;
SELECT fanout.move(1::bigint);
SELECT fanout.move(1::bigint, 'missing');
SELECT fanout.move(1::bigint, 'q', '');
SELECT fanout.move(1::bigint, 'q', 'k', unset => '{partition_key}');
SELECT fanout.move(1::bigint, 'q', unset => '{priority}');
SELECT fanout.move(1::bigint, 'q', unset => ARRAY[NULL::text]);
SELECT fanout.move(0::bigint, 'q');
SELECT fanout.move(NULL::bigint, 'q');

-- One that is moved on and on: the partitions that it was the first of are even, and none loses its turns
SELECT fanout.create_queue('even');
SELECT fanout.enqueue('even', 'moved') > 0, fanout.enqueue('even', 'main') > 0, fanout.enqueue('even', 'main') > 0;
CREATE PROCEDURE test.move_on() LANGUAGE plpgsql AS $$
BEGIN
	FOR n IN 1 .. 8 LOOP
		PERFORM fanout.move(test.task('moved'), partition_key => 'p' || n);
		COMMIT;
		PERFORM count(*) FROM fanout.enqueue_many('even', 'p' || n, '{1,2}', partition_key => 'p' || n);
		COMMIT;
	END LOOP;
END $$;
CALL test.move_on();
DROP PROCEDURE test.move_on;
SELECT string_agg(name, ' ') FROM fanout.dequeue('even', 'w', max_tasks => 12);
SELECT string_agg(name, ' ') FROM fanout.dequeue('even', 'w', max_tasks => 12);
SELECT count(fanout.complete(lease)) FROM fanout.leases;
SELECT * FROM test.counts;
SELECT fanout.drop_queue('even');

--
-- Several changes in one transaction, and savepoints
--
SELECT fanout.enqueue('q', 't') AS t \gset
BEGIN;
SELECT fanout.reprioritize(:t, 1);
SELECT code FROM fanout.why(:t);
SAVEPOINT one;
SELECT fanout.move(:t, 'other', 'k');
SAVEPOINT two;
SELECT fanout.reschedule(:t, delay => '1 hour');
ROLLBACK TO two;
SELECT fanout.cancel(:t);
SELECT fanout.reprioritize(:t, 9), fanout.cancel(:t);
ROLLBACK TO two;
SELECT fanout.reprioritize(:t, 2);
COMMIT;
SELECT queue, name, priority, partition_key, state FROM fanout.tasks WHERE task = :t;
SELECT * FROM test.counts;
BEGIN;
SELECT fanout.reprioritize(:t, 3);
SAVEPOINT one;
SELECT fanout.move(:t, 'q', unset => '{partition_key}');
SELECT fanout.cancel(:t, 'why');
ROLLBACK;
SELECT queue, name, priority, partition_key, state FROM fanout.tasks WHERE task = :t;
SELECT * FROM test.counts;
BEGIN;
SELECT fanout.move(:t, 'q');
SELECT fanout.cancel(:t, 'why');
COMMIT;
SELECT queue, name, priority, partition_key, state, error FROM fanout.tasks WHERE task = :t;
SELECT * FROM test.counts;
SELECT count(*) FROM fanout.partitions;
-- Of tasks that this transaction has enqueued, in memory or not, or given another life
BEGIN;
SELECT fanout.enqueue('q', 'own') AS own \gset
SELECT fanout.reprioritize(:own, 4), fanout.move(:own, 'other', 'k'), fanout.reschedule(:own, delay => '1 hour');
SAVEPOINT one;
SELECT fanout.cancel(:own);
ROLLBACK TO one;
SELECT fanout.reschedule(:own, delay => '0');
SAVEPOINT two;
SELECT fanout.retry(:t), fanout.reprioritize(:t, 5), fanout.move(:t, 'other');
ROLLBACK TO two;
SELECT fanout.retry(:t), fanout.reprioritize(:t, 6);
COMMIT;
SELECT queue, name, priority, partition_key, state FROM fanout.tasks WHERE task IN (:own, :t) ORDER BY task;
SELECT * FROM test.counts;
BEGIN;
SELECT fanout.enqueue('q', 'never') AS never \gset
SELECT fanout.reprioritize(:never, 4), fanout.cancel(:never);
ROLLBACK;
BEGIN;
SELECT fanout.enqueue('q', 'not needed') AS never \gset
SELECT fanout.cancel(:never, 'after all');
COMMIT;
SELECT state, error FROM fanout.tasks WHERE task = :never;
SELECT * FROM test.counts;
SELECT name, priority FROM fanout.dequeue(ARRAY['q', 'other'], 'w', max_tasks => 9);
SELECT count(fanout.complete(lease)) FROM fanout.leases;
BEGIN;
SELECT min(task) AS first FROM fanout.enqueue_many('q', 'many', ARRAY(SELECT to_jsonb(i) FROM generate_series(0, 59999) i)) \gset
SELECT fanout.reprioritize(:first + 59999, -1), fanout.cancel(:first + 59998), fanout.move(:first + 59997, 'other');
SAVEPOINT one;
SELECT fanout.reprioritize(:first + 59996, -2), fanout.cancel(:first + 59995);
ROLLBACK TO one;
COMMIT;
SELECT * FROM test.counts;
SELECT args, priority FROM fanout.dequeue('q', 'w', max_tasks => 3);
BEGIN;
SELECT count(*) FROM fanout.enqueue_many('q', 'never', array_fill('{}'::jsonb, '{60000}'));
SELECT fanout.reprioritize(max(id), -5), fanout.cancel(max(id) - 1) FROM fanout.task;
ROLLBACK;
SELECT * FROM test.counts;
SELECT args, priority FROM fanout.dequeue('q', 'w', max_tasks => 2);
-- More than memory holds, back and forth
SELECT count(*) FROM fanout.reprioritize(ARRAY(SELECT :first + i FROM generate_series(30000, 59999::bigint) i), -3);
SELECT args, priority FROM fanout.dequeue('q', 'w', max_tasks => 2);
SELECT count(*) FROM fanout.move(ARRAY(SELECT :first + i FROM generate_series(0, 29999::bigint) i), 'other');
SELECT * FROM test.counts;
SELECT args, priority FROM fanout.dequeue('other', 'w', max_tasks => 2);
SELECT count(fanout.complete(lease)) FROM fanout.leases;

--
-- cancel_matching
--
SELECT * FROM test.counts;
SELECT count(*) FROM fanout.cancel_matching('q', args => '30005');
SELECT count(*) FROM fanout.cancel_matching('q', min_priority => 0);
SELECT count(*) FROM fanout.cancel_matching('q', max_priority => -4);
SELECT count(*) FROM fanout.cancel_matching('q', name => 'many', max_tasks => 10);
SELECT count(*) FROM fanout.cancel_matching('q', name => 'many', reason => 'not needed');
SELECT count(*) FROM fanout.cancel_matching('other', name => 'many', enqueued_before => now() - interval '1 hour');
SELECT count(*) FROM fanout.cancel_matching('other', name => 'many', enqueued_before => clock_timestamp());
SELECT error, count(*) FROM fanout.tasks WHERE name = 'many' GROUP BY 1 ORDER BY 1;
SELECT * FROM test.counts;
SELECT count(*) FROM fanout.enqueue_many('q', 'x', ARRAY['{"a": 1, "b": 1}', '{"a": 1, "b": 2}', '{"a": 2}', NULL]::jsonb[], partition_keys => '{k,k,l,l}');
SELECT fanout.fan_out('q', 'y', ARRAY['{"a": 1}', '{"a": 2}']::jsonb[], delay => '1 hour') AS batch \gset
SELECT args FROM fanout.dequeue('q', 'w');
SELECT t.name, t.args FROM fanout.cancel_matching('q', args => '{"a": 1}', reason => 'a') task JOIN fanout.tasks t USING (task) ORDER BY task;
SELECT name, args, state, error, (fanout.why(task)).code FROM fanout.tasks WHERE name IN ('x', 'y') ORDER BY task;
SELECT count(*) FROM fanout.cancel_matching('q', args => '{"a": 1}');
SELECT t.name, t.args FROM fanout.cancel_matching('q', partition_key => 'l', args => '{}') task JOIN fanout.tasks t USING (task);
SELECT t.name, t.args FROM fanout.cancel_matching('other', batch => :batch) task JOIN fanout.tasks t USING (task);
SELECT t.name, t.args FROM fanout.cancel_matching('q', batch => :batch) task JOIN fanout.tasks t USING (task);
SELECT fanout.fail(lease) IS NULL AS cancelled FROM fanout.leases;
-- What this transaction has enqueued and changed itself
BEGIN;
SELECT fanout.enqueue('q', 'mine') AS mine, fanout.enqueue('other', 'mine') AS moves \gset
SELECT fanout.move(:moves, 'q');
SELECT count(*) FROM fanout.cancel_matching('q', name => 'mine');
SAVEPOINT one;
SELECT count(*) FROM fanout.cancel_matching('q', partition_key => 'l');
ROLLBACK TO one;
COMMIT;
SELECT * FROM test.counts;
SELECT fanout.cancel_matching('q');
SELECT fanout.cancel_matching('q', reason => 'x', max_tasks => 5);
SELECT fanout.cancel_matching('q', name => 'x', max_tasks => 0);
SELECT fanout.cancel_matching('q', partition_key => '');
SELECT fanout.cancel_matching(NULL, name => 'x');
SELECT fanout.cancel_matching('missing', name => 'x');

-- Two cancels of one running task by one transaction: the second does nothing, unless the first was undone.
SELECT fanout.enqueue('other', 'runs') AS runs \gset
SELECT name FROM fanout.dequeue('other', 'w');
BEGIN;
SAVEPOINT one;
SELECT fanout.cancel(:runs);
ROLLBACK TO one;
SELECT fanout.cancel(:runs);
SELECT fanout.cancel(:runs);
COMMIT;
SELECT count(*) FROM fanout.attempt WHERE task = :runs AND event = 'k';

SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
DROP VIEW test.counts;
DROP FUNCTION test.name;
