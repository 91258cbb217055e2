/*
 * retention.c
 *		How long what is finished is kept: what the keeper does about it, and when.
 *
 * The current segment of the log gives way to the next one when it is as old as
 * half of the retention.  A segment that is not the current one is looked at
 * until all of its tasks have ended, so that a rebuild need not read it, and is
 * retired when the retention is over for what was enqueued to it last, and a
 * little time more for that to have been done.  So a task is kept for the
 * retention, and two thirds of it longer at most, if what has to stay of the
 * segment is little; if it is much, the segment is kept.  If all segments are
 * in use, the current one goes on.
 *
 * Whatever takes long is done in parts, one at each call.  Nothing here waits
 * for a lock for longer than a moment, as the keeper must not: it tries again
 * after a while.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "points.h"
#include "remains.h"
#include "retention.h"
#include "retire.h"
#include "segments.h"
#include "spi.h"
#include "starts.h"
#include "trim.h"

#define TICK_LEAST		(100 * INT64CONST(1000))	/* microseconds, as all of these */
#define TICK_MOST		(60 * USECS_PER_SEC)
#define RETRY_LOCK		(50 * INT64CONST(1000))
#define LOCK_TRIES		6		/* before other segments are looked at */
#define LOCK_PATIENCE	"100ms" /* less than deadlock_timeout, after which autovacuum would be cancelled for us */
#define GRACE			8		/* a fraction of the retention, in which what was enqueued last is done */
#define RESTORE_PATIENCE	(SECS_PER_HOUR * USECS_PER_SEC)
#define SNAPSHOT_PATIENCE	(600 * USECS_PER_SEC)

typedef enum Job
{
	JOB_NONE,
	JOB_LOOK,					/* for what has to stay of a segment, which is then retired */
	JOB_REMAINS,
	JOB_TRIM
} Job;

#define OLDEST_TASK(segment) { \
	"SELECT enqueued_at FROM fanout.task" segment " ORDER BY id LIMIT 1", 0, {0} \
}
static SpiStatement oldest_task[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(OLDEST_TASK);

static Job	job = JOB_NONE;
static SurvivorLook look;
static int	look_heir;
static int	lock_tries;
static RemainsWalk remains;
static bool remains_wanted = false;
static TrimWalk trim;
static TimestampTz trim_at = 0;
static FinishLook finish_looks[FANOUT_SEGMENTS];
static TimestampTz next_tick = 0;
static uint64 seen_version = 0;
static TimestampTz next_try[FANOUT_SEGMENTS];
static TimestampTz emptied_at[FANOUT_SEGMENTS];
static bool told[FANOUT_SEGMENTS];	/* the log that it is kept */

/* In microseconds; -1: for ever. */
static int64
retention(void)
{
	return fanout_retention < 0 ? -1 : fanout_retention * USECS_PER_SEC;
}

static TimestampTz
before(TimestampTz now, int64 duration)
{
	return now - duration < now ? now - duration : now;
}

static int64
tick(void)
{
	if (retention() < 0)
		return TICK_MOST;
	return Max(TICK_LEAST, Min(retention() / 32, TICK_MOST));
}

static void
note_kept(Database *database, int segment, KeptReason reason, int64 tasks)
{
	dispatcher_lock();
	database->kept[segment].reason = reason;
	database->kept[segment].tasks = tasks;
	database->kept[segment].at = GetCurrentTimestamp();
	dispatcher_unlock();
}

/* Since when there are tasks in the segment, as far as these tell; 0: there are none. */
static TimestampTz
read_oldest(int segment)
{
	SpiScope	scope;
	TimestampTz oldest = 0;
	bool		isnull;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	spi_begin(&scope);
	if (spi_read_latest(&oldest_task[segment], NULL, NULL) == 1)
		oldest = DatumGetTimestampTz(spi_value(0, 1, &isnull));
	spi_end(&scope);
	PopActiveSnapshot();
	CommitTransactionCommand();
	return oldest;
}

/* Is it time for the next segment?  Not before there is something in this one. */
static bool
current_is_old(const Database *database, int current, TimestampTz now)
{
	static TimestampTz oldest[FANOUT_SEGMENTS];
	TimestampTz began = database->segments.began[current];
	TimestampTz latest = before(now, retention() / 2);

	if (began != 0 ? began > latest : oldest[current] > latest)
		return false;
	oldest[current] = read_oldest(current);
	return oldest[current] != 0 && (began != 0 || oldest[current] <= latest);
}

static void
move_on_in_time(Database *database, TimestampTz now)
{
	int			segments[FANOUT_SEGMENTS];
	int			count = segments_in_use(database, segments);
	int			current = segments[count - 1];

	if (retention() >= 0 && current_is_old(database, current, now))
		(void) segments_move_on(database);
}

/* Truncate segments that have been emptied; see retire.c for what is waited for. */
static void
truncate_emptied(Database *database, TimestampTz now)
{
	int64		patience = Min(Max(retention() / 4, TICK_LEAST), SNAPSHOT_PATIENCE);

	for (int i = 0; i < FANOUT_SEGMENTS; i++)
	{
		if (!database->segments.emptied[i])
		{
			emptied_at[i] = 0;
			continue;
		}
		if (emptied_at[i] == 0 || emptied_at[i] > now)
			emptied_at[i] = now;
		if (now - emptied_at[i] < patience && segment_is_seen(i, segment_emptied_by(i)))
			note_kept(database, i, KEPT_SNAPSHOT, 0);
		else if (!segment_truncate(database, i))
			note_kept(database, i, KEPT_LOCKED, 0);
		else
		{
			note_kept(database, i, KEPT_NOT, 0);
			remains_wanted = true;
		}
	}
}

/* Look whether the tasks of older segments have all ended; true if there is more to look at. */
static bool
look_for_finished(Database *database)
{
	int			segments[FANOUT_SEGMENTS];
	int			count = segments_in_use(database, segments);
	bool		more = false;

	for (int i = 0; i < count - 1; i++)
	{
		if (!database->segments.finished[segments[i]])
			more |= finish_continue(database, segments[i], &finish_looks[segments[i]]) == FINISH_MORE;
	}
	return more;
}

/* How far rate limits look back at starts. */
static int64
longest_window(const Database *database)
{
	int64		longest = 0;

	dispatcher_lock();
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		if (fanout_queues[i].state != QUEUE_FREE && fanout_queues[i].db == database->db)
			longest = Max(longest, queue_longest_window(&fanout_queues[i]));
	}
	dispatcher_unlock();
	return longest;
}

