-- Fan out, wait, and take the results; in the end the seconds that it took.
SELECT extract(epoch FROM clock_timestamp()) AS begun \gset
SELECT fanout.fan_out('collected', 'double', ARRAY(SELECT to_jsonb(i) FROM generate_series(1, :tasks) AS i)) AS batch \gset
CALL fanout.wait_batch(:batch, '1 h') \g /dev/null
SELECT ordinal, status, result FROM fanout.collect(:batch);
SELECT extract(epoch FROM clock_timestamp()) - :begun;
