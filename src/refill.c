/*
 * refill.c
 *		More of an order into memory, from the tables.
 *
 * A refill happens while everybody works; window.c says what makes that safe.
 * Three things may be met on the way: a task that is in memory (it is left
 * alone), one that has ended since the snapshot was taken (there is a
 * tombstone of it in memory) or was changed (it stays in memory for as long),
 * and a queue that was purged or dropped meanwhile (its epoch has changed, and
 * what was read is thrown away).  A database has one refill at a time.
 *
 * That reads for one window, or for some partitions of one queue: there may be
 * many that have a task or two on disk, and a transaction for each would be
 * most of what they cost.
 *
 * Each segment of the log is read on its own: the usual order is that of ids,
 * and so one segment after the other; other orders are merged.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "dispatch.h"
#include "lane.h"
#include "points.h"
#include "refill.h"
#include "room.h"
#include "seed.h"
#include "segments.h"
#include "spi.h"
#include "strays.h"
#include "task_scan.h"
#include "wait.h"
#include "window.h"

#define REFILL_LEAST	64
#define REFILL_MOST		8192
#define REFILL_URGENT	16
#define REFILL_PARTITION	64	/* tasks of one partition */
#ifdef FANOUT_CHECKED
#define REFILL_LOOK		(FANOUT_WORK_CHUNK + 64)
#else
#define REFILL_LOOK		32768	/* rows, whatever they are: some milliseconds */
#endif
#define REFILL_TURN		(10 * INT64CONST(1000)) /* for partitions of one queue, then others have their turn */

/* One row that a refill has read. */
typedef struct RefillRow
{
	TaskSeed	seed;
	ItemPointerData tid;
	int			part;			/* which one of the refill it is for */
} RefillRow;

typedef enum RefillKind
{
	REFILL_SCHEDULED,
	REFILL_LANES,				/* the main lane, or some partitions */
	REFILL_STRAYS				/* finds lanes; some of these are refilled on their own then */
} RefillKind;

/* A window that is refilled. */
typedef struct RefillPart
{
	Window	   *window;
	Lane	   *lane;			/* REFILL_LANES */
	int64		key;			/* the bound it starts from */
	int64		id;
	bool		urgent;			/* nothing can be given out before it is done */
	int64		seen_key;		/* the place before which all were read; WINDOW_UNBOUNDED: all there are */
	int64		seen_id;
	int64		begin;			/* its rows, up to "end" */
	int64		end;
	int64		loaded;
} RefillPart;

typedef struct Refill
{
	RefillKind	kind;
	Queue	   *queue;
	int32		queue_id;
	Database   *database;
	int64		epoch;
	int64		limit;			/* of rows for each part */
	int64		urgent_limit;	/* of those beyond the queue's share */
	int64		row_count;
	int64		work;			/* rows and parts that are done */
	bool		headway;		/* of each part */
	const Lane *first_failed;	/* the first that made none */
	bool		only_due;		/* the schedule, while lanes are short */
	bool		enough;			/* all that is due was read */
	bool		room;			/* the queue has room for more than what is urgent, */
	int64		room_for;		/* for some so many */
	int			segments[FANOUT_SEGMENTS];	/* those in use, in the order of their tasks */
	int			segment_count;
	RefillRow  *rows;			/* room for as many as the limit of each part and segment */
	int			part_count;
	RefillPart	parts[FANOUT_REFILL_WINDOWS];
} Refill;

/* Is it the refill of partitions, and not that of one window of the queue? */
static bool
is_of_partitions(const Refill *refill)
{
	return refill->kind == REFILL_LANES && refill->parts[0].lane->partition != 0;
}

/* One scan of what a part is read by is done: where has it stopped? */
static void
note_seen(RefillPart *part, const TaskScan *scan)
{
	int64		key;
	int64		id;

	if (!task_scan_stopped(scan, &key, &id) || !order_less(key, id, part->seen_key, part->seen_id))
		return;
	part->seen_key = key;
	part->seen_id = id;
}

static bool
all_was_seen(const RefillPart *part)
{
	return part->seen_id == WINDOW_UNBOUNDED;
}

/* How many rows each scan may look at, of all that a refill does in an order in which each segment is read. */
static int64
look_of_scan(const Refill *refill)
{
	return Max(REFILL_LOOK / (refill->part_count * refill->segment_count), 1);
}

