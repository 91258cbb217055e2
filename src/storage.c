/*
 * storage.c
 *		Reading and writing the log's tables directly.
 *
 * The hot paths do without the planner and the executor: rows go in by
 * table_tuple_insert() or, many at a time, by table_multi_insert(), with all
 * the indexes that the relation has; they come out by the row's remembered
 * place, or by the primary key where the row is not there any more (VACUUM
 * FULL, CLUSTER).  Triggers and row security of the log's tables do not apply.
 *
 * Rows are read with SnapshotSelf: whatever is committed by now, and our own.
 * The statement's snapshot may be older than a task that it was woken for.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "storage.h"

#define WRITER_SLOTS	1000	/* rows in one multi-insert, as in COPY */

struct LogWriter
{
	Relation	relation;
	ResultRelInfo *result_relation;
	EState	   *estate;
	BulkInsertState bulk;		/* NULL where few rows are expected */
	int			slot_count;		/* slots made so far */
	int			used;
	int			room;
	TupleTableSlot **slots;
	ItemPointer *tids;			/* where the caller wants the places of the rows */
};

struct TaskReader
{
	Relation	relation;
	TupleTableSlot *slot;
};

LogWriter *
log_writer_open(LogRelation which, int64 expected_rows)
{
	LogWriter  *writer = palloc0(sizeof(LogWriter));

	writer->relation = table_open(registry_relation(which), RowExclusiveLock);
	writer->estate = CreateExecutorState();
	writer->result_relation = makeNode(ResultRelInfo);
	InitResultRelInfo(writer->result_relation, writer->relation, 0, NULL, 0);
	ExecOpenIndices(writer->result_relation, false);
	writer->room = Max(1, Min(expected_rows, WRITER_SLOTS));
	writer->slots = palloc0(writer->room * sizeof(TupleTableSlot *));
	writer->tids = palloc0(writer->room * sizeof(ItemPointer));
	if (expected_rows > 100)
		writer->bulk = GetBulkInsertState();
	return writer;
}

static void
insert_index_entries(LogWriter *writer, TupleTableSlot *slot)
{
	List	   *recheck;

	GetPerTupleExprContext(writer->estate)->ecxt_scantuple = slot;
#if PG_VERSION_NUM >= 160000
	recheck = ExecInsertIndexTuples(writer->result_relation, slot, writer->estate, false, false, NULL, NIL, false);
#else
	recheck = ExecInsertIndexTuples(writer->result_relation, slot, writer->estate, false, false, NULL, NIL);
#endif
	list_free(recheck);
	ResetPerTupleExprContext(writer->estate);
}

static void
flush(LogWriter *writer)
{
	CommandId	command = GetCurrentCommandId(true);

	if (writer->used == 0)
		return;
	if (writer->used == 1)
		table_tuple_insert(writer->relation, writer->slots[0], command, 0, writer->bulk);
	else
		table_multi_insert(writer->relation, writer->slots, writer->used, command, 0, writer->bulk);

	for (int i = 0; i < writer->used; i++)
	{
		TupleTableSlot *slot = writer->slots[i];

		insert_index_entries(writer, slot);
		if (writer->tids[i] != NULL)
			*writer->tids[i] = slot->tts_tid;
		ExecClearTuple(slot);
	}
	writer->used = 0;
	CHECK_FOR_INTERRUPTS();
}

/* Add a row; its place goes to "tid_out" (may be NULL) by the time the writer is closed. */
void
log_writer_add(LogWriter *writer, const Datum *values, const bool *nulls, ItemPointer tid_out)
{
	TupleTableSlot *slot;
	int			columns = RelationGetDescr(writer->relation)->natts;

	if (writer->used == writer->slot_count)
		writer->slots[writer->slot_count++] = table_slot_create(writer->relation, NULL);
	slot = writer->slots[writer->used];

	ExecClearTuple(slot);
	memcpy(slot->tts_values, values, columns * sizeof(Datum));
	memcpy(slot->tts_isnull, nulls, columns * sizeof(bool));
	ExecStoreVirtualTuple(slot);
	ExecMaterializeSlot(slot);
	slot->tts_tableOid = RelationGetRelid(writer->relation);
	writer->tids[writer->used++] = tid_out;
	if (writer->used == writer->room)
		flush(writer);
}

/* Write what is left, and let go of the relation; its lock stays until the transaction ends. */
void
log_writer_close(LogWriter *writer)
{
	flush(writer);
	if (writer->bulk != NULL)
	{
		FreeBulkInsertState(writer->bulk);
		table_finish_bulk_insert(writer->relation, 0);
	}
	for (int i = 0; i < writer->slot_count; i++)
		ExecDropSingleTupleTableSlot(writer->slots[i]);
	ExecCloseIndices(writer->result_relation);
	FreeExecutorState(writer->estate);
	table_close(writer->relation, NoLock);
	pfree(writer->result_relation);
	pfree(writer->slots);
	pfree(writer->tids);
	pfree(writer);

	/* later commands of the transaction see the rows */
	CommandCounterIncrement();
}

TaskReader *
task_reader_open(void)
{
	TaskReader *reader = palloc(sizeof(TaskReader));

	reader->relation = table_open(registry_relation(LOG_TASK), AccessShareLock);
	reader->slot = table_slot_create(reader->relation, NULL);
	return reader;
}

