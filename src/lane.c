/*
 * lane.c
 *		The lanes of a queue.
 *
 * A queue's ready tasks stand in lanes, one for each partition key and the
 * main lane for tasks without one.  A lane has an order of its own, (rank,
 * id), a limit of its own, and a share of the queue by its weight: groups.c
 * and turns.c have whose turn it is.
 *
 * Only lanes that have a task which may start wait for their turn.  One that
 * is empty, at its limit, or waits for a refill is not looked at until
 * that changes: lane_settle() is called by whatever changes it.  One that time
 * will change, as a rate limit or its worker's word holds it back, stands in
 * the set of throttled lanes, and is settled again when the time has come.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "dispatch.h"
#include "groups.h"
#include "lane.h"
#include "lane_limits.h"
#include "room.h"
#include "strays.h"
#include "wait.h"
#include "window.h"

Lane *
lane_begin(Queue *queue, int64 partition, bool due)
{
	Lane	   *lane;

	if (due && fanout_shared->free_lanes == 0)
		evict_lane_for(queue);
	lane = lane_enter(queue, partition);
	if (lane == NULL)
		return NULL;
	lane_begin_turns(lane);
	if (queue->loaded_at != 0)
		lane_remember_unknown_starts(lane, queue->loaded_at);
	return lane;
}

Lane *
lane_for_task(Queue *queue, int64 partition, bool due)
{
	Lane	   *lane = lane_find(queue, partition);

	if (lane != NULL)
		lane_part_from_strays(lane);
	else if ((lane = lane_begin(queue, partition, due)) != NULL)
		lane_count_strays(lane);
	return lane;
}

Lane *
lane_for(Queue *queue, int64 partition)
{
	return lane_for_task(queue, partition, true);
}

void
lane_release(Lane *lane)
{
	if (lane->partition == 0 || lane->tasks > 0 || lane->backlog > 0 || lane->limited || lane->turn.aside ||
		window_is_bounded(&lane->ready) || window_is_refilling(database_of(queue_of_lane(lane)), &lane->ready))
		return;
	Assert(lane->running == 0 && lane->startable == 0);
	lane_forget_turns(lane);
	lane_free(lane);
	lanes_freed();
}

void
lane_set_sample(Lane *lane, int64 task)
{
	lane->sample_task = (uint32) task;
}

void
lane_forget_sample(Lane *lane, int64 task)
{
	if (lane->sample_task == (uint32) task)
		lane->sample_task = 0;
}

/* What is noted was given out within the last 2^32 ids, or it is not found. */
static int64
noted_sample(const Lane *lane)
{
	int64		next = database_of(queue_of_lane(lane))->next_task;
	int64		task = (next & ~INT64CONST(0xffffffff)) + lane->sample_task;

	if (lane->sample_task == 0)
		return 0;
	return task < next ? task : task - (INT64CONST(1) << 32);
}

/* One that waits in memory is sure to be there; what is noted may have gone. */
int64
lane_sample(const Lane *lane)
{
	OrderNode  *ready = order_first(&lane->ready.set);
	ShortNode  *scheduled = short_list_first(&lane->scheduled);

	if (ready != NULL)
		return ready->id;
	return scheduled != NULL ? link_container(Task, link, scheduled)->node.id : noted_sample(lane);
}

/* Give back the pool entry of a task that stands in no set. */
void
task_drop(Task *task)
{
	Lane	   *lane = lane_of(task);

	lane_await_retry_no_more(task);
	task_free(task);
	lane->tasks--;
	lane_release(lane);
}

/*
 * A lane stays as long as it counts a task.  One that had to make room for
 * another (lane_evict) and came back knows less than there are: it counts those
 * that came since, and never below 0.
 */
void
lane_count_backlog(Lane *lane, int64 tasks)
{
	if (lane->partition != 0)
		lane->backlog = Max(lane->backlog + tasks, 0);
}

void
queue_count_backlog(Queue *queue, int64 partition, int64 tasks)
{
	Lane	   *lane = NULL;

	if (partition != 0)
		lane = tasks > 0 ? lane_for(queue, partition) : lane_find(queue, partition);
	if (lane == NULL)
		return;
	lane_count_backlog(lane, tasks);
	lane_release(lane);
}

