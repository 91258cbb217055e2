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
 * Each segment of the log is read on its own: the usual order is that of ids,
 * and so one segment after the other; other orders are merged.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
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
#include "wait.h"
#include "window.h"

#define REFILL_LEAST	64
#define REFILL_MOST		8192
#define REFILL_URGENT	16
#define REFILL_PARTITION	64	/* tasks of one partition */
#define REFILL_TURN		(10 * INT64CONST(1000)) /* for partitions of one queue, then others have their turn */

/*
 * The order of the main lane is that of three scans: ranks below, at and above
 * the usual one, which is 0 and on no row.  In a queue with aging the second
 * one finds only tasks that are older than the aging, for which it may have to
 * look far; it is done only if the bound is below 0, or at it.
 */
#define RANK "coalesce(t.rank, t.priority)"
#define RANK_IN_PARTITION "coalesce(t.rank, t.priority, 0)"

#define READ_BELOW(segment) { \
	"SELECT" SEED_COLUMNS "FROM fanout.task" segment " t WHERE t.queue = $1 AND t.lane IS NULL AND " RANK " < 0" \
	" AND (" RANK ", t.id) >= ($2, $3) AND t.run_at IS NULL AND" UNFINISHED(segment) \
	"ORDER BY " RANK ", t.id LIMIT $4", 4, {INT4OID, INT8OID, INT8OID, INT8OID} \
}
#define READ_USUAL(segment) { \
	"SELECT" SEED_COLUMNS "FROM fanout.task" segment " t WHERE t.queue = $1 AND t.lane IS NULL AND t.priority IS NULL AND t.rank IS NULL AND $2 = 0" \
	" AND t.id >= $3 AND t.run_at IS NULL AND" UNFINISHED(segment) \
	"ORDER BY t.id LIMIT $4", 4, {INT4OID, INT8OID, INT8OID, INT8OID} \
}
#define READ_ABOVE(segment) { \
	"SELECT" SEED_COLUMNS "FROM fanout.task" segment " t WHERE t.queue = $1 AND t.lane IS NULL AND " RANK " > 0" \
	" AND (" RANK ", t.id) >= ($2, $3) AND t.run_at IS NULL AND" UNFINISHED(segment) \
	"ORDER BY " RANK ", t.id LIMIT $4", 4, {INT4OID, INT8OID, INT8OID, INT8OID} \
}
#define READ_PARTITION(segment) { \
	"SELECT" SEED_COLUMNS "FROM fanout.task" segment " t WHERE t.queue = $1 AND t.lane = $5" \
	" AND (" RANK_IN_PARTITION ", t.id) >= ($2, $3) AND t.run_at IS NULL AND" UNFINISHED(segment) \
	"ORDER BY " RANK_IN_PARTITION ", t.id LIMIT $4", 5, {INT4OID, INT8OID, INT8OID, INT8OID, INT8OID} \
}
#define READ_STRAYS(segment) { \
	"SELECT" SEED_COLUMNS "FROM fanout.task" segment " t WHERE t.queue = $1 AND t.lane IS NOT NULL AND $2 = 0" \
	" AND t.id >= $3 AND t.run_at IS NULL AND" UNFINISHED(segment) \
	"ORDER BY t.id LIMIT $4", 4, {INT4OID, INT8OID, INT8OID, INT8OID} \
}
#define READ_TIMED(segment) { \
	"SELECT" SEED_COLUMNS "FROM fanout.task" segment " t WHERE t.queue = $1" \
	" AND t.run_at IS NOT NULL AND (t.run_at, t.id) >= ($2, $3) AND" UNFINISHED(segment) \
	"ORDER BY t.run_at, t.id LIMIT $4", 4, {INT4OID, TIMESTAMPTZOID, INT8OID, INT8OID} \
}

