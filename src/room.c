/*
 * room.c
 *		Room in the pool of tasks, and who leaves it for whom.
 *
 * A queue may have a part of the pool for its waiting tasks; what is more
 * stays on disk, unless it comes before those that are in memory.  Who needs
 * room takes it from the queue that has most.  Only a task of which its row
 * alone says what it is can leave.
 */
#include "postgres.h"

#include "lane.h"
#include "points.h"
#include "room.h"
#include "strays.h"
#include "wait.h"
#include "window.h"

/* How far to look for a lane that can leave something on disk. */
#define EVICT_LOOK		32

/* How many queues to ask for room. */
#define EVICT_QUEUES	4

/* A queue that has fewer tasks to give out needs more of them now. */
#define STARTABLE_LOW	64

/* Of what is due each queue may have so many in memory, whatever others have. */
#define DUE_LEAST		16

/* So many free lanes are worth a read of strays. */
#define LANES_WORTH		64

/* So many places of a pool that is nearly full are worth a read of partitions, or half of the reserve if that is less. */
#define PLACES_WORTH	64

/*
 * How many waiting tasks a queue may have in memory before further ones stay
 * on disk, unless they come before those.
 */
int64
queue_window_limit(void)
{
	return fanout_max_tracked_tasks / 4;
}

static int64
queue_in_memory(const Queue *queue)
{
	return queue->ready_count + queue->scheduled.set.count + queue->reserved;
}

/*
 * May the task be left on disk?  Only if its row alone says what it is: not
 * once it has been leased, and not once its time has come.  Nor while a refill
 * reads that may see the row as it was before a change: not finding the task
 * in memory, it would load it as it was.
 */
static bool
task_is_evictable(const Task *task)
{
	return (task->flags & TASK_FLAG_UNTOUCHED) != 0 && (task->flags & TASK_FLAG_CANCELLED) == 0 &&
		!task_is_kept(task, database_of(queue_of_lane(lane_of(task)))) &&
		(task->state == TASK_SCHEDULED ||
		 (task->state == TASK_READY && (task->flags & TASK_FLAG_TIMED) == 0));
}

/* The last of the window's tasks that come after this place and may be left on disk, or NULL. */
static Task *
last_evictable(const Window *window, int64 key, int64 id)
{
	OrderNode  *node = order_last(&window->set);

	for (int tries = 0; node != NULL && tries < 64; tries++, node = order_previous(node))
	{
		Task	   *task = order_container(Task, node, node);

		if (!order_less(key, id, node->key, node->id))
			return NULL;
		if (task_is_evictable(task))
			return task;
	}
	return NULL;
}

/* READY or SCHEDULED -> (on disk) */
static void
task_evict(Task *task)
{
	Queue	   *queue = queue_of_lane(lane_of(task));
	Lane	   *lane = lane_of(task);

	database_of(queue)->evictions++;
	if (task->state == TASK_READY)
	{
		lane_leave_on_disk(lane, task->node.key, task->node.id);
		lane_take(lane, task);
	}
	else
	{
		window_leave_on_disk(database_of(queue), &queue->scheduled, task->node.key, task->node.id);
		lane_unschedule(lane, task);
	}
	FANOUT_POINT(EVICT_BOUND);
	task_drop(task);
	FANOUT_POINT(EVICT_DROPPED);
}

bool
window_evict_after(Window *window, int64 key, int64 id)
{
	Task	   *task = last_evictable(window, key, id);

	if (task != NULL)
		task_evict(task);
	return task != NULL;
}

/* How many ready tasks the lane can spare, at most. */
static int64
lane_spare_ready(const Lane *lane, KeepLast keep)
{
	bool		mixed = lane->ready.set.count > lane->spare;
	bool		keeps_last = lane->startable > 0 && (keep == KEEP_LAST || (keep == KEEP_LAST_IF_MIXED && mixed));

	/* it counts its delayed tasks as well, which stand in the schedule */
	return Min(lane->spare, lane->ready.set.count - keeps_last);
}

static int64
schedule_spare(const Queue *queue)
{
	return queue->delayed + queue->main_delayed;
}

/*
 * The one of the queue's windows that can spare most tasks, as far as a short
 * look tells; each time it looks at other lanes.
 */
