/*
 * deadlines.c
 *		Tasks that should have started by now.
 *
 * A task that has not started by its deadline is cancelled, whether it is in
 * memory or on disk only, so the keeper goes by the rows: an index has them in
 * the order of their deadlines.  Memory knows from which deadline on to look
 * (Database.next_deadline): whatever has a task wait lowers that to its
 * deadline, a commit before all.  The keeper sets it to the end of time before
 * it takes its snapshot, so a task that this does not show lowers it again.
 *
 * A row does not say whether its task has started.  If that is in memory, the
 * entry does: it has no deadline then.  One that is on disk only has not: a
 * task that was ever leased has to be in memory, and retry() takes the deadline
 * off the row of one that has ended.
 *
 * Claims do not rely on the keeper: next_lane_in_time() of dispatch_leases.c gives out
 * no task after its deadline.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "cancel.h"
#include "deadlines.h"
#include "dispatch.h"
#include "spi.h"
#include "storage.h"

#define RETRY_LATE	(200 * INT64CONST(1000))	/* microseconds, when another transaction or the pool was in the way */

static SpiStatement select_from = {
	"SELECT deadline, id FROM fanout.task WHERE deadline IS NOT NULL AND (deadline, id) >= ($1, $2)"
	" ORDER BY deadline, id LIMIT $3",
	3, {TIMESTAMPTZOID, INT8OID, INT8OID}
};

typedef struct Deadline
{
	TimestampTz at;
	int64		task;
} Deadline;

/* A look at the deadlines from a place on. */
typedef struct DeadlineLook
{
	TimestampTz now;
	Deadline	from;			/* in the order of deadline and id */
	TimestampTz next;			/* of those that have not passed yet, the first that matters */
	TimestampTz left;			/* of those that have, the first that could not be cancelled */
	bool		done;
} DeadlineLook;

static TimestampTz retry_at = 0;

/* Read the next deadlines; their number. */
static int
read_chunk(const DeadlineLook *look, Deadline *chunk)
{
	SpiScope	scope;
	Datum		values[3] = {TimestampTzGetDatum(look->from.at), Int64GetDatum(look->from.task), Int64GetDatum(FANOUT_WORK_CHUNK)};
	int			rows;

	spi_begin(&scope);
	spi_follow_order();
	rows = spi_read_latest(&select_from, values, NULL);
	for (int i = 0; i < rows; i++)
	{
		bool		isnull;

		chunk[i].at = DatumGetTimestampTz(spi_value(i, 1, &isnull));
		chunk[i].task = spi_int64(i, 2);
	}
	spi_end(&scope);
	return rows;
}

/* Cancel those of the chunk whose deadline has passed; done when one is met that has not and that matters. */
static void
handle_chunk(DeadlineLook *look, const Deadline *chunk, int count)
{
	for (int i = 0; i < count && !look->done; i++)
	{
		look->from.at = chunk[i].at;
		look->from.task = chunk[i].task + 1;
		if (chunk[i].at > look->now)
		{
			look->next = chunk[i].at;
			look->done = outcome_of(chunk[i].task) == 0;
		}
		else if (cancel_late_task(chunk[i].task) >= CANCEL_NO_MEMORY)
			look->left = Min(look->left, chunk[i].at);
		CHECK_FOR_INTERRUPTS();
	}

	/* of those that are yet to come and have ended, no more than one chunk is passed over at a time */
	if (count < FANOUT_WORK_CHUNK && !look->done)
		look->next = DT_NOEND;
	look->done |= count < FANOUT_WORK_CHUNK || look->next != DT_NOEND;
}

/* A cancelled task takes an entry of the pool until its transaction commits, so there is one for each chunk. */
static void
look_from(DeadlineLook *look)
{
	Deadline   *chunk = palloc(FANOUT_WORK_CHUNK * sizeof(Deadline));
	MemoryContext context = CurrentMemoryContext;

	while (!look->done)
	{
		int			count;

		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		count = read_chunk(look, chunk);
		handle_chunk(look, chunk, count);
		PopActiveSnapshot();
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
	}
	pfree(chunk);
}

void
deadlines_run(Database *database, TimestampTz now)
{
	DeadlineLook look = {.now = now, .next = DT_NOEND, .left = DT_NOEND};

	if (retry_at > now + RETRY_LATE)
		retry_at = now;			/* the clock was set back */
	if (now < retry_at)
		return;
	dispatcher_lock();
	look.from.at = database->next_deadline;
	look.done = look.from.at > now;
	if (!look.done)
	{
		database->deadlines_at_work = look.from.at;
		database->next_deadline = DT_NOEND;
	}
	dispatcher_unlock();
	if (look.done)
		return;

	look_from(&look);
	retry_at = look.left != DT_NOEND ? GetCurrentTimestamp() + RETRY_LATE : 0;
	dispatcher_lock();
	database->next_deadline = Min(database->next_deadline, Min(look.left, look.next));
	database->deadlines_at_work = DT_NOEND;
	dispatcher_unlock();
}

TimestampTz
deadlines_next_look(const Database *database)
{
	return Max(database->next_deadline, retry_at);
}

void
deadlines_take_over(Database *database)
{
	database->next_deadline = Min(database->next_deadline, database->deadlines_at_work);
	database->deadlines_at_work = DT_NOEND;
}