static void
begin_look(Database *database, int segment, int heir, TimestampTz now)
{
	static MemoryContext context = NULL;
	int64		kept_for = Max(retention(), longest_window(database));

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "pg_fanout survivors", ALLOCSET_DEFAULT_SIZES);
	look.segment = segment;
	look.first = database->segments.firsts[segment];
	look.end = database->segments.firsts[heir];
	look.cut = before(now, kept_for);
	look.failed_cut = before(now, Max(kept_for, fanout_keep_failed * USECS_PER_SEC));
	look_heir = heir;
	lock_tries = 0;
	if (survivors_begin(database, &look, context))
	{
		job = JOB_LOOK;
		FANOUT_POINT(LOOK_BEGUN);
	}
	else
	{
		note_kept(database, segment, KEPT_LOCKED, 0);
		next_try[segment] = now + tick();
	}
}

/* Begin to look at the oldest segment whose time has come: that counts from the begin of the one that comes next. */
static void
look_for_old(Database *database, TimestampTz now)
{
	int			segments[FANOUT_SEGMENTS];
	int			count = segments_in_use(database, segments);

	for (int i = 0; i < count - 1 && job == JOB_NONE && retention() >= 0; i++)
	{
		int			segment = segments[i];

		next_try[segment] = Min(next_try[segment], now + Max(retention() / 8, TICK_MOST));
		if (database->segments.began[segments[i + 1]] <= before(now, retention() + retention() / GRACE) &&
			next_try[segment] <= now)
			begin_look(database, segment, segments[i + 1], now);
	}
}

/* It is not tried again so soon. */
static void
keep_segment(Database *database, KeptReason reason, TimestampTz now, int64 pause)
{
	job = JOB_NONE;
	next_try[look.segment] = now + pause;
	note_kept(database, look.segment, reason, look.survivors.count);
	if (told[look.segment] || reason == KEPT_LOCKED)
		return;
	told[look.segment] = true;
	ereport(LOG,
			(errmsg("pg_fanout keeps segment %d of the log longer than pg_fanout.retention", look.segment + 1),
			 errdetail("More of its tasks have to stay than can be moved to the next one."),
			 errhint("The view fanout.segments tells why.")));
}

/* What has to stay is known: try to retire the segment. */
static void
retire(Database *database, TimestampTz now)
{
	switch (segment_retire(database, &look, look_heir))
	{
		case RETIRED:
			job = JOB_NONE;
			told[look.segment] = false;
			remains_wanted = true;
			note_kept(database, look.segment, KEPT_NOT, 0);
			break;
		case RETIRE_LOCKED:
			if (++lock_tries == LOCK_TRIES)
				keep_segment(database, KEPT_LOCKED, now, tick());
			else
				next_try[look.segment] = now + Min(RETRY_LOCK << lock_tries, tick());
			break;
		case RETIRE_UNSETTLED:
			keep_segment(database, KEPT_LOCKED, now, TICK_LEAST);
			break;
		case RETIRE_SLOW:
			keep_segment(database, KEPT_SLOW, now, Max(retention() / 8, TICK_LEAST));
			break;
	}
}

