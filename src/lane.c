/*
 * lane.c
 *		The lanes of a queue, and whose turn it is.
 *
 * A queue's ready tasks stand in lanes, one for each partition key and the
 * main lane for tasks without one.  A lane has an order of its own, (priority,
 * id), a limit of its own, and a share of the queue by its weight.
 *
 * Turns are given by virtual time: each claim moves a lane's time on by the
 * inverse of its weight, and the lane whose time is earliest is next.  A lane
 * that comes back after a pause starts at the queue's clock, so it has its
 * share from then on and nothing is saved up; what an idle lane does not use,
 * the others do.
 *
 * Only lanes that have a task which may start stand in the set of turns.  One
 * that is empty, at its limit, or waits for a refill is not looked at until
 * that changes: lane_settle() is called by whatever changes it.
 */
#include "postgres.h"

#include "dispatch.h"
#include "lane.h"
#include "wait.h"
#include "window.h"

#define TURN	INT64CONST(1048576) /* virtual time of a claim by a lane of weight 1 */

Lane *
lane_for(Queue *queue, int64 partition)
{
	Lane	   *lane = lane_find(queue, partition);

	if (lane != NULL)
		return lane;
	lane = lane_enter(queue, partition);

	/* some of its tasks may be strays: all of it counts as being on disk until a refill has looked */
	if (lane != NULL && queue->strays.bounded)
		lane_leave_on_disk(lane, PG_INT64_MIN, 0);
	return lane;
}

void
lane_release(Lane *lane)
{
	if (lane->key.partition == 0 || lane->tasks > 0 || lane->named || lane->ready.bounded || lane->ready.refilling)
		return;
	Assert(lane->running == 0 && lane->startable == 0);
	lane_free(lane);
}

int32
lane_limit(const Lane *lane)
{
	if (lane->key.partition == 0)
		return 0;
	return lane->settings.concurrency > 0 ? lane->settings.concurrency :
		queue_of_lane(lane)->settings.partition_concurrency;
}

bool
lane_set(Queue *queue, int64 partition, const LaneSettings *settings)
{
	Lane	   *lane = lane_for(queue, partition);

	if (lane == NULL)
		return false;
	lane->settings = *settings;
	lane->named = settings->concurrency > 0 || settings->weight != 1 || settings->paused;
	lane_settle(lane);
	lane_release(lane);
	return true;
}

/*
 * The task to be given out next.  Should no refill have found memory, tasks
 * that are there and cannot leave go before those on disk: otherwise they
 * would wait for each other.
 */
Task *
lane_first(const Lane *lane)
{
	OrderNode  *first = window_first(&lane->ready);

	if (first == NULL && lane->starved)
		first = lane->ready.set.first;
	return first != NULL ? order_container(Task, node, first) : NULL;
}

static int32
startable_of(const Lane *lane)
{
	int64		count = lane->ready.set.count;
	int32		limit = lane_limit(lane);

	if (lane->settings.paused || lane_first(lane) == NULL)
		return 0;
	if (limit > 0)
		count = Min(count, limit - lane->running);
	return Max(count, 0);
}

/* Ask for a refill when the window runs low, unless the lane could not use it. */
static void
check_refill(Lane *lane)
{
	Queue	   *queue = queue_of_lane(lane);
	int32		limit = lane_limit(lane);
	int64		low = lane->key.partition == 0 ? queue_window_limit() / 2 : LANE_LOW;

	if (!lane->ready.bounded || lane->wants_refill || lane->ready.refilling ||
		(limit > 0 && lane->running >= limit && lane->ready.set.count > 0) ||
		(window_first(&lane->ready) != NULL && lane->ready.set.count >= low))
		return;
	lane->wants_refill = true;
	queue->wants_refill = true;
	if (lane->key.partition != 0)
		dlist_move_head(&queue->lanes, &lane->link);
	keeper_wake(database_of(queue));
}

void
lane_settle(Lane *lane)
{
	Queue	   *queue = queue_of_lane(lane);
	int32		startable = startable_of(lane);

	queue->startable += startable - lane->startable;
	if (lane->startable > 0 && startable == 0)
		order_remove(&queue->turns, &lane->node);
	else if (lane->startable == 0 && startable > 0)
	{
		lane->node.key = Max(lane->node.key, queue->clock);
		order_insert(&queue->turns, &lane->node);
	}
	lane->startable = startable;
	check_refill(lane);
}

/* The limit for each partition has changed. */
void
queue_settle_lanes(Queue *queue)
{
	dlist_mutable_iter iter;

	/* a lane that asks for a refill moves to the head of the list, where we have been */
	dlist_foreach_modify(iter, &queue->lanes)
		lane_settle(dlist_container(Lane, link, iter.cur));
}

void
lane_add(Lane *lane, Task *task)
{
	order_insert(&lane->ready.set, &task->node);
	queue_of_lane(lane)->ready_count++;
	lane_settle(lane);
}

void
lane_take(Lane *lane, Task *task)
{
	order_remove(&lane->ready.set, &task->node);
	queue_of_lane(lane)->ready_count--;
	lane_settle(lane);
}

/* A ready task at this place is, from now on, on disk only. */
void
lane_leave_on_disk(Lane *lane, int64 key, int64 id)
{
	window_leave_on_disk(&lane->ready, key, id);
	lane_settle(lane);
}

void
lane_take_permit(Lane *lane)
{
	lane->running++;
	lane_settle(lane);
}

void
lane_give_permit(Lane *lane)
{
	Assert(lane->running > 0);
	lane->running--;
	lane_settle(lane);
}

/* The lane whose turn it is, or NULL if no task may start. */
Lane *
queue_next_lane(const Queue *queue)
{
	OrderNode  *first = queue->turns.first;

	return first != NULL ? order_container(Lane, node, first) : NULL;
}

/* Move the lane's time on, or back. */
static void
move_time(Lane *lane, int64 by)
{
	Queue	   *queue = queue_of_lane(lane);

	if (lane->startable > 0)
		order_remove(&queue->turns, &lane->node);
	lane->node.key += by;
	if (lane->startable > 0)
		order_insert(&queue->turns, &lane->node);
}

/* The lane has its turn. */
void
lane_serve(Lane *lane)
{
	queue_of_lane(lane)->clock = lane->node.key;
	move_time(lane, TURN / lane->settings.weight);
}

/* It was for nothing: the claim was undone. */
void
lane_unserve(Lane *lane)
{
	move_time(lane, -(TURN / lane->settings.weight));
}
