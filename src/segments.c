/*
 * segments.c
 *		The segments of the log: which of them has a task, and the move to the
 *		next one.
 *
 * The log is split by ranges of task ids, so that what is old and done can be
 * retired whole: all rows of a task are in the segment of its id.  There is a
 * fixed number of segments, made by the install script, as tables that are
 * made later are no members of the extension.  They are used in turn: the one
 * with the highest ids is the current one, and the next to come is one that is
 * empty.  The catalogue, fanout.segment, has the first id of each one that is
 * in use; it has no row as long as all ids are in the first segment.
 *
 * A segment begins at the ceiling of ids (ids.c) as it is when the keeper moves
 * on, and only the keeper raises the ceiling.  So whoever is numbering tasks
 * meanwhile gets ids of the segment before, the ids of one call are in one
 * segment, and no id of the new one is given out before it is on disk where
 * the segment begins.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/snapmgr.h"

#include "points.h"
#include "registry.h"
#include "segments.h"
#include "spi.h"
#include "wait.h"

PG_FUNCTION_INFO_V1(fanout_next_segment);

/* An id that will never be given out: the current segment is where it would be. */
#define LAST_TASK	(PG_INT64_MAX - 1)

StaticAssertDecl(LAST_TASK < FANOUT_SEGMENT_UNUSED, "an unused segment has no task");

static SpiStatement select_segments = {
	"SELECT slot, first_task FROM fanout.segment", 0, {0}
};

/* The first segment has no row before it is left. */
static SpiStatement insert_segment = {
	"INSERT INTO fanout.segment (slot, first_task) VALUES ($1, $2), ($3, $4) ON CONFLICT (slot) DO NOTHING",
	4, {INT2OID, INT8OID, INT2OID, INT8OID}
};

static Database *
database_of_backend(void)
{
	static Database *known = NULL;

	if (known == NULL || known->state == DATABASE_FREE || known->db != MyDatabaseId)
	{
		dispatcher_lock();
		known = database_find(MyDatabaseId);
		dispatcher_unlock();
	}
	if (known == NULL)
		elog(ERROR, "database %u has no place in memory", MyDatabaseId);
	return known;
}

/*
 * This takes no lock, although the keeper may move on meanwhile.  An entry
 * changes from unused to a number that is higher than every id given out so
 * far, and under the lock that whoever is given one from there on takes after
 * it.  So for an id that the caller knows, the entry is either there to be seen
 * or makes no difference.  What a rebuild writes is what was there, except
 * after a restore, before which there were no tasks.
 */
int
segment_of(int64 task)
{
	const volatile int64 *firsts = database_of_backend()->segments;
	int64		highest = PG_INT64_MIN;
	int			segment = -1;

	for (int i = 0; i < FANOUT_SEGMENTS; i++)
	{
		int64		first = firsts[i];

		if (first <= task && first > highest)
		{
			highest = first;
			segment = i;
		}
	}
	return segment;
}

int
segments_in_use(const Database *database, int *segments)
{
	const int64 *firsts = database->segments;
	int			count = 0;

	for (int i = 0; i < FANOUT_SEGMENTS; i++)
	{
		int			place;

		if (firsts[i] == FANOUT_SEGMENT_UNUSED)
			continue;
		for (place = count++; place > 0 && firsts[segments[place - 1]] > firsts[i]; place--)
			segments[place] = segments[place - 1];
		segments[place] = i;
	}
	return count;
}

/*
 * A keeper may have failed between the commit that began a segment and its
 * note in memory: ids were given out below the old ceiling then, and go on
 * from there.  The segment is the one that was asked for.
 */
void
segments_load(Database *database)
{
	SpiScope	scope;
	int64		firsts[FANOUT_SEGMENTS];
	int64		newest = 0;
	uint64		rows;

	for (int i = 0; i < FANOUT_SEGMENTS; i++)
		firsts[i] = FANOUT_SEGMENT_UNUSED;
	spi_begin(&scope);
	rows = spi_read_latest(&select_segments, NULL, NULL);
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;
		int			segment = DatumGetInt16(spi_value(i, 1, &isnull)) - 1;

		firsts[segment] = spi_int64(i, 2);
		newest = Max(newest, firsts[segment]);
	}
	spi_end(&scope);
	if (rows == 0)
		firsts[0] = 0;

	dispatcher_lock();
	for (int i = 0; i < FANOUT_SEGMENTS; i++)
	{
		if (firsts[i] == newest && database->segments[i] != newest)
			database->next_segment_wanted = false;
		database->segments[i] = firsts[i];
	}
	database->next_task = Max(database->next_task, newest);
	dispatcher_unlock();
}

/* The segment that comes after the current one, or -1 if all are in use. */
static int
next_free(const Database *database, int current)
{
	for (int i = 1; i < FANOUT_SEGMENTS; i++)
	{
		int			segment = (current + i) % FANOUT_SEGMENTS;

		if (database->segments[segment] == FANOUT_SEGMENT_UNUSED)
			return segment;
	}
	return -1;
}

/* Write down where the segment begins. */
static void
begin_segment(const Database *database, int current, int next, int64 first)
{
	SpiScope	scope;
	Datum		values[4];

	values[0] = Int16GetDatum(current + 1);
	values[1] = Int64GetDatum(database->segments[current]);
	values[2] = Int16GetDatum(next + 1);
	values[3] = Int64GetDatum(first);
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	spi_begin(&scope);
	(void) spi_run(&insert_segment, values, NULL);
	spi_end(&scope);
	PopActiveSnapshot();
	ForceSyncCommit();
	CommitTransactionCommand();
}

void
segments_move_on(Database *database)
{
	int			current = segment_of(LAST_TASK);
	int			next = next_free(database, current);
	int64		first = database->task_ceiling;

	if (next >= 0)
		begin_segment(database, current, next, first);
	FANOUT_POINT(SEGMENT_COMMITTED);

	dispatcher_lock();
	if (next >= 0)
	{
		database->segments[next] = first;
		database->next_task = first;
	}
	database->next_segment_wanted = false;
	dispatcher_unlock();
	ConditionVariableBroadcast(&fanout_shared->changed);
}

/* Have the keeper move on; the segment that is current until then. */
static int
ask_for_next(Database *database)
{
	int			current = segment_of(LAST_TASK);
	bool		free;

	dispatcher_lock();
	free = next_free(database, current) >= 0;
	if (free)
	{
		database->next_segment_wanted = true;
		keeper_wake(database);
	}
	dispatcher_unlock();

	if (!free)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no segment of the log is free"),
				 errdetail("All %d are in use.", FANOUT_SEGMENTS),
				 errhint("One is free again when the tasks in it have been retired.")));
	return current;
}

Datum
fanout_next_segment(PG_FUNCTION_ARGS)
{
	int			before;
	int			segment;

	require_writable("fanout._next_segment()");
	before = ask_for_next(require_database());
	while ((segment = segment_of(LAST_TASK)) == before)
	{
		(void) ConditionVariableTimedSleep(&fanout_shared->changed, 1000, PG_WAIT_EXTENSION);
		(void) require_database();	/* it may have gone, and the keeper with it */
	}
	ConditionVariableCancelSleep();
	PG_RETURN_INT16(segment + 1);
}
