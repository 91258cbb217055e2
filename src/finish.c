/*
 * finish.c
 *		How an attempt ends by its worker's word: complete, fail, release.
 *
 * The order is: take the lease for ending (nobody else can end it now, and it
 * does not expire), write the row, and let the commit callback change memory.
 * The unique index on fanout.outcome stands behind: should memory ever err,
 * it is a duplicate key and no second outcome.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "commit_hooks.h"
#include "finish.h"
#include "lease.h"
#include "points.h"
#include "spi.h"
#include "storage.h"

PG_FUNCTION_INFO_V1(fanout_complete);
PG_FUNCTION_INFO_V1(fanout_complete_many);
PG_FUNCTION_INFO_V1(fanout_fail);
PG_FUNCTION_INFO_V1(fanout_fail_many);
PG_FUNCTION_INFO_V1(fanout_release);
PG_FUNCTION_INFO_V1(fanout_release_many);

static SpiStatement select_outcome_of_lease = {
	"SELECT status, (SELECT t.queue FROM fanout.task t WHERE t.id = o.task) FROM fanout.outcome o WHERE o.lease = $1",
	1, {INT8OID}
};

static SpiStatement select_cancel = {
	"SELECT error FROM fanout.attempt WHERE task = $1 AND event = 'k' ORDER BY at DESC LIMIT 1", 1, {INT8OID}
};

void
write_outcome(LogWriter *writer, int64 task, const HeldLease *held, Outcome outcome, TimestampTz at,
			  Datum value, bool isnull)
{
	Datum		values[OUTCOME_COLUMNS];
	bool		nulls[OUTCOME_COLUMNS] = {0};

	values[OUTCOME_TASK] = Int64GetDatum(task);
	values[OUTCOME_FINISHED_AT] = TimestampTzGetDatum(at);
	values[OUTCOME_STATUS] = CharGetDatum(outcome);
	values[OUTCOME_VALUE] = value;
	nulls[OUTCOME_VALUE] = isnull;
	if (held != NULL)
	{
		values[OUTCOME_LEASE] = Int64GetDatum(held->lease);
		values[OUTCOME_CLAIMED_AT] = TimestampTzGetDatum(held->claimed_at);
		nulls[OUTCOME_CLAIMED_AT] = held->journaled;
		values[OUTCOME_ATTEMPT] = Int16GetDatum(held->attempt);
		values[OUTCOME_WORKER] = CStringGetTextDatum(held->worker);
	}
	else
	{
		values[OUTCOME_ATTEMPT] = Int16GetDatum(0);
		nulls[OUTCOME_LEASE] = nulls[OUTCOME_CLAIMED_AT] = nulls[OUTCOME_WORKER] = true;
	}
	log_writer_add(writer, values, nulls, NULL);
}

Datum
error_value(const char *error, int length)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = (char *) error;
	value.val.string.len = length;
	return JsonbPGetDatum(JsonbValueToJsonb(&value));
}

void
write_attempt(LogWriter *writer, int64 lease, int64 task, char event, TimestampTz at, TimestampTz until,
			  const char *worker, Datum error, bool error_isnull)
{
	Datum		values[ATTEMPT_COLUMNS];
	bool		nulls[ATTEMPT_COLUMNS] = {0};

	values[ATTEMPT_LEASE] = Int64GetDatum(lease);
	values[ATTEMPT_TASK] = Int64GetDatum(task);
	values[ATTEMPT_AT] = TimestampTzGetDatum(at);
	values[ATTEMPT_UNTIL] = TimestampTzGetDatum(until);
	nulls[ATTEMPT_UNTIL] = until == 0;
	values[ATTEMPT_EVENT] = CharGetDatum(event);
	nulls[ATTEMPT_WORKER] = worker == NULL;
	values[ATTEMPT_WORKER] = worker != NULL ? CStringGetTextDatum(worker) : (Datum) 0;
	values[ATTEMPT_ERROR] = error;
	nulls[ATTEMPT_ERROR] = error_isnull;
	log_writer_add(writer, values, nulls, NULL);
}

/* Did this lease complete its task, in this transaction or before? */
static bool
completed_before(int64 lease)
{
	SpiScope	scope;
	Datum		values[1] = {Int64GetDatum(lease)};
	int32		queue_id = 0;
	QueueRef	ref;
	bool		completed = false;
	bool		isnull = true;

	spi_begin(&scope);
	if (spi_read_latest(&select_outcome_of_lease, values, NULL) == 1)
	{
		completed = DatumGetChar(spi_value(0, 1, &isnull)) == OUTCOME_SUCCEEDED;
		queue_id = DatumGetInt32(spi_value(0, 2, &isnull));
	}
	spi_end(&scope);
	if (completed && !isnull)
		(void) registry_queue_by_id(queue_id, PRIVILEGE_DEQUEUE, &ref);
	return completed;
}

