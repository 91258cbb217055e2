/*
 * segments.c
 *		The segments of the log: which of them has a task, and the move to the
 *		next one.
 *
 * The log is split by ranges of task ids, so that what is old and done can be
 * retired whole (retire.c): all rows of a task are in the segment of its id.
 * There is a fixed number of segments, made by the install script, as tables
 * that are made later are no members of the extension.  They are used in turn:
 * the one with the highest ids is the current one, and the next to come is one
 * that is empty.  The catalogue, fanout.segment, has the first id of each one
 * that is in use; it has no row as long as all ids are in the first segment.
 *
 * A segment begins at the ceiling of ids (ids.c) as it is when the keeper moves
 * on, and only the keeper raises the ceiling.  So whoever is numbering tasks
 * meanwhile gets ids of the segment before, the ids of one call are in one
 * segment, and no id of the new one is given out before it is on disk where
 * the segment begins.
 *
 * When a segment is retired, the one that comes next takes over its ids.  That
 * happens under ACCESS EXCLUSIVE locks on its tables, and memory is told before
 * these are released.  So which segment has a task is sure only once a table of
 * that segment is locked: segment_hold() locks it and looks again.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "storage/lmgr.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "commit_hooks.h"
#include "points.h"
#include "segments.h"
#include "spi.h"
#include "wait.h"

PG_FUNCTION_INFO_V1(fanout_next_segment);

/* An id that will never be given out: the current segment is where it would be. */
#define LAST_TASK	(PG_INT64_MAX - 1)

StaticAssertDecl(LAST_TASK < FANOUT_SEGMENT_UNUSED, "an unused segment has no task");

static SpiStatement select_segments = {
	"SELECT slot, first_task, began_at, finished FROM fanout.segment", 0, {0}
};

/* The first segment has no row before it is left. */
static SpiStatement insert_segment = {
	"INSERT INTO fanout.segment (slot, first_task, began_at) VALUES ($1, $2, NULL), ($3, $4, $5) ON CONFLICT (slot) DO NOTHING",
	5, {INT2OID, INT8OID, INT2OID, INT8OID, TIMESTAMPTZOID}
};
static SpiStatement update_finished = {
	"UPDATE fanout.segment SET finished = $2 WHERE slot = $1", 2, {INT2OID, BOOLOID}
};

static SpiStatement forget_finished = {
	"UPDATE fanout.segment SET finished = false WHERE finished", 0, {0}
};
static SpiStatement note_removed = {
	"WITH known AS (SELECT below FROM fanout.removed),"
	" raised AS (UPDATE fanout.removed SET below = $1 WHERE below < $1)"
	" INSERT INTO fanout.removed SELECT $1 WHERE NOT EXISTS (SELECT FROM known)", 1, {INT8OID}
};

/* NULL if it has no place in memory: nobody but readers has come since the server started, or this is a standby. */
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
	return known;
}

/* The segments as the table has them. */
static void
read_segments(SegmentMap *map)
{
	SpiScope	scope;
	uint64		rows;
	bool		isnull;

	memset(map, 0, sizeof(SegmentMap));
	for (int i = 0; i < FANOUT_SEGMENTS; i++)
		map->firsts[i] = FANOUT_SEGMENT_UNUSED;
	spi_begin(&scope);
	rows = spi_read_latest(&select_segments, NULL, NULL);
	for (uint64 i = 0; i < rows; i++)
	{
		int			segment = DatumGetInt16(spi_value(i, 1, &isnull)) - 1;
		Datum		value = spi_value(i, 2, &isnull);

		map->firsts[segment] = isnull ? FANOUT_SEGMENT_UNUSED : DatumGetInt64(value);
		map->emptied[segment] = isnull;
		value = spi_value(i, 3, &isnull);
		map->began[segment] = isnull ? 0 : DatumGetTimestampTz(value);
		map->finished[segment] = DatumGetBool(spi_value(i, 4, &isnull));
	}
	spi_end(&scope);
	if (rows == 0)
		map->firsts[0] = 0;
}

/*
 * The first ids of the segments, all of one moment.  That takes no lock, unless
 * the keeper is just changing them.
 */
static void
copy_firsts(const Database *database, int64 *firsts)
{
	const volatile Database *shared = database;
	uint64		version = shared->segments_version;

	pg_read_barrier();
	for (int i = 0; i < FANOUT_SEGMENTS; i++)
		firsts[i] = shared->segments.firsts[i];
	pg_read_barrier();
	if ((version & 1) == 0 && shared->segments_version == version)
		return;
	dispatcher_lock();
	memcpy(firsts, database->segments.firsts, sizeof(database->segments.firsts));
	dispatcher_unlock();
}

