/*
 * seed.c
 *		What a row of fanout.task tells the dispatcher.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "partitions.h"
#include "seed.h"
#include "spi.h"

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