/* Complete the leases that are live; held[i].lease is 0 for the others.  NULL for "results": all are NULL. */
static void
complete_held(const Datum *leases, int count, const Datum *results, const bool *nulls, HeldLease *held)
{
	TimestampTz now = GetCurrentTimestamp();
	LogWriter  *writer;

	lease_hold_many(leases, count, LEASE_USE_COMPLETE, held);
	FANOUT_POINT(COMPLETE_HELD);
	writer = log_writer_open(LOG_OUTCOME, count);
	for (int i = 0; i < count; i++)
	{
		bool		isnull = results == NULL || nulls[i];

		if (held[i].lease != 0)
			write_outcome(writer, held[i].task, &held[i], OUTCOME_SUCCEEDED, now,
						  isnull ? (Datum) 0 : results[i], isnull);
	}
	log_writer_close(writer);
	FANOUT_POINT(COMPLETE_WRITTEN);
}

bool
complete_lease(int64 lease, Datum result, bool isnull)
{
	Datum		number = Int64GetDatum(lease);
	HeldLease	held;

	complete_held(&number, 1, &result, &isnull, &held);
	if (held.lease == 0 && !completed_before(lease))
		throw_lease_lost(lease);
	return held.lease != 0;
}

Datum
fanout_complete(PG_FUNCTION_ARGS)
{
	require_writable("fanout.complete()");
	require_arg(fcinfo, 0, "lease");
	PG_RETURN_BOOL(complete_lease(PG_GETARG_INT64(0), PG_ARGISNULL(1) ? (Datum) 0 : PG_GETARG_DATUM(1),
								  PG_ARGISNULL(1)));
}

int
complete_leases(FunctionCallInfo fcinfo, Datum **leases, bool **done)
{
	Datum	   *results = NULL;
	bool	   *nulls = NULL;
	int			count;
	int			result_count = 0;
	HeldLease  *held;

	count = arg_ids(fcinfo, "leases", leases);
	if (!PG_ARGISNULL(1))
	{
		result_count = array_elements(PG_GETARG_ARRAYTYPE_P(1), JSONBOID, "results", &results, &nulls, true);
		if (result_count != count)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%d results were given for %d leases", result_count, count)));
	}

	*done = palloc(Max(count, 1) * sizeof(bool));
	held = palloc_extended(Max(count, 1) * sizeof(HeldLease), MCXT_ALLOC_HUGE);
	complete_held(*leases, count, results, nulls, held);
	for (int i = 0; i < count; i++)
		(*done)[i] = held[i].lease != 0;
	pfree(held);
	return count;
}

/* Give back those of the leases for which something was done. */
static void
return_leases(FunctionCallInfo fcinfo, Datum *leases, bool *done, int count)
{
	ResultSet	set = result_set_begin(fcinfo);
	bool		isnull = false;

	for (int i = 0; i < count; i++)
	{
		if (done[i])
			result_set_add(&set, &leases[i], &isnull);
	}
}

Datum
fanout_complete_many(PG_FUNCTION_ARGS)
{
	Datum	   *leases;
	bool	   *done;
	int			count;

	require_writable("fanout.complete()");
	count = complete_leases(fcinfo, &leases, &done);
	return_leases(fcinfo, leases, done, count);
	return (Datum) 0;
}

/*
 * When the next attempt is due: the queue's backoff, doubled with each attempt
 * up to its maximum, less up to half of it so that tasks that failed together
 * do not come back together.
 */
static int64
backoff_after(const HeldLease *held)
{
	double		delay = (double) held->backoff * pow(2.0, Min(held->attempt - 1, 60));

	delay = Min(delay, (double) held->backoff_max);
	return (int64) (delay * (1.0 - pg_prng_double(&pg_global_prng_state) / 2.0));
}

typedef struct FailOptions
{
	text	   *error;
	bool		error_isnull;
	int64		retry_in;		/* -1: by the queue's backoff */
	bool		final;
} FailOptions;

static FailOptions
fail_options(FunctionCallInfo fcinfo)
{
	FailOptions options;

	options.error_isnull = PG_ARGISNULL(1);
	options.error = options.error_isnull ? NULL : PG_GETARG_TEXT_PP(1);
	options.retry_in = arg_duration(fcinfo, 2, "retry_in", -1);
	options.final = !PG_ARGISNULL(3) && PG_GETARG_BOOL(3);
	return options;
}

char *
cancel_reason(int64 task)
{
	MemoryContext caller = CurrentMemoryContext;
	SpiScope	scope;
	Datum		values[1] = {Int64GetDatum(task)};
	char	   *reason = NULL;

	spi_begin(&scope);
	if (spi_read_latest(&select_cancel, values, NULL) == 1)
		reason = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (reason != NULL)
		reason = MemoryContextStrdup(caller, reason);
	spi_end(&scope);
	return reason;
}