/* Read on in the order of ids, which is that of the segments, as far as there is time for. */
static void
read_by_id(Refill *refill, TaskScanKind kind, int64 id)
{
	RefillPart *part = &refill->parts[0];
	int64		rows_left = REFILL_LOOK;

	for (int i = 0; i < refill->segment_count && refill->row_count < refill->limit && all_was_seen(part); i++)
	{
		TaskScan   *scan = task_scan_begin(refill->segments[i], refill->queue_id, kind);
		RefillRow	row = {.part = 0};

		task_scan_start(scan, 0, 0, id);
		while (refill->row_count < refill->limit && task_scan_next(scan, &rows_left, &row.seed, &row.tid))
			refill->rows[refill->row_count++] = row;
		note_seen(part, scan);
		task_scan_end(scan);
	}
}

static int64
place_of(const Refill *refill, const TaskSeed *seed)
{
	if (refill->kind == REFILL_SCHEDULED)
		return seed->run_at;
	return refill->kind == REFILL_STRAYS ? 0 : seed->rank;
}

static int
compare_rows(const void *a, const void *b, void *arg)
{
	const RefillRow *left = a;
	const RefillRow *right = b;

	if (left->part != right->part)
		return left->part - right->part;
	return order_less(place_of(arg, &left->seed), left->seed.task, place_of(arg, &right->seed), right->seed.task) ? -1 : 1;
}

/* Sort what was read of several segments; each has given its first rows. */
static void
merge_rows(Refill *refill, int64 begin)
{
	if (refill->segment_count > 1)
		qsort_arg(&refill->rows[begin], refill->row_count - begin, sizeof(RefillRow), compare_rows, refill);
}

/*
 * Read on in another order: what comes first of all is among the first of each
 * segment, as far as all of them were looked at.
 */
static void
read_by_key(Refill *refill, TaskScanKind kind, int64 key, int64 id)
{
	int64		begin = refill->row_count;

	for (int i = 0; i < refill->segment_count && begin < refill->limit; i++)
	{
		TaskScan   *scan = task_scan_begin(refill->segments[i], refill->queue_id, kind);
		int64		end = refill->row_count + refill->limit - begin;
		int64		rows_left = look_of_scan(refill);
		RefillRow	row = {.part = 0};

		task_scan_start(scan, 0, key, id);
		while (refill->row_count < end && task_scan_next(scan, &rows_left, &row.seed, &row.tid))
			refill->rows[refill->row_count++] = row;
		note_seen(&refill->parts[0], scan);
		task_scan_end(scan);
	}
	merge_rows(refill, begin);
	refill->row_count = Min(refill->row_count, refill->limit);
}

/*
 * Read the main lane from the bound on, in three scans: of ranks below, at and
 * above the usual one, which is 0 and on no row.  In a queue with aging the
 * second one finds only tasks that are older than the aging, for which it may
 * have to look far; it is done only if the bound is below 0, or at it.
 */
static void
read_main_lane(Refill *refill, int64 key, int64 id)
{
	if (key < 0)
		read_by_key(refill, TASKS_OF_LOWER_RANK, key, id);
	if (key <= 0)
		read_by_id(refill, TASKS_OF_MAIN_LANE, key == 0 ? id : 0);
	if (all_was_seen(&refill->parts[0]))
		read_by_key(refill, TASKS_OF_HIGHER_RANK, Max(key, 1), key > 0 ? id : 0);
}

/* Read the partition from its bound on, up to the limit; so many rows are looked at. */
static void
read_partition(Refill *refill, TaskScan *scan, int number, int64 *rows)
{
	RefillPart *part = &refill->parts[number];
	int64		end = refill->row_count + refill->limit;
	RefillRow	row = {.part = number};

	task_scan_start(scan, part->lane->partition, part->key, part->id);
	while (refill->row_count < end && task_scan_next(scan, rows, &row.seed, &row.tid))
		refill->rows[refill->row_count++] = row;
	note_seen(part, scan);
}

/* Read each of the partitions: the first of each segment, sorted by partition and place. */
static void
read_partitions(Refill *refill)
{
	for (int i = 0; i < refill->segment_count; i++)
	{
		TaskScan   *scan = task_scan_begin(refill->segments[i], refill->queue_id, TASKS_OF_ONE_PARTITION);
		int64		rows_left = 0;

		/* what one does not look at is for the next ones */
		for (int part = 0; part < refill->part_count; part++)
		{
			rows_left = Max(rows_left, 0) + look_of_scan(refill);
			read_partition(refill, scan, part, &rows_left);
		}
		task_scan_end(scan);
	}
	merge_rows(refill, 0);
}

