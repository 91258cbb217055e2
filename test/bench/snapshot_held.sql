-- A transaction that does nothing and holds a snapshot.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM pg_class;
\sleep 86400 s
