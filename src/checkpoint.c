/*
 * checkpoint.c
 *		The value of a step of a task: the first one that is stored stays.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"

#include "arguments.h"
#include "checkpoint.h"
#include "lease.h"
#include "points.h"
#include "segments.h"
#include "spi.h"
#include "storage.h"

PG_FUNCTION_INFO_V1(fanout_checkpoint);

#define INSERT_CHECKPOINT(segment) { \
	"INSERT INTO fanout.checkpoint" segment " (task, lease, at, step, value) VALUES ($1, $2, clock_timestamp(), $3, $4)" \
	" ON CONFLICT (task, step) DO NOTHING", 4, {INT8OID, INT8OID, TEXTOID, JSONBOID} \
}
static SpiStatement insert_checkpoint[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(INSERT_CHECKPOINT);

void
check_step_name(text *step)
{
	if (VARSIZE_ANY_EXHDR(step) == 0 || VARSIZE_ANY_EXHDR(step) > STEP_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid step name"),
				 errdetail("A step's name must have from 1 to %d bytes.", STEP_NAME_MAX)));
}

/* Store the value unless the step has one; waits for whoever is about to store one. */
static bool
write_checkpoint(const HeldLease *held, text *step, Datum value, bool isnull)
{
	SpiScope	scope;
	Datum		values[4];
	char		nulls[5] = "    ";
	bool		stored;

	values[0] = Int64GetDatum(held->task);
	values[1] = Int64GetDatum(held->lease);
	values[2] = PointerGetDatum(step);
	values[3] = value;
	nulls[3] = isnull ? 'n' : ' ';
	spi_begin(&scope);
	stored = spi_run_latest(&insert_checkpoint[segment_hold(LOG_CHECKPOINT, held->task, RowExclusiveLock)], values, nulls) == 1;
	spi_end(&scope);
	return stored;
}

Datum
fanout_checkpoint(PG_FUNCTION_ARGS)
{
	text	   *step;
	HeldLease	held;
	Jsonb	   *stored;

	require_writable("fanout.checkpoint()");
	require_arg(fcinfo, 0, "lease");
	require_arg(fcinfo, 1, "step");
	step = PG_GETARG_TEXT_PP(1);
	check_step_name(step);

	if (!lease_hold(PG_GETARG_INT64(0), LEASE_USE_WRITE, &held))
		throw_not_held(PG_GETARG_INT64(0), &held);
	FANOUT_POINT(CHECKPOINT_HELD);
	while (!checkpoint_find(held.task, step, &stored))
	{
		if (!write_checkpoint(&held, step, PG_ARGISNULL(2) ? (Datum) 0 : PG_GETARG_DATUM(2), PG_ARGISNULL(2)))
			continue;
		FANOUT_POINT(CHECKPOINT_WRITTEN);
		if (PG_ARGISNULL(2))
			PG_RETURN_NULL();
		PG_RETURN_DATUM(PG_GETARG_DATUM(2));
	}
	if (stored == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(stored);
}
