/*
 * task_scan.c
 *		The unfinished tasks of a queue in the order of their ids.
 *
 * Most tasks are in no index but that of the primary key, which has those of
 * all queues, so as to be cheap to enqueue: to find them is to look at all
 * rows from some id on.  There may be millions that are none of them, so this
 * does without the executor, which would take most of the time, and its caller
 * says how many rows to look at.
 */
#include "postgres.h"

#include "access/genam.h"
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

/* A scan of a table by its primary key. */
typedef struct KeyScan
{
	Relation	relation;
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	ScanKeyData key;
} KeyScan;

struct TaskScan
{
	Snapshot	snapshot;
	KeyScan		tasks;
	KeyScan		outcomes;
	int32		queue;
	TaskScanKind kind;
	int64		seen;
	int64		batch;			/* the last one that was looked up, */
	bool		early_join;		/* and whether it may end before its tasks */
};

static SpiStatement select_early = {
	"SELECT FROM fanout.batch b WHERE b.id = $1 AND b.join_policy <> 'all'", 1, {INT8OID}
};

/* To be started by a rescan; the key is the table's first column. */
static void
open_scan(KeyScan *scan, LogKind kind, int segment, Snapshot snapshot, StrategyNumber strategy, RegProcedure compare)
{
	scan->relation = table_open(registry_relation(kind, segment), AccessShareLock);
	scan->index = index_open(primary_key_of(scan->relation), AccessShareLock);
	scan->slot = table_slot_create(scan->relation, NULL);
	ScanKeyInit(&scan->key, 1, strategy, compare, Int64GetDatum(0));
#if PG_VERSION_NUM >= 180000
	scan->scan = index_beginscan(scan->relation, scan->index, snapshot, NULL, 1, 0);
#else
	scan->scan = index_beginscan(scan->relation, scan->index, snapshot, 1, 0);
#endif
}

static void
start_scan(KeyScan *scan, int64 id)
{
	scan->key.sk_argument = Int64GetDatum(id);
	index_rescan(scan->scan, &scan->key, 1, NULL, 0);
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

TaskScan *
task_scan_begin(int segment, int32 queue, TaskScanKind kind, int64 id)
{
	TaskScan   *scan = palloc0(sizeof(TaskScan));

	scan->snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan->queue = queue;
	scan->kind = kind;
	scan->seen = id;
	open_scan(&scan->tasks, LOG_TASK, segment, scan->snapshot, BTGreaterEqualStrategyNumber, F_INT8GE);
	open_scan(&scan->outcomes, LOG_OUTCOME, segment, scan->snapshot, BTEqualStrategyNumber, F_INT8EQ);
	start_scan(&scan->tasks, id);
	return scan;
}

static bool
has_outcome(TaskScan *scan, int64 task)
{
	start_scan(&scan->outcomes, task);
	return index_getnext_slot(scan->outcomes.scan, ForwardScanDirection, scan->outcomes.slot);
}

/* Is the row one of those that are looked for, finished or not?  What most others differ in comes first. */
static bool
is_wanted(const TaskScan *scan, TupleTableSlot *row)
{
	bool		isnull;

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

	while (*rows > 0 && index_getnext_slot(scan->tasks.scan, ForwardScanDirection, row))
	{
		bool		isnull;
		int64		task = DatumGetInt64(slot_getattr(row, TASK_ID + 1, &isnull));

		CHECK_FOR_INTERRUPTS();
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
