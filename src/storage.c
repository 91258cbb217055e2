/*
 * storage.c
 *		Reading and writing the log's tables directly.
 *
 * The hot paths do without the planner and the executor: rows go in by
 * table_tuple_insert() or, many at a time, by table_multi_insert(), with all
 * the indexes that the relation has; they come out by the row's remembered
 * place, or by the primary key where the row is not there any more (VACUUM
 * FULL, CLUSTER, a retired segment).  Triggers and row security of the log's tables do not apply.
 *
 * What is read is whatever is committed by now, and our own: by SnapshotSelf or,
 * where rows are updated, a new snapshot.  The statement's snapshot may be
 * older than a task that it was woken for.
 */
#include "postgres.h"

#include "access/detoast.h"
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
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "segments.h"
#include "storage.h"

#define WRITER_SLOTS	250		/* rows in one multi-insert */
#define BULK_ROWS		1000	/* from so many on, a ring of buffers of its own */

/*
 * What a backend keeps of a table that it writes to, until the relation cache
 * says that the table has changed: a call that inserts one row should not pay
 * for anything but that.  Relations are opened anew for each writer.
 */
typedef struct LogTable
{
	MemoryContext context;		/* NULL: nothing is kept */
	Oid			relid;			/* InvalidOid: what is kept is out of date */
	EState	   *estate;			/* for the predicates and expressions of indexes */
	ResultRelInfo *result_relation;
	Oid		   *index_oids;
	TupleDesc	desc;
	TupleDesc	stored[LOG_MAX_COLUMNS + 1];	/* of its first columns, by their number; made when needed */
	int			slot_count;		/* slots made so far */
	int			used;			/* slots that hold a row */
	TupleTableSlot *slots[WRITER_SLOTS];
} LogTable;

typedef struct SegmentWriter
{
	LogTable   *table;
	Relation	relation;
	BulkInsertState bulk;		/* NULL where few rows are expected */
	ItemPointer tids[WRITER_SLOTS]; /* where the caller wants the places of the rows */
} SegmentWriter;

/* A segment is opened when the first row of one of its tasks comes. */
struct LogWriter
{
	LogKind		kind;
	int64		expected_rows;
	SegmentWriter *segments[FANOUT_SEGMENTS];
};

typedef struct SegmentReader
{
	Relation	relation;		/* NULL: not opened yet */
	BlockNumber *blocks;		/* that the relation is known to have */
	TupleTableSlot *slot;
} SegmentReader;

struct TaskReader
{
	SegmentReader segments[FANOUT_SEGMENTS];
};

/* Which column has the task's id. */
static const int task_columns[LOG_KINDS] = {
	[LOG_TASK] = TASK_ID,
	[LOG_ATTEMPT] = ATTEMPT_TASK,
	[LOG_CHECKPOINT] = CHECKPOINT_TASK,
	[LOG_OUTCOME] = OUTCOME_TASK,
};

static const int column_counts[LOG_KINDS] = {
	[LOG_TASK] = TASK_COLUMNS,
	[LOG_ATTEMPT] = ATTEMPT_COLUMNS,
	[LOG_CHECKPOINT] = CHECKPOINT_COLUMNS,
	[LOG_OUTCOME] = OUTCOME_COLUMNS,
};

static LogTable log_tables[LOG_KINDS][FANOUT_SEGMENTS];

/* How many blocks the tables of tasks are known to have, each as long as it is in this file: asking costs a system call. */
static struct
{
	Oid			file;
	BlockNumber blocks;
}			known_blocks[FANOUT_SEGMENTS];

static bool
table_depends_on(const LogTable *table, Oid relid)
{
	if (relid == InvalidOid || relid == table->relid)
		return true;
	for (int i = 0; table->result_relation != NULL && i < table->result_relation->ri_NumIndices; i++)
	{
		if (relid == table->index_oids[i])
			return true;
	}
	return false;
}

/* The table is learned anew by the next writer; the one that is at work has it locked. */
static void
relation_callback(Datum arg, Oid relid)
{
	LogTable   *table = &log_tables[0][0];

	/* VACUUM may have given empty blocks at the end of a table back */
	memset(known_blocks, 0, sizeof(known_blocks));
	for (int i = 0; i < LOG_KINDS * FANOUT_SEGMENTS; i++, table++)
	{
		if (table_depends_on(table, relid))
			table->relid = InvalidOid;
	}
}

/* Called once, when the library is loaded. */
void
storage_init(void)
{
	CacheRegisterRelcacheCallback(relation_callback, (Datum) 0);
}