/* Only one segment begins with the first id; in memory that no keeper has filled yet all do. */
static bool
are_known(const int64 *firsts)
{
	return firsts[0] != 0 || firsts[1] != 0;
}

static void
look_up_firsts(int64 *firsts)
{
	const Database *database = database_of_backend();
	SegmentMap	map;

	if (database != NULL)
	{
		copy_firsts(database, firsts);
		if (are_known(firsts))
			return;
	}
	read_segments(&map);
	memcpy(firsts, map.firsts, sizeof(map.firsts));
}

/*
 * For an id that the caller was given, an entry of a new segment is either
 * there to be seen or makes no difference: it has a number that is higher than
 * every id given out so far, and was made under the lock that whoever is given
 * one from there on takes after it.  An id that is lower than all is one of the
 * oldest segment, if there still is such a task.
 */
int
segment_of(int64 task)
{
	int64		firsts[FANOUT_SEGMENTS];
	int			segment = -1;
	int			oldest = 0;

	Assert(!dispatcher_lock_held());
	look_up_firsts(firsts);
	for (int i = 0; i < FANOUT_SEGMENTS; i++)
	{
		if (firsts[i] <= task && (segment < 0 || firsts[i] > firsts[segment]))
			segment = i;
		if (firsts[i] < firsts[oldest])
			oldest = i;
	}
	return segment >= 0 ? segment : oldest;
}

/*
 * Who retires a segment locks all of its tables against everybody, so the lock
 * on one of them keeps it.  We may have chosen it and then waited for that lock
 * while it was retired: memory was told before the lock was released, so a look
 * after we have it shows the segment that has the task now.  As long as we hold
 * the lock of the one that it shows then, the task stays there.
 */
int
segment_hold(LogKind kind, int64 task, LOCKMODE mode)
{
	for (;;)
	{
		int			segment = segment_of(task);
		Oid			relation = registry_relation(kind, segment);

		FANOUT_POINT(SEGMENT_CHOSEN);
		LockRelationOid(relation, mode);
		if (segment_of(task) == segment)
			return segment;
		UnlockRelationOid(relation, mode);
	}
}

void
segments_pin(void)
{
	for (int i = 0; i < FANOUT_SEGMENTS; i++)
		LockRelationOid(registry_relation(LOG_TASK, i), AccessShareLock);
}

bool
segment_is_current(int segment)
{
	return segment_of(LAST_TASK) == segment;
}

static bool
is_finished(const Database *database, int segment)
{
	return ((const volatile Database *) database)->segments.finished[segment];
}

/*
 * The caller holds a ROW EXCLUSIVE lock on the segment's tasks or outcomes.  A
 * segment becomes finished in a transaction that holds SHARE locks on both, so
 * it was not since we have our lock, or is told to us now; and it does not
 * become finished again before our transaction has ended.  Nor is it retired
 * by what the keeper knew before, as that is compared with "unsettled" under
 * the lock that excludes us.
 */
void
segment_unsettle(int segment)
{
	Database   *database = database_of_backend();
	bool		finished;

	dispatcher_lock();
	database->unsettled[segment]++;
	finished = is_finished(database, segment);
	if (finished)
	{
		database->segment_reopen_wanted = true;
		keeper_wake(database);
	}
	dispatcher_unlock();
	if (!finished)
		return;

	/* on disk it must not be finished when we commit: the keeper sees to that, as it waits for nobody */
	while (is_finished(database, segment))
	{
		(void) ConditionVariableTimedSleep(&fanout_shared->changed, 1000, PG_WAIT_EXTENSION);
		(void) require_database();	/* it may have gone, and the keeper with it */
	}
	ConditionVariableCancelSleep();
}

