/*
 * task_scan.c
 *		The unfinished tasks of a queue in the order of their ids, and those of
 *		a partition in its order.
 *
 * Most tasks are in no index but that of the primary key, which has those of
 * all queues, so as to be cheap to enqueue: to find them is to look at all
 * rows from some id on.  There may be millions that are none of them, so this
 * does without the executor, which would take most of the time, and its caller
 * says how many rows to look at.
 *
 * The tasks of partitions are in an index of their own as well.  There may be
 * a million partitions that have one task each, so this is no place for the
 * executor either: with it a refill of such partitions cost two thirds more.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/skey.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "registry.h"
#include "seed.h"
#include "spi.h"
#include "storage.h"
#include "task_scan.h"

#define PLACE_KEYS	2			/* of a task in its partition: the rank, and the id */

/* A scan of a table by one of its indexes. */
typedef struct KeyScan
{
	Relation	relation;
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	ScanKeyData keys[3];
	int			key_count;
	ScanKeyData place[PLACE_KEYS];	/* members of a key that is a row */
} KeyScan;

struct TaskScan
{
	Snapshot	snapshot;
	KeyScan		tasks;
	KeyScan		outcomes;
	int32		queue;
	TaskScanKind kind;
	int64		seen;
	int64		gap_begin;		/* from this task on, up to the next one, none has an outcome; */
	int64		gap_end;		/* this has one, unless it is NO_OUTCOME */
	int64		batch;			/* the last one that was looked up, */
	bool		early_join;		/* and whether it may end before its tasks */
};

#define NO_OUTCOME		PG_INT64_MAX
#define OUTCOME_STEPS	8		/* to take one is a quarter of a search, or less */

static SpiStatement select_early = {
	"SELECT FROM fanout.batch b WHERE b.id = $1 AND b.join_policy <> 'all'", 1, {INT8OID}
};

/* To be started by a rescan, when its keys are set. */
static void
open_scan(KeyScan *scan, Relation relation, Oid index, Snapshot snapshot, int key_count)
{
	scan->relation = relation;
	scan->index = index_open(index, AccessShareLock);
	scan->slot = table_slot_create(relation, NULL);
	scan->key_count = key_count;
#if PG_VERSION_NUM >= 180000
	scan->scan = index_beginscan(relation, scan->index, snapshot, NULL, key_count, 0);
#else
	scan->scan = index_beginscan(relation, scan->index, snapshot, key_count, 0);
#endif
}

static void
start_scan(KeyScan *scan)
{
	index_rescan(scan->scan, scan->keys, scan->key_count, NULL, 0);
}

/* A scan by the primary key, which is the table's first column, from a task on. */
static void
open_scan_by_id(KeyScan *scan, LogKind kind, int segment, Snapshot snapshot)
{
	Relation	relation = table_open(registry_relation(kind, segment), AccessShareLock);

	open_scan(scan, relation, primary_key_of(relation), snapshot, 1);
	ScanKeyInit(&scan->keys[0], 1, BTGreaterEqualStrategyNumber, F_INT8GE, Int64GetDatum(0));
}

static void
start_scan_by_id(KeyScan *scan, int64 id)
{
	scan->keys[0].sk_argument = Int64GetDatum(id);
	start_scan(scan);
}

/* The index of the tasks of partitions: by queue, lane, rank and id. */
static Oid
index_of_partitions(Relation relation)
{
	List	   *indexes = RelationGetIndexList(relation);
	Oid			found = InvalidOid;
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);
		Form_pg_index form = index->rd_index;

		/* one that an interrupted REINDEX CONCURRENTLY left behind is not valid */
		if (form->indisvalid && form->indnkeyatts == 4 &&
			form->indkey.values[0] == TASK_QUEUE + 1 && form->indkey.values[1] == TASK_LANE + 1)
			found = lfirst_oid(cell);
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	if (!OidIsValid(found))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" has no index of the tasks of partitions", RelationGetRelationName(relation)),
				 errhint("CREATE INDEX ON fanout.%s (queue, lane, (coalesce(rank, priority, 0)), id) WHERE lane IS NOT NULL AND run_at IS NULL",
						 RelationGetRelationName(relation))));
	return found;
}

