/*
 * queue_settings.c
 *		Settings of queues, as the catalogue has them; rate limits, and the
 *		word of a worker to wait.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/int.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "queue_settings.h"
#include "queues.h"
#include "spi.h"

PG_FUNCTION_INFO_V1(fanout_set_rate_limit);

#define RANK_MOST	(PG_INT64_MAX / 2)

static SpiStatement select_settings = {
	"SELECT " QUEUE_SETTINGS_COLUMNS " FROM fanout.queue WHERE id = $1", 1, {INT4OID}
};
static SpiStatement lock_queue_row = {
	"SELECT FROM fanout.queue WHERE id = $1 FOR UPDATE", 1, {INT4OID}
};
static SpiStatement upsert_rate = {
	"INSERT INTO fanout.rate (queue, period, units) VALUES ($1, $2, $3)"
	" ON CONFLICT (queue, period) DO UPDATE SET units = $3", 3, {INT4OID, INTERVALOID, INT4OID}
};
static SpiStatement delete_rate = {
	"DELETE FROM fanout.rate WHERE queue = $1 AND period = $2", 2, {INT4OID, INTERVALOID}
};
static SpiStatement delete_rates = {
	"DELETE FROM fanout.rate WHERE queue = $1", 1, {INT4OID}
};

static int32
nullable_int(uint64 row, int column)
{
	bool		isnull;
	Datum		value = spi_value(row, column, &isnull);

	return isnull ? 0 : DatumGetInt32(value);
}

static int64
duration_column(uint64 row, int column, const char *name)
{
	bool		isnull;
	Datum		value = spi_value(row, column, &isnull);

	return duration_of(DatumGetIntervalP(value), name);
}

static TimestampTz
nullable_time(uint64 row, int column)
{
	bool		isnull;
	Datum		value = spi_value(row, column, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

RateLimit
rate_limit_read(uint64 row, int column)
{
	RateLimit	limit = {0};

	limit.units = nullable_int(row, column);
	if (limit.units > 0)
		limit.period = duration_column(row, column + 1, "rate_period");
	return limit;
}

/* The windows of the rate limit, from an array of units and one of periods. */
static void
read_windows(uint64 row, int column, QueueSettings *settings)
{
	bool		isnull;
	Datum		units_array = spi_value(row, column, &isnull);
	Datum	   *units;
	Datum	   *periods;
	bool	   *nulls;
	int			count;

	if (isnull)
		return;
	count = array_elements(DatumGetArrayTypeP(units_array), INT4OID, "units", &units, &nulls, false);
	(void) array_elements(DatumGetArrayTypeP(spi_value(row, column + 1, &isnull)), INTERVALOID, "periods", &periods,
						  &nulls, false);
	if (count > RATE_WINDOWS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many windows of a rate limit"),
				 errdetail("A queue may have up to %d.", RATE_WINDOWS)));
	for (int i = 0; i < count; i++)
	{
		settings->rates[i].units = DatumGetInt32(units[i]);
		settings->rates[i].period = duration_of(DatumGetIntervalP(periods[i]), "rate_period");
	}
	settings->rate_count = count;
}

QueueSettings
queue_settings_read(uint64 row, int first_column)
{
	QueueSettings settings = {0};
	bool		isnull;
	Datum		backlog = spi_value(row, first_column + 2, &isnull);
	Datum		aging;

	settings.max_backlog = isnull ? 0 : DatumGetInt64(backlog);
	settings.concurrency = nullable_int(row, first_column);
	settings.worker_concurrency = nullable_int(row, first_column + 1);
	settings.lease = duration_column(row, first_column + 3, "lease");
	settings.backoff = duration_column(row, first_column + 4, "backoff");
	settings.backoff_max = duration_column(row, first_column + 5, "backoff_max");
	settings.max_attempts = nullable_int(row, first_column + 6);
	settings.synchronous_claims = DatumGetBool(spi_value(row, first_column + 7, &isnull));
	settings.paused = DatumGetBool(spi_value(row, first_column + 8, &isnull));
	settings.partition_concurrency = nullable_int(row, first_column + 9);
	settings.partition_rate = rate_limit_read(row, first_column + 10);
	settings.held_until = nullable_time(row, first_column + 12);
	settings.retries_pass = DatumGetBool(spi_value(row, first_column + 13, &isnull));
	aging = spi_value(row, first_column + 14, &isnull);
	settings.aging = isnull ? 0 : duration_of(DatumGetIntervalP(aging), "aging");
	settings.partition_max_backlog = nullable_int(row, first_column + 15);
	read_windows(row, first_column + 16, &settings);
	return settings;
}

/*
 * With aging a task counts as one more urgent for each such time that it has
 * waited.  All get older alike, so which of two comes first never changes, and
 * the time at which a task would count as priority 0 tells their order.  What
 * is beyond the times that there are is as urgent, or as little, as can be;
 * the order of such is that of ids.  0 is not among them: that is the rank of
 * tasks which have none in their row (see read_main_lane() in refill.c).
 */
int64
rank_of(const QueueSettings *settings, int32 priority, TimestampTz since)
{
	int64		rank;

	if (settings->aging == 0)
		return priority;
	if (pg_mul_s64_overflow(priority, settings->aging, &rank) || pg_add_s64_overflow(rank, since, &rank))
		rank = priority < 0 ? -RANK_MOST : RANK_MOST;
	if (rank == 0)
		return 1;
	return Max(-RANK_MOST, Min(rank, RANK_MOST));
}

QueueSettings
queue_settings_load(int32 id)
{
	Datum		values[1] = {Int32GetDatum(id)};

	if (spi_read_latest(&select_settings, values, NULL) != 1)
		elog(ERROR, "queue %d has no row", id);
	return queue_settings_read(0, 1);
}

void
rate_limit_store(int32 id, Datum units, Datum period)
{
	Datum		values[3] = {Int32GetDatum(id), period, units};

	(void) spi_run(&upsert_rate, values, NULL);
}

void
rate_limits_delete(int32 id)
{
	Datum		values[1] = {Int32GetDatum(id)};

	(void) spi_run(&delete_rates, values, NULL);
}

Datum
fanout_set_rate_limit(PG_FUNCTION_ARGS)
{
	SpiScope	scope;
	QueueRef	ref;
	Datum		values[2];

	require_writable("fanout.set_rate_limit()");
	require_arg(fcinfo, 0, "queue");
	require_arg(fcinfo, 2, "rate_period");
	check_period(fcinfo, 2, "rate_period");
	if (!PG_ARGISNULL(1))
		check_rate(fcinfo, 1, "rate_limit", "rate_period");
	ref = registry_queue(PG_GETARG_TEXT_PP(0), PRIVILEGE_MANAGE);
	values[0] = Int32GetDatum(ref.id);
	values[1] = PG_GETARG_DATUM(2);

	spi_begin(&scope);
	if (spi_run(&lock_queue_row, values, NULL) == 1)
	{
		if (PG_ARGISNULL(1))
			(void) spi_run(&delete_rate, values, NULL);
		else
			rate_limit_store(ref.id, PG_GETARG_DATUM(1), PG_GETARG_DATUM(2));
		queue_follow_catalogue(&ref);
	}
	spi_end(&scope);
	PG_RETURN_VOID();
}