Oid
primary_key_of(Relation relation)
{
#if PG_VERSION_NUM >= 180000
	Oid			index = RelationGetPrimaryKeyIndex(relation, false);
#else
	Oid			index = RelationGetPrimaryKeyIndex(relation);
#endif

	if (!OidIsValid(index))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" has no primary key", RelationGetRelationName(relation)),
				 errhint("Add it again, on the columns that it has in the other segments.")));
	return index;
}

/* The parts of a ResultRelInfo that inserting index entries takes; the relations themselves are not opened. */
static ResultRelInfo *
make_result_relation(LogTable *table, Relation relation)
{
	ResultRelInfo *result_relation = makeNode(ResultRelInfo);
	List	   *indexes = RelationGetIndexList(relation);
	int			count = list_length(indexes);

	result_relation->ri_NumIndices = count;
	result_relation->ri_IndexRelationDescs = palloc0(Max(count, 1) * sizeof(Relation));
	result_relation->ri_IndexRelationInfo = palloc0(Max(count, 1) * sizeof(IndexInfo *));
	table->index_oids = palloc(Max(count, 1) * sizeof(Oid));
	for (int i = 0; i < count; i++)
	{
		Relation	index = index_open(list_nth_oid(indexes, i), RowExclusiveLock);
		IndexInfo  *info = BuildIndexInfo(index);

		info->ii_PredicateState = ExecPrepareQual(info->ii_Predicate, table->estate);
		info->ii_ExpressionsState = ExecPrepareExprList(info->ii_Expressions, table->estate);
		result_relation->ri_IndexRelationInfo[i] = info;
		table->index_oids[i] = RelationGetRelid(index);
		index_close(index, RowExclusiveLock);
	}
	return result_relation;
}

/*
 * Columns that an operator has added get no value from us: a row that ends
 * before them has what they were added with.  Where there is no such value,
 * as after a rewrite, that would be NULL, also in a column that PostgreSQL
 * takes for NOT NULL: it would look for a value behind the end of the row.
 * A generated column would be wrong, and rows with one cannot be carried out
 * of a segment as they are.
 */
static void
check_added_columns(TupleDesc desc, int ours, const char *table_name)
{
	for (int i = ours; i < desc->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(desc, i);

		if (column->attisdropped)
			continue;
		if (column->attgenerated != '\0' || (column->attnotnull && !column->atthasmissing))
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("column \"%s\" of table \"%s\" would have no value", NameStr(column->attname), table_name),
					 errdetail("No value is stored in columns that were added to the log, neither a default nor a generated one."),
					 errhint("Drop the column, or its NOT NULL.")));
	}
}

static void
learn_table(LogTable *table, Relation relation, int columns)
{
	MemoryContext caller;

	check_added_columns(RelationGetDescr(relation), columns, RelationGetRelationName(relation));
	if (table->context != NULL)
		MemoryContextDelete(table->context);
	memset(table, 0, sizeof(LogTable));
	table->relid = RelationGetRelid(relation);	/* first: it may be invalidated meanwhile */
	table->context = AllocSetContextCreate(CacheMemoryContext, "pg_fanout log table", ALLOCSET_SMALL_SIZES);
	caller = MemoryContextSwitchTo(table->context);
	table->estate = CreateExecutorState();
	/* with what added columns have in our rows: indexes on those are to have it, too */
	table->desc = CreateTupleDescCopyConstr(RelationGetDescr(relation));
	table->result_relation = make_result_relation(table, relation);
	MemoryContextSwitchTo(caller);
}

static void
open_index(LogTable *table, int i)
{
	ResultRelInfo *result_relation = table->result_relation;
	Relation	index = index_open(table->index_oids[i], RowExclusiveLock);
	IndexInfo  *info = result_relation->ri_IndexRelationInfo[i];

	result_relation->ri_IndexRelationDescs[i] = index;
	info->ii_ReadyForInserts = index->rd_index->indisready;
	info->ii_AmCache = NULL;	/* what the last writer left there is gone */
	info->ii_Context = CurrentMemoryContext;
}

/*
 * Open the indexes that the row belongs to.  Most tasks are in one index of
 * six, and to open and lock one costs as much as a third of an insert into it.
 */