void
end_cancelled(const HeldLease *held)
{
	LogWriter  *writer;
	char	   *reason;

	pending_end(held->entry, held->lease, held->task, OUTCOME_CANCELLED);
	reason = cancel_reason(held->task);
	writer = log_writer_open(LOG_OUTCOME, 1);
	write_outcome(writer, held->task, held, OUTCOME_CANCELLED, GetCurrentTimestamp(),
				  reason != NULL ? error_value(reason, strlen(reason)) : (Datum) 0, reason == NULL);
	log_writer_close(writer);
	FANOUT_POINT(END_WRITTEN);
}

/* Fail one attempt if its lease is live; "due" is 0 if that was the last one. */
static bool
fail_one(int64 lease, const FailOptions *options, TimestampTz *due)
{
	TimestampTz now = GetCurrentTimestamp();
	HeldLease	held;
	LogWriter  *writer;

	if (!lease_hold(lease, LEASE_USE_END, &held))
		return false;

	if (held.cancelled)
	{
		*due = 0;
		end_cancelled(&held);
		return true;
	}
	if (options->final || held.attempt >= held.max_attempts)
	{
		Datum		value = (Datum) 0;

		*due = 0;
		pending_end(held.entry, lease, held.task, OUTCOME_FAILED);
		FANOUT_POINT(END_HELD);
		if (!options->error_isnull)
			value = error_value(VARDATA_ANY(options->error), VARSIZE_ANY_EXHDR(options->error));
		writer = log_writer_open(LOG_OUTCOME, 1);
		write_outcome(writer, held.task, &held, OUTCOME_FAILED, now, value, options->error_isnull);
	}
	else
	{
		*due = now + (options->retry_in >= 0 ? options->retry_in : backoff_after(&held));
		pending_requeue(held.entry, lease, *due, true);
		FANOUT_POINT(END_HELD);
		writer = log_writer_open(LOG_ATTEMPT, 1);
		write_attempt(writer, lease, held.task, 'f', now, *due, held.worker, PointerGetDatum(options->error),
					  options->error_isnull);
	}
	log_writer_close(writer);
	FANOUT_POINT(END_WRITTEN);
	return true;
}

Datum
fanout_fail(PG_FUNCTION_ARGS)
{
	FailOptions options;
	TimestampTz due;

	require_writable("fanout.fail()");
	require_arg(fcinfo, 0, "lease");
	options = fail_options(fcinfo);
	if (!fail_one(PG_GETARG_INT64(0), &options, &due))
		throw_lease_lost(PG_GETARG_INT64(0));
	if (due == 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(due);
}

Datum
fanout_fail_many(PG_FUNCTION_ARGS)
{
	FailOptions options;
	Datum	   *leases;
	bool	   *done;
	int			count;

	require_writable("fanout.fail()");
	options = fail_options(fcinfo);
	count = arg_ids(fcinfo, "leases", &leases);
	done = palloc0(Max(count, 1) * sizeof(bool));
	for (int i = 0; i < count; i++)
	{
		TimestampTz due;

		done[i] = fail_one(DatumGetInt64(leases[i]), &options, &due);
	}
	return_leases(fcinfo, leases, done, count);
	return (Datum) 0;
}

/* Give one task back if its lease is live. */
static bool
release_one(int64 lease, int64 delay)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz due = delay > 0 ? now + delay : 0;
	HeldLease	held;
	LogWriter  *writer;

	if (!lease_hold(lease, LEASE_USE_END, &held))
		return false;
	if (held.cancelled)
	{
		end_cancelled(&held);
		return true;
	}
	pending_requeue(held.entry, lease, due, false);
	FANOUT_POINT(END_HELD);
	writer = log_writer_open(LOG_ATTEMPT, 1);
	write_attempt(writer, lease, held.task, 'r', now, due, held.worker, (Datum) 0, true);
	log_writer_close(writer);
	FANOUT_POINT(END_WRITTEN);
	return true;
}

Datum
fanout_release(PG_FUNCTION_ARGS)
{
	require_writable("fanout.release()");
	require_arg(fcinfo, 0, "lease");
	if (!release_one(PG_GETARG_INT64(0), arg_duration(fcinfo, 1, "delay", 0)))
		throw_lease_lost(PG_GETARG_INT64(0));
	PG_RETURN_BOOL(true);
}

Datum
fanout_release_many(PG_FUNCTION_ARGS)
{
	Datum	   *leases;
	bool	   *done;
	int			count;
	int64		delay;

	require_writable("fanout.release()");
	delay = arg_duration(fcinfo, 1, "delay", 0);
	count = arg_ids(fcinfo, "leases", &leases);
	done = palloc0(Max(count, 1) * sizeof(bool));
	for (int i = 0; i < count; i++)
		done[i] = release_one(DatumGetInt64(leases[i]), delay);
	return_leases(fcinfo, leases, done, count);
	return (Datum) 0;
}