bool
queue_take_backlog(Queue *queue, int64 partition, bool due, int64 tasks, int64 freed, int32 *backlog, int32 *most)
{
	Lane	   *lane = partition != 0 ? lane_for_task(queue, partition, due) : NULL;

	if (lane == NULL)
		return true;
	*backlog = lane->backlog;
	*most = lane_max_backlog(lane);
	if (*most > 0 && lane->backlog + tasks - freed > *most)
	{
		lane_release(lane);
		return false;
	}
	lane_count_backlog(lane, tasks);
	return true;
}

bool
queue_has_backlog_room(Queue *queue, int64 partition, int32 *backlog, int32 *most)
{
	if (!queue_take_backlog(queue, partition, true, 1, 0, backlog, most))
		return false;
	queue_count_backlog(queue, partition, -1);
	return true;
}

/* All of the queue that waited on disk has ended. */
void
queue_recount_backlogs(Queue *queue)
{
	short_list_foreach_modify(node, &queue->lanes)
	{
		Lane	   *lane = link_container(Lane, link, node);

		lane->backlog = Min(lane->backlog, lane->tasks - lane->running);
		lane_release(lane);
	}
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
		first = order_first(&lane->ready.set);
	return first != NULL ? order_container(Task, node, first) : NULL;
}

/* A task that waits for another attempt, the first of its list, or NULL. */
static Task *
first_retry(const Lane *lane)
{
	ShortNode  *node = short_list_first(&lane->scheduled);
	Task	   *task = node != NULL ? link_container(Task, link, node) : NULL;

	return task != NULL && (task->flags & TASK_FLAG_RETRIED) != 0 ? task : NULL;
}

/*
 * Is it to start nothing before a task of it has had its next attempt?  So a
 * partition that runs one at a time keeps its order over retries.
 */
static bool
lane_awaits_retry(const Lane *lane)
{
	return !short_list_is_empty(&lane->scheduled) && first_retry(lane) != NULL &&
		!queue_of_lane(lane)->settings.retries_pass && lane_limit(lane) == 1;
}

/* The task that it waits for so, the one that is due last as far as a look at some tells; NULL: none. */
Task *
lane_awaited_retry(const Lane *lane)
{
	Task	   *last = NULL;
	int			looked = 0;

	if (!lane_awaits_retry(lane))
		return NULL;
	short_list_foreach(node, &lane->scheduled)
	{
		Task	   *task = link_container(Task, link, node);

		if ((task->flags & TASK_FLAG_RETRIED) == 0 || ++looked > FANOUT_WORK_CHUNK)
			break;
		if (last == NULL || last->node.key < task->node.key)
			last = task;
	}
	return last;
}

/*
 * The task is SCHEDULED for another attempt.  It stays in the list while it is
 * ENDING: the transaction that cancels it may abort, and those behind it would
 * have passed it.
 */
void
lane_await_retry(Task *task)
{
	Lane	   *lane = lane_of(task);

	if (lane->partition == 0 || (task->flags & TASK_FLAG_RETRIED) != 0)
		return;
	task->flags |= TASK_FLAG_RETRIED;
	short_list_push_head(&lane->scheduled, &task->link);
	lane_settle(lane);
}

/* It is ready, has ended, or will have no other attempt. */
void
lane_await_retry_no_more(Task *task)
{
	if ((task->flags & TASK_FLAG_RETRIED) == 0)
		return;
	task->flags &= ~TASK_FLAG_RETRIED;
	short_list_delete(&lane_of(task)->scheduled, &task->link);
	lane_settle(lane_of(task));
}

/* How many tasks may start now; if none, when time will change that is told, if it will. */
static int32
startable_of(Lane *lane, TimestampTz *until)
{
	int64		count = lane->ready.set.count;
	Task	   *first = lane_first(lane);
	int32		limit;

	/* the main lane has no settings: most queues have no other, and this is done several times for each task */
	*until = 0;
	if (lane->partition == 0)
		return first != NULL ? count : 0;

	limit = lane_limit(lane);
	*until = lane_held_until(lane, first);
	if (*until != 0 || first == NULL || lane_settings(lane)->paused || lane_awaits_retry(lane))
		return 0;
	if (limit > 0)
		count = Min(count, limit - lane->running);
	if (lane_has_rate(lane))
		count = Min(count, Max(lane_rate_left(lane), 1));
	return Max(count, 0);
}

/*
 * Would nothing of the lane start, whatever it has in memory?  It is settled
 * when that changes.
 */
