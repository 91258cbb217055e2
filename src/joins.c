/*
 * joins.c
 *		Batches that end before all of their tasks have: any, n, fail_fast.
 *
 * Each end of a task of such a batch notes the batch in memory, as does its
 * seal.  The keeper asks the tables whether the join is decided by now, cancels
 * those of its tasks that still wait, and notes the end.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "cancel.h"
#include "commit_hooks.h"
#include "joins.h"
#include "journal.h"
#include "points.h"
#include "spi.h"
#include "wait.h"

#define JOIN_PAUSE		4		/* times as long as a look took, which grows with the batch */
#define RETRY_JOIN		(200 * INT64CONST(1000))	/* microseconds, when another transaction or the pool was in the
													 * way */

static SpiStatement select_undecided = {
	"SELECT id FROM fanout.batch WHERE join_policy <> 'all' AND ended_at IS NULL", 0, {0}
};
static SpiStatement select_decided = {
	"SELECT FROM fanout.batch b,"
	" (SELECT coalesce(sum(p.tasks), 0) AS tasks, coalesce(sum(o.ended), 0) AS ended, min(p.first_task) AS first_task,"
	"   coalesce(sum(o.succeeded), 0) AS succeeded, coalesce(sum(o.failed), 0) AS failed"
	"  FROM fanout.batch_part p, LATERAL (SELECT count(*) AS ended, count(*) FILTER (WHERE status = 's') AS succeeded,"
	"   count(*) FILTER (WHERE status = 'f') AS failed FROM fanout.outcome"
	"   WHERE task >= p.first_task AND task < p.first_task + p.tasks) AS o WHERE p.batch = $1) AS c"
	" WHERE b.id = $1 AND b.ended_at IS NULL AND (b.sealed AND (c.ended = c.tasks"
	"    OR c.first_task < (SELECT below FROM fanout.removed) AND NOT EXISTS (SELECT FROM fanout.batch_part p,"
	"     LATERAL (SELECT FROM fanout.task t WHERE t.id >= p.first_task AND t.id < p.first_task + p.tasks"
	"       AND NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id) LIMIT 1) AS t WHERE p.batch = $1))"
	"  OR b.join_policy = 'any' AND c.succeeded >= 1"
	"  OR b.join_policy = 'n' AND c.succeeded >= b.join_count"
	"  OR b.join_policy = 'fail_fast' AND c.failed >= 1)",
	1, {INT8OID}
};

/* Whoever seals the batch in an open transaction holds its row, and is not waited for. */
static SpiStatement end_batch = {
	"UPDATE fanout.batch SET ended_at = clock_timestamp() WHERE id ="
	" (SELECT id FROM fanout.batch WHERE id = $1 AND ended_at IS NULL FOR UPDATE SKIP LOCKED)", 1, {INT8OID}
};

/*
 * The range says again which outcomes matter, and OFFSET keeps it where it is:
 * in a join of all that the batch has with all outcomes there are, the planner
 * would read the latter.
 */
static SpiStatement select_unfinished = {
	"SELECT t.id FROM fanout.batch_part p, LATERAL (SELECT t.id FROM fanout.task t"
	"  WHERE t.id >= p.first_task AND t.id < p.first_task + p.tasks AND NOT EXISTS (SELECT FROM fanout.outcome o"
	"    WHERE o.task = t.id AND o.task >= p.first_task AND o.task < p.first_task + p.tasks) OFFSET 0) AS t"
	" WHERE p.batch = $1", 1, {INT8OID}
};

/* Has the join ended the batch, without anybody having noted it yet? */
static bool
is_decided(int64 batch)
{
	SpiScope	scope;
	Datum		values[1] = {Int64GetDatum(batch)};
	bool		decided;

	spi_begin(&scope);
	decided = spi_read_latest(&select_decided, values, NULL) == 1;
	spi_end(&scope);
	return decided;
}

/* The tasks of the batch that have no outcome, in the given memory; their number. */
static uint64
read_unfinished(int64 batch, MemoryContext context, int64 **tasks)
{
	SpiScope	scope;
	Datum		values[1] = {Int64GetDatum(batch)};
	uint64		rows;

	spi_begin(&scope);
	rows = spi_read_latest(&select_unfinished, values, NULL);
	*tasks = MemoryContextAllocHuge(context, Max(rows, 1) * sizeof(int64));
	for (uint64 i = 0; i < rows; i++)
		(*tasks)[i] = spi_int64(i, 1);
	spi_end(&scope);
	return rows;
}

/*
 * Cancel tasks from the next one on, as many as one transaction should; false
 * if the last of these could not be, for lack of memory.  "left" tells of one
 * that another transaction is deciding about.
 */
