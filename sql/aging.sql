-- aging: a task counts as one more urgent for each such time that it has waited.
\i sql/include/helpers.sql
CREATE FUNCTION test.put(queue_name text, name text, priority int, key text DEFAULT NULL) RETURNS boolean LANGUAGE sql AS $$
	SELECT fanout.enqueue(queue_name, name, priority => priority, partition_key => key) > 0
$$;
CREATE FUNCTION test.take(queue_name text, at_most int DEFAULT 10) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(name, ' ' ORDER BY ordinality) FROM fanout.dequeue(queue_name, 'w', at_most) WITH ORDINALITY
$$;
CREATE FUNCTION test.let_pass(task_name text, milliseconds int) RETURNS boolean LANGUAGE sql AS $$
	SELECT test.becomes(format($q$clock_timestamp() > (SELECT enqueued_at FROM fanout.tasks WHERE name = %L) + interval '%s ms'$q$, task_name, milliseconds))
$$;

SELECT fanout.create_queue('q', aging => '10 ms', backoff => '0');
SELECT aging FROM fanout.queues WHERE queue = 'q';
-- old has come to be as urgent as 0 after 20 ms
SELECT test.put('q', 'old', 2);
SELECT test.let_pass('old', 25);
SELECT test.put('q', 'new', 0), test.put('q', 'later', 1), test.put('q', 'urgent', -1000000);
SELECT test.take('q', 2);
-- a retry is as old as it was
SELECT fanout.fail(test.lease('old')) IS NOT NULL AS will_be_retried;
SELECT test.take('q');
-- what priority it was given is told as it was given
SELECT name, priority FROM fanout.tasks WHERE queue = 'q' ORDER BY task;
SELECT count(*) FILTER (WHERE t.rank = (extract(epoch FROM t.enqueued_at - '2000-01-01 00:00 UTC') * 1000000)::bigint + coalesce(t.priority, 0) * 10000::bigint) AS rank_is_time
  FROM fanout.task t JOIN fanout.queue q ON q.id = t.queue WHERE q.name = 'q';
SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases WHERE queue = 'q'));

-- the same in a partition, and for many at once
SELECT test.put('q', 'p old', 2, 'p');
SELECT test.let_pass('p old', 25);
SELECT count(*) FROM fanout.enqueue_many('q', 'p new', '{1,2}', partition_key => 'p');
SELECT test.put('q', 'p urgent', -1000000, 'p');
SELECT test.take('q');
-- one that was delayed has waited since it was due
SELECT test.put('q', 'before', 0);
SELECT fanout.enqueue('q', 'delayed', delay => '30 ms') > 0 AS enqueued;
SELECT test.becomes($$ (SELECT ready = 2 FROM fanout.queues WHERE queue = 'q') $$);
SELECT test.put('q', 'after', 0);
SELECT test.take('q');
SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases WHERE queue = 'q'));

-- as far as numbers go
SELECT fanout.create_queue('far', aging => '36500 days');
SELECT test.put('far', 'least', 2147483647), test.put('far', 'less', 2), test.put('far', 'usual', 0), test.put('far', 'more', -2), test.put('far', 'most', -2147483648);
SELECT fanout.enqueue('far', 'usual again', priority => NULL) > 0 AS enqueued;
SELECT string_agg(name || ' ' || priority, ', ' ORDER BY ordinality) FROM fanout.dequeue('far', 'w', 10) WITH ORDINALITY;
SELECT fanout.drop_queue('far', force => true);
SELECT fanout.create_queue('near', aging => '1 us');
SELECT test.put('near', 'least', 2147483647), test.put('near', 'first', 0);
SELECT test.put('near', 'second', -1), test.put('near', 'most', -2147483648);
SELECT test.take('near');
SELECT fanout.drop_queue('near', force => true);

--
-- a queue without has no ranks, and its order is that of priorities
--
SELECT fanout.create_queue('without');
SELECT test.put('without', 'a', 2), test.put('without', 'b', 1), test.put('without', 'c', 0);
SELECT count(*) FROM fanout.task t JOIN fanout.queue q ON q.id = t.queue WHERE q.name = 'without' AND t.rank IS NULL;
SELECT test.take('without', 2);

