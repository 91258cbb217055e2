/*
 * checkpoint.c
 *		The value of a step of a task: the first one that is stored stays.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "checkpoint.h"
#include "lease.h"
#include "storage.h"

PG_FUNCTION_INFO_V1(fanout_checkpoint);

void
check_step_name(text *step)
{
	if (VARSIZE_ANY_EXHDR(step) == 0 || VARSIZE_ANY_EXHDR(step) > STEP_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid step name"),
				 errdetail("A step's name must have from 1 to %d bytes.", STEP_NAME_MAX)));
}

static void
write_checkpoint(const HeldLease *held, text *step, Datum value, bool isnull)
{
	LogWriter  *writer = log_writer_open(LOG_CHECKPOINT, 1);
	Datum		values[CHECKPOINT_COLUMNS];
	bool		nulls[CHECKPOINT_COLUMNS] = {0};

	values[CHECKPOINT_TASK] = Int64GetDatum(held->task);
	values[CHECKPOINT_LEASE] = Int64GetDatum(held->lease);
	values[CHECKPOINT_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[CHECKPOINT_STEP] = PointerGetDatum(step);
	values[CHECKPOINT_VALUE] = value;
	nulls[CHECKPOINT_VALUE] = isnull;
	log_writer_add(writer, values, nulls, NULL);
	log_writer_close(writer);
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
		throw_lease_lost(PG_GETARG_INT64(0));
	if (checkpoint_find(held.task, step, &stored))
	{
		if (stored == NULL)
			PG_RETURN_NULL();
		PG_RETURN_JSONB_P(stored);
	}

	write_checkpoint(&held, step, PG_ARGISNULL(2) ? (Datum) 0 : PG_GETARG_DATUM(2), PG_ARGISNULL(2));
	if (PG_ARGISNULL(2))
		PG_RETURN_NULL();
	PG_RETURN_DATUM(PG_GETARG_DATUM(2));
}
