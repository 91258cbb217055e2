/*
 * task_scan.c
 *		The unfinished tasks of a queue, in the order of an index.
 *
 * Most tasks are in no index but that of the primary key, which has those of
 * all queues, so as to be cheap to enqueue: to find them is to look at all
 * rows from some id on.
 *
 * Those of partitions, of an unusual rank or with a time are in an index of
 * their own as well, whose last column is the id, so that a scan of it can
 * begin at any place of the order.
 *
 * There may be millions that are of another queue, or have ended, before the
 * next one that is wanted, so the caller says how many rows to look at.
 *
 * All of it does without the executor, which would take most of the time.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/skey.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/nodes.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"

#include "registry.h"
#include "seed.h"
#include "spi.h"
#include "storage.h"
#include "task_scan.h"

#define PLACE_KEYS	2			/* what the order is by, and the id */

/* A scan of a table by one of its indexes. */
typedef struct KeyScan
{
	Relation	relation;
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	ScanKeyData keys[3];
	int			key_count;
	ScanKey		lane;			/* one of them, or NULL */
	ScanKeyData place[PLACE_KEYS];	/* members of one that is a row, if the order is not by id */
	AttrNumber	key_column;		/* of the index: what the order is by, 0 if that is the id, */
	AttrNumber	id_column;		/* and the id */
} KeyScan;

struct TaskScan
{
	Snapshot	snapshot;
	KeyScan		tasks;
	KeyScan		outcomes;
	int32		queue;
	TaskScanKind kind;
	int64		last_key;		/* the place of the last one that was met, whatever it was */
	int64		last_id;
	bool		stopped;		/* before the place that comes next: */
	int64		next_key;
	int64		next_id;
	int64		gap_begin;		/* from this task on, and before the next one, none has an outcome; */
	int64		gap_end;
	bool		gap_ended;		/* that one has, or else it is where the search stopped */
	int64		batch;			/* the last one that was looked up, */
	bool		early_join;		/* and whether it may end before its tasks */
};

#define OUTCOME_STEPS	8		/* to take one is a quarter of a search, or less */
#define OUTCOME_GAP		1024	/* ids to search: a snapshot may keep any number of outcomes that were deleted */

static SpiStatement select_early = {
	"SELECT FROM fanout.batch b WHERE b.id = $1 AND b.join_policy <> 'all'", 1, {INT8OID}
};

/* Its keys are there; it is started by a rescan, when their arguments are. */
static void
open_scan(KeyScan *scan, Relation relation, Oid index, Snapshot snapshot)
{
	scan->relation = relation;
	scan->index = index_open(index, AccessShareLock);
	scan->slot = table_slot_create(relation, NULL);
#if PG_VERSION_NUM >= 180000
	scan->scan = index_beginscan(relation, scan->index, snapshot, NULL, scan->key_count, 0);
#else
	scan->scan = index_beginscan(relation, scan->index, snapshot, scan->key_count, 0);
#endif
}

static void
start_scan(KeyScan *scan)
{
	index_rescan(scan->scan, scan->keys, scan->key_count, NULL, 0);
}

/* A scan by the primary key, which is the table's first column, from a task on; of outcomes up to another one. */
static void
open_scan_by_id(KeyScan *scan, LogKind kind, int segment, Snapshot snapshot)
{
	Relation	relation = table_open(registry_relation(kind, segment), AccessShareLock);

	scan->id_column = 1;
	ScanKeyInit(&scan->keys[scan->key_count++], 1, BTGreaterEqualStrategyNumber, F_INT8GE, Int64GetDatum(0));
	if (kind == LOG_OUTCOME)
		ScanKeyInit(&scan->keys[scan->key_count++], 1, BTLessStrategyNumber, F_INT8LT, Int64GetDatum(0));
	open_scan(scan, relation, primary_key_of(relation), snapshot);
}

static void
start_scan_by_id(KeyScan *scan, int64 id)
{
	scan->keys[0].sk_argument = Int64GetDatum(id);
	start_scan(scan);
}

