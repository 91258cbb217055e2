-- Bad input: each function, with the SQLSTATE that it is refused with.
\i sql/include/helpers.sql
-- The lease is long, as extend() without an interval gives it that from now on, and this may take more than a minute
SELECT fanout.create_queue('q', lease => '1 hour'), fanout.create_queue('other');
SELECT fanout.enqueue('q', 'running') > 0, fanout.enqueue('q', 'ready') > 0;
SELECT name FROM fanout.dequeue('q', 'w');
SELECT fanout.fan_out('q', 'x', '{1}') AS batch \gset
SELECT fanout.create_batch() AS open_batch \gset

-- Each call stands beside what is expected; what comes out otherwise is shown.
CREATE TABLE test.calls (i int GENERATED ALWAYS AS IDENTITY, expected text, call text);
CREATE VIEW test.surprises AS
	SELECT call, expected, actual FROM (SELECT i, call, expected, test.sqlstate_of('SELECT ' || call) AS actual FROM test.calls) AS c
	 WHERE actual IS DISTINCT FROM expected ORDER BY i;
CREATE FUNCTION test.lease_here() RETURNS bigint LANGUAGE sql AS $$ SELECT test.lease('running') $$;

--
-- NULL where a value is needed
--
INSERT INTO test.calls (expected, call) VALUES
	('22004', $$fanout.create_queue(NULL)$$),
	('22004', $$fanout.alter_queue(NULL, concurrency => 1)$$),
	('22004', $$fanout.drop_queue(NULL)$$),
	('22004', $$fanout.pause_queue(NULL)$$),
	('22004', $$fanout.resume_queue(NULL)$$),
	('22004', $$fanout.purge_queue(NULL)$$),
	('22004', $$fanout.grant_queue(NULL, current_user::regrole)$$),
	('22004', $$fanout.grant_queue('q', NULL)$$),
	('22004', $$fanout.grant_queue('q', current_user::regrole, ARRAY[NULL])$$),
	('22004', $$fanout.grant_queue('q', current_user::regrole, NULL)$$),
	('22004', $$fanout.revoke_queue(NULL, current_user::regrole)$$),
	('22004', $$fanout.revoke_queue('q', current_user::regrole, NULL)$$),
	('22004', $$fanout.revoke_queue('q', NULL)$$),
	('22004', $$fanout.enqueue(NULL, 'x')$$),
	('22004', $$fanout.enqueue('q', NULL)$$),
	('22004', $$fanout.enqueue_many(NULL, 'x', '{1}')$$),
	('22004', $$fanout.enqueue_many('q', NULL, '{1}')$$),
	('22004', $$fanout.enqueue_many('q', 'x', NULL)$$),
	('22004', $$fanout.fan_out(NULL, 'x', '{1}')$$),
	('22004', $$fanout.fan_out('q', NULL::text, '{1}')$$),
	('22004', $$fanout.fan_out('q', 'x', NULL)$$),
	('22004', $$fanout.fan_out('q', NULL::text[], '{1}')$$),
	('22004', $$fanout.fan_out('q', '{x}'::text[], NULL)$$),
	('22004', $$fanout.fan_out('q', '{x,NULL}'::text[], '{1,2}')$$),
	('22004', $$fanout.seal_batch(NULL)$$),
	('22004', $$fanout.cancel(NULL::bigint)$$),
	('22004', $$fanout.cancel(NULL::bigint[])$$),
	('22004', $$fanout.cancel(ARRAY[NULL]::bigint[])$$),
	('22004', $$fanout.retry(NULL::bigint)$$),
	('22004', $$fanout.retry(NULL::bigint[])$$),
	('22004', $$fanout.retry(ARRAY[NULL]::bigint[])$$),
	('22004', $$fanout.dequeue(NULL::text)$$),
	('22004', $$fanout.dequeue(NULL::text[])$$),
	('22004', $$fanout.dequeue(ARRAY['q', NULL])$$),
	('22004', $$fanout.complete_and_dequeue(NULL::bigint, NULL, NULL)$$),
	('22004', $$fanout.complete_and_dequeue(NULL::bigint[], NULL, NULL)$$),
	('22004', $$fanout.complete_and_dequeue(ARRAY[NULL]::bigint[], NULL, 'q')$$),
	('22004', $$fanout.extend(NULL::bigint)$$),
	('22004', $$fanout.extend(NULL::bigint[])$$),
	('22004', $$fanout.extend(ARRAY[NULL]::bigint[])$$),
	('22004', $$fanout.heartbeat(NULL)$$),
	('22004', $$fanout.checkpoint(NULL, 'step', '1')$$),
	('22004', $$fanout.checkpoint(test.lease_here(), NULL, '1')$$),
	('22004', $$fanout.complete(NULL::bigint)$$),
	('22004', $$fanout.complete(NULL::bigint[])$$),
	('22004', $$fanout.complete(ARRAY[NULL]::bigint[])$$),
	('22004', $$fanout.fail(NULL::bigint)$$),
	('22004', $$fanout.fail(NULL::bigint[])$$),
	('22004', $$fanout.fail(ARRAY[NULL]::bigint[])$$),
	('22004', $$fanout.release(NULL::bigint)$$),
	('22004', $$fanout.release(NULL::bigint[])$$),
	('22004', $$fanout.release(ARRAY[NULL]::bigint[])$$),
	('22004', $$fanout.collect(NULL)$$),
	('22004', $$fanout.result(NULL)$$),
	('22004', $$fanout.wait(NULL::bigint)$$),
	('22004', $$fanout.wait(NULL::bigint[])$$),
	('22004', $$fanout.wait(ARRAY[NULL]::bigint[])$$),
	('22004', $$fanout.progress(NULL)$$),
	('22004', $$fanout.grant_usage(NULL)$$),
	-- NULL for what may be left out is as if it were left out.
	('00000', $$fanout.create_queue('new', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)$$),
	('00000', $$fanout.alter_queue('q', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)$$),
	('00000', $$fanout.enqueue('q', 'x', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)$$),
	('00000', $$fanout.enqueue_many('q', 'x', '{1}', NULL, NULL, NULL, NULL, NULL, NULL, NULL)$$),
	('00000', $$fanout.fan_out('q', 'x', '{1}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)$$),
	('00000', $$fanout.fan_out('q', '{x}'::text[], '{1}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)$$),
	('00000', $$fanout.create_batch(NULL, NULL, NULL, NULL)$$),
	('00000', $$fanout.cancel(test.task('ready'), NULL)$$),
	('00000', $$fanout.dequeue('q', NULL, NULL, NULL, NULL, NULL)$$),
	('00000', $$fanout.dequeue(ARRAY['q'], NULL, NULL, NULL, NULL, NULL)$$),
	('00000', $$fanout.complete_and_dequeue(NULL::bigint, NULL, 'q', NULL, NULL, NULL, NULL, NULL)$$),
	('00000', $$fanout.complete_and_dequeue(NULL::bigint[], NULL, 'q', NULL, NULL, NULL, NULL, NULL)$$),
	('00000', $$fanout.extend(test.lease_here(), NULL)$$),
	('00000', $$fanout.heartbeat('w', NULL)$$),
	('00000', $$fanout.complete(test.lease_here(), NULL)$$),
	('00000', $$fanout.complete(ARRAY[test.lease_here()], NULL)$$),
	('00000', $$fanout.fail(test.lease_here(), NULL, NULL, NULL)$$),
	('00000', $$fanout.fail(ARRAY[test.lease_here()], NULL, NULL, NULL)$$),
	('00000', $$fanout.release(test.lease_here(), NULL)$$),
	('00000', $$fanout.release(ARRAY[test.lease_here()], NULL)$$),
	('00000', $$fanout.checkpoint(test.lease_here(), 'step', NULL)$$),
	('00000', $$fanout.drop_queue('other', NULL)$$);
SELECT * FROM test.surprises;
SELECT count(*) FROM test.calls;
TRUNCATE test.calls;

--
-- Durations: not negative, and within a hundred years
--
INSERT INTO test.calls (expected, call)
	SELECT '22023', replace(call, '?', quote_literal(duration))
	  FROM unnest(ARRAY[
			$$fanout.create_queue('new', lease => ?)$$, $$fanout.create_queue('new', backoff => ?)$$, $$fanout.create_queue('new', backoff_max => ?)$$,
			$$fanout.alter_queue('q', lease => ?)$$, $$fanout.alter_queue('q', backoff => ?)$$, $$fanout.alter_queue('q', backoff_max => ?)$$,
			$$fanout.enqueue('q', 'x', delay => ?)$$, $$fanout.enqueue_many('q', 'x', '{1}', delay => ?)$$, $$fanout.fan_out('q', 'x', '{1}', delay => ?)$$,
			$$fanout.dequeue('q', lease => ?)$$, $$fanout.dequeue('q', wait => ?)$$, $$fanout.dequeue(ARRAY['q'], lease => ?)$$,
			$$fanout.complete_and_dequeue(NULL::bigint, NULL, 'q', lease_for => ?)$$, $$fanout.complete_and_dequeue(NULL::bigint[], NULL, 'q', wait => ?)$$,
			$$fanout.extend(test.lease_here(), ?)$$, $$fanout.extend(ARRAY[test.lease_here()], ?)$$, $$fanout.heartbeat('w', ?)$$,
			$$fanout.fail(test.lease_here(), retry_in => ?)$$, $$fanout.fail(ARRAY[test.lease_here()], retry_in => ?)$$,
			$$fanout.release(test.lease_here(), ?)$$, $$fanout.release(ARRAY[test.lease_here()], ?)$$,
			format($$fanout.collect(%s, ?)$$, :batch), format($$fanout.wait(%s, ?)$$, :batch), $$fanout.wait(ARRAY[test.task('ready')], ?)$$,
			$$fanout.result(test.task('ready'), ?)$$]) AS call,
	       unnest('{-1 us,-1 month,1 day -25 hours,36500 days 1 us,40000 days,178000000 years,178956970 years 7 mons 2147483647 days 2562047788:00:54.775807}'::text[]) AS duration;
-- Of no length at all: a lease
INSERT INTO test.calls (expected, call) VALUES
	('22023', $$fanout.create_queue('new', lease => '0')$$),
	('22023', $$fanout.alter_queue('q', lease => '0')$$),
	('22023', $$fanout.dequeue('q', lease => '0')$$),
	('22023', $$fanout.extend(test.lease_here(), '0')$$),
	('22023', $$fanout.heartbeat('w', '0')$$),
	('00000', $$fanout.create_queue('new', backoff => '0', backoff_max => '0')$$),
	('00000', $$fanout.enqueue('q', 'x', delay => '0')$$),
	('00000', $$fanout.enqueue('q', 'x', delay => '100 years')$$),
	('00000', $$fanout.dequeue('q', wait => '0')$$),
	('00000', $$fanout.dequeue('q', wait => '99 years')$$),
	('00000', $$fanout.fail(test.lease_here(), retry_in => '0')$$),
	('00000', $$fanout.release(test.lease_here(), '0')$$),
	-- Times
	('22023', $$fanout.enqueue('q', 'x', run_at => 'infinity')$$),
	('22023', $$fanout.enqueue('q', 'x', run_at => '-infinity')$$),
	('22023', $$fanout.enqueue_many('q', 'x', '{1}', run_at => 'infinity')$$),
	('22023', $$fanout.fan_out('q', 'x', '{1}', run_at => 'infinity')$$),
	('22023', $$fanout.enqueue('q', 'x', delay => '1 s', run_at => now())$$),
	('00000', $$fanout.enqueue('q', 'x', run_at => '4714-11-24 00:00:00+00 BC')$$),
	('00000', $$fanout.enqueue('q', 'x', run_at => '294276-12-31 23:59:59.999999+00')$$);
SELECT * FROM test.surprises;
SELECT count(*) FROM test.calls;
TRUNCATE test.calls;

--
-- Numbers and names
--
INSERT INTO test.calls (expected, call) VALUES
	('22023', $$fanout.create_queue('new', concurrency => 0)$$),
	('22023', $$fanout.create_queue('new', concurrency => -1)$$),
	('22023', $$fanout.create_queue('new', concurrency => -2147483648)$$),
	('22023', $$fanout.create_queue('new', worker_concurrency => 0)$$),
	('22023', $$fanout.create_queue('new', worker_concurrency => -1)$$),
	('22023', $$fanout.create_queue('new', max_attempts => 0)$$),
	('22023', $$fanout.create_queue('new', max_attempts => -1)$$),
	('22023', $$fanout.create_queue('new', max_attempts => 32768)$$),
	('22023', $$fanout.create_queue('new', max_attempts => 65537)$$),
	('22023', $$fanout.create_queue('new', max_backlog => 0)$$),
	('22023', $$fanout.create_queue('new', max_backlog => -9223372036854775808)$$),
	('22023', $$fanout.alter_queue('q', concurrency => -1)$$),
	('22023', $$fanout.alter_queue('q', worker_concurrency => 0)$$),
	('22023', $$fanout.alter_queue('q', max_attempts => 32768)$$),
	('22023', $$fanout.alter_queue('q', max_backlog => -1)$$),
	('22023', $$fanout.enqueue('q', 'x', max_attempts => 0)$$),
	('22023', $$fanout.enqueue('q', 'x', max_attempts => -1)$$),
	('22023', $$fanout.enqueue('q', 'x', max_attempts => 32768)$$),
	('22023', $$fanout.enqueue('q', 'x', max_attempts => 65537)$$),
	('22023', $$fanout.enqueue_many('q', 'x', '{1}', max_attempts => 0)$$),
	('22023', $$fanout.fan_out('q', 'x', '{1}', max_attempts => 0)$$),
	('22023', $$fanout.dequeue('q', max_tasks => 0)$$),
	('22023', $$fanout.dequeue('q', max_tasks => -1)$$),
	('22023', $$fanout.dequeue('q', max_tasks => 10001)$$),
	('22023', $$fanout.dequeue('q', max_tasks => 2147483647)$$),
	('00000', $$fanout.dequeue('q', max_tasks => 10000)$$),
	('22023', $$fanout.complete_and_dequeue(NULL::bigint, NULL, 'q', max_tasks => 0)$$),
	-- Queues' names
	('22023', $$fanout.create_queue('')$$),
	('22023', $$fanout.create_queue(' ')$$),
	('22023', $$fanout.create_queue(' new')$$),
	('22023', $$fanout.create_queue('new ')$$),
	('22023', $$fanout.create_queue(E'new\n')$$),
	('22023', $$fanout.create_queue(E'n\tew')$$),
	('22023', $$fanout.create_queue(E'n\x7few')$$),
	('22023', $$fanout.create_queue(repeat('x', 64))$$),
	('22023', $$fanout.create_queue(repeat('é', 32))$$),
	('22023', $$fanout.create_queue(repeat('x', 10000000))$$),
	('00000', $$fanout.create_queue(repeat('x', 63))$$),
	-- No such queue, by any spelling
	('42704', $$fanout.alter_queue('none')$$),
	('42704', $$fanout.drop_queue('none')$$),
	('42704', $$fanout.drop_queue('none', force => true)$$),
	('42704', $$fanout.pause_queue('none')$$),
	('42704', $$fanout.resume_queue('none')$$),
	('42704', $$fanout.purge_queue('none')$$),
	('42704', $$fanout.grant_queue('none', current_user::regrole)$$),
	('42704', $$fanout.revoke_queue('none', current_user::regrole)$$),
	('42704', $$fanout.enqueue('none', 'x')$$),
	('42704', $$fanout.enqueue('', 'x')$$),
	('42704', $$fanout.enqueue('Q', 'x')$$),
	('42704', $$fanout.enqueue('q ', 'x')$$),
	('42704', $$fanout.enqueue(repeat('q', 64), 'x')$$),
	('42704', $$fanout.enqueue(repeat('q', 10000000), 'x')$$),
	('42704', $$fanout.enqueue_many('none', 'x', '{1}')$$),
	('42704', $$fanout.enqueue_many('none', 'x', '{}')$$),
	('42704', $$fanout.fan_out('none', 'x', '{1}')$$),
	('42704', $$fanout.fan_out('none', '{x}'::text[], '{1}')$$),
	('42704', $$fanout.dequeue('none')$$),
	('42704', $$fanout.dequeue('none', wait => '1 hour')$$),
	('42704', $$fanout.dequeue(ARRAY['q', 'none'])$$),
	('42704', $$fanout.complete_and_dequeue(NULL::bigint, NULL, 'none')$$),
	-- Names of tasks, steps and workers
	('22023', $$fanout.enqueue('q', '')$$),
	('22023', $$fanout.enqueue_many('q', '', '{1}')$$),
	('22023', $$fanout.fan_out('q', '', '{1}')$$),
	('22023', $$fanout.fan_out('q', ARRAY['x', ''], '{1,2}')$$),
	('00000', $$fanout.enqueue('q', repeat('x', 100000))$$),
	('22023', $$fanout.checkpoint(test.lease_here(), '', '1')$$),
	('22023', $$fanout.checkpoint(test.lease_here(), repeat('x', 100000), '1')$$),
	('22023', $$fanout.enqueue('q', 'x', lease => test.lease_here(), step => '')$$),
	('22023', $$fanout.enqueue('q', 'x', lease => test.lease_here(), step => repeat('x', 100000))$$),
	('22023', $$fanout.dequeue('q', worker => '')$$),
	('22023', $$fanout.dequeue('q', worker => repeat('w', 64))$$),
	('22023', $$fanout.dequeue('q', worker => repeat('é', 32))$$),
	('22023', $$fanout.complete_and_dequeue(NULL::bigint, NULL, 'q', worker => repeat('w', 64))$$),
	('22023', $$fanout.heartbeat('')$$),
	('22023', $$fanout.heartbeat(repeat('w', 64))$$),
	('00000', $$fanout.dequeue('q', worker => repeat('w', 63))$$),
	-- Arrays
	('22023', $$fanout.dequeue('{}'::text[])$$),
	('22023', $$fanout.dequeue('{{q},{other}}'::text[])$$),
	('22023', $$fanout.enqueue_many('q', 'x', '{{1},{2}}')$$),
	('22023', $$fanout.fan_out('q', 'x', '{{1},{2}}')$$),
	('22023', $$fanout.fan_out('q', '{x,y}'::text[], '{1}')$$),
	('22023', $$fanout.fan_out('q', '{}'::text[], '{1}')$$),
	('22023', $$fanout.fan_out('q', '{x}'::text[], '{}')$$),
	('22023', $$fanout.complete(ARRAY[test.lease_here()], '{}')$$),
	('22023', $$fanout.complete(ARRAY[test.lease_here()], '{1,2}')$$),
	('22023', $$fanout.complete('{}'::bigint[], '{1}')$$),
	('22023', $$fanout.complete_and_dequeue(ARRAY[test.lease_here()], '{1,2}', 'q')$$),
	('22023', $$fanout.complete('{{1},{2}}'::bigint[])$$),
	('22023', $$fanout.grant_queue('q', current_user::regrole, '{everything}')$$),
	('22023', $$fanout.alter_queue('q', unset => '{lease}')$$),
	-- Joins
	('22023', $$fanout.fan_out('q', 'x', '{1}', 'some')$$),
	('22023', $$fanout.fan_out('q', 'x', '{1}', '')$$),
	('22023', $$fanout.fan_out('q', 'x', '{1}', 'n')$$),
	('22023', $$fanout.fan_out('q', 'x', '{1}', 'n', 0)$$),
	('22023', $$fanout.fan_out('q', 'x', '{1}', 'n', -1)$$),
	('22023', $$fanout.fan_out('q', 'x', '{1}', 'all', 1)$$),
	('22023', $$fanout.create_batch('some')$$),
	('22023', $$fanout.create_batch('n')$$),
	('22023', $$fanout.create_batch('n', 0)$$),
	('22023', $$fanout.create_batch('any', 1)$$),
	-- A step without a lease
	('22023', $$fanout.enqueue('q', 'x', step => 'step')$$),
	('22023', $$fanout.create_batch(step => 'step')$$),
	-- Batches
	('42704', $$fanout.enqueue('q', 'x', batch => 0)$$),
	('42704', $$fanout.enqueue('q', 'x', batch => 9223372036854775807)$$),
	('42704', $$fanout.enqueue_many('q', 'x', '{1}', batch => -1)$$),
	('42704', $$fanout.seal_batch(0)$$),
	('42704', $$fanout.collect(9223372036854775807)$$),
	('42704', $$fanout.wait(-1)$$),
	('42704', $$fanout.progress(0)$$),
	('FO005', format($$fanout.enqueue('q', 'x', batch => %s)$$, :batch)),
	('FO005', format($$fanout.enqueue_many('q', 'x', '{1}', batch => %s)$$, :batch)),
	-- Tasks
	('42704', $$fanout.cancel(0)$$),
	('42704', $$fanout.retry(-1)$$),
	('42704', $$fanout.result(9223372036854775807)$$),
	('42704', $$fanout.wait(ARRAY[test.task('ready'), 0])$$),
	-- Leases
	('FO001', $$fanout.complete(0)$$),
	('FO001', $$fanout.complete(-1)$$),
	('FO001', $$fanout.complete(9223372036854775807)$$),
	('FO001', $$fanout.fail(0)$$),
	('FO001', $$fanout.release(0)$$),
	('FO001', $$fanout.extend(0)$$),
	('FO001', $$fanout.checkpoint(0, 'step', '1')$$),
	('FO001', $$fanout.complete_and_dequeue(0, NULL, 'q')$$),
	('FO001', $$fanout.enqueue('q', 'x', lease => 0, step => 'step')$$),
	('FO001', $$fanout.enqueue_many('q', 'x', '{1}', lease => 0, step => 'step')$$),
	('FO001', $$fanout.fan_out('q', 'x', '{1}', lease => 0, step => 'step')$$),
	('FO001', $$fanout.create_batch(lease => 0, step => 'step')$$),
	('42710', $$fanout.create_queue('q')$$),
	('55006', $$fanout.drop_queue('q')$$);
SELECT * FROM test.surprises;
SELECT count(*) FROM test.calls;
TRUNCATE test.calls;

-- More queues than a call may name; the same one again is not more.
SELECT count(fanout.create_queue('many ' || i)) FROM generate_series(1, 17) i;
INSERT INTO test.calls (expected, call) VALUES
	('00000', $$fanout.dequeue(ARRAY(SELECT 'many ' || i FROM generate_series(1, 16) i))$$),
	('22023', $$fanout.dequeue(ARRAY(SELECT 'many ' || i FROM generate_series(1, 17) i))$$),
	('00000', $$fanout.dequeue(ARRAY(SELECT 'many ' || i % 16 + 1 FROM generate_series(1, 100) i))$$);
SELECT * FROM test.surprises;
TRUNCATE test.calls;

--
-- A read-only transaction can look, and do nothing.
--
INSERT INTO test.calls (expected, call) VALUES
	('25006', $$fanout.create_queue('new')$$),
	('25006', $$fanout.create_queue('q', if_not_exists => true)$$),
	('25006', $$fanout.alter_queue('q', concurrency => 1)$$),
	('25006', $$fanout.drop_queue('q')$$),
	('25006', $$fanout.pause_queue('q')$$),
	('25006', $$fanout.resume_queue('q')$$),
	('25006', $$fanout.purge_queue('q')$$),
	('25006', $$fanout.grant_queue('q', current_user::regrole)$$),
	('25006', $$fanout.revoke_queue('q', current_user::regrole)$$),
	('25006', $$fanout.grant_usage(current_user::regrole)$$),
	('25006', $$fanout.enqueue('q', 'x')$$),
	('25006', $$fanout.enqueue_many('q', 'x', '{1}')$$),
	('25006', $$fanout.fan_out('q', 'x', '{1}')$$),
	('25006', $$fanout.fan_out('q', '{x}'::text[], '{1}')$$),
	('25006', $$fanout.create_batch()$$),
	('25006', format($$fanout.seal_batch(%s)$$, :open_batch)),
	('25006', $$fanout.cancel(test.task('ready'))$$),
	('25006', $$fanout.cancel(ARRAY[test.task('ready')])$$),
	('25006', $$fanout.retry(test.task('ready'))$$),
	('25006', $$fanout.retry(ARRAY[test.task('ready')])$$),
	('25006', $$fanout.dequeue('q')$$),
	('25006', $$fanout.dequeue(ARRAY['q'])$$),
	('25006', $$fanout.complete_and_dequeue(NULL::bigint, NULL, 'q')$$),
	('25006', $$fanout.complete_and_dequeue(NULL::bigint[], NULL, 'q')$$),
	('25006', $$fanout.extend(test.lease_here())$$),
	('25006', $$fanout.extend(ARRAY[test.lease_here()])$$),
	('25006', $$fanout.heartbeat('w')$$),
	('25006', $$fanout.checkpoint(test.lease_here(), 'step', '1')$$),
	('25006', $$fanout.complete(test.lease_here())$$),
	('25006', $$fanout.complete(ARRAY[test.lease_here()])$$),
	('25006', $$fanout.fail(test.lease_here())$$),
	('25006', $$fanout.fail(ARRAY[test.lease_here()])$$),
	('25006', $$fanout.release(test.lease_here())$$),
	('25006', $$fanout.release(ARRAY[test.lease_here()])$$),
	('00000', format($$fanout.collect(%s, '0')$$, :batch)),
	('00000', format($$fanout.wait(%s, '10 ms')$$, :batch)),
	('00000', format($$fanout.progress(%s)$$, :batch)),
	('00000', $$fanout.result(test.task('ready'), '10 ms')$$),
	('00000', $$fanout.wait(ARRAY[test.task('ready')], '0')$$),
	('00000', $$fanout.status()$$),
	('00000', $$(SELECT count(*) FROM fanout.queues)$$),
	('00000', $$(SELECT count(*) FROM fanout.tasks)$$),
	('00000', $$(SELECT count(*) FROM fanout.batches)$$),
	('00000', $$(SELECT count(*) FROM fanout.leases)$$),
	('00000', $$(SELECT count(*) FROM fanout.workers)$$),
	('00000', $$(SELECT count(*) FROM fanout.attempts)$$);
BEGIN READ ONLY;
SELECT * FROM test.surprises;
COMMIT;
SELECT count(*) FROM test.calls;
TRUNCATE test.calls;
SET default_transaction_read_only = on;
CALL fanout.dequeue_wait('q', 'w', '0', NULL);
CALL fanout.wait_batch(:batch, '0', NULL);
RESET default_transaction_read_only;

-- The procedures are for outside of a transaction block; and their bad input
BEGIN;
CALL fanout.dequeue_wait('q', 'w', '0', NULL);
ROLLBACK;
BEGIN;
CALL fanout.wait_batch(:batch, '0', NULL);
ROLLBACK;
CALL fanout.dequeue_wait(NULL::text, 'w', '0', NULL);
CALL fanout.dequeue_wait(NULL::text[], 'w', '0', NULL);
CALL fanout.dequeue_wait('{}'::text[], 'w', '0', NULL);
CALL fanout.dequeue_wait('none', 'w', '0', NULL);
CALL fanout.dequeue_wait('q', '', '0', NULL);
CALL fanout.dequeue_wait('q', 'w', '-1 s', NULL);
CALL fanout.wait_batch(NULL, '0', NULL);
CALL fanout.wait_batch(0, '0', NULL);
CALL fanout.wait_batch(:batch, '-1 s', NULL);

-- All of that has left everything as it was.
SELECT test.states('q');
SELECT queue, scheduled, ready, running FROM fanout.queues WHERE queue !~ 'many' ORDER BY queue;
SELECT checkpoints FROM fanout.dequeue('other');
SELECT name, attempt FROM fanout.dequeue('q', max_tasks => 9);

DROP VIEW test.surprises;
DROP TABLE test.calls;
DROP FUNCTION test.lease_here;
SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