/* Read from the bounds on, in the order of the windows. */
static void
read_from_bounds(Refill *refill)
{
	const RefillPart *first = &refill->parts[0];
	SpiScope	scope;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	spi_begin(&scope);
	if (refill->kind == REFILL_SCHEDULED)
		read_by_key(refill, TASKS_WITH_TIME, first->key, first->id);
	else if (refill->kind == REFILL_STRAYS)
		read_by_id(refill, TASKS_OF_PARTITIONS, first->id);
	else if (is_of_partitions(refill))
		read_partitions(refill);
	else
		read_main_lane(refill, first->key, first->id);
	spi_end(&scope);
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/* How many of the part's rows, so many, are all that come first? */
static int64
rows_in_order(const Refill *refill, const RefillPart *part, int64 count)
{
	int64		most = Min(count, refill->limit);
	int64		in_order = 0;

	while (in_order < most)
	{
		const TaskSeed *seed = &refill->rows[part->begin + in_order].seed;

		if (!order_less(place_of(refill, seed), seed->task, part->seen_key, part->seen_id))
			break;
		in_order++;
	}
	return in_order;
}

/* Which rows are whose. */
static void
divide_rows(Refill *refill)
{
	int64		next = 0;

	for (int i = 0; i < refill->part_count; i++)
	{
		RefillPart *part = &refill->parts[i];

		part->begin = next;
		while (next < refill->row_count && refill->rows[next].part == i)
			next++;
		part->end = part->begin + rows_in_order(refill, part, next - part->begin);
	}
	Assert(next == refill->row_count);
}

/* Is the queue still the one that it was?  Else its windows are gone.  Under the lock. */
static bool
queue_is_there(const Refill *refill)
{
	const Queue *queue = refill->queue;

	return queue->state != QUEUE_FREE && queue->id == refill->queue_id && queue->db == MyDatabaseId;
}

/* Has the queue been dropped or purged since the refill began?  Under the lock. */
static bool
refill_is_void(const Refill *refill)
{
	const Queue *queue = refill->queue;

	return queue->state != QUEUE_OPEN || !queue_is_there(refill) || queue->epoch != refill->epoch ||
		refill->database->refill_void;
}

/*
 * Rather than have nothing to give out in this lane, or only what comes after
 * something on disk, give up what is last in another one of the queue.  But
 * no two lanes may take the only task from each other for ever.  So who has
 * nothing does not take the last one of a lane that could start it; and who
 * has some that cannot leave memory, and may start them out of order if this
 * fails, takes it from lanes that have none such, and can take none back.
 */
static bool
take_from_queue(const Refill *refill, const Lane *lane)
{
	return queue_evict_last(refill->queue, lane->ready.set.count > 0 ? KEEP_LAST_IF_MIXED : KEEP_LAST);
}

/*
 * A stray has a lane from now on; false if there is no room for one.  It comes
 * into memory with it if none that is on disk comes before it: if the lane is
 * new, or has come so, and nothing was missed since the refill began, which
 * may be the lane's own.  Any that does not come, and what follows, the lane
 * reads on its own.
 */
static bool
load_stray(Refill *refill, const RefillPart *part, const RefillRow *row, TimestampTz now)
{
	Queue	   *queue = refill->queue;
	const TaskSeed *seed = &row->seed;
	Lane	   *lane = lane_for_stray(queue, seed->partition);

	if (lane == NULL)
		return false;
	if (!lane->with_strays)
	{
		lane_set_sample(lane, seed->task);
		return true;
	}
	lane->tasks++;				/* while room is made, it is not to go away */
	lane->with_strays = false;	/* not of what comes now */
	if (window_has_missed(refill->database, part->window, 0, seed->task))
		lane_count_strays(lane);
	else if (lane->ready.set.count < LANE_LOW &&
			 task_load(queue, seed, (ItemPointer) &row->tid, queue_can_use_refill(queue, 0), now) != NULL)
		lane->with_strays = true;
	else
		lane_leave_on_disk(lane, seed->rank, seed->task);
	lane->tasks--;
	return true;
}

/* Put one row that was read into memory; false if there is no room.  Under the lock. */
static bool
load_row(Refill *refill, RefillPart *part, const RefillRow *row, TimestampTz now)
{
	bool		urgent = part->urgent && part->loaded < refill->urgent_limit;

	if (task_find(MyDatabaseId, row->seed.task) != NULL)
		return true;
	if (refill->kind == REFILL_STRAYS)
		return load_stray(refill, part, row, now);
	if (refill->kind == REFILL_SCHEDULED && row->seed.run_at > now &&
		((refill->only_due && row->seed.partition != 0) || schedule_is_wide(refill->queue)))
	{
		refill->enough = true;
		return false;
	}
	if (task_load(refill->queue, &row->seed, (ItemPointer) &row->tid, urgent, now) == NULL &&
		!(part->lane != NULL && urgent && part->loaded == 0 && take_from_queue(refill, part->lane) &&
		  task_load(refill->queue, &row->seed, (ItemPointer) &row->tid, urgent, now) != NULL))
		return false;
	part->loaded++;
	return true;
}

static void
end_window_refill(Queue *queue, Lane *lane, Window *window, int64 key, int64 id)
{
	if (lane != NULL)
		lane_end_refill(lane, key, id);
	else
		window_end_refill(database_of(queue), window, key, id);
	queue->refilling--;
}

/* The refill is done with the part's rows before "next".  Under the lock. */
static void
end_part(Refill *refill, RefillPart *part, int64 next)
{
	Queue	   *queue = refill->queue;
	Window	   *window = part->window;
	bool		full = next < part->end;
	bool		headway = !full || next > part->begin || refill->enough;

	fanout_shared->task_wanted |= !headway && refill->kind != REFILL_STRAYS;
	if (refill_is_void(refill))
		end_window_refill(queue, part->lane, window, part->key, part->id);
	else if (full)
		end_window_refill(queue, part->lane, window, place_of(refill, &refill->rows[next].seed),
						  refill->rows[next].seed.task);
	else if (part->end - part->begin == refill->limit)
		end_window_refill(queue, part->lane, window, place_of(refill, &refill->rows[next - 1].seed),
						  refill->rows[next - 1].seed.task + 1);
	else
		end_window_refill(queue, part->lane, window, part->seen_key, part->seen_id);
	if (refill->kind == REFILL_STRAYS)
	{
		bool		more = window_is_bounded(window) && (!full || queue_may_have_lane(queue));

		/*
		 * Without room for a lane there is nothing to retry: lanes_freed() asks for it again.  Where another queue
		 * has some to give, but none that it can give just now, a pause has to come first.
		 */
		if (more)
			queue_ask_for_lanes(queue);
		queue->strays_blocked = full;
		queue->wants_refill |= queue_has_idle_lanes(queue);
		headway |= !more;
	}
	refill->headway &= headway;
	if (!headway && refill->first_failed == NULL)
		refill->first_failed = part->lane;
	if (part->lane != NULL)
	{
		part->lane->starved = full && window_first(window) == NULL;
		if (is_of_partitions(refill))
			lane_stand_last(part->lane);	/* behind those that have nothing yet */
		lane_settle(part->lane);
		lane_release(part->lane);
	}
	queue_wake(queue);
}

/* No refill reads any more, be it done or the keeper that was at it gone. */
static void
database_end_refill(Database *database)
{
	database->refill_serial += database->refill_serial & 1;
	window_forget_refills(database);
	database_forget_ended(database);
}

/* Let others have the lock for a moment, now and then, and who waits what is loaded so far. */
static void
make_pause(Refill *refill)
{
	if (++refill->work % FANOUT_WORK_CHUNK != 0)
		return;
	if (queue_is_there(refill))
		queue_wake(refill->queue);
	dispatcher_unlock();
	FANOUT_POINT(REFILL_CHUNK);
	dispatcher_lock();
}

/*
 * Put what was read into memory, as far as there is room, and end the refill:
 * one window after the other.  The next ones are still refilled meanwhile: no
 * lane of them can go, and what they miss is remembered.
 */
static void
load_rows(Refill *refill)
{
	TimestampTz now = GetCurrentTimestamp();

	dispatcher_lock();
	for (int i = 0; i < refill->part_count && queue_is_there(refill); i++)
	{
		RefillPart *part = &refill->parts[i];
		int64		next = part->begin;

		while (next < part->end && !refill_is_void(refill) && load_row(refill, part, &refill->rows[next], now))
		{
			next++;
			make_pause(refill);
		}
		if (queue_is_there(refill))
			end_part(refill, part, next);
		if (i < refill->part_count - 1)
			make_pause(refill);
	}
	database_end_refill(refill->database);
	refill->database->refills++;
	dispatcher_unlock();
}

static bool
queue_is_ours(const Queue *queue)
{
	return queue->state == QUEUE_OPEN && queue->db == MyDatabaseId;
}

/* What a refill of the queue begins with.  Under the lock. */
static void
look_for_room(Refill *refill)
{
	Queue	   *queue = refill->queue;

	refill->room = queue_room(queue) || (refill->kind == REFILL_LANES && schedule_is_wide(queue));
	refill->room_for = queue_ready_share(queue) - queue->ready_count - queue->reserved;
	if (refill->kind == REFILL_SCHEDULED)
		refill->room_for = queue_window_limit();	/* it may replace later ones */
	refill->queue_id = queue->id;
	refill->database = database_find(MyDatabaseId);
	refill->epoch = queue->epoch;
	refill->segment_count = segments_unfinished(refill->database, refill->segments);
}

/* Note that a window is refilled from now on, unless there is no room for what it has.  Under the lock. */
static void
begin_part(Refill *refill, Lane *lane, Window *window)
{
	RefillPart	part = {.window = window, .lane = lane, .key = window->bound_key, .id = window->bound_id,
	.seen_key = WINDOW_UNBOUNDED, .seen_id = WINDOW_UNBOUNDED};

	part.urgent = window_first(window) == NULL && (lane == NULL || !lane_is_blocked(lane));
	if (refill->kind != REFILL_STRAYS && !part.urgent && !refill->room)
		return;					/* it asks again when it gives out what it has */
	if (refill->part_count == 0)
	{
		refill->database->refill_serial++;
		refill->database->refill_void = false;
	}
	window_begin_refill(refill->database, window);
	refill->queue->refilling++;
	refill->parts[refill->part_count++] = part;
}

/*
 * How many rows to read of each part, and how many to load whatever the
 * queue's share says.  Partitions have what there is among them; each reads a
 * few at least, so that it is known of most whether there are more.
 */
static void
set_limits(Refill *refill)
{
	int64		most = refill->room ? refill->room_for : 0;
	int64		urgent = Max(free_beyond_reserve(), REFILL_URGENT) / refill->part_count;

	refill->urgent_limit = Max(Min(urgent, REFILL_URGENT), 1);
	if (refill->only_due)
		refill->limit = REFILL_LEAST;	/* its end is probably near */
	else if (is_of_partitions(refill))
		refill->limit = Max(Min(most / refill->part_count, REFILL_PARTITION), Max(refill->urgent_limit, LANE_LOW));
	else if (refill->kind == REFILL_STRAYS)
		refill->limit = Max(Min(fanout_shared->free_lanes, REFILL_MOST), REFILL_LEAST);
	else
		refill->limit = Max(Min(most, REFILL_MOST), REFILL_LEAST);
}

/* Go on with a refill that has begun; false if there is more to read but no headway was made. */
static bool
run_refill(Refill *refill)
{
	refill->rows = palloc(refill->limit * refill->part_count * refill->segment_count * sizeof(RefillRow));
	FANOUT_POINT(REFILL_BEGUN);
	read_from_bounds(refill);
	divide_rows(refill);
	FANOUT_POINT(REFILL_READ);
	load_rows(refill);
	FANOUT_POINT(REFILL_DONE);
	pfree(refill->rows);
	return refill->headway;
}

/*
 * Is nothing of the schedule to be read yet?  What is not due needs no lane, and would have to leave it to the next stray;
 * what is may be more than the queue can use.
 */
static bool
schedule_can_wait(Refill *refill)
{
	Queue	   *queue = refill->queue;
	bool		due = queue->scheduled.bound_key <= GetCurrentTimestamp();

	refill->only_due = fanout_shared->free_lanes == 0 || fanout_shared->has_strays;
	queue->due_held = due && !queue_can_use_due(queue);
	return due ? queue->due_held : refill->only_due || schedule_is_wide(queue);
}

/* Refill one window of the queue itself, if there is something to be read; false if there was no headway. */
static bool
refill_window(Queue *queue, RefillKind kind, Lane *lane, Window *window)
{
	Refill		refill = {.kind = kind, .queue = queue, .headway = true};

	dispatcher_lock();
	queue->due_held &= window_is_bounded(&queue->scheduled);	/* it may have been purged */
	if (queue_is_ours(queue) && window_is_bounded(window) && !(kind == REFILL_SCHEDULED && schedule_can_wait(&refill)))
	{
		look_for_room(&refill);
		begin_part(&refill, lane, window);
		if (refill.part_count > 0)
			set_limits(&refill);
	}
	dispatcher_unlock();
	return refill.part_count == 0 || run_refill(&refill);
}

/*
 * The next of the queue's partitions that is to be refilled, beside so many
 * others, but not this one again; NULL: none.
 */
static Lane *
next_partition(Queue *queue, const Lane *but_not, int others)
{
	bool		useful = others == 0 ? queue_may_refill_partitions(queue) : queue_can_use_refill(queue, others);

	if (others == 0)
		queue->refill_held = queue->last_asker != 0 && !useful;
	return useful ? queue_take_asker(queue, but_not) : NULL;
}

/* Begin the refill of the first partitions that ask for it; false if none does.  Under the lock. */
static bool
begin_partitions(Refill *refill, const Lane *but_not)
{
	Queue	   *queue = refill->queue;
	int			asked = 0;

	if (!queue_is_ours(queue))
		return false;
	if (queue->last_asker == 0)
	{
		queue->refill_held = false;
		return false;
	}
	look_for_room(refill);
	while (asked < FANOUT_WORK_CHUNK && refill->part_count < FANOUT_REFILL_WINDOWS)
	{
		Lane	   *lane = next_partition(queue, but_not, refill->part_count);

		if (lane == NULL)
			break;
		asked++;
		if (window_is_bounded(&lane->ready))
			begin_part(refill, lane, &lane->ready);
	}
	if (refill->part_count > 0)
		set_limits(refill);
	return asked > 0;
}

/*
 * Refill some of the partitions that ask for it, in the order they asked in;
 * the next look goes on with others.  One that makes no headway asks again,
 * behind them, and is not tried twice.  False if there was such a one.
 */
static bool
refill_partitions(Queue *queue)
{
	const Lane *first_failed = NULL;
	int64		stop = wait_clock() + REFILL_TURN;
	bool		asked;

	do
	{
		Refill		refill = {.kind = REFILL_LANES, .queue = queue, .headway = true};

		dispatcher_lock();
		asked = begin_partitions(&refill, first_failed);
		dispatcher_unlock();
		if (refill.part_count > 0 && !run_refill(&refill) && first_failed == NULL)
			first_failed = refill.first_failed;
		CHECK_FOR_INTERRUPTS();
	} while (asked && wait_clock() < stop);
	dispatcher_lock();
	queue->wants_refill |= queue->last_asker != 0 && !queue->refill_held;
	dispatcher_unlock();
	return first_failed == NULL;
}

bool
refill_queue(Queue *queue)
{
	bool		headway;
	bool		strays;

	dispatcher_lock();
	queue->wants_refill = false;
	queue->main.wants_refill = false;
	queue->strays_held = false;
	if (queue_has_idle_lanes(queue))
		queue_part_idle_lanes(queue);
	strays = queue_may_have_lane(queue);
	dispatcher_unlock();

	/* strays first: what is ready needs a lane more than what is not due */
	headway = !strays || refill_window(queue, REFILL_STRAYS, NULL, &queue->strays);
	headway &= refill_window(queue, REFILL_SCHEDULED, NULL, &queue->scheduled);
	headway &= refill_window(queue, REFILL_LANES, &queue->main, &queue->main.ready);
	headway &= refill_partitions(queue);
	return headway;
}

static void
reset_window(Queue *queue, Lane *lane, Window *window)
{
	if (window_is_refilling(database_of(queue), window))
		end_window_refill(queue, lane, window, window->bound_key, window->bound_id);
}

void
refill_reset(Database *database)
{
	dispatcher_lock();
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		Queue	   *queue = &fanout_queues[i];

		if (queue->state == QUEUE_FREE || queue->db != database->db)
			continue;
		reset_window(queue, NULL, &queue->scheduled);
		reset_window(queue, &queue->main, &queue->main.ready);
		reset_window(queue, NULL, &queue->strays);
		short_list_foreach_modify(node, &queue->lanes)
		{
			Lane	   *lane = link_container(Lane, link, node);

			reset_window(queue, lane, &lane->ready);
			lane_settle(lane);
			lane_release(lane); /* its rate limit may remember nothing any more */
		}
		lane_settle(&queue->main);
		queue->wants_refill = true;
	}
	database_end_refill(database);
	dispatcher_unlock();
}
