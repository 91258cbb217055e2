-- why(task): the one thing that a task waits for.
\i sql/include/helpers.sql
-- Times and numbers of leases differ from run to run
CREATE FUNCTION test.why(task_name text) RETURNS text LANGUAGE sql AS $$
	SELECT code || ': ' || regexp_replace(regexp_replace(reason, 'lease \d+', 'lease N'), 'until .*', 'until T') FROM fanout.why(test.task(task_name))
$$;

SELECT fanout.create_queue('q');
SELECT fanout.enqueue('q', 'first') > 0, fanout.enqueue('q', 'second') > 0, fanout.enqueue('q', 'later', delay => '1 hour') > 0;
SELECT test.why('first'), test.why('second'), test.why('later');
SELECT name FROM fanout.dequeue('q', 'w1');
SELECT test.why('first');
SELECT fanout.complete(test.lease('first'));
SELECT test.why('first'), test.why('second');
-- what is to be changed first is told first
SELECT fanout.alter_queue('q', concurrency => 1);
SELECT fanout.enqueue('q', 'third') > 0;
SELECT name FROM fanout.dequeue('q', 'w1');
SELECT test.why('third');
SELECT fanout.backpressure('q', now() + '1 hour');
SELECT test.why('third');
SELECT fanout.pause_queue('q');
SELECT test.why('third');
SELECT fanout.cancel(test.task('third'));
SELECT test.why('third');
SELECT fanout.fail(test.lease('second'), final => true) IS NULL AS final;
SELECT test.why('second');

SELECT fanout.create_queue('p', partition_concurrency => 1, rate_limit => 3, rate_period => '1 hour', synchronous_claims => true);
SELECT fanout.enqueue('p', 'a1', partition_key => 'acme') > 0, fanout.enqueue('p', 'a2', partition_key => 'acme') > 0,
       fanout.enqueue('p', 'b1', partition_key => 'b') > 0, fanout.enqueue('p', 'b2', partition_key => 'b') > 0,
       fanout.enqueue('p', 'c1', partition_key => 'c') > 0;
SELECT count(*) FROM fanout.dequeue('p', max_tasks => 1);
SELECT test.why('a2');
SELECT fanout.pause_partition('p', 'c');
SELECT test.why('c1');
SELECT fanout.backpressure('p', now() + '1 hour', partition_key => 'b');
SELECT test.why('b1');
SELECT fanout.backpressure('p', now(), partition_key => 'b'), fanout.resume_partition('p', 'c');
SELECT count(*) FROM fanout.dequeue('p', max_tasks => 10);
SELECT test.why('b2');
SELECT fanout.alter_queue('p', unset => '{partition_concurrency}');
SELECT test.why('b2');
SELECT fanout.alter_queue('p', unset => '{rate_limit}', partition_rate_limit => 1, partition_rate_period => '1 hour');
SELECT fanout.enqueue('p', 'd1', partition_key => 'd') > 0, fanout.enqueue('p', 'd2', partition_key => 'd') > 0;
SELECT fanout.cancel(test.task('a2')), fanout.cancel(test.task('b2'));
SELECT name FROM fanout.dequeue('p');
SELECT test.why('d2');
-- in the middle of a cancel, and before a commit
BEGIN;
SELECT fanout.cancel(test.task('d2'));
SELECT (fanout.why(test.task('d2'))).code;
SELECT fanout.enqueue('p', 'own', partition_key => 'own') > 0;
SELECT (fanout.why(test.task('own'))).*;
ROLLBACK;

SELECT test.sqlstate_of('SELECT fanout.why(NULL)'), test.sqlstate_of('SELECT fanout.why(-1)');
SELECT test.task('d2') AS task \gset
CREATE ROLE why_user;
SELECT fanout.grant_queue('q', 'why_user');
SET ROLE why_user;
SELECT fanout.why(:task);
RESET ROLE;
SELECT fanout.revoke_queue('q', 'why_user');
DROP OWNED BY why_user;
DROP ROLE why_user;

DROP FUNCTION test.why;
SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