bool
lane_is_blocked(const Lane *lane)
{
	int32		limit = lane_limit(lane);

	return lane_settings(lane)->paused || lane->turn.aside || (limit > 0 && lane->running >= limit) ||
		lane_awaits_retry(lane);
}

/*
 * Ask for a refill when the window runs low.  A lane that is blocked only asks
 * when it has nothing at all, and not for more memory than its queue's share:
 * it could not use it.
 */
static void
check_refill(Lane *lane)
{
	Queue	   *queue = queue_of_lane(lane);
	int64		low;

	if (!window_is_bounded(&lane->ready) || lane->wants_refill)
		return;
	low = lane->partition == 0 ? queue_ready_share(queue) / 2 : LANE_LOW;
	if (lane_is_blocked(lane) ?
		lane->ready.set.count > 0 || !queue_is_within_share(queue) :
		window_first(&lane->ready) != NULL && (lane->ready.set.count >= low || !queue_is_within_share(queue)))
		return;
	if (window_is_refilling(database_of(queue), &lane->ready))
		return;
	if (lane->partition != 0)
	{
		lane_ask_for_refill(lane);
		if (queue->refill_held)
			return;				/* so does this one */
	}
	else
		lane->wants_refill = true;
	queue->wants_refill = true;
	keeper_wake(database_of(queue));
}

/* Partitions, strays and what is due may have waited for the queue to give out what it has. */
static void
check_held_refill(Queue *queue)
{
	if (queue->strays_held)
		queue_ask_for_lanes(queue);
	if ((queue->refill_held && queue_may_refill_partitions(queue)) || (queue->due_held && queue_can_use_due(queue)) ||
		queue_has_idle_lanes(queue))
	{
		queue->refill_held = queue->due_held = false;
		queue->wants_refill = true;
		keeper_wake(database_of(queue));
	}
}

/* Take the lane out of the set that it stands in. */
static void
leave_set(Lane *lane)
{
	if (lane->startable > 0)
		lane_stop_waiting_for_turn(lane);
	else if (lane->turn.aside)
		turn_bring_back(&queue_of_lane(lane)->throttled, &lane->turn);
}

/* Put it into the set that it belongs to; "until": the throttled ones, if nothing of it may start. */
static void
enter_set(Lane *lane, TimestampTz until)
{
	Queue	   *queue = queue_of_lane(lane);

	if (lane->startable > 0)
	{
		/* of lanes that are even, the one whose task has waited longest is first */
		lane_wait_for_turn(lane, lane_first(lane)->node.id);
	}
	else if (until != 0)
	{
		turn_set_aside(&queue->throttled, &lane->turn, until);
		keeper_wake_by(database_of(queue), until);
	}
}

void
lane_settle(Lane *lane)
{
	Queue	   *queue = queue_of_lane(lane);
	TimestampTz until;
	int32		startable = startable_of(lane, &until);
	bool		moves = (startable > 0) != (lane->startable > 0) || until != lane_throttled_until(lane);

	if (moves)
		leave_set(lane);
	queue->startable += startable - lane->startable;
	lane->startable = startable;
	if (moves)
		enter_set(lane, until);
	if (lane->limited)
		lane_drop_idle_limits(lane);
	check_refill(lane);
	lane_check_strays(lane);
	check_held_refill(queue);
}

/* Settle lanes whose time has come; false if there are more than one call should do. */
bool
queue_release_throttled(Queue *queue, TimestampTz now)
{
	for (int i = 0; i < FANOUT_WORK_CHUNK; i++)
	{
		OrderNode  *first = order_first(&queue->throttled);
		Lane	   *lane = first != NULL ? order_container(Lane, turn.node, first) : NULL;

		if (lane == NULL || first->key > now)
			return true;
		lane_settle(lane);
		lane_release(lane);
	}
	return false;
}

/* What holds for each partition has changed. */
void
queue_settle_lanes(Queue *queue)
{
	/* a lane that asks for a refill moves forward in the list, to where we have been */
	short_list_foreach_modify(node, &queue->lanes)
	{
		Lane	   *lane = link_container(Lane, link, node);

		lane_recount_rate(lane);
		lane_settle(lane);
		lane_release(lane);
	}
}

static void
count_spare(Queue *queue, int change)
{
	queue->spare += change;
	fanout_shared->spare += change;
}

