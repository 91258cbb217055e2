-- Checkpoints: a step's value, stored once, and read again by whoever goes on.
\i sql/include/helpers.sql
SELECT fanout.create_queue('q', backoff => '0', max_attempts => 10);
SELECT fanout.enqueue('q', 'a') > 0, fanout.enqueue('q', 'b') > 0;
SELECT name, attempt, checkpoints FROM fanout.dequeue('q', max_tasks => 2);
SELECT test.lease('a') AS a, test.lease('b') AS b \gset

-- promise 2: the first value stays, and later calls are told.
SELECT fanout.checkpoint(:a, 'downloaded', '{"bytes": 81234}');
SELECT fanout.checkpoint(:a, 'downloaded', '{"bytes": 0}');
SELECT fanout.checkpoint(:a, 'downloaded', NULL);
SELECT fanout.checkpoint(:a, 'parsed', '[1, "two", null]');
-- Each task has steps of its own.
SELECT fanout.checkpoint(:b, 'downloaded', '"of b"');
-- SQL's NULL is a value, too: the step is done, and has none.
SELECT fanout.checkpoint(:a, 'nothing', NULL) IS NULL AS sql_null;
SELECT fanout.checkpoint(:a, 'nothing', '"too late"') IS NULL AS sql_null;
SELECT fanout.checkpoint(:a, 'json null', 'null') IS NULL AS sql_null;
SELECT fanout.checkpoint(:a, 'json null', '1');
-- Steps are told apart by their whole name.
SELECT fanout.checkpoint(:a, 'Downloaded', '1'), fanout.checkpoint(:a, 'downloaded ', '2'), fanout.checkpoint(:a, repeat('ж', 500), '3');

-- Whoever has the task next gets them along, after a release, a failure and an expiry.
SELECT fanout.release(:a);
SELECT jsonb_pretty(checkpoints - repeat('ж', 500)) AS checkpoints, checkpoints -> repeat('ж', 500) AS long_name, attempt FROM fanout.dequeue('q');
SELECT lease AS a2 FROM fanout.leases WHERE task = (SELECT test.task('a')) \gset
SELECT fanout.checkpoint(:a2, 'parsed', '"of the second"');
SELECT fanout.checkpoint(:a2, 'indexed', '1');
SELECT fanout.fail(:a2, 'oh') IS NOT NULL AS retried;
SELECT (SELECT count(*) FROM jsonb_object_keys(checkpoints)), checkpoints -> 'indexed' AS indexed, attempt FROM fanout.dequeue('q', lease => '10 ms');
SELECT (SELECT count(*) FROM jsonb_object_keys(checkpoints)), checkpoints -> 'indexed' AS indexed, attempt FROM fanout.dequeue('q', wait => '30 s');
-- complete_and_dequeue brings them, too, and dequeue from several queues.
SELECT fanout.release(:b);
SELECT name, checkpoints, attempt FROM fanout.complete_and_dequeue(test.lease('a'), NULL, 'q');
SELECT fanout.release(test.lease('b'));
SELECT name, checkpoints FROM fanout.dequeue('{q}'::text[]);

-- promise 3: without the lease there is no writing, not even of a step that is done.
SELECT fanout.checkpoint(:b, 'downloaded', '1');
SELECT fanout.checkpoint(:b, 'new', '1');
SELECT fanout.checkpoint(:a, 'downloaded', '1');
SELECT fanout.checkpoint(0, 'step', '1');
SELECT fanout.complete(test.lease('b'));
SELECT fanout.checkpoint(lease, 'new', '1') FROM fanout.tasks WHERE task = (SELECT test.task('b'));

-- A task that has another life keeps them.
SELECT fanout.enqueue('q', 'c') > 0 AS enqueued;
SELECT lease AS c FROM fanout.dequeue('q') \gset
SELECT fanout.checkpoint(:c, 'one', '1');
SELECT fanout.fail(:c, 'for now', final => true);
SELECT fanout.retry(test.task('c'));
SELECT name, checkpoints FROM fanout.dequeue('q');

-- Ten megabytes in a step, and a thousand steps
SELECT test.lease('c') AS c \gset
SELECT fanout.checkpoint(:c, '10 MB', to_jsonb(repeat(md5('a'), 312500))) = to_jsonb(repeat(md5('a'), 312500)) AS same;
SELECT count(fanout.checkpoint(:c, 'step ' || i, to_jsonb(i))) FROM generate_series(1, 1000) i;
SELECT fanout.release(test.lease('c'));
SELECT length(checkpoints ->> '10 MB'), (SELECT count(*) FROM jsonb_object_keys(checkpoints)), checkpoints -> 'step 777' AS step_777 FROM fanout.dequeue('q');

-- Bad input
SELECT fanout.checkpoint(test.lease('c'), NULL, '1');
SELECT fanout.checkpoint(NULL, 'step', '1');
SELECT fanout.checkpoint(test.lease('c'), '', '1');

SELECT count(fanout.drop_queue(queue, force => true)) FROM fanout.queues;
