/*
 * retire.c
 *		A segment whose time has come: what has to stay goes to the next one, the
 *		rest goes.
 *
 * All of that is done under ACCESS EXCLUSIVE locks on the segment's tables,
 * which are taken only if nobody is in the way: to wait for them would have
 * everybody wait behind us.  They are held for so long as it takes to truncate
 * tables, or to move as many tasks as can be in CARRY_PATIENCE; if it takes
 * longer, all is undone.
 *
 * TRUNCATE is there for every snapshot at once.  A query whose snapshot was
 * taken before, and that waits for our lock, would miss what has to stay: the
 * rows in the next segment are too new for it, and the old ones have gone.  So
 * these are deleted first, and the segment, of which nobody is told any more,
 * is truncated later, when no snapshot is in use that may see them.  What is
 * kept for nobody anyway need not wait for that.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "points.h"
#include "registry.h"
#include "retire.h"
#include "segments.h"
#include "spi.h"
#include "wait.h"

#define CARRY_PATIENCE	(300 * INT64CONST(1000))	/* microseconds for which the tables may be locked */
#define CARRY_TASKS		500		/* tasks that are moved by one statement */
#define JOURNAL_PASS	4096	/* pages of a journal that may be read as a whole, instead of by its index */

#define TRUNCATE_SEGMENT(segment) { \
	"TRUNCATE fanout.task" segment ", fanout.attempt" segment ", fanout.checkpoint" segment ", fanout.outcome" segment, 0, {0} \
}
static SpiStatement truncate_segment[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(TRUNCATE_SEGMENT);

/* See src/sql/02_tables.sql. */
#define FORGET_FIRST_RANGES(segment) { \
	"SELECT pg_catalog.brin_desummarize_range('fanout.attempt" segment "_task_idx', 0)," \
	"       pg_catalog.brin_desummarize_range('fanout.outcome" segment "_lease_idx', 0)", 0, {0} \
}
static SpiStatement forget_first_ranges[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(FORGET_FIRST_RANGES);
static SpiStatement empty_segment = {
	"UPDATE fanout.segment SET first_task = NULL, finished = false WHERE slot = $1", 1, {INT2OID}
};
static SpiStatement forget_segment = {
	"DELETE FROM fanout.segment WHERE slot = $1", 1, {INT2OID}
};
static SpiStatement inherit_tasks = {
	"UPDATE fanout.segment SET first_task = $2, finished = $3 WHERE slot = $1", 3, {INT2OID, INT8OID, BOOLOID}
};
static TransactionId emptied_by[FANOUT_SEGMENTS];

/*
 * Lock the table, and what is truncated with it: autovacuum may be at its TOAST
 * table alone, and TRUNCATE would wait for that.
 */
static bool
lock_table(Oid relid)
{
	Relation	relation;
	Oid			toast;

	if (!ConditionalLockRelationOid(relid, AccessExclusiveLock))
		return false;
	relation = RelationIdGetRelation(relid);
	if (!RelationIsValid(relation))
		elog(ERROR, "relation %u has gone", relid);
	toast = relation->rd_rel->reltoastrelid;
	RelationClose(relation);
	return !OidIsValid(toast) || ConditionalLockRelationOid(toast, AccessExclusiveLock);
}

static bool
lock_segment(int segment)
{
	for (int kind = 0; kind < LOG_KINDS; kind++)
	{
		if (!lock_table(registry_relation(kind, segment)))
			return false;
	}
	return true;
}

static bool
lock_heir(int segment)
{
	for (int kind = 0; kind < LOG_KINDS; kind++)
	{
		if (!ConditionalLockRelationOid(registry_relation(kind, segment), RowExclusiveLock))
			return false;
	}
	return true;
}

/* Somebody is in the way, or it takes too long. */
static void
give_up(void)
{
	PopActiveSnapshot();
	AbortCurrentTransaction();
}

/*
 * Move rows of these tasks.  Which two tables it is about differs each time,
 * which is seldom, so the statement is not kept.
 */
static void
carry_rows(const char *kind, const char *column, const SurvivorLook *look, int heir, int64 from, int64 count)
{
	Datum	   *ids = palloc(count * sizeof(Datum));
	SpiStatement statement = {.nargs = 1, .types = {INT8ARRAYOID}};
	Datum		values[1];
	char	   *sql;

	for (int64 i = 0; i < count; i++)
		ids[i] = Int64GetDatum(look->survivors.ids[from + i]);
	values[0] = PointerGetDatum(construct_array(ids, count, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	sql = psprintf("WITH moved AS (DELETE FROM fanout.%s_%d WHERE %s = ANY ($1) RETURNING *)"
				   " INSERT INTO fanout.%s_%d SELECT * FROM moved",
				   kind, look->segment + 1, column, kind, heir + 1);
	statement.sql = sql;
	(void) spi_run_once(&statement, values);
	pfree(sql);
	pfree(ids);
	pfree(DatumGetPointer(values[0]));
}

/*
 * Move rows of the journal.  Its index tells ranges of pages: for all tasks
 * together that is as much as reading all of a small one, and of a large one
 * it is done for one task after the other.
 */
static bool
carry_journal(const SurvivorLook *look, int heir, int64 deadline)
{
	Relation	journal = RelationIdGetRelation(registry_relation(LOG_ATTEMPT, look->segment));
	BlockNumber pages;
	int64		at_a_time;

	if (!RelationIsValid(journal))
		elog(ERROR, "the journal of a segment has gone");
	pages = RelationGetNumberOfBlocks(journal);
	RelationClose(journal);
	at_a_time = pages <= JOURNAL_PASS ? look->survivors.count : 1;
	if (pages <= JOURNAL_PASS)
	{
		(void) set_config_option("enable_seqscan", "on", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
		(void) set_config_option("enable_bitmapscan", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	}
	for (int64 done = 0; done < look->survivors.count && wait_clock() < deadline; done += at_a_time)
		carry_rows("attempt", "task", look, heir, done, at_a_time);
	return wait_clock() < deadline;
}

/* Move what has to stay; false if that takes too long. */
static bool
carry_survivors(const SurvivorLook *look, int heir)
{
	int64		deadline = wait_clock() + CARRY_PATIENCE;
	SpiScope	scope;
	bool		in_time = true;

	spi_begin(&scope);
	for (int64 done = 0; done < look->survivors.count && in_time; done += CARRY_TASKS)
	{
		int64		count = Min(CARRY_TASKS, look->survivors.count - done);

		carry_rows("task", "id", look, heir, done, count);
		carry_rows("checkpoint", "task", look, heir, done, count);
		carry_rows("outcome", "task", look, heir, done, count);
		in_time = wait_clock() < deadline;
	}
	in_time = in_time && carry_journal(look, heir, deadline);
	spi_end(&scope);
	return in_time;
}

/*
 * The heir has the tasks of the segment from now on.  Both rows change in one
 * transaction, and the segment's first, as no two begin with the same id.
 */
static void
pass_on(SegmentMap *map, int segment, int heir, bool truncated)
{
	SpiScope	scope;
	Datum		values[3] = {Int16GetDatum(segment + 1)};
	int64		end = map->firsts[heir];

	/* what was carried may be unfinished */
	map->finished[heir] = map->finished[heir] && truncated;
	map->firsts[heir] = map->firsts[segment];
	map->firsts[segment] = FANOUT_SEGMENT_UNUSED;
	map->emptied[segment] = !truncated;
	map->finished[segment] = false;
	spi_begin(&scope);
	(void) spi_run(truncated ? &forget_segment : &empty_segment, values, NULL);
	values[0] = Int16GetDatum(heir + 1);
	values[1] = Int64GetDatum(map->firsts[heir]);
	values[2] = BoolGetDatum(map->finished[heir]);
	(void) spi_run(&inherit_tasks, values, NULL);
	segments_note_removed(end);
	spi_end(&scope);
}

static void
truncate_tables(int segment)
{
	SpiScope	scope;

	spi_begin(&scope);
	(void) spi_run(&truncate_segment[segment], NULL, NULL);
	(void) spi_run(&forget_first_ranges[segment], NULL, NULL);
	spi_end(&scope);
}

/* What became of the segment, for those who look. */
static void
count_retired(Database *database, const SurvivorLook *look, int heir)
{
	dispatcher_lock();
	database->retired++;
	database->carried += look->survivors.count;
	database->retired_at = GetCurrentTimestamp();
	if (look->survivors.count > 0)
		database->unsettled[heir]++;	/* what we know of it is out of date */
	dispatcher_unlock();
}

static bool
was_unsettled(Database *database, const SurvivorLook *look)
{
	bool		unsettled;

	dispatcher_lock();
	unsettled = database->unsettled[look->segment] != look->unsettled;
	dispatcher_unlock();
	return unsettled;
}

RetireResult
segment_retire(Database *database, const SurvivorLook *look, int heir)
{
	SegmentMap	map;
	bool		empty = look->survivors.count == 0;

	segments_begin_change(database, &map);
	if (!lock_segment(look->segment) || (!empty && !lock_heir(heir)))
	{
		give_up();
		return RETIRE_LOCKED;
	}
	FANOUT_POINT(RETIRE_LOCKED);
	if (was_unsettled(database, look))
	{
		give_up();
		return RETIRE_UNSETTLED;
	}
	if (empty)
		truncate_tables(look->segment);
	else if (!carry_survivors(look, heir))
	{
		give_up();
		return RETIRE_SLOW;
	}
	FANOUT_POINT(RETIRE_CARRIED);
	pass_on(&map, look->segment, heir, empty);
	emptied_by[look->segment] = empty ? InvalidTransactionId : GetTopTransactionId();
	FANOUT_POINT(RETIRE_PASSED_ON);
	segments_commit_change(&map);
	FANOUT_POINT(RETIRE_COMMITTED);
	count_retired(database, look, heir);
	return RETIRED;
}

TransactionId
segment_emptied_by(int segment)
{
	if (!TransactionIdIsValid(emptied_by[segment]))
		emptied_by[segment] = ReadNextTransactionId();
	return emptied_by[segment];
}

bool
segment_is_seen(int segment, TransactionId xid)
{
	Relation	relation;
	TransactionId horizon;

	StartTransactionCommand();
	relation = RelationIdGetRelation(registry_relation(LOG_TASK, segment));
	if (!RelationIsValid(relation))
		elog(ERROR, "the tasks of a segment have gone");
	horizon = GetOldestNonRemovableTransactionId(relation);
	RelationClose(relation);
	CommitTransactionCommand();
	return !TransactionIdPrecedes(xid, horizon);
}

bool
segment_truncate(Database *database, int segment)
{
	SpiScope	scope;
	SegmentMap	map;
	Datum		values[1] = {Int16GetDatum(segment + 1)};

	segments_begin_change(database, &map);
	if (!lock_segment(segment))
	{
		give_up();
		return false;
	}
	FANOUT_POINT(TRUNCATE_LOCKED);
	truncate_tables(segment);
	FANOUT_POINT(TRUNCATE_DONE);
	spi_begin(&scope);
	(void) spi_run(&forget_segment, values, NULL);
	spi_end(&scope);
	map.emptied[segment] = false;
	emptied_by[segment] = InvalidTransactionId;
	segments_commit_change(&map);
	FANOUT_POINT(TRUNCATE_COMMITTED);
	return true;
}