static Window *
largest_window(Queue *queue, KeepLast keep)
{
	Window	   *largest = &queue->main.ready;
	int64		most = lane_spare_ready(&queue->main, keep);

	if (schedule_spare(queue) > most)
	{
		largest = &queue->scheduled;
		most = schedule_spare(queue);
	}
	for (int i = 0; i < Min(EVICT_LOOK, queue->lane_count); i++)
	{
		Lane	   *lane = queue_walk_lanes(queue);

		if (lane_spare_ready(lane, keep) > most)
		{
			largest = &lane->ready;
			most = lane_spare_ready(lane, keep);
		}
	}
	return most > 0 ? largest : NULL;
}

static bool
window_evict_last(Window *window)
{
	return window_evict_after(window, PG_INT64_MIN, 0);
}

static bool
lane_evict_last(Lane *lane, KeepLast keep)
{
	return lane_spare_ready(lane, keep) > 0 && window_evict_last(&lane->ready);
}

/*
 * What a window can spare may stand before many that have to stay, or be kept
 * for a refill: then others are tried.  Of many lanes in a row that wait for a
 * refill none may have a task; those that were refilled last do.
 */
bool
queue_evict_last(Queue *queue, KeepLast keep)
{
	Window	   *largest = queue->spare > 0 ? largest_window(queue, keep) : NULL;
	ShortNode  *node = short_list_last(&queue->lanes);

	if (queue->spare == 0)
		return false;
	if ((largest != NULL && window_evict_last(largest)) || lane_evict_last(&queue->main, keep) ||
		(schedule_spare(queue) > 0 && window_evict_last(&queue->scheduled)))
		return true;
	for (int i = 0; i < Min(EVICT_LOOK, queue->lane_count); i++)
	{
		if (lane_evict_last(queue_walk_lanes(queue), keep))
			return true;
	}
	for (int i = 0; i < EVICT_LOOK && node != NULL; i++)
	{
		if (lane_evict_last(link_container(Lane, link, node), keep))
			return true;
		node = short_list_previous(&queue->lanes, node);
	}
	return false;
}

/* The queue that has most, and some to spare, of those with more than "least" and less than "most". */
static Queue *
largest_queue(int64 least, int64 most)
{
	Queue	   *largest = NULL;

	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		Queue	   *candidate = &fanout_queues[i];
		int64		count = candidate->ready_count + candidate->scheduled.set.count;

		if (candidate->state != QUEUE_FREE && candidate->spare > 0 && count > least && count < most)
		{
			largest = candidate;
			least = count;
		}
	}
	return largest;
}

/*
 * Make room in the pool at the cost of the queue that has most, or, if a short
 * look finds nothing that can leave there, of one with less; false if there is
 * none that has more than "queue".
 */
bool
evict_for(const Queue *queue)
{
	int64		least = queue_in_memory(queue) + 1;
	int64		most = PG_INT64_MAX;

	for (int i = 0; i < EVICT_QUEUES; i++)
	{
		Queue	   *largest = largest_queue(least, most);

		if (largest == NULL)
			return false;
		most = largest->ready_count + largest->scheduled.set.count;
		if (queue_evict_last(largest, KEEP_NONE))
			return true;
	}
	return false;
}

/* Make room in the pool at anybody's cost. */
bool
evict_any(void)
{
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		if (fanout_queues[i].state != QUEUE_FREE && queue_evict_last(&fanout_queues[i], KEEP_NONE))
			return true;
	}
	return false;
}

/*
 * May the lane be forgotten, as rows alone say all of it?  Its ready tasks are
 * strays then, and scheduled ones are where the schedule's bound says.
 */
static bool
lane_is_evictable(const Lane *lane)
{
	return !lane->limited && lane->running == 0 && !lane->turn.aside && lane->tasks == lane->spare &&
		!window_is_refilling(database_of(queue_of_lane(lane)), &lane->ready);
}

/*
 * Is it there for tasks that are not due, and for nothing else?  One without
 * tasks may be counting those that a transaction is about to enqueue.
 */
static bool
lane_is_delayed(const Lane *lane)
{
	return lane_is_evictable(lane) && lane->ready.set.count == 0 && !window_is_bounded(&lane->ready) &&
		(lane->tasks > 0 || queue_of_lane(lane)->pending == 0);
}

