-- The extension as an object of the database: what belongs to it, and what it gives to whom.
\i sql/include/helpers.sql

SELECT e.extversion = a.default_version AS default_version, e.extrelocatable, r.rolsuper AS owner_is_superuser
  FROM pg_extension e JOIN pg_available_extensions a ON a.name = e.extname JOIN pg_roles r ON r.oid = e.extowner
 WHERE e.extname = 'pg_fanout';
SELECT superuser, trusted, relocatable, schema, requires
  FROM pg_available_extension_versions WHERE name = 'pg_fanout' AND installed;

-- The schema is a member, and so is all that is in it.
SELECT count(*) FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
 WHERE d.classid = 'pg_namespace'::regclass AND d.objid = 'fanout'::regnamespace AND d.refclassid = 'pg_extension'::regclass
   AND d.deptype = 'e' AND e.extname = 'pg_fanout';
SELECT o.kind, o.oid AS not_a_member FROM (
	SELECT 'pg_proc'::regclass AS kind, oid FROM pg_proc WHERE pronamespace = 'fanout'::regnamespace
	UNION ALL
	SELECT 'pg_class'::regclass, oid FROM pg_class
	 WHERE relnamespace = 'fanout'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')
	UNION ALL
	-- sequences but those of identity columns, which belong to their table
	SELECT 'pg_class'::regclass, oid FROM pg_class c
	 WHERE relnamespace = 'fanout'::regnamespace AND relkind = 'S'
	   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'i')
) o
 WHERE NOT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
		WHERE d.classid = o.kind AND d.objid = o.oid AND d.deptype = 'e' AND e.extname = 'pg_fanout');

-- pg_dump takes along what is in every sequence and in every table; where there are segments, these have the rows.
SELECT c.oid::regclass AS not_dumped FROM pg_class c, pg_extension e
 WHERE c.relnamespace = 'fanout'::regnamespace AND c.relkind IN ('r', 'S') AND e.extname = 'pg_fanout'
   AND NOT c.oid = ANY (e.extconfig) AND NOT c.relhassubclass
 ORDER BY 1;
SELECT bool_and(condition = '') FROM pg_extension, unnest(extcondition) AS condition WHERE extname = 'pg_fanout';

-- promise 10: nothing is for PUBLIC, neither by a grant nor by default.
SELECT 'schema' AS granted_to_public, a.privilege_type FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
 WHERE n.nspname = 'fanout' AND a.grantee = 0
UNION ALL
SELECT p.oid::regprocedure::text, a.privilege_type FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
 WHERE p.pronamespace = 'fanout'::regnamespace AND a.grantee = 0
UNION ALL
SELECT c.oid::regclass::text, a.privilege_type
  FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))) a
 WHERE c.relnamespace = 'fanout'::regnamespace AND c.relkind IN ('r', 'v', 'S') AND a.grantee = 0
 ORDER BY 1, 2;

-- Each view keeps its filter before the caller's conditions.
SELECT relname AS leaky_view FROM pg_class
 WHERE relnamespace = 'fanout'::regnamespace AND relkind = 'v'
   AND NOT coalesce('security_barrier=true' = ANY (reloptions) OR 'security_barrier' = ANY (reloptions), false);

-- Nobody's search_path or rights but the caller's: no function is SECURITY DEFINER.
SELECT oid::regprocedure AS security_definer FROM pg_proc WHERE pronamespace = 'fanout'::regnamespace AND prosecdef;

-- The public surface, all of it with a comment.
SELECT proname AS name, count(*) AS forms, string_agg(DISTINCT CASE prokind WHEN 'p' THEN 'procedure' ELSE 'function' END, ' ') AS kind,
       count(obj_description(oid, 'pg_proc')) AS comments
  FROM pg_proc WHERE pronamespace = 'fanout'::regnamespace AND proname !~ '^_'
 GROUP BY proname ORDER BY proname COLLATE "C";
SELECT relname AS view, obj_description(oid, 'pg_class') <> '' AS has_comment
  FROM pg_class WHERE relnamespace = 'fanout'::regnamespace AND relkind = 'v' ORDER BY relname;
SELECT obj_description('fanout'::regnamespace, 'pg_namespace') <> '' AS schema_has_comment;

