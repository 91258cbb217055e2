\i sql/include/helpers.sql
-- A task that has not started by its deadline is cancelled
SELECT fanout.create_queue('timely'), fanout.create_queue('late');
SELECT fanout.pause_queue('late');

-- when the time has come, without anybody's help: what is ready, what is delayed until shortly before, and in any partition
SELECT fanout.enqueue('late', 'ready', deadline => clock_timestamp() + '1 s') AS ready,
	fanout.enqueue('late', 'delayed', delay => '0.9 s', deadline => clock_timestamp() + '1 s') AS delayed,
	fanout.enqueue('late', 'keyed', partition_key => 'a', priority => 3, deadline => clock_timestamp() + '1 s') AS keyed,
	fanout.enqueue('late', 'in time', deadline => clock_timestamp() + '1 day') AS in_time \gset
SELECT name, state, deadline BETWEEN now() AND now() + '1 day' AS soon FROM fanout.tasks WHERE task = :in_time;
SELECT reason ~ 'and has to start before 2' FROM fanout.why(:in_time);
SELECT test.becomes($$test.states('late') = 'ready cancelled, delayed cancelled, keyed cancelled, in time ready'$$);
SELECT name, error, finished_at >= deadline AS not_before, finished_at < deadline + '30 s' AS soon, attempt, lease
  FROM fanout.tasks WHERE queue = 'late' AND state = 'cancelled' ORDER BY task;
SELECT scheduled, ready, running, cancelled FROM fanout.queues WHERE queue = 'late';
SELECT status, error FROM fanout.result(:ready, '0');
SELECT code FROM fanout.why(:ready);

-- One that starts in time goes on, and is free of its deadline in later attempts
SELECT fanout.enqueue('timely', 'started', deadline => clock_timestamp() + '3 s') AS started,
	fanout.enqueue('timely', 'failed', deadline => clock_timestamp() + '3 s') AS failed,
	fanout.enqueue('timely', 'released', deadline => clock_timestamp() + '3 s') AS released,
	fanout.enqueue('timely', 'rolled back', deadline => clock_timestamp() + '3 s') AS rolled_back \gset
SELECT name FROM fanout.dequeue('timely', 'w', 3) ORDER BY task;
SELECT fanout.fail(test.lease('failed'), 'once', retry_in => '0') IS NOT NULL AS again, fanout.release(test.lease('released'));
-- a claim that is rolled back is no start
BEGIN;
SELECT name FROM fanout.dequeue('timely', 'w', 3) ORDER BY task;
SELECT test.becomes($$(SELECT clock_timestamp() > max(deadline) FROM fanout.tasks WHERE queue = 'timely')$$);
ROLLBACK;
SELECT test.becomes($$(SELECT state = 'cancelled' FROM fanout.tasks WHERE task = (SELECT test.task('rolled back')))$$);
SELECT test.states('timely');
SELECT reason ~ 'has to start' AS has_deadline FROM fanout.why(:failed);
SELECT name, attempt FROM fanout.dequeue('timely', 'w', 10) ORDER BY task;
SELECT count(*) FROM fanout.complete(ARRAY(SELECT lease FROM fanout.leases));

-- Who commits after the deadline
BEGIN;
SELECT fanout.enqueue('timely', 'committed late', deadline => clock_timestamp() + '50 ms') AS committed_late \gset
SELECT test.becomes($$(SELECT clock_timestamp() > max(deadline) FROM fanout.tasks WHERE queue = 'timely')$$);
COMMIT;
SELECT name FROM fanout.dequeue('timely', 'w', 10);
SELECT test.becomes($$(SELECT state = 'cancelled' AND error ~ 'deadline' FROM fanout.tasks WHERE task = (SELECT test.task('committed late')))$$);

-- Many at a time, and joins
SELECT fanout.fan_out('late', 'many', array_fill('{}'::jsonb, '{700}'), deadline => clock_timestamp() + '0.1 s') AS batch \gset
SELECT fanout.wait(:batch::bigint, '30 s');
SELECT status, error, count(*) FROM fanout.collect(:batch) GROUP BY 1, 2;
SELECT total, ready, cancelled, ended FROM fanout.progress(:batch);
SELECT fanout.fan_out('late', ARRAY['one', 'two'], '{1,2}', "join" => 'any', deadline => clock_timestamp() + '0.1 s') AS batch \gset
SELECT fanout.wait(:batch::bigint, '30 s');
SELECT ordinal, status FROM fanout.collect(:batch);
SELECT count(*) FROM fanout.enqueue_many('late', 'several', '{1,2}', deadline => clock_timestamp() + '0.1 s');
SELECT test.becomes($$(SELECT count(*) = 2 FROM fanout.tasks WHERE name = 'several' AND state = 'cancelled')$$);

-- Another life has no deadline, once that has passed or the task has started; one that is yet to come holds
SELECT fanout.retry(:ready);
SELECT state, deadline FROM fanout.tasks WHERE task = :ready;
SELECT fanout.cancel(:in_time, 'by hand');
SELECT fanout.retry(:in_time);
SELECT state, deadline IS NOT NULL AS has_deadline FROM fanout.tasks WHERE task = :in_time;
SELECT fanout.resume_queue('late');
SELECT name, attempt FROM fanout.dequeue('late', 'w', 10) ORDER BY task;
SELECT fanout.fail(lease, 'gone', final => true) FROM fanout.leases;
SELECT fanout.retry(:in_time);
SELECT state, deadline FROM fanout.tasks WHERE task = :in_time;
-- who cancels before the deadline has said why
SELECT fanout.enqueue('late', 'by hand', deadline => clock_timestamp() + '1 day', delay => '1 hour') AS by_hand \gset
SELECT fanout.cancel(:by_hand, 'changed my mind');
SELECT state, error FROM fanout.tasks WHERE task = :by_hand;

SELECT fanout.purge_queue('late');

-- Bad input
SELECT test.sqlstate_of($$SELECT fanout.enqueue('timely', 'x', deadline => clock_timestamp() - '1 s'::interval)$$),
	test.sqlstate_of($$SELECT fanout.enqueue('timely', 'x', deadline => 'infinity')$$),
	test.sqlstate_of($$SELECT fanout.enqueue('timely', 'x', deadline => '-infinity')$$),
	test.sqlstate_of($$SELECT fanout.enqueue('timely', 'x', deadline => clock_timestamp() + '1 hour', delay => '2 hours')$$),
	test.sqlstate_of($$SELECT fanout.enqueue('timely', 'x', deadline => '2100-01-01', run_at => '2100-01-01')$$),
	test.sqlstate_of($$SELECT fanout.enqueue('timely', 'x', deadline => clock_timestamp() + '1 hour', run_at => '2000-01-01')$$),
	test.sqlstate_of($$SELECT fanout.enqueue_many('timely', 'x', '{1}', deadline => '2000-01-01')$$),
	test.sqlstate_of($$SELECT fanout.fan_out('timely', 'x', '{1}', deadline => '2000-01-01')$$),
	test.sqlstate_of($$SELECT fanout.fan_out('timely', '{x}', '{1}', deadline => '2000-01-01')$$);
SELECT fanout.drop_queue('timely', true), fanout.drop_queue('late', true);