-- a change is for a queue of which no task is unfinished
SELECT test.sqlstate_of($$SELECT fanout.alter_queue('without', aging => '1 s')$$);
SELECT test.take('without');
SELECT test.sqlstate_of($$SELECT fanout.alter_queue('without', aging => '1 s')$$);
SELECT fanout.alter_queue('without', partition_retries => 'pass', unset => '{aging}');
SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases WHERE queue = 'without'));
BEGIN;
SELECT test.put('without', 'own', 0);
SELECT test.sqlstate_of($$SELECT fanout.alter_queue('without', aging => '1 s')$$);
ROLLBACK;
SELECT fanout.alter_queue('without', aging => '1 s');
SELECT aging FROM fanout.queues WHERE queue = 'without';
-- what its own transaction enqueues afterwards goes by the new one
BEGIN;
SELECT fanout.alter_queue('without', aging => '2 s');
SAVEPOINT s;
SELECT test.put('without', 'two seconds', 3);
SELECT test.sqlstate_of($$SELECT fanout.alter_queue('without', unset => '{aging}')$$), test.sqlstate_of($$SELECT fanout.alter_queue('without', aging => '2 s')$$);
ROLLBACK TO s;
SELECT fanout.alter_queue('without', unset => '{aging}');
SELECT test.put('without', 'no rank', 3);
ROLLBACK TO s;
SELECT test.put('without', 'two seconds', 3);
COMMIT;
BEGIN;
SAVEPOINT s;
SELECT test.sqlstate_of($$SELECT fanout.alter_queue('without', unset => '{aging}')$$);
COMMIT;
SELECT t.name, (t.rank - extract(epoch FROM t.enqueued_at - '2000-01-01 00:00 UTC') * 1000000)::bigint AS more FROM fanout.task t JOIN fanout.queue q ON q.id = t.queue
 WHERE q.name = 'without' ORDER BY t.id;
SELECT fanout.purge_queue('without');
SELECT fanout.alter_queue('without', unset => '{aging}');
SELECT aging FROM fanout.queues WHERE queue = 'without';

-- a task that has ended goes by the new one, should it be given another life
SELECT test.put('without', 'again', 7), test.put('without', 'then', 3);
SELECT count(*) FROM fanout.cancel(ARRAY(SELECT task FROM fanout.tasks WHERE queue = 'without' AND name IN ('again', 'then')));
SELECT fanout.alter_queue('without', aging => '1 s');
CREATE FUNCTION test.more(task_name text) RETURNS bigint LANGUAGE sql AS $$
	SELECT (t.rank - extract(epoch FROM t.enqueued_at - '2000-01-01 00:00 UTC') * 1000000)::bigint FROM fanout.task t WHERE t.id = (SELECT test.task(task_name))
$$;
SELECT fanout.retry(test.task('again'));
SELECT test.more('again');
-- and so does one that is changed
SELECT fanout.reprioritize(test.task('again'), -2);
SELECT test.more('again'), priority FROM fanout.tasks WHERE task = (SELECT test.task('again'));
SELECT fanout.reschedule(test.task('again'), delay => '1 hour');
SELECT test.more('again') = extract(epoch FROM run_at - enqueued_at) * 1000000 - 2000000 AS since_it_is_due FROM fanout.tasks WHERE task = (SELECT test.task('again'));
SELECT fanout.reschedule(test.task('again'), delay => '0');
SELECT test.more('again');
SELECT fanout.create_queue('plain');
BEGIN;
SELECT fanout.move(test.task('again'), queue => 'plain');
SELECT test.more('again');
ROLLBACK;
SELECT test.more('again');
SELECT fanout.move(test.task('again'), queue => 'plain');
SELECT test.more('again'), priority FROM fanout.tasks WHERE task = (SELECT test.task('again'));
SELECT test.put('plain', 'first', -3), test.put('plain', 'last', -1);
SELECT test.take('plain');
SELECT test.sqlstate_of($$SELECT fanout.alter_queue('plain', aging => '1 s')$$);
SELECT fanout.release(lease) FROM fanout.leases WHERE task = (SELECT test.task('last'));
SELECT fanout.move(test.task('last'), queue => 'without', partition_key => 'p');
SELECT test.more('last');
-- one that is to come keeps the aging as it is
BEGIN;
SELECT fanout.release(lease) FROM fanout.leases WHERE task = (SELECT test.task('first'));
COMMIT;
SELECT fanout.create_queue('target');
BEGIN;
SELECT fanout.move(test.task('first'), queue => 'target');
SELECT test.sqlstate_of($$SELECT fanout.alter_queue('target', aging => '1 s')$$);
ROLLBACK;
SELECT fanout.alter_queue('target', aging => '1 s');
DROP FUNCTION test.more;

SELECT statement, test.sqlstate_of(statement) FROM (VALUES
	($$SELECT fanout.create_queue('no', aging => '0')$$),
	($$SELECT fanout.create_queue('no', aging => '-1 s')$$),
	($$SELECT fanout.create_queue('no', aging => '178000000 years')$$),
	($$SELECT fanout.alter_queue('q', aging => '0')$$),
	($$SELECT fanout.alter_queue('q', aging => '1 s', unset => '{aging}')$$),
	($$SELECT fanout.alter_queue('unknown', aging => '1 s')$$)
) v (statement);

DROP FUNCTION test.put, test.take, test.let_pass;
SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
