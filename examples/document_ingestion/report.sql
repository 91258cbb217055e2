-- The figures at the end of run.sh, from two sides: what the database says, and what the workers noted themselves.
-- Expects worker_log, filled from their files, and the variables batch, killed (a worker), crashed_at (epoch) and
-- sampled (the most leases of one worker that were seen in fanout.leases).
\set ON_ERROR_STOP 1

SELECT count(*) AS documents FROM source \gset
SELECT count(DISTINCT path) AS indexed, count(*) - count(DISTINCT path) AS twice FROM documents \gset
SELECT count(*) AS missing FROM source WHERE path NOT IN (SELECT path FROM documents) \gset

-- collect gives the results in the order of the fan-out.
SELECT count(*) FILTER (WHERE status = 'succeeded' AND result->>'path' = path) AS in_order
  FROM source LEFT JOIN fanout.collect(:batch, timeout => '0') USING (ordinal) \gset

-- A task ran twice if steps of it were started under two leases.
SELECT count(*) AS ran_twice, count(*) FILTER (WHERE of_killed) AS ran_twice_of_killed
  FROM (SELECT bool_or(worker = :'killed') AS of_killed FROM worker_log WHERE event IN ('read', 'index')
         GROUP BY task HAVING count(DISTINCT lease) > 1) t \gset

SELECT count(*) FILTER (WHERE state = 'completed') AS completed, count(*) FILTER (WHERE state = 'expired') AS expired,
       count(*) FILTER (WHERE state = 'failed') AS failed
  FROM fanout.attempts WHERE queue = 'indexing' \gset

-- Redone: a step that was begun again after its checkpoint had been stored under another lease.
SELECT count(*) - count(DISTINCT l.task) AS read_again,
       count(*) FILTER (WHERE l.lease > t.lease) AS redone
  FROM worker_log l JOIN document_text t USING (task) WHERE event = 'read' \gset
SELECT count(*) AS skipped
  FROM document_text t JOIN documents d USING (task) WHERE d.lease <> t.lease \gset

-- Each worker's own count of what it had in hand: one up with a claim, one down with an end. What it had in hand when the
-- server crashed is left out: that may have ended, with the worker not told of it, and then the worker was given more.
SELECT coalesce(max(in_hand), 0) AS in_hand
  FROM (SELECT sum(CASE event WHEN 'claim' THEN 1 WHEN 'read' THEN 0 WHEN 'index' THEN 0 ELSE -1 END)
                   OVER (PARTITION BY worker ORDER BY ordinal) AS in_hand
          FROM worker_log WHERE lease NOT IN (SELECT lease FROM worker_log GROUP BY lease HAVING min(at) < :crashed_at AND max(at) > :crashed_at)) t \gset
SELECT worker_concurrency AS "limit" FROM fanout.queues WHERE queue = 'indexing' \gset

-- Leases taken before the crash under which a task was finished after it, and those that were lost in it.
SELECT count(*) FILTER (WHERE e.event = 'done') AS carried_on, count(*) FILTER (WHERE e.event = 'lost') AS lost
  FROM worker_log c JOIN worker_log e USING (lease)
 WHERE c.event = 'claim' AND c.at < :crashed_at AND e.event IN ('done', 'lost') AND e.at > :crashed_at \gset

SELECT round((max(at) - min(at))::numeric, 1) AS seconds, round(:documents / (max(at) - min(at))) AS per_second,
       count(DISTINCT worker) AS workers
  FROM worker_log WHERE event IN ('claim', 'done') \gset

\echo
\echo 'documents            ' :documents
\echo 'indexed              ' :indexed (:missing missing, :twice twice)
\echo 'results in order     ' :in_order
\echo 'attempts             ' :completed completed, :expired expired, :failed failed
\echo 'tasks run twice      ' :ran_twice (:ran_twice_of_killed of them from the hands of the killed worker)
\echo 'steps redone         ' :redone of those checkpointed (:skipped skipped; :read_again without a checkpoint redone)
\echo 'leases after crash   ' :carried_on gone on with, :lost lost
\echo 'highest concurrency  ' :sampled leases of one worker, :in_hand by its own count (limit :limit)
\echo 'speed                ' :per_second tasks/s (:seconds s with :workers workers, crash included)

SELECT :missing > 0 OR :twice > 0 OR :in_order <> :documents AS wrong \gset
\if :wrong
	DO $$ BEGIN RAISE 'documents are missing, indexed twice or without a result'; END $$;
\endif