static void
open_indexes_for(LogTable *table, TupleTableSlot *slot)
{
	ResultRelInfo *result_relation = table->result_relation;
	ExprContext *context = GetPerTupleExprContext(table->estate);

	context->ecxt_scantuple = slot;
	for (int i = 0; i < result_relation->ri_NumIndices; i++)
	{
		if (result_relation->ri_IndexRelationDescs[i] == NULL &&
			ExecQual(result_relation->ri_IndexRelationInfo[i]->ii_PredicateState, context))
			open_index(table, i);
	}
}

/* Close what is open; the locks stay until the transaction ends, as the table's does. */
static void
close_indexes(LogTable *table)
{
	ResultRelInfo *result_relation = table->result_relation;

	for (int i = 0; i < result_relation->ri_NumIndices; i++)
	{
		Relation	index = result_relation->ri_IndexRelationDescs[i];

		if (index == NULL)
			continue;
#if PG_VERSION_NUM >= 170000
		index_insert_cleanup(index, result_relation->ri_IndexRelationInfo[i]);
#endif
		index_close(index, NoLock);
		result_relation->ri_IndexRelationDescs[i] = NULL;
	}
}

/* Forget rows that a writer left behind when it was ended by an error. */
static void
clear_slots(LogTable *table)
{
	while (table->used > 0)
		ExecClearTuple(table->slots[--table->used]);
}

/* There must be one writer at a time for each kind. */
LogWriter *
log_writer_open(LogKind kind, int64 expected_rows)
{
	LogWriter  *writer = palloc0(sizeof(LogWriter));

	writer->kind = kind;
	writer->expected_rows = expected_rows;
	return writer;
}

static SegmentWriter *
open_segment_writer(LogKind kind, int segment, int64 expected_rows)
{
	SegmentWriter *writer = palloc(sizeof(SegmentWriter));
	LogTable   *table = &log_tables[kind][segment];

	/* numbered when the segment was the current one, or our move to another would not concern it */
	if (kind == LOG_TASK && !segment_is_current(segment))
		segment_unsettle(segment);
	writer->table = table;
	writer->relation = table_open(registry_relation(kind, segment), NoLock);
	if (table->relid != RelationGetRelid(writer->relation) || table->result_relation == NULL)
		learn_table(table, writer->relation, column_counts[kind]);
	clear_slots(table);
	table->result_relation->ri_RelationDesc = writer->relation;
	memset(table->result_relation->ri_IndexRelationDescs, 0, table->result_relation->ri_NumIndices * sizeof(Relation));
	writer->bulk = expected_rows >= BULK_ROWS ? GetBulkInsertState() : NULL;
	return writer;
}

static void
insert_index_entries(SegmentWriter *writer, TupleTableSlot *slot)
{
	ResultRelInfo *result_relation = writer->table->result_relation;
	EState	   *estate = writer->table->estate;

	open_indexes_for(writer->table, slot);
#if PG_VERSION_NUM >= 160000
	(void) ExecInsertIndexTuples(result_relation, slot, estate, false, false, NULL, NIL, false);
#else
	(void) ExecInsertIndexTuples(result_relation, slot, estate, false, false, NULL, NIL);
#endif
	ResetPerTupleExprContext(estate);
}

static void
flush(SegmentWriter *writer)
{
	LogTable   *table = writer->table;
	CommandId	command = GetCurrentCommandId(true);

	if (table->used == 0)
		return;
	if (table->used == 1)
		table_tuple_insert(writer->relation, table->slots[0], command, 0, writer->bulk);
	else
		table_multi_insert(writer->relation, table->slots, table->used, command, 0, writer->bulk);

	for (int i = 0; i < table->used; i++)
	{
		TupleTableSlot *slot = table->slots[i];

		insert_index_entries(writer, slot);
		if (writer->tids[i] != NULL)
			*writer->tids[i] = slot->tts_tid;
	}
	clear_slots(table);
	CHECK_FOR_INTERRUPTS();
}

static TupleTableSlot *
make_slot(SegmentWriter *writer)
{
	MemoryContext caller = MemoryContextSwitchTo(writer->table->context);
	TupleTableSlot *slot;

	slot = MakeSingleTupleTableSlot(writer->table->desc, &TTSOpsHeapTuple);
	slot->tts_tableOid = RelationGetRelid(writer->relation);
	MemoryContextSwitchTo(caller);
	return slot;
}

/* What the first columns of the table are. */
static TupleDesc
first_columns(LogTable *table, int count)
{
	MemoryContext caller;

	if (table->stored[count] == NULL)
	{
		caller = MemoryContextSwitchTo(table->context);
		table->stored[count] = CreateTemplateTupleDesc(count);
		for (int i = 1; i <= count; i++)
			TupleDescCopyEntry(table->stored[count], i, table->desc, i);
		MemoryContextSwitchTo(caller);
	}
	return table->stored[count];
}

