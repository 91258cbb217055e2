/*
 * progress.c
 *		How far a batch has come, how fast it goes, and how long the rest takes.
 *
 * What has ended, or waits for the time in its row, is counted in the tables,
 * what runs or waits for another attempt in memory; whatever is left is ready.
 * Memory is read first: a task that ends in between counts as ended.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "batch.h"
#include "registry.h"
#include "results.h"
#include "seed.h"
#include "shared_state.h"
#include "spi.h"

PG_FUNCTION_INFO_V1(fanout_progress);

#define RATE_WINDOW			(60 * USECS_PER_SEC)

/* What of a batch only memory knows. */
typedef struct LiveCounts
{
	int64		running;
	int64		delayed;		/* scheduled, and leased before */
	int64	   *timed;			/* those of them whose rows have a time, which may be the one that they wait for */
	int64		timed_count;
} LiveCounts;

/* The finish times of a batch's tasks, as far as there are any. */
typedef struct Pace
{
	int64		recent;			/* tasks that ended in the rate's window */
	TimestampTz first;			/* 0: none has ended */
	TimestampTz last;
} Pace;

/* Who waits for the time of his row is scheduled, in memory or not. */
static SpiStatement count_progress = {
	"SELECT coalesce(sum(p.tasks), 0)::bigint, coalesce(sum(c.succeeded), 0)::bigint,"
	"       coalesce(sum(c.failed), 0)::bigint, coalesce(sum(c.cancelled), 0)::bigint,"
	"       coalesce(sum(c.recent), 0)::bigint, min(c.first_finish), max(c.last_finish),"
	"       coalesce(sum(d.scheduled), 0)::bigint"
	"  FROM fanout.batch b LEFT JOIN fanout.batch_part p ON p.batch = b.id LEFT JOIN LATERAL (SELECT count(*) AS ended,"
	"              count(*) FILTER (WHERE o.status = 's') AS succeeded, count(*) FILTER (WHERE o.status = 'f') AS failed,"
	"              count(*) FILTER (WHERE o.status = 'c') AS cancelled, count(*) FILTER (WHERE o.finished_at > $3) AS recent,"
	"              min(o.finished_at) AS first_finish, max(o.finished_at) AS last_finish FROM fanout.outcome o"
	"       WHERE o.task >= p.first_task AND o.task < p.first_task + p.tasks) c ON true"
	"  LEFT JOIN LATERAL (SELECT count(*) AS scheduled FROM fanout.task t"
	"       WHERE t.id >= p.first_task AND t.id < p.first_task + p.tasks AND t.run_at > $2 AND t.id <> ALL ($4)"
	"       AND" UNFINISHED_ONE("") ") d ON true WHERE b.id = $1 GROUP BY b.id", 4, {INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8ARRAYOID}
};

/* NULL if the batch, which had tasks, is removed by now. */
static SpiStatement count_gone = {
	"SELECT sum(CASE WHEN p.first_task < r.below THEN p.tasks - c.tasks ELSE 0 END)::bigint"
	"  FROM fanout.batch_part p LEFT JOIN fanout.removed r ON true, LATERAL (SELECT count(*) AS tasks FROM fanout.task t"
	"       WHERE p.first_task < r.below AND t.id >= p.first_task AND t.id < p.first_task + p.tasks) c WHERE p.batch = $1", 1, {INT8OID}
};

static void
count_live(const Task *task, LiveCounts *counts)
{
	if (task->state == TASK_RUNNING)
		counts->running++;

	/* of one that was leased the row need not tell */
	else if (task->state == TASK_SCHEDULED && (task->flags & TASK_FLAG_UNTOUCHED) == 0)
	{
		counts->delayed++;
		if (task->flags & TASK_FLAG_TIMED)
			counts->timed[counts->timed_count++] = task->node.id;
	}
}

/* Count the tasks of a range that run or wait for another attempt. */
static void
count_live_range(const TaskRange *range, LiveCounts *counts)
{
	for (int64 i = 0; i < range->count;)
	{
		int64		end = Min(range->count, i + FANOUT_WORK_CHUNK);

		CHECK_FOR_INTERRUPTS();
		counts->timed = repalloc_huge(counts->timed, (counts->timed_count + FANOUT_WORK_CHUNK) * sizeof(int64));
		dispatcher_lock();
		for (; i < end; i++)
		{
			Task	   *task = task_find(MyDatabaseId, range->first + i);

			if (task != NULL)
				count_live(task, counts);
		}
		dispatcher_unlock();
	}
}

static LiveCounts
count_live_tasks(const Batch *batch)
{
	LiveCounts	counts = {.timed = palloc(sizeof(int64))};
	TaskRange  *ranges;
	int64		range_count = read_ranges(batch, &ranges);

	for (int64 i = 0; i < range_count; i++)
		count_live_range(&ranges[i], &counts);
	pfree(ranges);
	return counts;
}