/* The next one of the lane's tasks to leave; NULL: none, or one that a refill may still read as it was. */
static Task *
next_to_evict(Lane *lane)
{
	OrderNode  *ready = order_last(&lane->ready.set);
	ShortNode  *scheduled = short_list_last(&lane->scheduled);
	Task	   *task = NULL;

	if (ready != NULL)
		task = order_container(Task, node, ready);
	else if (scheduled != NULL)
		task = link_container(Task, link, scheduled);
	return task != NULL && task_is_evictable(task) ? task : NULL;
}

/*
 * What the lane has is on disk only from now on.  One that has many tasks gives
 * up some of them and stays: there will be another attempt.
 */
static bool
lane_evict(Lane *lane)
{
	Queue	   *queue = queue_of_lane(lane);
	Task	   *task = NULL;

	lane->tasks++;				/* it is not to go away before we are done */
	for (int i = 0; i < EVICT_LOOK && (task = next_to_evict(lane)) != NULL; i++)
		task_evict(task);
	lane->tasks--;
	if (lane->tasks > 0)
		return false;
	FANOUT_POINT(EVICT_LANE);
	lane->backlog = 0;			/* it is not known any more */
	if (window_is_bounded(&lane->ready))
	{
		window_leave_on_disk(database_of(queue), &queue->strays, 0, lane_disk_first(lane));
		window_init(&lane->ready);
		fanout_shared->has_strays = true;
	}
	lane_release(lane);
	return true;
}

/* The queue that has most lanes, if these are more than "queue" has, by so many that one may go over. */
static Queue *
queue_with_most_lanes(const Queue *queue)
{
	Queue	   *most = NULL;
	int32		most_count = queue->lane_count + 1;

	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		Queue	   *candidate = &fanout_queues[i];

		if (candidate->state == QUEUE_OPEN && candidate->lane_count > most_count)
		{
			most = candidate;
			most_count = candidate->lane_count;
		}
	}
	return most;
}

/* May the queue have lanes that are there for tasks that are not due?  These may have been left on disk, one by one. */
static bool
queue_may_have_delayed_lane(const Queue *queue)
{
	return queue->lane_count > 0 && (queue->delayed > 0 || window_is_bounded(&queue->scheduled));
}

/* Might the queue get room for one more lane? */
bool
queue_may_have_lane(const Queue *queue)
{
	return fanout_shared->free_lanes > 0 || queue_may_have_delayed_lane(queue) || queue_with_most_lanes(queue) != NULL;
}

/* Has it few tasks to give out, with so many more? */
static bool
runs_low(const Queue *queue, int64 more)
{
	return queue->startable + more < Min(STARTABLE_LOW, queue_window_limit() / 2);
}

bool
queue_runs_low(const Queue *queue)
{
	return runs_low(queue, 0);
}

/*
 * Is it worth a read to give lanes to strays?  A queue that has enough to give
 * out waits for some lanes, so that one read is for all of them; not for ever:
 * the keeper gives them what there is whenever it is awake.
 */
bool
queue_can_use_lanes(const Queue *queue)
{
	return queue_runs_low(queue) || fanout_shared->free_lanes >= Min(LANES_WORTH, fanout_max_lanes / 16);
}

/* Make room for a lane at the cost of this queue, as far as a short look tells. */
static bool
queue_evict_lane(Queue *queue, bool (*may_go) (const Lane *lane))
{
	Lane	   *smallest = NULL;

	for (int i = 0; i < Min(EVICT_LOOK, queue->lane_count); i++)
	{
		Lane	   *lane = queue_walk_lanes(queue);

		if (may_go(lane) && (smallest == NULL || lane->tasks < smallest->tasks))
		{
			smallest = lane;
			if (lane->tasks <= EVICT_LOOK)
				break;
		}
	}
	return smallest != NULL && lane_evict(smallest);
}

/*
 * Make room for a lane whose task is due: at the cost of the queue's own tasks
 * that are not, or at that of the queue that has most, so that none starves
 * another.
 */
void
evict_lane_for(Queue *queue)
{
	Queue	   *most;

	if (queue_may_have_delayed_lane(queue) && queue_evict_lane(queue, lane_is_delayed))
		return;
	most = queue_with_most_lanes(queue);
	if (most != NULL)
		(void) queue_evict_lane(most, lane_is_evictable);
}