/*
 * A row ends with its last column that has a value.  PostgreSQL takes a column
 * that a row does not reach for NULL, as in a table that was given columns
 * later, and a row of eight columns has a header that is 8 bytes shorter.
 */
static HeapTuple
form_row(LogTable *table, int count, const Datum *values, const bool *nulls)
{
	while (nulls[count - 1])
		count--;
	return heap_form_tuple(first_columns(table, count), unconstify(Datum *, values), unconstify(bool *, nulls));
}

static void
add_row(SegmentWriter *writer, int columns, const Datum *values, const bool *nulls, ItemPointer tid_out)
{
	LogTable   *table = writer->table;
	TupleTableSlot *slot;
	MemoryContext caller;

	if (table->used == WRITER_SLOTS)
		flush(writer);
	if (table->used == table->slot_count)
	{
		table->slots[table->used] = make_slot(writer);
		table->slot_count++;
	}
	slot = table->slots[table->used];

	/* where the slot is: it has to outlive a transaction that fails */
	caller = MemoryContextSwitchTo(slot->tts_mcxt);
	ExecStoreHeapTuple(form_row(table, columns, values, nulls), slot, true);
	MemoryContextSwitchTo(caller);
	writer->tids[table->used++] = tid_out;
}

/* Add a row; its place goes to "tid_out" (may be NULL) by the time the writer is closed. */
void
log_writer_add(LogWriter *writer, const Datum *values, const bool *nulls, ItemPointer tid_out)
{
	int64		task = DatumGetInt64(values[task_columns[writer->kind]]);
	int			segment = segment_of(task);

	/* one that is open is held, and so sure to have the task */
	if (writer->segments[segment] == NULL)
	{
		segment = segment_hold(writer->kind, task, RowExclusiveLock);
		if (writer->segments[segment] == NULL)
			writer->segments[segment] = open_segment_writer(writer->kind, segment, writer->expected_rows);
	}
	add_row(writer->segments[segment], column_counts[writer->kind], values, nulls, tid_out);
}

/* Write what is left, and let go of the relation; its lock stays until the transaction ends. */
static void
close_segment_writer(SegmentWriter *writer)
{
	flush(writer);
	if (writer->bulk != NULL)
	{
		FreeBulkInsertState(writer->bulk);
		table_finish_bulk_insert(writer->relation, 0);
	}
	close_indexes(writer->table);
	table_close(writer->relation, NoLock);
	pfree(writer);
}

void
log_writer_close(LogWriter *writer)
{
	for (int i = 0; i < FANOUT_SEGMENTS; i++)
	{
		if (writer->segments[i] != NULL)
			close_segment_writer(writer->segments[i]);
	}
	pfree(writer);

	/* later commands of the transaction see the rows */
	CommandCounterIncrement();
}

TaskReader *
task_reader_open(void)
{
	return palloc0(sizeof(TaskReader));
}

/* What is known of the table's length: 0 if it has another file by now. */
static BlockNumber *
blocks_of(int segment, Relation relation)
{
	if (known_blocks[segment].file != relation->rd_rel->relfilenode)
	{
		known_blocks[segment].file = relation->rd_rel->relfilenode;
		known_blocks[segment].blocks = 0;
	}
	return &known_blocks[segment].blocks;
}

/* The reader of the task's segment, opened if it is not yet. */
static SegmentReader *
reader_of(TaskReader *reader, int64 task)
{
	int			segment = segment_of(task);
	SegmentReader *part = &reader->segments[segment];

	if (part->relation != NULL)
		return part;
	segment = segment_hold(LOG_TASK, task, AccessShareLock);
	part = &reader->segments[segment];
	if (part->relation == NULL)
	{
		part->relation = table_open(registry_relation(LOG_TASK, segment), NoLock);
		part->blocks = blocks_of(segment, part->relation);
		part->slot = table_slot_create(part->relation, NULL);
	}
	return part;
}

static void
copy_values(TupleTableSlot *slot, Datum *values, bool *nulls)
{
	slot_getallattrs(slot);
	memcpy(values, slot->tts_values, TASK_COLUMNS * sizeof(Datum));
	memcpy(nulls, slot->tts_isnull, TASK_COLUMNS * sizeof(bool));
}