static SpiStatement refill_below[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(READ_BELOW);
static SpiStatement refill_usual[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(READ_USUAL);
static SpiStatement refill_above[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(READ_ABOVE);
static SpiStatement refill_partition[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(READ_PARTITION);
static SpiStatement refill_strays[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(READ_STRAYS);
static SpiStatement refill_timed[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(READ_TIMED);

/* One row that a refill has read. */
typedef struct RefillRow
{
	TaskSeed	seed;
	ItemPointerData tid;
} RefillRow;

typedef enum RefillKind
{
	REFILL_SCHEDULED,
	REFILL_LANE,
	REFILL_STRAYS				/* only finds lanes: these are refilled on their own then */
} RefillKind;

typedef struct Refill
{
	RefillKind	kind;
	Queue	   *queue;
	Lane	   *lane;			/* REFILL_LANE */
	Window	   *window;
	int32		queue_id;
	Database   *database;
	int64		epoch;
	int64		key;			/* the bound it starts from */
	int64		id;
	int64		limit;
	int64		row_count;
	int64		loaded;
	bool		headway;
	bool		only_due;		/* the schedule, while lanes are short */
	bool		enough;			/* all that is due was read */
	bool		urgent;			/* nothing can be given out before it is done */
	bool		room;			/* the queue has room for more than what is urgent, */
	int64		room_for;		/* for some so many */
	int			segments[FANOUT_SEGMENTS];	/* those in use, in the order of their tasks */
	int			segment_count;
	RefillRow  *rows;			/* room for as many as the limit of each segment */
} Refill;

/* Read so many rows of one segment. */
static void
read_rows(Refill *refill, SpiStatement *statement, int64 key, int64 id, int64 limit)
{
	Datum		values[5];
	uint64		rows;

	values[0] = Int32GetDatum(refill->queue_id);
	values[1] = refill->kind == REFILL_SCHEDULED ? TimestampTzGetDatum(key) : Int64GetDatum(key);
	values[2] = Int64GetDatum(id);
	values[3] = Int64GetDatum(limit);
	values[4] = Int64GetDatum(refill->lane != NULL ? refill->lane->partition : 0);
	rows = spi_read_latest(statement, values, NULL);
	for (uint64 i = 0; i < rows; i++)
	{
		RefillRow  *row = &refill->rows[refill->row_count++];

		seed_read(i, &row->seed, &row->tid);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Read on in the order of ids, which is that of the segments. */
static void
read_by_id(Refill *refill, SpiStatement *statements, int64 id)
{
	for (int i = 0; i < refill->segment_count && refill->row_count < refill->limit; i++)
		read_rows(refill, &statements[refill->segments[i]], 0, id, refill->limit - refill->row_count);
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
	const TaskSeed *left = &((const RefillRow *) a)->seed;
	const TaskSeed *right = &((const RefillRow *) b)->seed;

	return order_less(place_of(arg, left), left->task, place_of(arg, right), right->task) ? -1 : 1;
}

/* Read on in another order: what comes first of all is among the first of each segment. */
static void
read_merged(Refill *refill, SpiStatement *statements, int64 key, int64 id)
{
	int64		begin = refill->row_count;

	if (begin == refill->limit)
		return;
	for (int i = 0; i < refill->segment_count; i++)
		read_rows(refill, &statements[refill->segments[i]], key, id, refill->limit - begin);
	if (refill->segment_count > 1)
		qsort_arg(&refill->rows[begin], refill->row_count - begin, sizeof(RefillRow), compare_rows, refill);
	refill->row_count = Min(refill->row_count, refill->limit);
}

/* Read the main lane from the bound on. */
static void
read_main_lane(Refill *refill)
{
	if (refill->key < 0)
		read_merged(refill, refill_below, refill->key, refill->id);
	if (refill->key <= 0)
		read_by_id(refill, refill_usual, refill->key == 0 ? refill->id : 0);
	read_merged(refill, refill_above, Max(refill->key, 1), refill->key > 0 ? refill->id : 0);
}

/* Read from the bound on, in the order of the window. */
static void
read_from_bound(Refill *refill)
{
	SpiScope	scope;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	spi_begin(&scope);
	spi_follow_order();
	if (refill->kind == REFILL_SCHEDULED)
		read_merged(refill, refill_timed, refill->key, refill->id);
	else if (refill->kind == REFILL_STRAYS)
		read_by_id(refill, refill_strays, refill->id);
	else if (refill->lane->partition == 0)
		read_main_lane(refill);
	else
		read_merged(refill, refill_partition, refill->key, refill->id);
	spi_end(&scope);
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/* Has the queue been dropped or purged since the refill began?  Under the lock. */
static bool
refill_is_void(const Refill *refill)
{
	const Queue *queue = refill->queue;

	return queue->state != QUEUE_OPEN || queue->db != MyDatabaseId || queue->id != refill->queue_id ||
		queue->epoch != refill->epoch || refill->database->refill_void;
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
take_from_queue(const Refill *refill)
{
	return queue_evict_last(refill->queue, refill->lane->ready.set.count > 0 ? KEEP_LAST_IF_MIXED : KEEP_LAST);
}

/* Put one row that was read into memory; false if there is no room.  Under the lock. */
static bool
load_row(Refill *refill, const RefillRow *row, TimestampTz now)
{
	bool		urgent = refill->urgent && refill->loaded < REFILL_URGENT;

	if (refill->kind == REFILL_STRAYS)
	{
		/* a lane that is new now counts as being on disk, and asks for a refill */
		Lane	   *lane = lane_for(refill->queue, row->seed.partition);

		if (lane == NULL)
			return false;
		lane_set_sample(lane, row->seed.task);
		refill->loaded++;
		return true;
	}
	if (task_find(MyDatabaseId, row->seed.task) != NULL)
		return true;
	if (refill->kind == REFILL_SCHEDULED && row->seed.run_at > now &&
		((refill->only_due && row->seed.partition != 0) || schedule_is_wide(refill->queue)))
	{
		refill->enough = true;
		return false;
	}
	if (task_load(refill->queue, &row->seed, (ItemPointer) &row->tid, urgent, now) == NULL &&
		!(refill->kind == REFILL_LANE && urgent && refill->loaded == 0 && take_from_queue(refill) &&
		  task_load(refill->queue, &row->seed, (ItemPointer) &row->tid, urgent, now) != NULL))
		return false;
	refill->loaded++;
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

/* The refill is done with the first "done" rows.  Under the lock. */
static void
end_refill(Refill *refill, int64 done)
{
	Queue	   *queue = refill->queue;
	Window	   *window = refill->window;
	bool		full = done < refill->row_count;

	refill->headway = !full || done > 0 || refill->enough;
	fanout_shared->task_wanted |= !refill->headway && refill->kind != REFILL_STRAYS;
	if (refill_is_void(refill))
		end_window_refill(queue, refill->lane, window, refill->key, refill->id);
	else if (full)
		end_window_refill(queue, refill->lane, window, place_of(refill, &refill->rows[done].seed),
						  refill->rows[done].seed.task);
	else if (refill->row_count == refill->limit)
		end_window_refill(queue, refill->lane, window, place_of(refill, &refill->rows[done - 1].seed),
						  refill->rows[done - 1].seed.task + 1);
	else
		end_window_refill(queue, refill->lane, window, WINDOW_UNBOUNDED, WINDOW_UNBOUNDED);
	if (refill->kind == REFILL_STRAYS)
	{
		bool		more = window_is_bounded(window) && (!full || queue_may_have_lane(queue));

		/*
		 * Without room for a lane there is nothing to retry: lanes_freed() asks for it again.  Where another queue
		 * has some to give, but none that it can give just now, a pause has to come first.
		 */
		queue->wants_refill |= more;
		refill->headway |= !more;
	}
	if (refill->kind == REFILL_LANE)
	{
		refill->lane->starved = full && window_first(window) == NULL;
		lane_settle(refill->lane);
		lane_release(refill->lane);
	}
	queue_wake(queue);
}

/* No refill reads any more, be it done or the keeper that was at it gone. */
static void
database_end_refill(Database *database)
{
	database->refill_serial += database->refill_serial & 1;
	database->refilling = NULL;
	database_forget_ended(database);
}

/* Put what was read into memory, as far as there is room, and end the refill. */
static void
load_rows(Refill *refill)
{
	Queue	   *queue = refill->queue;
	TimestampTz now = GetCurrentTimestamp();
	int64		done = 0;

	dispatcher_lock();
	while (done < refill->row_count && !refill_is_void(refill) && load_row(refill, &refill->rows[done], now))
	{
		if (++done % FANOUT_WORK_CHUNK == 0)
		{
			dispatcher_unlock();
			FANOUT_POINT(REFILL_CHUNK);
			dispatcher_lock();
		}
	}
	if (queue->state != QUEUE_FREE && queue->id == refill->queue_id && queue->db == MyDatabaseId)
		end_refill(refill, done);
	database_end_refill(refill->database);
	refill->database->refills++;
	dispatcher_unlock();
}

/* Note the begin of the refill; false if the window needs none, or there is no room.  Under the lock. */
static bool
begin_refill(Refill *refill)
{
	Queue	   *queue = refill->queue;

	if (queue->state != QUEUE_OPEN || queue->db != MyDatabaseId || !window_is_bounded(refill->window))
		return false;

	/* what is not due needs no lane yet, and would have to leave it to the next stray */
	refill->only_due = refill->kind == REFILL_SCHEDULED && (fanout_shared->free_lanes == 0 || fanout_shared->has_strays);
	if ((refill->only_due || (refill->kind == REFILL_SCHEDULED && schedule_is_wide(queue))) &&
		refill->window->bound_key > GetCurrentTimestamp())
		return false;
	refill->urgent = window_first(refill->window) == NULL &&
		(refill->kind != REFILL_LANE || !lane_is_blocked(refill->lane));
	refill->room = queue_room(queue) || (refill->kind == REFILL_LANE && schedule_is_wide(queue));
	if (refill->kind != REFILL_STRAYS && !refill->urgent && !refill->room)
		return false;			/* it asks again when it gives out what it has */
	refill->room_for = queue_ready_share(queue) - queue->ready_count - queue->reserved;
	if (refill->kind == REFILL_SCHEDULED)
		refill->room_for = queue_window_limit();	/* it may replace later ones */
	refill->queue_id = queue->id;
	refill->database = database_find(MyDatabaseId);
	refill->epoch = queue->epoch;
	refill->key = refill->window->bound_key;
	refill->id = refill->window->bound_id;
	refill->segment_count = segments_unfinished(refill->database, refill->segments);
	window_begin_refill(refill->database, refill->window);
	queue->refilling++;
	refill->database->refill_serial++;
	refill->database->refill_void = false;
	return true;
}

/* Go on with a refill that has begun; false if there is more to read but no headway was made. */
static bool
run_refill(Refill *refill)
{
	int64		most = Max(REFILL_LEAST, Min(REFILL_MOST, refill->room_for));

	if (refill->kind == REFILL_LANE && refill->lane->partition != 0)
		most = Min(most, REFILL_PARTITION);
	if (refill->kind != REFILL_STRAYS && !refill->room)
		most = Min(most, REFILL_LEAST);
	if (refill->only_due)
		most = Min(most, REFILL_LEAST); /* its end is probably near */
	refill->limit = most;
	refill->rows = palloc(refill->limit * refill->segment_count * sizeof(RefillRow));
	FANOUT_POINT(REFILL_BEGUN);
	read_from_bound(refill);
	FANOUT_POINT(REFILL_READ);
	load_rows(refill);
	FANOUT_POINT(REFILL_DONE);
	pfree(refill->rows);
	return refill->headway;
}

static bool
refill_window(Queue *queue, RefillKind kind, Lane *lane, Window *window)
{
	Refill		refill = {.kind = kind, .queue = queue, .lane = lane, .window = window, .headway = true};
	bool		begun;

	dispatcher_lock();
	begun = begin_refill(&refill);
	dispatcher_unlock();
	return !begun || run_refill(&refill);
}

/* The next of the queue's partitions that is to be refilled, but not this one again; NULL: none. */
static Lane *
next_partition(Queue *queue, const Lane *but_not)
{
	if (queue->state != QUEUE_OPEN || queue->db != MyDatabaseId || queue->last_asker == 0)
		return NULL;
	queue->refill_held = !queue_can_use_refill(queue);
	return queue->refill_held ? NULL : queue_take_asker(queue, but_not);
}

/*
 * Refill some of the partitions that ask for it, in the order they asked in;
 * the next look goes on with others.  One that makes no headway asks again,
 * behind them, and is not tried twice.  False if there was such a one.
 */
static bool
refill_partitions(Queue *queue)
{
	Lane	   *first_failed = NULL;
	int64		stop = wait_clock() + REFILL_TURN;

	do
	{
		Refill		refill = {.kind = REFILL_LANE, .queue = queue, .headway = true};
		bool		begun = false;

		dispatcher_lock();
		refill.lane = next_partition(queue, first_failed);
		if (refill.lane != NULL)
		{
			refill.window = &refill.lane->ready;
			begun = begin_refill(&refill);
		}
		dispatcher_unlock();
		if (refill.lane == NULL)
			break;
		if (begun && !run_refill(&refill) && first_failed == NULL)
			first_failed = refill.lane;
		CHECK_FOR_INTERRUPTS();
	} while (wait_clock() < stop);
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
	strays = queue_may_have_lane(queue);
	dispatcher_unlock();

	/* strays first: what is ready needs a lane more than what is not due */
	headway = !strays || refill_window(queue, REFILL_STRAYS, NULL, &queue->strays);
	headway &= refill_window(queue, REFILL_SCHEDULED, NULL, &queue->scheduled);
	headway &= refill_window(queue, REFILL_LANE, &queue->main, &queue->main.ready);
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
