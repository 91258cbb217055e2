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
#include "room.h"
#include "wait.h"
#include "window.h"

/* The lane's rate limit; none if its view has no windows. */
static RateView
rate_of(Lane *lane)
{
	const RateLimit *limit = &lane->settings.rate;
	RateView	view;

	if (limit->units == 0)
		limit = &queue_of_lane(lane)->settings.partition_rate;
	view.log = &lane->rate_log;
	view.limits = limit;
	view.uses = &lane->rate_use;
	view.count = lane->key.partition != 0 && limit->units > 0 ? 1 : 0;
	return view;
}

/*
 * The starts that a crash may make us forget, as they were not on disk yet:
 * never more than these are left to the journal, and a rebuild takes them for
 * started.
 */
int64
rate_slack(const RateView *rate)
{
	int64		slack = PG_INT64_MAX;

	for (int i = 0; i < rate->count; i++)
	{
		double		units = (double) rate->limits[i].units;
		double		while_journaled = units * fanout_journal_interval * 2000 / rate->limits[i].period;
		double		of_window = Max(units / 16, while_journaled);

		slack = Min(slack, (int64) Max(1, Min(of_window, units)));
	}
	return slack;
}

/* Before a crash some may have started that nobody knows of. */
void
lane_remember_unknown_starts(Lane *lane, TimestampTz at)
{
	Queue	   *queue = queue_of_lane(lane);
	RateView	rate = rate_of(lane);
	int64		unknown = rate_slack(&rate);

	/* a lane that is new since may be one whose starts found no place */
	if (queue->loaded_at != 0 && queue->starts_lost)
		unknown = rate.limits->units;

	if (rate.count > 0 && at + rate.limits->period > GetCurrentTimestamp())
		rate_take(&rate, unknown, Max(at, lane->rate_log.seen));
}

Lane *
lane_for_task(Queue *queue, int64 partition, bool due)
{
	Lane	   *lane = lane_find(queue, partition);

	if (lane != NULL)
		return lane;
	if (due && fanout_shared->free_lanes == 0)
		evict_lane_for(queue);
	lane = lane_enter(queue, partition);
	if (lane == NULL)
		return NULL;
	lane_begin_turns(lane);

	/* some of its tasks may be strays: all of it counts as being on disk until a refill has looked */
	if (queue->strays.bounded)
		lane_leave_on_disk(lane, PG_INT64_MIN, queue->strays.bound_id);

	if (queue->loaded_at != 0)
		lane_remember_unknown_starts(lane, queue->loaded_at);
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
	if (lane->key.partition == 0 || lane->tasks > 0 || lane->backlog > 0 || lane->named || lane->setters > 0 ||
		lane->ready.bounded || lane->ready.refilling || lane->throttled_until != 0)
		return;
	Assert(lane->running == 0 && lane->startable == 0);
	lane_forget_turns(lane);
	lane_free(lane);
	lanes_freed();
}

/* Give back the pool entry of a task that stands in no set. */
void
task_drop(Task *task)
{
	Lane	   *lane = task->lane;

	lane_await_retry_no_more(task);
	task_free(task);
	lane->tasks--;
	lane_release(lane);
}

void
queue_leave_stray(Queue *queue, int64 task)
{
	window_leave_on_disk(&queue->strays, 0, task);
	fanout_shared->has_strays = true;
	if (!queue_may_have_lane(queue))
		return;					/* lanes_freed() asks for the refill */
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

		if (queue->state == QUEUE_FREE || !queue->strays.bounded)
			continue;
		any = true;
		queue->wants_refill = true;
		keeper_wake(database_of(queue));
	}
	fanout_shared->has_strays = any;
}

int32
lane_limit(const Lane *lane)
{
	if (lane->key.partition == 0)
		return 0;
	return lane->settings.concurrency > 0 ? lane->settings.concurrency :
		queue_of_lane(lane)->settings.partition_concurrency;
}

int32
lane_max_backlog(const Lane *lane)
{
	if (lane->key.partition == 0)
		return 0;
	return lane->settings.max_backlog > 0 ? lane->settings.max_backlog :
		queue_of_lane(lane)->settings.partition_max_backlog;
}

/*
 * A lane stays as long as it counts a task.  One that had to make room for
 * another (lane_evict) and came back knows less than there are: it counts those
 * that came since, and never below 0.
 */
void
lane_count_backlog(Lane *lane, int64 tasks)
{
	if (lane->key.partition != 0)
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
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &queue->lanes)
	{
		Lane	   *lane = dlist_container(Lane, link, iter.cur);

		lane->backlog = Min(lane->backlog, lane->tasks - lane->running);
		lane_release(lane);
	}
}

bool
lane_keep(Queue *queue, int64 partition)
{
	Lane	   *lane = lane_for(queue, partition);

	if (lane != NULL)
		lane->setters++;
	return lane != NULL;
}