/* May the place be looked at?  After a VACUUM FULL the relation may be shorter than it was. */
static bool
place_exists(SegmentReader *reader, ItemPointer tid)
{
	if (!ItemPointerIsValid(tid))
		return false;
	if (ItemPointerGetBlockNumber(tid) >= *reader->blocks)
		*reader->blocks = RelationGetNumberOfBlocks(reader->relation);
	return ItemPointerGetBlockNumber(tid) < *reader->blocks;
}

static bool
fetch_by_place(SegmentReader *reader, int64 task, ItemPointer tid, Datum *values, bool *nulls)
{
	if (!place_exists(reader, tid))
		return false;
	if (!table_tuple_fetch_row_version(reader->relation, tid, SnapshotSelf, reader->slot))
		return false;
	copy_values(reader->slot, values, nulls);
	return DatumGetInt64(values[TASK_ID]) == task;
}

static bool
fetch_by_key(SegmentReader *reader, int64 task, Datum *values, bool *nulls)
{
	Oid			index = primary_key_of(reader->relation);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	/* rows of tasks that wait may be updated meanwhile: SnapshotSelf might come upon none of the versions */
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	ScanKeyInit(&key, TASK_ID + 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(task));
	scan = systable_beginscan(reader->relation, index, true, snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		ExecForceStoreHeapTuple(heap_copytuple(tuple), reader->slot, true);
		copy_values(reader->slot, values, nulls);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	return HeapTupleIsValid(tuple);
}

bool
task_reader_fetch(TaskReader *reader, int64 task, ItemPointer tid, Datum *values, bool *nulls)
{
	SegmentReader *part = reader_of(reader, task);

	return fetch_by_place(part, task, tid, values, nulls) || fetch_by_key(part, task, values, nulls);
}

void
task_reader_close(TaskReader *reader)
{
	for (int i = 0; i < FANOUT_SEGMENTS; i++)
	{
		SegmentReader *part = &reader->segments[i];

		if (part->relation == NULL)
			continue;
		ExecDropSingleTupleTableSlot(part->slot);

		/*
		 * The lock stays: while a claim is not committed, the extension cannot go away, and what was read of a task
		 * stays true of where its rows are.
		 */
		table_close(part->relation, NoLock);
	}
	pfree(reader);
}

/* The table that has the task's rows of that kind; it is to be closed with AccessShareLock. */
static Relation
open_for_task(LogKind kind, int64 task)
{
	return table_open(registry_relation(kind, segment_hold(kind, task, AccessShareLock)), NoLock);
}

/* Scan a log relation by its primary key, whose first column is "task". */
static SysScanDesc
scan_by_task(Relation relation, ScanKeyData *keys, int key_count)
{
	return systable_beginscan(relation, primary_key_of(relation), true, SnapshotSelf, key_count, keys);
}

/* A jsonb datum as a value to be pushed into another one. */
static void
jsonb_as_value(Jsonb *jsonb, JsonbValue *value)
{
	if (!JB_ROOT_IS_SCALAR(jsonb) || !JsonbExtractScalar(&jsonb->root, value))
		JsonbToJsonbValue(jsonb, value);
}

Jsonb *
checkpoints_of(int64 task, bool *too_large)
{
	Relation	relation = open_for_task(LOG_CHECKPOINT, task);
	JsonbParseState *state = NULL;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Jsonb	   *result = NULL;
	Size		total = 0;

	*too_large = false;
	ScanKeyInit(&key, CHECKPOINT_TASK + 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(task));
	scan = scan_by_task(relation, &key, 1);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum		values[CHECKPOINT_COLUMNS];
		bool		nulls[CHECKPOINT_COLUMNS];
		JsonbValue	item;

		heap_deform_tuple(tuple, RelationGetDescr(relation), values, nulls);
		total += toast_raw_datum_size(values[CHECKPOINT_STEP]) + sizeof(JEntry) * 2 + MAXIMUM_ALIGNOF;
		total += nulls[CHECKPOINT_VALUE] ? 0 : toast_raw_datum_size(values[CHECKPOINT_VALUE]);
		*too_large = total > JENTRY_OFFLENMASK;
		if (*too_large)
			break;
		if (state == NULL)
			pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
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
	if (state != NULL && !*too_large)
		result = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return result;
}

bool
checkpoint_find(int64 task, text *step, Jsonb **value)
{
	Relation	relation = open_for_task(LOG_CHECKPOINT, task);
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
	Relation	relation = open_for_task(LOG_OUTCOME, task);
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
