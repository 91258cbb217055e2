/*
 * seed.c
 *		What a row of fanout.task tells the dispatcher.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "partitions.h"
#include "seed.h"
#include "spi.h"
#include "storage.h"

void
seed_read(uint64 row, TaskSeed *seed, ItemPointer tid)
{
	bool		isnull;
	Datum		value;

	memset(seed, 0, sizeof(TaskSeed));
	seed->task = spi_int64(row, 1);
	*tid = *(ItemPointer) DatumGetPointer(spi_value(row, 2, &isnull));
	seed->priority = DatumGetInt32(spi_value(row, 3, &isnull));
	value = spi_value(row, 4, &isnull);
	seed->timed = !isnull;
	seed->run_at = isnull ? 0 : DatumGetTimestampTz(value);
	value = spi_value(row, 5, &isnull);
	seed->batch = isnull ? 0 : DatumGetInt64(value);
	value = spi_value(row, 6, &isnull);
	seed->max_attempts = isnull ? 0 : DatumGetInt16(value);
	seed->partition = spi_int64(row, 7);
	seed->cost = DatumGetInt32(spi_value(row, 8, &isnull));
	seed->early_join = DatumGetBool(spi_value(row, 9, &isnull));
	value = spi_value(row, 10, &isnull);
	seed->rank = spi_int64(row, 11);
	seed->group = isnull || seed->partition == 0 ? 0 : hash_of_key(DatumGetTextPP(value));
	value = spi_value(row, 12, &isnull);
	seed->deadline = isnull ? 0 : DatumGetTimestampTz(value);
}

/* A column that counts as "otherwise" if it is NULL. */
static int64
int64_of(TupleTableSlot *row, int column, int64 otherwise)
{
	return row->tts_isnull[column] ? otherwise : DatumGetInt64(row->tts_values[column]);
}

static int32
int32_of(TupleTableSlot *row, int column, int32 otherwise)
{
	return row->tts_isnull[column] ? otherwise : DatumGetInt32(row->tts_values[column]);
}

void
seed_of_row(TupleTableSlot *row, TaskSeed *seed)
{
	slot_getallattrs(row);
	memset(seed, 0, sizeof(TaskSeed));
	seed->task = int64_of(row, TASK_ID, 0);
	seed->priority = int32_of(row, TASK_PRIORITY, 0);
	seed->timed = !row->tts_isnull[TASK_RUN_AT];
	seed->run_at = int64_of(row, TASK_RUN_AT, 0);
	seed->batch = int64_of(row, TASK_BATCH, 0);
	if (!row->tts_isnull[TASK_MAX_ATTEMPTS])
		seed->max_attempts = DatumGetInt16(row->tts_values[TASK_MAX_ATTEMPTS]);
	seed->partition = int64_of(row, TASK_LANE, 0);
	seed->cost = int32_of(row, TASK_COST, 1);
	seed->rank = int64_of(row, TASK_RANK, seed->priority);
	if (!row->tts_isnull[TASK_FAIR_GROUP] && seed->partition != 0)
		seed->group = hash_of_key(DatumGetTextPP(row->tts_values[TASK_FAIR_GROUP]));
	seed->deadline = int64_of(row, TASK_DEADLINE, 0);
}