static TimestampTz
time_or_zero(int column)
{
	bool		isnull;
	Datum		value = spi_value(0, column, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

static Datum
array_of(const int64 *ids, int64 count)
{
	Datum	   *elements = palloc_extended(Max(count, 1) * sizeof(Datum), MCXT_ALLOC_HUGE);

	for (int64 i = 0; i < count; i++)
		elements[i] = Int64GetDatum(ids[i]);
	return PointerGetDatum(construct_array(elements, count, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/*
 * Count the outcomes of the batch; also how many of its unfinished tasks have a
 * time to come in their rows, but for those that are counted already.
 */
static void
read_progress(Batch *batch, TimestampTz now, const LiveCounts *live, Pace *pace, int64 *future, int64 *gone)
{
	SpiScope	scope;
	Datum		values[4];
	bool		isnull;

	values[0] = Int64GetDatum(batch->target.batch);
	values[1] = TimestampTzGetDatum(now);
	values[2] = TimestampTzGetDatum(now - RATE_WINDOW);
	values[3] = array_of(live->timed, live->timed_count);
	spi_begin(&scope);
	if (spi_read_latest(&count_progress, values, NULL) != 1)
		throw_missing_batch(batch->target.batch);
	batch->total = spi_int64(0, 1);
	batch->succeeded = spi_int64(0, 2);
	batch->failed = spi_int64(0, 3);
	batch->cancelled = spi_int64(0, 4);
	batch->ended = batch->succeeded + batch->failed + batch->cancelled;
	pace->recent = spi_int64(0, 5);
	pace->first = time_or_zero(6);
	pace->last = time_or_zero(7);
	*future = spi_int64(0, 8);
	*gone = 0;
	if (batch->ended < batch->total)
	{
		(void) spi_read_latest(&count_gone, values, NULL);
		*gone = Min(DatumGetInt64(spi_value(0, 1, &isnull)), batch->total - batch->ended);
		if (isnull)
			throw_missing_batch(batch->target.batch);
		batch->ended += *gone;
	}
	spi_end(&scope);
}

/*
 * Tasks per second: while the batch runs, over the last minute or since its
 * first end; of one that has ended, from the first end to the last.  The
 * first end itself begins the time and does not count, and the time is taken
 * as a second at least, since many may end in one moment.  0: not known.
 */
static double
rate_of(const Batch *batch, const Pace *pace, TimestampTz now)
{
	bool		over = batch_has_ended(batch);
	TimestampTz until = over ? pace->last : now;
	TimestampTz since = over ? pace->first : Max(pace->first, now - RATE_WINDOW);
	int64		count = over ? batch->ended : pace->recent;

	if (since == pace->first)
		count--;
	if (pace->first == 0 || count <= 0)
		return 0;
	return count * (double) USECS_PER_SEC / Max(until - since, USECS_PER_SEC);
}

static Interval *
interval_of(double seconds)
{
	Interval   *interval = palloc0(sizeof(Interval));

	/* no more than shows: an interval's days are an int */
	seconds = Min(seconds, 100.0 * 365 * SECS_PER_DAY);
	interval->day = (int32) (seconds / SECS_PER_DAY);
	interval->time = (TimeOffset) ((seconds - interval->day * (double) SECS_PER_DAY) * USECS_PER_SEC);
	return interval;
}

/* Split what has not ended into what is scheduled, ready and running, so that the sum is right. */
static void
split_remaining(const Batch *batch, const LiveCounts *live, int64 future, Datum *values)
{
	int64		remaining = Max(batch->total - batch->ended, 0);
	int64		running = Min(live->running, remaining);
	int64		scheduled = Min(future + live->delayed, remaining - running);

	values[1] = Int64GetDatum(scheduled);
	values[2] = Int64GetDatum(remaining - running - scheduled);
	values[3] = Int64GetDatum(running);
}

static void
add_rate(const Batch *batch, double rate, Datum *values, bool *nulls)
{
	double		remaining = batch_has_ended(batch) ? 0 : Max(batch->total - batch->ended, 0);

	values[9] = Float8GetDatum(rate);
	nulls[9] = rate == 0;
	nulls[10] = remaining > 0 && rate == 0;
	if (!nulls[10])
		values[10] = IntervalPGetDatum(interval_of(remaining > 0 ? remaining / rate : 0));
}

Datum
fanout_progress(PG_FUNCTION_ARGS)
{
	TimestampTz now = GetCurrentTimestamp();
	Batch		batch;
	LiveCounts	live;
	Pace		pace;
	int64		future;
	int64		gone;
	Datum		values[12] = {0};
	bool		nulls[12] = {false};

	require_readable();
	require_arg(fcinfo, 0, "batch");
	open_batch(PG_GETARG_INT64(0), &batch);
	live = count_live_tasks(&batch);
	read_progress(&batch, now, &live, &pace, &future, &gone);

	values[0] = Int64GetDatum(batch.total);
	split_remaining(&batch, &live, future, values);
	values[4] = Int64GetDatum(batch.succeeded);
	values[5] = Int64GetDatum(batch.failed);
	values[6] = Int64GetDatum(batch.cancelled);
	values[7] = BoolGetDatum(batch.sealed);
	values[8] = BoolGetDatum(batch_has_ended(&batch));
	add_rate(&batch, rate_of(&batch, &pace, now), values, nulls);
	values[11] = Int64GetDatum(gone);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(row_type(fcinfo), values, nulls)));
}