/* Go on with the look; when to be called again. */
static TimestampTz
continue_look(Database *database, TimestampTz now)
{
	if (look.phase == LOOK_DONE)
	{
		next_try[look.segment] = Min(next_try[look.segment], now + tick());
		if (now < next_try[look.segment])
			return next_try[look.segment];
	}
	else if (!survivors_continue(&look))
		return 0;
	FANOUT_POINT(LOOK_ENDED);
	if (survivors_too_many(&look))
		keep_segment(database, survivors_reason(&look), now, Max(retention() / 8, TICK_LEAST));
	else
		retire(database, now);
	return job == JOB_LOOK ? next_try[look.segment] : 0;
}

/*
 * A restore fills one table after the other.  Until it has ended, a segment may
 * seem to be empty, or its tasks to be unfinished as their outcomes are yet to
 * come: nothing is to be truncated or moved then.
 */
static bool
is_being_restored(const Database *database, TimestampTz now)
{
	return database->filled_at != 0 && now >= database->filled_at && now - database->filled_at < RESTORE_PATIENCE;
}

/* What there is to do from time to time; when to be called again. */
static TimestampTz
run_tick(Database *database, TimestampTz now)
{
	next_tick = now + tick();
	if (look_for_finished(database))
		next_tick = 0;
	if (!is_being_restored(database, now))
	{
		move_on_in_time(database, now);
		truncate_emptied(database, now);
		look_for_old(database, now);
	}
	if (job == JOB_NONE && remains_wanted)
	{
		remains_wanted = false;
		memset(&remains, 0, sizeof(remains));
		job = JOB_REMAINS;
	}
	if (job == JOB_NONE && (trim_at <= now || trim_at > now + TICK_MOST))
	{
		trim_at = now + trim_begin(database, &trim, now);
		if (trim.queue_count > 0)
			job = JOB_TRIM;
	}
	return job != JOB_NONE ? 0 : Min(next_tick, trim_at);
}

static void
end_trim(void)
{
	job = JOB_NONE;
	remains_wanted |= trim.removed > 0;
}

/* The next part of what there is to do; when to be called again. */
static TimestampTz
run_part(Database *database, TimestampTz now)
{
	switch (job)
	{
		case JOB_LOOK:
			if (now >= next_tick)
				move_on_in_time(database, now);
			return continue_look(database, now);
		case JOB_REMAINS:
			if (!remains_continue(&remains, retention() < 0 ? DT_NOBEGIN : before(now, retention())))
				job = JOB_NONE;
			return 0;
		case JOB_TRIM:
			if (!trim_continue(database, &trim))
				end_trim();
			return 0;
		case JOB_NONE:
			break;
	}
	return run_tick(database, now);
}

/* Somebody has a table locked: leave it until later. */
static TimestampTz
give_way(Database *database, TimestampTz now)
{
	next_tick = now + tick();
	if (job == JOB_LOOK)
		keep_segment(database, KEPT_LOCKED, now, tick());
	remains_wanted |= job == JOB_REMAINS;
	job = JOB_NONE;
	trim_at = Max(trim_at, next_tick);
	return next_tick;
}

static void
set_lock_timeout(const char *value)
{
	(void) set_config_option("lock_timeout", value, PGC_SUSET, PGC_S_OVERRIDE, GUC_ACTION_SET, true, 0, false);
}

/* The same, unless somebody has a table locked for longer than a moment. */
static TimestampTz
run_part_if_unlocked(Database *database, TimestampTz now)
{
	volatile TimestampTz next = 0;

	set_lock_timeout(LOCK_PATIENCE);
	PG_TRY();
	{
		next = run_part(database, now);
	}
	PG_CATCH();
	{
		if (geterrcode() != ERRCODE_LOCK_NOT_AVAILABLE)
			PG_RE_THROW();
		FlushErrorState();
		AbortCurrentTransaction();
		next = give_way(database, now);
	}
	PG_END_TRY();
	set_lock_timeout("0");
	return next;
}

/* Are things to be kept for another time than when this was last asked? */
static bool
settings_have_changed(void)
{
	static int	seen_retention;
	static int	seen_keep_failed;
	bool		changed = seen_retention != fanout_retention || seen_keep_failed != fanout_keep_failed;

	seen_retention = fanout_retention;
	seen_keep_failed = fanout_keep_failed;
	return changed;
}

TimestampTz
retention_run(Database *database, TimestampTz now)
{
	bool		settings_changed = settings_have_changed();

	/* the clock may have been set back, the retention may be shorter; and other segments are something else to do */
	if (next_tick > now + tick() || seen_version != database->segments_version)
		next_tick = now;
	seen_version = database->segments_version;

	/* what has begun goes by what was read before, which may be less than it is to be now */
	if (settings_changed || database->retention_changed)
	{
		database->retention_changed = false;	/* before it is read */
		trim_at = 0;
		if (job == JOB_TRIM)
			end_trim();
	}
	if (settings_changed && job == JOB_LOOK)
		job = JOB_NONE;

	if (job == JOB_NONE && now < next_tick && now < trim_at)
		return Min(next_tick, trim_at);
	return run_part_if_unlocked(database, now);
}