/* Do both have the same rows of their tables, in the same order? */
static bool
is_like(Relation index, Relation model)
{
	int			count = model->rd_index->indnkeyatts;

	return index->rd_index->indnkeyatts == count &&
		memcmp(index->rd_index->indkey.values, model->rd_index->indkey.values, count * sizeof(int16)) == 0 &&
		memcmp(index->rd_indoption, model->rd_indoption, count * sizeof(int16)) == 0 &&
		memcmp(index->rd_opfamily, model->rd_opfamily, count * sizeof(Oid)) == 0 &&
		equal(RelationGetIndexExpressions(index), RelationGetIndexExpressions(model)) &&
		equal(RelationGetIndexPredicate(index), RelationGetIndexPredicate(model));
}

/* Somebody has dropped an index: of a segment, or the model that it is told by. */
static void
index_is_missing(Relation relation, Relation model, const char *name)
{
	const char *definition;

	if (model == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"task\" has no index \"%s\"", name),
				 errdetail("It tells which index of a segment is to be read."),
				 errhint("Create it as the install script of the extension does.")));
	definition = strstr(pg_get_indexdef_string(RelationGetRelid(model)), " USING ");
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("table \"%s\" has no index like \"%s\"", RelationGetRelationName(relation), name),
			 errhint("Run: CREATE INDEX ON fanout.%s%s", RelationGetRelationName(relation), definition)));
}

/*
 * The index of a segment that is as this one of table fanout.task.  Operators
 * may have made others that begin as it does, and its own name may be another
 * one than it was given.
 */
static Oid
index_like(Relation relation, const char *name)
{
	Oid			model_id = get_relname_relid(name, RelationGetNamespace(relation));
	Relation	model = OidIsValid(model_id) ? index_open(model_id, AccessShareLock) : NULL;
	List	   *indexes = model != NULL ? RelationGetIndexList(relation) : NIL;
	Oid			found = InvalidOid;
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);

		/* one that an interrupted REINDEX CONCURRENTLY left behind is not valid */
		if (index->rd_index->indisvalid && is_like(index, model))
			found = lfirst_oid(cell);
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	if (!OidIsValid(found))
		index_is_missing(relation, model, name);
	index_close(model, AccessShareLock);
	return found;
}

/* (key, id) >= (key, id) for two columns of the index, which a scan of it does in one step. */
static void
init_place(KeyScan *scan, AttrNumber column, RegProcedure compare)
{
	ScanKey		row = &scan->keys[scan->key_count++];

	scan->key_column = column;
	scan->id_column = column + 1;
	ScanKeyInit(&scan->place[0], column, BTGreaterEqualStrategyNumber, compare, Int64GetDatum(0));
	ScanKeyInit(&scan->place[1], column + 1, BTGreaterEqualStrategyNumber, F_BTINT8CMP, Int64GetDatum(0));
	scan->place[0].sk_flags = SK_ROW_MEMBER;
	scan->place[1].sk_flags = SK_ROW_MEMBER | SK_ROW_END;
	memset(row, 0, sizeof(ScanKeyData));
	row->sk_flags = SK_ROW_HEADER;
	row->sk_attno = column;
	row->sk_strategy = BTGreaterEqualStrategyNumber;
	row->sk_argument = PointerGetDatum(scan->place);
}