void
lane_let_go(Queue *queue, int64 partition)
{
	Lane	   *lane = lane_find(queue, partition);

	if (lane == NULL)
		return;
	Assert(lane->setters > 0);
	lane->setters--;
	lane_release(lane);
}

bool
lane_set(Queue *queue, int64 partition, const LaneSettings *settings)
{
	Lane	   *lane = lane_for(queue, partition);

	if (lane == NULL)
		return false;
	lane->settings = *settings;
	/* its worker's word to wait keeps it in the set of throttled lanes until that is over */
	lane->named = settings->concurrency > 0 || settings->weight != 1 || settings->paused || settings->rate.units > 0 ||
		settings->max_backlog > 0;
	lane_recount_rate(lane);
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

/*
 * Is it to start nothing before a task of it has had its next attempt?  So a
 * partition that runs one at a time keeps its order over retries.
 */
static bool
lane_awaits_retry(const Lane *lane)
{
	return !dlist_is_empty((dlist_head *) &lane->retries) && !queue_of_lane(lane)->settings.retries_pass && lane_limit(lane) == 1;
}

/* The task that it waits for so, the one that is due last as far as a look at some tells; NULL: none. */
Task *
lane_awaited_retry(const Lane *lane)
{
	Task	   *last = NULL;
	int			looked = 0;
	dlist_iter	iter;

	if (!lane_awaits_retry(lane))
		return NULL;
	dlist_foreach(iter, &((Lane *) lane)->retries)
	{
		Task	   *task = dlist_container(Task, link, iter.cur);

		if (last == NULL || last->node.key < task->node.key)
			last = task;
		if (++looked == FANOUT_WORK_CHUNK)
			break;
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
	Lane	   *lane = task->lane;

	if (lane->key.partition == 0 || (task->flags & TASK_FLAG_RETRIED) != 0)
		return;
	task->flags |= TASK_FLAG_RETRIED;
	dlist_push_tail(&lane->retries, &task->link);
	lane_settle(lane);
}

/* It is ready, has ended, or will have no other attempt. */
void
lane_await_retry_no_more(Task *task)
{
	if ((task->flags & TASK_FLAG_RETRIED) == 0)
		return;
	task->flags &= ~TASK_FLAG_RETRIED;
	dlist_delete(&task->link);
	lane_settle(task->lane);
}

/* When time lets a start of so many units happen; 0: now.  Or, without a task, when there is nothing to remember. */
static TimestampTz
throttled_until(Lane *lane, const RateView *rate, const Task *first)
{
	TimestampTz now;

	if (rate->count == 0 && lane->settings.held_until == 0)
		return 0;
	now = GetCurrentTimestamp();
	if (lane->settings.held_until > now)
		return lane->settings.held_until;
	if (rate->count == 0)
		return 0;

	/* what is on disk is known once there is a unit to start it with */
	if (first != NULL || lane->ready.bounded)
		return rate_admits(rate, first != NULL ? first->cost : 1, now);
	return rate_left(rate, now) < rate->limits->units ? rate_empty_at(rate) : 0;
}

/* How many tasks may start now; if none, when time will change that is told, if it will. */
static int32
startable_of(Lane *lane, TimestampTz *until)
{
	int64		count = lane->ready.set.count;
	Task	   *first = lane_first(lane);
	int32		limit;
	RateView	rate;

	/* the main lane has no settings: most queues have no other, and this is done several times for each task */
	*until = 0;
	if (lane->key.partition == 0)
		return first != NULL ? count : 0;

	limit = lane_limit(lane);
	rate = rate_of(lane);
	*until = throttled_until(lane, &rate, first);
	if (*until != 0 || first == NULL || lane->settings.paused || lane_awaits_retry(lane))
		return 0;
	if (limit > 0)
		count = Min(count, limit - lane->running);
	if (rate.count > 0)
		count = Min(count, Max(rate_left(&rate, GetCurrentTimestamp()), 1));
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

	return lane->settings.paused || lane->throttled_until != 0 || (limit > 0 && lane->running >= limit) ||
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

	if (!lane->ready.bounded || lane->wants_refill || lane->ready.refilling)
		return;
	low = lane->key.partition == 0 ? queue_window_limit() / 2 : LANE_LOW;
	if (lane_is_blocked(lane) ?
		lane->ready.set.count > 0 || !queue_is_within_share(queue) :
		window_first(&lane->ready) != NULL && (lane->ready.set.count >= low || !queue_is_within_share(queue)))
		return;
	if (lane->key.partition != 0)
		lane_ask_for_refill(lane);
	else
		lane->wants_refill = true;
	queue->wants_refill = true;
	keeper_wake(database_of(queue));
}

/* Take the lane out of the set that it stands in. */
static void
leave_set(Lane *lane)
{
	if (lane->startable > 0)
		lane_stop_waiting_for_turn(lane);
	else if (lane->throttled_until != 0)
		order_remove(&queue_of_lane(lane)->throttled, &lane->turn.node);
}

/* Put it into the set that it belongs to. */
static void
enter_set(Lane *lane)
{
	Queue	   *queue = queue_of_lane(lane);

	if (lane->startable > 0)
	{
		/* of lanes that are even, the one whose task has waited longest is first */
		lane_wait_for_turn(lane, lane_first(lane)->key.task);
	}
	else if (lane->throttled_until != 0)
	{
		lane->turn.node.key = lane->throttled_until;
		lane->turn.node.id = lane->key.partition;
		order_insert(&queue->throttled, &lane->turn.node);
		keeper_wake_by(database_of(queue), lane->throttled_until);
	}
}

void
lane_settle(Lane *lane)
{
	Queue	   *queue = queue_of_lane(lane);
	TimestampTz until;
	int32		startable = startable_of(lane, &until);

	if ((startable > 0) != (lane->startable > 0) || until != lane->throttled_until)
	{
		leave_set(lane);
		queue->startable += startable - lane->startable;
		lane->startable = startable;
		lane->throttled_until = until;
		enter_set(lane);
	}
	else
	{
		queue->startable += startable - lane->startable;
		lane->startable = startable;
	}
	check_refill(lane);
}

/* Settle lanes whose time has come; false if there are more than one call should do. */
bool
queue_release_throttled(Queue *queue, TimestampTz now)
{
	for (int i = 0; i < FANOUT_WORK_CHUNK; i++)
	{
		OrderNode  *first = queue->throttled.first;

		if (first == NULL || first->key > now)
			return true;
		lane_settle(order_container(Lane, turn.node, first));
		lane_release(order_container(Lane, turn.node, first));
	}
	return false;
}

/* The lane's rate limit has changed. */
void
lane_recount_rate(Lane *lane)
{
	RateView	rate = rate_of(lane);

	if (rate.count > 0)
		rate_recount(&rate, GetCurrentTimestamp());
	else
	{
		rate_log_free(&lane->rate_log);
		memset(&lane->rate_use, 0, sizeof(RateUse));
	}
}

bool
lane_has_rate(Lane *lane)
{
	return rate_of(lane).count > 0;
}

/* A task of the lane starts. */
void
lane_start(Lane *lane, int32 cost, TimestampTz at)
{
	RateView	rate = rate_of(lane);

	if (rate.count > 0)
	{
		rate_take(&rate, cost, at);
		audit_start(&rate, cost, at);
	}
}

/* May so many more units of the lane be started and not be on disk? */
bool
lane_has_slack(Lane *lane, int32 cost)
{
	RateView	rate = rate_of(lane);

	return rate.count == 0 || lane->unjournaled + cost <= rate_slack(&rate);
}

/* It has not started after all. */
void
lane_unstart(Lane *lane, int32 cost, TimestampTz at)
{
	RateView	rate = rate_of(lane);

	if (rate.count > 0)
		rate_give_back(&rate, cost, at);
}

/* For a rebuild: a task of the lane has started then. */
void
lane_remember_start(Lane *lane, int32 cost, TimestampTz at)
{
	RateView	rate = rate_of(lane);

	if (rate.count > 0)
		rate_take(&rate, cost, Max(at, lane->rate_log.seen));
}

/* What holds for each partition has changed. */
void
queue_settle_lanes(Queue *queue)
{
	dlist_mutable_iter iter;

	/* a lane that asks for a refill moves forward in the list, to where we have been */
	dlist_foreach_modify(iter, &queue->lanes)
	{
		Lane	   *lane = dlist_container(Lane, link, iter.cur);

		lane_recount_rate(lane);
		lane_settle(lane);
		lane_release(lane);
	}
}

static void
count_ready(Lane *lane, const Task *task, int change)
{
	Queue	   *queue = queue_of_lane(lane);

	queue->ready_count += change;
	if (ready_task_is_spare(task))
	{
		lane->spare += change;
		queue->spare += change;
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
	queue->spare++;
	if (lane->key.partition == 0)
	{
		queue->main_delayed++;
		return;
	}
	dlist_push_tail(&lane->delayed, &task->link);
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
	queue->spare--;
	if (lane->key.partition == 0)
	{
		queue->main_delayed--;
		return;
	}
	dlist_delete(&task->link);
	lane->spare--;
	queue->delayed--;
}

/* A ready task at this place is, from now on, on disk only. */
void
lane_leave_on_disk(Lane *lane, int64 key, int64 id)
{
	lane->disk_first = lane->ready.bounded ? Min(lane->disk_first, id) : id;
	if (!window_is_beyond(&lane->ready, key, id))
		lane->starved = false;	/* it comes before others: there may be memory for it */
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
queue_next_lane(Queue *queue)
{
	Lane	   *lane;

	while ((lane = queue_lane_in_turn(queue)) != NULL)
	{
		RateView	rate = rate_of(lane);

		if (rate_has_room(&rate))
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