int
segments_in_use(const Database *database, int *segments)
{
	const int64 *firsts = database->segments.firsts;
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

int
segments_unfinished(const Database *database, int *segments)
{
	int			count = segments_in_use(database, segments);
	int			left = 0;

	for (int i = 0; i < count; i++)
	{
		if (!database->segments.finished[segments[i]])
			segments[left++] = segments[i];
	}
	return left;
}

/* Under the lock, in the commit callback or with nobody else at work. */
void
database_set_segments(Database *database, const SegmentMap *map)
{
	int64		newest = 0;
	int64		newest_before = 0;
	bool		any_finished = false;

	for (int i = 0; i < FANOUT_SEGMENTS; i++)
	{
		any_finished |= map->finished[i];
		if (map->firsts[i] != FANOUT_SEGMENT_UNUSED)
			newest = Max(newest, map->firsts[i]);
		if (database->segments.firsts[i] != FANOUT_SEGMENT_UNUSED)
			newest_before = Max(newest_before, database->segments.firsts[i]);
	}
	database->segments_version++;
	pg_write_barrier();
	database->segments = *map;
	pg_write_barrier();
	database->segments_version++;
	database->next_task = Max(database->next_task, newest);
	if (newest > newest_before)
		database->next_segment_wanted = false;
	if (!any_finished)
		database->segment_reopen_wanted = false;
}

/* In a transaction, when others have filled the tables: there may be unfinished tasks where there were none. */
void
segments_forget_finished(void)
{
	SpiScope	scope;

	spi_begin(&scope);
	(void) spi_run(&forget_finished, NULL, NULL);
	spi_end(&scope);
}

void
segments_load(Database *database)
{
	SegmentMap	map;

	read_segments(&map);
	dispatcher_lock();
	database_set_segments(database, &map);
	dispatcher_unlock();
}

/* The segment that comes after the current one, or -1 if all are in use. */
static int
next_free(const Database *database, int current)
{
	for (int i = 1; i < FANOUT_SEGMENTS; i++)
	{
		int			segment = (current + i) % FANOUT_SEGMENTS;

		if (database->segments.firsts[segment] == FANOUT_SEGMENT_UNUSED && !database->segments.emptied[segment])
			return segment;
	}
	return -1;
}

/* Begin a transaction of the keeper that changes what segments there are. */
void
segments_begin_change(Database *database, SegmentMap *map)
{
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	dispatcher_lock();
	*map = database->segments;
	dispatcher_unlock();
}

/* Commit it: on disk first, then in memory, before its locks are released. */
void
segments_commit_change(const SegmentMap *map)
{
	pending_prepare(1);
	pending_segments(map);
	PopActiveSnapshot();
	ForceSyncCommit();
	CommitTransactionCommand();
	ConditionVariableBroadcast(&fanout_shared->changed);
}

static void
begin_segment(Database *database, int current, int next)
{
	SpiScope	scope;
	SegmentMap	map;
	Datum		values[5];

	segments_begin_change(database, &map);
	map.firsts[next] = database->task_ceiling;
	map.began[next] = GetCurrentTimestamp();
	map.finished[next] = false;
	values[0] = Int16GetDatum(current + 1);
	values[1] = Int64GetDatum(map.firsts[current]);
	values[2] = Int16GetDatum(next + 1);
	values[3] = Int64GetDatum(map.firsts[next]);
	values[4] = TimestampTzGetDatum(map.began[next]);
	spi_begin(&scope);
	(void) spi_run(&insert_segment, values, NULL);
	spi_end(&scope);
	segments_commit_change(&map);
}

bool
segments_move_on(Database *database)
{
	int			current = segment_of(LAST_TASK);
	int			next = next_free(database, current);

	if (next >= 0)
		begin_segment(database, current, next);
	FANOUT_POINT(SEGMENT_COMMITTED);

	dispatcher_lock();
	database->next_segment_wanted = false;
	dispatcher_unlock();
	ConditionVariableBroadcast(&fanout_shared->changed);
	return next >= 0;
}

void
segment_store_finished(int segment, bool finished)
{
	SpiScope	scope;
	Datum		values[2] = {Int16GetDatum(segment + 1), BoolGetDatum(finished)};

	spi_begin(&scope);
	(void) spi_run(&update_finished, values, NULL);
	spi_end(&scope);
}

/* In an SpiScope, and in the transaction that removes tasks below that id. */
void
segments_note_removed(int64 below)
{
	Datum		values[1] = {Int64GetDatum(below)};

	(void) spi_run(&note_removed, values, NULL);
}

/*
 * None that somebody is about to unsettle stays finished; it is simpler, and no
 * loss, to say so of all.  It is wanted until memory knows of it: if we fail,
 * whoever waits for it needs the next keeper to do it.
 */
void
segments_reopen(Database *database)
{
	SegmentMap	map;

	segments_begin_change(database, &map);
	for (int i = 0; i < FANOUT_SEGMENTS; i++)
	{
		if (map.finished[i])
			segment_store_finished(i, false);
		map.finished[i] = false;
	}
	FANOUT_POINT(REOPEN_STORED);
	segments_commit_change(&map);
	FANOUT_POINT(REOPEN_COMMITTED);
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