/* A scan by queue and place. */
static void
open_scan_by_place(KeyScan *scan, TaskScanKind kind, int segment, Snapshot snapshot, int32 queue)
{
	Relation	relation = table_open(registry_relation(LOG_TASK, segment), AccessShareLock);
	const char *index = "task_rank";

	ScanKeyInit(&scan->keys[scan->key_count++], 1, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(queue));
	switch (kind)
	{
		case TASKS_OF_ONE_PARTITION:
			index = "task_lane";
			scan->lane = &scan->keys[scan->key_count++];
			ScanKeyInit(scan->lane, 2, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(0));
			init_place(scan, 3, F_BTINT8CMP);
			break;
		case TASKS_WITH_TIME:
			index = "task_run_at";
			init_place(scan, 2, F_TIMESTAMPTZ_CMP);
			break;
		case TASKS_OF_LOWER_RANK:
			ScanKeyInit(&scan->keys[scan->key_count++], 2, BTLessStrategyNumber, F_INT8LT, Int64GetDatum(0));
			init_place(scan, 2, F_BTINT8CMP);
			break;
		default:
			Assert(kind == TASKS_OF_HIGHER_RANK);
			init_place(scan, 2, F_BTINT8CMP);
			break;
	}
	open_scan(scan, relation, index_like(relation, index), snapshot);
}

/* A time is an int64 as well. */
static void
start_scan_by_place(KeyScan *scan, int64 partition, int64 key, int64 id)
{
	if (scan->lane != NULL)
		scan->lane->sk_argument = Int64GetDatum(partition);
	scan->place[0].sk_argument = Int64GetDatum(key);
	scan->place[1].sk_argument = Int64GetDatum(id);
	start_scan(scan);
}

/* The locks stay until the transaction ends. */
static void
close_scan(KeyScan *scan)
{
	index_endscan(scan->scan);
	ExecDropSingleTupleTableSlot(scan->slot);
	index_close(scan->index, NoLock);
	table_close(scan->relation, NoLock);
}

static bool
is_by_id(TaskScanKind kind)
{
	return kind == TASKS_OF_MAIN_LANE || kind == TASKS_OF_PARTITIONS;
}

TaskScan *
task_scan_begin(int segment, int32 queue, TaskScanKind kind)
{
	TaskScan   *scan = palloc0(sizeof(TaskScan));

	scan->snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan->queue = queue;
	scan->kind = kind;
	if (is_by_id(kind))
		open_scan_by_id(&scan->tasks, LOG_TASK, segment, scan->snapshot);
	else
		open_scan_by_place(&scan->tasks, kind, segment, scan->snapshot, queue);
	scan->tasks.scan->xs_want_itup = true;	/* for next_in_index() */
	open_scan_by_id(&scan->outcomes, LOG_OUTCOME, segment, scan->snapshot);
	return scan;
}

void
task_scan_start(TaskScan *scan, int64 partition, int64 key, int64 id)
{
	scan->stopped = false;
	scan->last_id = 0;
	if (is_by_id(scan->kind))
		start_scan_by_id(&scan->tasks, id);
	else
		start_scan_by_place(&scan->tasks, partition, key, id);
}

/* Go on to the next outcome, which ends the gap, or to the end of the search. */
static void
take_outcome(TaskScan *scan)
{
	KeyScan    *outcomes = &scan->outcomes;
	bool		isnull;

	scan->gap_ended = index_getnext_slot(outcomes->scan, ForwardScanDirection, outcomes->slot);
	if (scan->gap_ended)
		scan->gap_end = DatumGetInt64(slot_getattr(outcomes->slot, OUTCOME_TASK + 1, &isnull));
	else
		scan->gap_end = DatumGetInt64(outcomes->keys[1].sk_argument);
}

/*
 * Tasks mostly come in the order of their ids, and their neighbours have ended
 * or not as they have: few are searched for, others are a few steps from the
 * outcome that was found last, or before that.
 */
static bool
has_outcome(TaskScan *scan, int64 task)
{
	for (int i = 0; i < OUTCOME_STEPS && scan->gap_ended && task > scan->gap_end; i++)
	{
		scan->gap_begin = scan->gap_end + 1;
		take_outcome(scan);
	}
	if (task == scan->gap_end && scan->gap_ended)
		return true;
	if (task < scan->gap_begin || task >= scan->gap_end)
	{
		scan->outcomes.keys[1].sk_argument = Int64GetDatum(task + OUTCOME_GAP);
		start_scan_by_id(&scan->outcomes, task);
		scan->gap_begin = task;
		take_outcome(scan);
	}
	return task == scan->gap_end;
}

