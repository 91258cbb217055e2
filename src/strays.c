/*
 * strays.c
 *		Tasks whose lanes have no place in memory.
 *
 * They are on disk, from the bound of Queue.strays on, which goes by id.  The
 * refill of that window enters lanes for what it reads, as many as there is
 * room for.
 *
 * What it reads comes into memory at once if its lane is new.  The refill goes
 * by id, and so does the lane, as long as no task of a partition that is on
 * disk has another rank than 0 (Queue.ranks_on_disk): all others of the lane
 * come later then, and are strays still.  The lane is "with strays" and needs
 * no bound: what it has in memory comes first.  A partition that has one task
 * on disk, as most do where there are very many, so is never read on its own,
 * which would be a search of the index for each.
 *
 * That ends with the first task that does not come before the strays, or that
 * is left on disk: then the lane has a bound of its own, which is that of the
 * strays at first.  It ends as well if the strays cannot go on, for want of a
 * lane, while the queue has little to give out: the lane's own tasks may be
 * what others wait for.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "room.h"
#include "strays.h"
#include "wait.h"
#include "window.h"

void
queue_leave_stray(Queue *queue, int64 rank, int64 task)
{
	window_leave_on_disk(database_of(queue), &queue->strays, 0, task);
	queue->ranks_on_disk |= rank != 0;
	fanout_shared->has_strays = true;
	if (!queue_may_have_lane(queue))
		return;					/* lanes_freed() asks for the refill */
	queue_ask_for_lanes(queue);
}

/* Strays are to come: at once, or when that is worth a read, or with what else the keeper does. */
void
queue_ask_for_lanes(Queue *queue)
{
	if (!queue_can_use_lanes(queue))
	{
		if (!queue->strays_held)
			keeper_wake_by(database_of(queue), GetCurrentTimestamp() + STRAYS_PATIENCE);
		queue->strays_held = true;
		return;
	}
	queue->strays_held = false;
	queue->wants_refill = true;
	keeper_wake(database_of(queue));
}

/* A refill of strays that found no room for a lane is not tried again before there is some. */
void
lanes_freed(void)
{
	bool		any = false;

	if (!fanout_shared->has_strays)
		return;
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		Queue	   *queue = &fanout_queues[i];

		if (queue->state == QUEUE_FREE || !window_is_bounded(&queue->strays))
			continue;
		any = true;
		queue_ask_for_lanes(queue);
	}
	fanout_shared->has_strays = any;
}

Lane *
lane_for_stray(Queue *queue, int64 partition)
{
	Lane	   *lane = lane_find(queue, partition);

	if (lane != NULL)
		return lane;
	lane = lane_begin(queue, partition, true);
	if (lane == NULL)
		return NULL;
	if (queue->ranks_on_disk)
		lane_count_strays(lane);
	else
		lane->with_strays = true;
	return lane;
}

void
lane_count_strays(Lane *lane)
{
	Queue	   *queue = queue_of_lane(lane);

	if (window_is_bounded(&queue->strays))
		lane_lower_bound(lane, queue->ranks_on_disk ? PG_INT64_MIN : 0, queue->strays.bound_id);
}

void
lane_part_from_strays(Lane *lane)
{
	if (!lane->with_strays)
		return;
	lane->with_strays = false;
	lane_count_strays(lane);
}

/* Has the queue little to give out, and strays that do not come, as far as is known, for want of a lane? */
static bool
queue_wants_strays(const Queue *queue)
{
	return queue_runs_low(queue) && window_is_bounded(&queue->strays) &&
		(queue->strays_blocked || !queue_may_have_lane(queue));
}

void
lane_check_strays(Lane *lane)
{
	Queue	   *queue = queue_of_lane(lane);

	if (!lane->with_strays || lane->ready.set.count > 0)
		return;
	if (queue_wants_strays(queue))
		lane_part_from_strays(lane);
	else
		queue->idle_with_strays = true;
}

bool
queue_has_idle_lanes(const Queue *queue)
{
	return queue->idle_with_strays && queue_wants_strays(queue);
}

void
queue_part_idle_lanes(Queue *queue)
{
	queue->idle_with_strays = false;

	/* a lane that asks for a refill moves forward in the list, to where we have been */
	short_list_foreach_modify(node, &queue->lanes)
	{
		Lane	   *lane = link_container(Lane, link, node);

		if (lane->ready.set.count == 0)
			lane_part_from_strays(lane);
	}
}