/* Make room for a lane at anybody's cost. */
bool
evict_any_lane(void)
{
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		if (fanout_queues[i].state == QUEUE_OPEN && queue_evict_lane(&fanout_queues[i], lane_is_evictable))
			return true;
	}
	return false;
}

void
tasks_freed(void)
{
	fanout_shared->task_wanted = false;
	for (int i = 0; i < fanout_shared->database_high; i++)
	{
		if (fanout_databases[i].state == DATABASE_READY)
			keeper_wake(&fanout_databases[i]);
	}
}

bool
queue_is_within_share(const Queue *queue)
{
	return queue_in_memory(queue) < queue_window_limit();
}

/* So many places of the pool are for what comes, and not for more of a queue that has its share. */
static int64
reserve(void)
{
	return fanout_max_tracked_tasks / 32;
}

/* How many places of the pool partitions beyond their queue's share may use. */
int64
free_beyond_reserve(void)
{
	return fanout_shared->free_tasks - reserve();
}

/*
 * Is it worth a read to have a partition's first tasks in memory?  Beyond the
 * queue's share only while that has little else to give out, or the pool is
 * not used up: in a full one, partitions and queues would take every place that
 * is freed from each other, with a read each time.  "more": as if it had so
 * many more tasks, one of each partition that is to be refilled with this one.
 */
bool
queue_can_use_refill(const Queue *queue, int64 more)
{
	return queue_in_memory(queue) + more < queue_window_limit() ||
		runs_low(queue, more) || free_beyond_reserve() > more;
}

/*
 * May a read of partitions begin?  Beyond the queue's share each task that
 * ends leaves a place, and a read for each of them is most of what the keeper
 * does.  A queue that has enough to give out waits for some places, so that
 * one read is for as many partitions.
 */
bool
queue_may_refill_partitions(const Queue *queue)
{
	return queue_is_within_share(queue) || queue_runs_low(queue) ||
		free_beyond_reserve() >= Max(Min(PLACES_WORTH, reserve() / 2), 1);
}

/*
 * Is it worth a read to have in memory what is due of the schedule?  It cannot
 * leave that again before it starts, so if it were read as it comes, the pool
 * could be full of it, and other queues would have nothing left.  So it has
 * half of the queue's share, while a share of the pool is left for others;
 * beyond that what is left but for a little, while the queue has few tasks
 * that may start, as what it has may be blocked; and a few places in any case.
 */
bool
queue_can_use_due(const Queue *queue)
{
	int64		stays = queue->ready_count + queue->scheduled.set.count - queue->spare;
	int64		ready_stays = queue->ready_count - (queue->spare - schedule_spare(queue));
	int64		left = fanout_shared->free_tasks + fanout_shared->spare;

	return (stays < queue_window_limit() / 2 && left > queue_window_limit()) ||
		(queue_runs_low(queue) && left > reserve()) ||
		(ready_stays < Min(DUE_LEAST, reserve()) && left > 0);
}

/* Has the queue room in memory for one more waiting task, at no other queue's cost? */
bool
queue_room(Queue *queue)
{
	return queue_is_within_share(queue) &&
		(fanout_shared->free_tasks > 0 || evict_for(queue));
}

/* How many ready tasks the queue may have in memory: what is not due takes half of its share at most. */
int64
queue_ready_share(const Queue *queue)
{
	int64		share = queue_window_limit();

	return share - Min(queue->scheduled.set.count, share / 2);
}

/*
 * Does what is not due take more than half of the queue's share?  Then it gives
 * way to what is: else a queue full of delayed tasks would have to read each
 * one that is ready from disk.
 */
bool
schedule_is_wide(const Queue *queue)
{
	return queue->scheduled.set.count > queue_window_limit() / 2;
}

/* Has the queue room for one more ready task, maybe in the place of one that is not due? */
bool
queue_room_for_ready(Queue *queue)
{
	return queue_room(queue) ||
		(schedule_is_wide(queue) && schedule_spare(queue) > 0 && window_evict_last(&queue->scheduled));
}

/* Has the queue room for this task, maybe in the place of a later one? */
bool
make_room(Queue *queue, Window *window, int64 key, int64 id)
{
	if (window_is_beyond(window, key, id))
		return false;
	if (window == &queue->scheduled ? queue_room(queue) : queue_room_for_ready(queue))
		return true;
	return window_evict_after(window, key, id);
}