-- The segments of the log have all that the table has that they are made after.
SELECT p.relname AS parent, count(DISTINCT i.inhrelid) AS segments,
       count(DISTINCT pg_get_constraintdef(k.oid)) AS keys, count(k.oid) AS keys_of_all,
       (SELECT count(*) FROM pg_index x WHERE x.indrelid = p.oid) AS indexes,
       (SELECT count(*) FROM pg_index x JOIN pg_inherits c ON c.inhrelid = x.indrelid WHERE c.inhparent = p.oid) AS indexes_of_all,
       (SELECT count(*) FROM pg_trigger t JOIN pg_inherits c ON c.inhrelid = t.tgrelid WHERE c.inhparent = p.oid) AS triggers_of_all
  FROM pg_class p JOIN pg_inherits i ON i.inhparent = p.oid
  LEFT JOIN pg_constraint k ON k.conrelid = i.inhrelid AND k.contype = 'p'
 WHERE p.relnamespace = 'fanout'::regnamespace AND p.relkind = 'r' GROUP BY p.oid, p.relname ORDER BY p.relname;
-- No row is outside of them, and nothing is in use but the first.
SELECT relname, test.sqlstate_of(format('INSERT INTO fanout.%I SELECT * FROM json_populate_record(NULL::fanout.%1$I, %L)', relname,
		'{"id": 1, "task": 1, "enqueued_at": "now", "queue": 1, "name": "x", "lease": 1, "at": "now", "event": "c", "step": "x", "finished_at": "now", "attempt": 1, "status": "s"}'))
  FROM pg_class WHERE relnamespace = 'fanout'::regnamespace AND relkind = 'r' AND relhassubclass ORDER BY relname;
SELECT count(*) FROM fanout.segment;

-- promise 2: unique indexes stand behind one outcome a task and one value a step.
SELECT indrelid::regclass AS relation, array_agg(attname::text ORDER BY ord) AS key
  FROM pg_index, unnest(indkey::int2[]) WITH ORDINALITY AS k (attnum, ord)
  JOIN pg_attribute a USING (attnum)
 WHERE a.attrelid = indrelid AND indisprimary AND indrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent IN ('fanout.outcome'::regclass, 'fanout.checkpoint'::regclass))
 GROUP BY indexrelid, indrelid ORDER BY 1;

-- The library's settings, with their units and bounds.
SELECT name, unit, context, vartype, min_val, boot_val FROM pg_settings WHERE name LIKE 'pg\_fanout.%' ORDER BY name COLLATE "C";
-- A setting that does not exist is a typing error, not a variable.
SET pg_fanout.no_such_setting = 1;

-- Memory for each lane, its share of fair groups included, and for each task. A checked build takes more.
SELECT per, bytes <= most OR EXISTS (SELECT FROM fanout._violations()) AS ok
  FROM (SELECT 'lane' AS per, sum(allocated_size) / current_setting('pg_fanout.max_lanes')::int AS bytes, 128 AS most
          FROM pg_shmem_allocations WHERE name IN ('pg_fanout lanes', 'pg_fanout fair groups')
        UNION ALL
        SELECT 'task, with a lease', sum(allocated_size) / current_setting('pg_fanout.max_tracked_tasks')::int, 230
          FROM pg_shmem_allocations WHERE name IN ('pg_fanout tasks', 'pg_fanout leases')) s ORDER BY 1;
-- Dropping takes everything along; created again, it knows nothing of its life before.
SELECT fanout.create_queue('q');
SELECT fanout.enqueue('q', 'of another life') > 0 AS enqueued;
SELECT name FROM fanout.dequeue('q');
DROP EXTENSION pg_fanout;
SELECT to_regnamespace('fanout') IS NULL AS schema_gone;
-- Only a superuser creates it.
CREATE ROLE regress_fanout_nobody;
GRANT CREATE ON DATABASE :"DBNAME" TO regress_fanout_nobody;
SET ROLE regress_fanout_nobody;
CREATE EXTENSION pg_fanout;
RESET ROLE;
DROP OWNED BY regress_fanout_nobody;
DROP ROLE regress_fanout_nobody;
CREATE EXTENSION pg_fanout;
SELECT count(*) FROM fanout.queues;
SELECT name FROM fanout.dequeue('q');
SELECT fanout.create_queue('q');
SELECT name FROM fanout.dequeue('q');
SELECT fanout.enqueue('q', 'of this life') > 0 AS enqueued;
SELECT name, attempt FROM fanout.dequeue('q');

-- Rolled back, the drop changes nothing.
BEGIN;
DROP EXTENSION pg_fanout;
ROLLBACK;
SELECT test.states('q');
SELECT fanout.drop_queue('q', force => true);