/* A scan by queue and lane, from a place on: (rank, id) >= (rank, id), which the index does in one step. */
static void
open_scan_by_place(KeyScan *scan, int segment, Snapshot snapshot, int32 queue)
{
	Relation	relation = table_open(registry_relation(LOG_TASK, segment), AccessShareLock);
	ScanKey		row = &scan->keys[2];

	open_scan(scan, relation, index_of_partitions(relation), snapshot, 3);
	ScanKeyInit(&scan->keys[0], 1, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(queue));
	ScanKeyInit(&scan->keys[1], 2, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(0));
	for (int i = 0; i < PLACE_KEYS; i++)
	{
		ScanKeyInit(&scan->place[i], 3 + i, BTGreaterEqualStrategyNumber, F_BTINT8CMP, Int64GetDatum(0));
		scan->place[i].sk_flags = SK_ROW_MEMBER;
	}
	scan->place[PLACE_KEYS - 1].sk_flags |= SK_ROW_END;
	memset(row, 0, sizeof(ScanKeyData));
	row->sk_flags = SK_ROW_HEADER;
	row->sk_attno = scan->place[0].sk_attno;
	row->sk_strategy = BTGreaterEqualStrategyNumber;
	row->sk_argument = PointerGetDatum(scan->place);
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

static TaskScan *
make_scan(int32 queue, TaskScanKind kind)
{
	TaskScan   *scan = palloc0(sizeof(TaskScan));

	scan->snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan->queue = queue;
	scan->kind = kind;
	scan->gap_begin = NO_OUTCOME;	/* nothing is known yet */
	scan->gap_end = NO_OUTCOME;
	return scan;
}

TaskScan *
task_scan_begin(int segment, int32 queue, TaskScanKind kind, int64 id)
{
	TaskScan   *scan = make_scan(queue, kind);

	scan->seen = id;
	open_scan_by_id(&scan->tasks, LOG_TASK, segment, scan->snapshot);
	open_scan_by_id(&scan->outcomes, LOG_OUTCOME, segment, scan->snapshot);
	start_scan_by_id(&scan->tasks, id);
	return scan;
}

TaskScan *
task_scan_begin_partitions(int segment, int32 queue)
{
	TaskScan   *scan = make_scan(queue, TASKS_OF_ONE_PARTITION);

	open_scan_by_place(&scan->tasks, segment, scan->snapshot, queue);
	open_scan_by_id(&scan->outcomes, LOG_OUTCOME, segment, scan->snapshot);
	return scan;
}

void
task_scan_partition(TaskScan *scan, int64 partition, int64 rank, int64 id)
{
	KeyScan    *tasks = &scan->tasks;

	tasks->keys[1].sk_argument = Int64GetDatum(partition);
	tasks->place[0].sk_argument = Int64GetDatum(rank);
	tasks->place[1].sk_argument = Int64GetDatum(id);
	start_scan(tasks);
}

/* The next outcome ends the gap. */
static void
take_outcome(TaskScan *scan)
{
	KeyScan    *outcomes = &scan->outcomes;
	bool		isnull;

	if (!index_getnext_slot(outcomes->scan, ForwardScanDirection, outcomes->slot))
		scan->gap_end = NO_OUTCOME;
	else
		scan->gap_end = DatumGetInt64(slot_getattr(outcomes->slot, OUTCOME_TASK + 1, &isnull));
}

/*
 * Tasks mostly come in the order of their ids, and their neighbours have ended
 * or not as they have: few are searched for, others are a few steps from the
 * outcome that was found last, or before that.
 */
static bool
has_outcome(TaskScan *scan, int64 task)
{
	for (int i = 0; i < OUTCOME_STEPS && task > scan->gap_end; i++)
	{
		scan->gap_begin = scan->gap_end + 1;
		take_outcome(scan);
	}
	if (task < scan->gap_begin || task > scan->gap_end)
	{
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

	if (scan->kind == TASKS_OF_ONE_PARTITION)
		return true;			/* its index has no others */
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

bool
task_scan_next(TaskScan *scan, int64 *rows, TaskSeed *seed, ItemPointer tid)
{
	TupleTableSlot *row = scan->tasks.slot;

	while ((rows == NULL || *rows > 0) && index_getnext_slot(scan->tasks.scan, ForwardScanDirection, row))
	{
		bool		isnull;
		int64		task = DatumGetInt64(slot_getattr(row, TASK_ID + 1, &isnull));

		CHECK_FOR_INTERRUPTS();
		if (rows != NULL)
			(*rows)--;
		scan->seen = task + 1;
		if (!is_wanted(scan, row) || has_outcome(scan, task))
			continue;
		seed_of_row(row, seed);
		seed->early_join = ends_early(scan, seed->batch);
		*tid = row->tts_tid;
		return true;
	}
	return false;
}

int64
task_scan_seen(const TaskScan *scan)
{
	return scan->seen;
}

void
task_scan_end(TaskScan *scan)
{
	close_scan(&scan->outcomes);
	close_scan(&scan->tasks);
	UnregisterSnapshot(scan->snapshot);
	pfree(scan);
}