static bool
cancel_chunk(const int64 *tasks, uint64 count, uint64 *next, bool *left)
{
	uint64		stop = Min(*next + FANOUT_WORK_CHUNK, count);

	for (; *next < stop; (*next)++)
	{
		CancelResult result = cancel_task_at_once(tasks[*next], "the join of its batch was decided");

		if (result == CANCEL_NO_MEMORY)
			return false;
		*left |= result == CANCEL_LATER;
	}
	return true;
}

/* Note that the batch has ended, and tell those who wait for it; false if its row is locked. */
static bool
note_end(int64 batch)
{
	SpiScope	scope;
	Datum		values[1] = {Int64GetDatum(batch)};
	bool		noted;

	spi_begin(&scope);
	noted = spi_run(&end_batch, values, NULL) == 1;
	spi_end(&scope);
	pending_prepare(1);
	pending_batch_change(batch);
	return noted;
}

/*
 * Look whether the batch has ended by its join; if so, cancel those of its
 * tasks that still wait, and note the end.  The end is noted last: should the
 * keeper die before that, the next one looks again.  A cancelled task takes
 * an entry of the pool until its transaction commits, so there are as many
 * transactions as it takes.  False if not all could be done.
 */
static bool
run_join(Database *database, int64 batch)
{
	MemoryContext context = CurrentMemoryContext;
	int64	   *tasks = NULL;
	uint64		count = 0;
	uint64		next = 0;
	bool		left = false;
	bool		ended = true;
	bool		more;

	do
	{
		uint64		begin = next;

		more = false;
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (tasks != NULL || is_decided(batch))
		{
			if (tasks == NULL)
				count = read_unfinished(batch, context, &tasks);
			FANOUT_POINT(JOIN_DECIDED);
			ended = cancel_chunk(tasks, count, &next, &left) && next == count && !left;
			FANOUT_POINT(JOIN_CANCELLED);
			ended = ended && note_end(batch);
			FANOUT_POINT(JOIN_NOTED);
			more = next < count && next > begin;
		}
		PopActiveSnapshot();
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
		if (more)
			(void) journal_flush(database);
		MemoryContextSwitchTo(context);
		CHECK_FOR_INTERRUPTS();
	} while (more);

	if (tasks != NULL)
		pfree(tasks);
	return ended;
}

/* Copy the batches that want a look; all that are undecided if memory lost track. */
static int64 *
take_dirty_joins(Database *database, int *count)
{
	int64	   *batches = palloc(FANOUT_DIRTY_JOINS * sizeof(int64));
	bool		overflow;

	dispatcher_lock();
	*count = database->dirty_join_count;
	memcpy(batches, database->dirty_joins, *count * sizeof(int64));
	overflow = database->dirty_join_overflow;
	database->dirty_join_count = 0;
	database->dirty_join_overflow = false;
	dispatcher_unlock();

	if (overflow)
	{
		MemoryContext context = CurrentMemoryContext;
		SpiScope	scope;

		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		spi_begin(&scope);
		*count = spi_read_latest(&select_undecided, NULL, NULL);
		pfree(batches);
		batches = MemoryContextAllocHuge(context, Max(*count, 1) * sizeof(int64));
		for (int i = 0; i < *count; i++)
			batches[i] = spi_int64(i, 1);
		spi_end(&scope);
		PopActiveSnapshot();
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
	}
	return batches;
}

/* Have the batch looked at once more. */
static void
look_again(Database *database, int64 batch)
{
	dispatcher_lock();
	if (database->dirty_join_count < FANOUT_DIRTY_JOINS)
		database->dirty_joins[database->dirty_join_count++] = batch;
	else
		database->dirty_join_overflow = true;
	dispatcher_unlock();
}

TimestampTz
joins_run(Database *database)
{
	static int64 not_before = 0;	/* by wait_clock(), and what follows */
	int64		begin = wait_clock();
	int64	   *batches;
	int			count;
	bool		all_done = true;

	if (begin < not_before)
		return wait_clock_time(not_before);
	batches = take_dirty_joins(database, &count);
	for (int i = 0; i < count; i++)
	{
		bool		repeated = false;

		for (int j = 0; j < i && !repeated; j++)
			repeated = batches[j] == batches[i];
		if (!repeated && !run_join(database, batches[i]))
		{
			all_done = false;
			look_again(database, batches[i]);
		}
		CHECK_FOR_INTERRUPTS();
	}
	pfree(batches);
	not_before = wait_clock() + (wait_clock() - begin) * JOIN_PAUSE;
	if (!all_done)
		not_before = Max(not_before, wait_clock() + RETRY_JOIN);
	return wait_clock_time(not_before);
}