/* Is the row one of those that are looked for, finished or not?  What most others differ in comes first. */
static bool
is_wanted(const TaskScan *scan, TupleTableSlot *row)
{
	bool		isnull;

	if (scan->kind == TASKS_OF_ONE_PARTITION || scan->kind == TASKS_WITH_TIME)
		return true;			/* their indexes have no others */
	if (scan->kind == TASKS_OF_LOWER_RANK || scan->kind == TASKS_OF_HIGHER_RANK)
		return slot_attisnull(row, TASK_RUN_AT + 1);
	if (DatumGetInt32(slot_getattr(row, TASK_QUEUE + 1, &isnull)) != scan->queue)
		return false;
	if (!slot_attisnull(row, TASK_RUN_AT + 1))
		return false;
	if (scan->kind == TASKS_OF_PARTITIONS)
		return !slot_attisnull(row, TASK_LANE + 1);
	return slot_attisnull(row, TASK_PRIORITY + 1) && slot_attisnull(row, TASK_LANE + 1) && slot_attisnull(row, TASK_RANK + 1);
}

/* May the batch end before all of its tasks have?  Tasks of one follow on each other. */
static bool
ends_early(TaskScan *scan, int64 batch)
{
	Datum		values[1] = {Int64GetDatum(batch)};

	if (batch == 0)
		return false;
	if (batch != scan->batch)
	{
		scan->early_join = spi_read_latest(&select_early, values, NULL) > 0;
		SPI_freetuptable(SPI_tuptable);
		scan->batch = batch;
	}
	return scan->early_join;
}

/* A column of the entry of the index that the scan is at. */
static int64
column_of_entry(const KeyScan *tasks, AttrNumber column)
{
	bool		isnull;

	return DatumGetInt64(index_getattr(tasks->scan->xs_itup, column, tasks->scan->xs_itupdesc, &isnull));
}

/*
 * Go to the next entry of the index, unless the rows are used up: those that
 * were deleted and are kept for some snapshot count, too.  A task may have
 * several of them in one place, and the one that counts may be the last.
 */
static bool
next_in_index(TaskScan *scan, int64 *rows)
{
	const KeyScan *tasks = &scan->tasks;

	if (index_getnext_tid(tasks->scan, ForwardScanDirection) == NULL)
		return false;
	scan->next_key = tasks->key_column != 0 ? column_of_entry(tasks, tasks->key_column) : 0;
	scan->next_id = column_of_entry(tasks, tasks->id_column);
	scan->stopped = *rows <= 0 && (scan->next_key != scan->last_key || scan->next_id != scan->last_id);
	if (scan->stopped)
		return false;
	scan->last_key = scan->next_key;
	scan->last_id = scan->next_id;
	(*rows)--;
	return true;
}

bool
task_scan_next(TaskScan *scan, int64 *rows, TaskSeed *seed, ItemPointer tid)
{
	TupleTableSlot *row = scan->tasks.slot;

	while (next_in_index(scan, rows))
	{
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		if (!index_fetch_heap(scan->tasks.scan, row) || !is_wanted(scan, row))
			continue;
		if (has_outcome(scan, DatumGetInt64(slot_getattr(row, TASK_ID + 1, &isnull))))
			continue;
		seed_of_row(row, seed);
		seed->early_join = ends_early(scan, seed->batch);
		*tid = row->tts_tid;
		return true;
	}
	return false;
}

bool
task_scan_stopped(const TaskScan *scan, int64 *key, int64 *id)
{
	*key = scan->next_key;
	*id = scan->next_id;
	return scan->stopped;
}

void
task_scan_end(TaskScan *scan)
{
	close_scan(&scan->outcomes);
	close_scan(&scan->tasks);
	UnregisterSnapshot(scan->snapshot);
	pfree(scan);
}