static void
copy_values(TupleTableSlot *slot, Datum *values, bool *nulls)
{
	slot_getallattrs(slot);
	memcpy(values, slot->tts_values, TASK_COLUMNS * sizeof(Datum));
	memcpy(nulls, slot->tts_isnull, TASK_COLUMNS * sizeof(bool));
}

static bool
fetch_by_place(TaskReader *reader, int64 task, ItemPointer tid, Datum *values, bool *nulls)
{
	if (!ItemPointerIsValid(tid) ||
		ItemPointerGetBlockNumber(tid) >= RelationGetNumberOfBlocks(reader->relation))
		return false;
	if (!table_tuple_fetch_row_version(reader->relation, tid, SnapshotSelf, reader->slot))
		return false;
	copy_values(reader->slot, values, nulls);
	return DatumGetInt64(values[TASK_ID]) == task;
}

static bool
fetch_by_key(TaskReader *reader, int64 task, Datum *values, bool *nulls)
{
	Oid			index = RelationGetPrimaryKeyIndex(reader->relation
#if PG_VERSION_NUM >= 180000
												   ,false
#endif
		);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, TASK_ID + 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(task));
	scan = systable_beginscan(reader->relation, index, true, SnapshotSelf, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		ExecForceStoreHeapTuple(heap_copytuple(tuple), reader->slot, true);
		copy_values(reader->slot, values, nulls);
	}
	systable_endscan(scan);
	return HeapTupleIsValid(tuple);
}

bool
task_reader_fetch(TaskReader *reader, int64 task, ItemPointer tid, Datum *values, bool *nulls)
{
	return fetch_by_place(reader, task, tid, values, nulls) || fetch_by_key(reader, task, values, nulls);
}

void
task_reader_close(TaskReader *reader)
{
	ExecDropSingleTupleTableSlot(reader->slot);

	/* the lock stays: while a claim is not committed, the extension cannot go away */
	table_close(reader->relation, NoLock);
	pfree(reader);
}

/* Scan a log relation by its primary key, whose first column is "task". */
static SysScanDesc
scan_by_task(Relation relation, ScanKeyData *keys, int key_count)
{
	Oid			index = RelationGetPrimaryKeyIndex(relation
#if PG_VERSION_NUM >= 180000
												   ,false
#endif
		);

	return systable_beginscan(relation, index, true, SnapshotSelf, key_count, keys);
}

/* A jsonb datum as a value to be pushed into another one. */
static void
jsonb_as_value(Jsonb *jsonb, JsonbValue *value)
{
	if (!JB_ROOT_IS_SCALAR(jsonb) || !JsonbExtractScalar(&jsonb->root, value))
		JsonbToJsonbValue(jsonb, value);
}

Jsonb *
checkpoints_of(int64 task)
{
	Relation	relation = table_open(registry_relation(LOG_CHECKPOINT), AccessShareLock);
	JsonbParseState *state = NULL;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Jsonb	   *result = NULL;

	ScanKeyInit(&key, CHECKPOINT_TASK + 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(task));
	scan = scan_by_task(relation, &key, 1);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum		values[CHECKPOINT_COLUMNS];
		bool		nulls[CHECKPOINT_COLUMNS];
		JsonbValue	item;

		if (state == NULL)
			pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
		heap_deform_tuple(tuple, RelationGetDescr(relation), values, nulls);
		item.type = jbvString;
		item.val.string.val = TextDatumGetCString(values[CHECKPOINT_STEP]);
		item.val.string.len = strlen(item.val.string.val);
		pushJsonbValue(&state, WJB_KEY, &item);
		if (nulls[CHECKPOINT_VALUE])
			item.type = jbvNull;
		else
			jsonb_as_value(DatumGetJsonbPCopy(values[CHECKPOINT_VALUE]), &item);
		pushJsonbValue(&state, WJB_VALUE, &item);
	}
	if (state != NULL)
		result = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return result;
}

bool
checkpoint_find(int64 task, text *step, Jsonb **value)
{
	Relation	relation = table_open(registry_relation(LOG_CHECKPOINT), AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], CHECKPOINT_TASK + 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(task));
	ScanKeyInit(&keys[1], CHECKPOINT_STEP + 1, BTEqualStrategyNumber, F_TEXTEQ, PointerGetDatum(step));
	keys[1].sk_collation = DEFAULT_COLLATION_OID;
	scan = scan_by_task(relation, keys, 2);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		datum = heap_getattr(tuple, CHECKPOINT_VALUE + 1, RelationGetDescr(relation), &isnull);

		*value = isnull ? NULL : DatumGetJsonbPCopy(datum);
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return HeapTupleIsValid(tuple);
}

char
outcome_of(int64 task)
{
	Relation	relation = table_open(registry_relation(LOG_OUTCOME), AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char		status = 0;

	ScanKeyInit(&key, OUTCOME_TASK + 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(task));
	scan = scan_by_task(relation, &key, 1);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;

		status = DatumGetChar(heap_getattr(tuple, OUTCOME_STATUS + 1, RelationGetDescr(relation), &isnull));
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return status;
}