static void
count_ready(Lane *lane, const Task *task, int change)
{
	Queue	   *queue = queue_of_lane(lane);

	queue->ready_count += change;
	if (ready_task_is_spare(task))
	{
		lane->spare += change;
		count_spare(queue, change);
	}
}

void
lane_add(Lane *lane, Task *task)
{
	order_insert(&lane->ready.set, &task->node);
	count_ready(lane, task, 1);
	lane_settle(lane);
}

void
lane_take(Lane *lane, Task *task)
{
	order_remove(&lane->ready.set, &task->node);
	count_ready(lane, task, -1);
	lane_settle(lane);
}

/* Into the schedule.  The lane knows those that may leave memory, as it can leave when all of its tasks can. */
void
lane_schedule(Lane *lane, Task *task)
{
	Queue	   *queue = queue_of_lane(lane);

	order_insert(&queue->scheduled.set, &task->node);
	if ((task->flags & (TASK_FLAG_UNTOUCHED | TASK_FLAG_CANCELLED)) != TASK_FLAG_UNTOUCHED)
		return;
	Assert((task->flags & TASK_FLAG_RETRIED) == 0);
	task->flags |= TASK_FLAG_DELAYED;
	count_spare(queue, 1);
	if (lane->partition == 0)
	{
		queue->main_delayed++;
		return;
	}
	short_list_push_tail(&lane->scheduled, &task->link);
	lane->spare++;
	queue->delayed++;
}

void
lane_unschedule(Lane *lane, Task *task)
{
	Queue	   *queue = queue_of_lane(lane);

	order_remove(&queue->scheduled.set, &task->node);
	if ((task->flags & TASK_FLAG_DELAYED) == 0)
		return;
	task->flags &= ~TASK_FLAG_DELAYED;
	count_spare(queue, -1);
	if (lane->partition == 0)
	{
		queue->main_delayed--;
		return;
	}
	short_list_delete(&lane->scheduled, &task->link);
	lane->spare--;
	queue->delayed--;
}

/* No task of the lane that is on disk only has a smaller id. */
int64
lane_disk_first(const Lane *lane)
{
	return lane->disk_before == DISK_BEFORE_MOST ? 1 : lane->ready.bound_id - lane->disk_before;
}

/* To be called when the bound has changed. */
static void
set_disk_first(Lane *lane, int64 id)
{
	lane->disk_before = Max(Min(lane->ready.bound_id - id, DISK_BEFORE_MOST), 0);
}

void
lane_lower_bound(Lane *lane, int64 key, int64 id)
{
	int64		first = window_is_bounded(&lane->ready) ? Min(lane_disk_first(lane), id) : id;

	if (!window_is_beyond(&lane->ready, key, id))
		lane->starved = false;	/* it comes before others: there may be memory for it */
	window_leave_on_disk(database_of(queue_of_lane(lane)), &lane->ready, key, id);
	set_disk_first(lane, first);
	lane_settle(lane);
}

/* A ready task at this place is, from now on, on disk only. */
void
lane_leave_on_disk(Lane *lane, int64 key, int64 id)
{
	lane_part_from_strays(lane);
	queue_of_lane(lane)->ranks_on_disk |= lane->partition != 0 && key != 0;
	lane_lower_bound(lane, key, id);
}

/* As for its window, which the caller settles. */
void
lane_end_refill(Lane *lane, int64 key, int64 id)
{
	int64		first = lane_disk_first(lane);

	window_end_refill(database_of(queue_of_lane(lane)), &lane->ready, key, id);
	set_disk_first(lane, first);
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
queue_next_lane(Queue *queue)
{
	Lane	   *lane;

	while ((lane = queue_lane_in_turn(queue)) != NULL)
	{
		if (lane_has_room_for_start(lane))
			return lane;

		/* others have taken what room there was when it was settled: it is throttled now */
		lane_settle(lane);
	}
	return NULL;
}

/* The lane has its turn: a task of it runs. */
void
lane_serve(Lane *lane, Task *task)
{
	lane_take_turn(lane);
	order_remove(&lane->ready.set, &task->node);
	count_ready(lane, task, -1);
	lane->running++;
	lane_settle(lane);
}

/* It was for nothing: the claim was undone. */
void
lane_unserve(Lane *lane)
{
	lane_give_turn_back(lane);
}
