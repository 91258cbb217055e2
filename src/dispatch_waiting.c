/*
 * dispatch_waiting.c
 *		Tasks on their way into memory, and those that wait there.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/timestamp.h"

#include "dispatch_internal.h"
#include "groups.h"
#include "lane.h"
#include "room.h"
#include "strays.h"
#include "wait.h"
#include "window.h"

static bool
seed_is_due(const TaskSeed *seed, TimestampTz now)
{
	return !seed->timed || seed->run_at <= now;
}

Task *
enter_from_seed(Queue *queue, Lane *lane, const TaskSeed *seed)
{
	Task	   *task = task_enter(queue, seed->task);

	if (task == NULL)
		return NULL;
	task->lane = link_to(lane);
	lane->tasks++;
	task->batch = seed->batch;
	task->rank = seed->rank;
	task->priority = seed->priority;
	task->cost = Max(seed->cost, 1);
	task->max_attempts = seed->max_attempts;
	task->deadline = seed->deadline;
	task->node.key = seed->timed ? seed->run_at : seed->rank;
	task->flags = (seed->timed ? TASK_FLAG_TIMED : 0) | (seed->early_join ? TASK_FLAG_EARLY_JOIN : 0);
	return task;
}

/* A task with this deadline (0: none) waits: the keeper is to look at it then. */
void
database_note_deadline(Database *database, TimestampTz deadline)
{
	if (deadline == 0 || deadline >= database->next_deadline)
		return;
	database->next_deadline = deadline;
	keeper_wake_by(database, deadline);
}

/* Insert a task that waits into the window of its state. */
void
insert_ready(Task *task)
{
	note_deadline(task);
	task->state = TASK_READY;
	task->node.key = task->rank;
	lane_add(lane_of(task), task);
}

void
insert_scheduled(Queue *queue, Task *task, TimestampTz due)
{
	note_deadline(task);
	task->state = TASK_SCHEDULED;
	task->node.key = due;
	lane_schedule(lane_of(task), task);
	if ((task->flags & (TASK_FLAG_UNTOUCHED | TASK_FLAG_CANCELLED)) == 0)
		lane_await_retry(task);
	keeper_wake_by(database_of(queue), due);
}

/*
 * A task that was to be cancelled while it ran, and has not ended with its
 * attempt, or that was met after its deadline: it is never due, and the keeper
 * gives it its outcome.
 */
void
insert_cancelled(Queue *queue, Task *task)
{
	Database   *database = database_of(queue);

	queue->timed++;
	lane_await_retry_no_more(task);
	insert_scheduled(queue, task, DT_NOEND);
	database->cancelled_waits = true;
	keeper_wake(database);
}

/* Insert a task that has not ended with its attempt, due then (0: now). */
void
insert_again(Queue *queue, Task *task, TimestampTz due, TimestampTz now)
{
	queue->waiting++;
	lane_count_backlog(lane_of(task), 1);
	if (task->flags & TASK_FLAG_CANCELLED)
		insert_cancelled(queue, task);
	else if (due > now)
	{
		queue->timed++;
		insert_scheduled(queue, task, due);
	}
	else
		insert_ready(task);
}

static void
count_reserved(Queue *queue, int change)
{
	queue->reserved += change;
	fanout_shared->reserved += change;
}

/*
 * (new) -> ENQUEUED.  NULL if the task is to stay on disk: then it is the
 * caller's to call queue_leave_on_disk() at commit.
 */
Task *
task_reserve(Queue *queue, const TaskSeed *seed, TimestampTz now)
{
	bool		due = seed_is_due(seed, now);
	Lane	   *lane;
	Task	   *task = NULL;

	if (fanout_shared->reserved >= reserved_most())
		return NULL;
	lane = lane_for_task(queue, seed->partition, due);
	if (lane == NULL)
		return NULL;
	lane->tasks++;				/* while room is made, it is not to go away */
	if (make_room(queue, due ? &lane->ready : &queue->scheduled, due ? seed->rank : seed->run_at, seed->task))
		task = enter_from_seed(queue, lane, seed);
	lane->tasks--;
	if (task == NULL)
	{
		lane_release(lane);
		return NULL;
	}
	task->state = TASK_ENQUEUED;
	task->flags |= TASK_FLAG_UNTOUCHED | TASK_FLAG_FRESH;
	if (lane->sample_task == 0)
		lane_set_sample(lane, seed->task);	/* better than none; it may be rolled back */
	task->ender = GetTopTransactionIdIfAny();	/* for who meets it between its commit and the callback */
	count_reserved(queue, 1);
	return task;
}

/*
 * ENQUEUED -> READY or SCHEDULED, or left on disk if that is where its place
 * is by now.  The fair group that it names counts from now on: not before its
 * commit.
 */
void
task_admit(Task *task, int64 group, TimestampTz now)
{
	Queue	   *queue = queue_of(task);
	bool		timed = (task->flags & TASK_FLAG_TIMED) != 0;
	TimestampTz run_at = task->node.key;

	Assert(task->state == TASK_ENQUEUED);
	note_deadline(task);
	count_reserved(queue, -1);
	queue_count_committed(queue, timed && run_at > now, 1);
	lane_set_sample(lane_of(task), task->node.id);
	lane_join_group(lane_of(task), group, task->node.id);

	if (timed && run_at > now)
	{
		if (!window_is_beyond(&queue->scheduled, run_at, task->node.id))
			insert_scheduled(queue, task, run_at);
		else
		{
			window_leave_on_disk(database_of(queue), &queue->scheduled, run_at, task->node.id);
			task_drop(task);
		}
	}
	else if (timed || !window_is_beyond(&lane_of(task)->ready, task->rank, task->node.id))
		insert_ready(task);
	else
	{
		lane_leave_on_disk(lane_of(task), task->rank, task->node.id);
		task_drop(task);
	}
}

/* ENQUEUED -> (gone) */
void
task_forget(Task *task)
{
	Assert(task->state == TASK_ENQUEUED);
	count_reserved(queue_of(task), -1);
	task_drop(task);
}

/* ENDING stays, but waits no longer for its enqueuer, the same transaction, to commit. */
void
task_admit_withdrawn(Task *task)
{
	Queue	   *queue = queue_of(task);

	Assert(task->state == TASK_ENDING && (task->flags & TASK_FLAG_NEW) != 0);
	if ((task->flags & TASK_FLAG_UNPLACED) == 0)
		count_reserved(queue, -1);
	queue_count_committed(queue, (task->flags & TASK_FLAG_WAS_SCHEDULED) != 0, 1);
	task->flags &= ~(TASK_FLAG_NEW | TASK_FLAG_UNPLACED);
}

/* So many enqueued tasks were committed that task_admit() does not count. */
void
queue_count_committed(Queue *queue, bool timed, int64 count)
{
	if (queue->waiting == 0)
		queue->ranks_on_disk = false;	/* nothing is on disk */
	queue->waiting += count;
	queue->enqueued += count;
	if (timed)
		queue->timed += count;
}

/* The task is on disk only, in this place or, if it is not the first of such, one that comes after. */
void
leave_on_disk(Queue *queue, int64 partition, int64 rank, bool timed, TimestampTz run_at, int64 task)
{
	Lane	   *lane;

	if (timed)
	{
		window_leave_on_disk(database_of(queue), &queue->scheduled, run_at, task);
		keeper_wake_by(database_of(queue), run_at);
	}
	else if ((lane = lane_find(queue, partition)) != NULL)
		lane_leave_on_disk(lane, rank, task);
	else
		queue_leave_stray(queue, rank, task);
}

/*
 * "count" tasks, the first of which is given and whose ids follow on, were
 * committed and are on disk only.  Timed ones all go by way of the schedule,
 * even when they are due.
 */
void
queue_leave_on_disk(Queue *queue, const TaskSeed *first, int64 count)
{
	queue_count_committed(queue, first->timed, count);
	database_note_deadline(database_of(queue), first->deadline);
	leave_on_disk(queue, first->partition, first->rank, first->timed, first->run_at, first->task);
}

/*
 * (on disk) -> READY or SCHEDULED, for a refill.  NULL if there is no room
 * for it.  The task must not be in memory.  An urgent one may go beyond the
 * queue's share: what is there is not to be evicted and comes later.
 */
Task *
task_load(Queue *queue, const TaskSeed *seed, ItemPointer tid, bool urgent, TimestampTz now)
{
	Lane	   *lane = lane_for_task(queue, seed->partition, seed_is_due(seed, now));
	int64		key = seed->timed ? seed->run_at : seed->rank;
	Task	   *task = NULL;

	if (lane == NULL)
		return NULL;
	lane->tasks++;				/* while room is made, it is not to go away */
	if ((seed->timed ? queue_room(queue) : queue_room_for_ready(queue)) ||
		window_evict_after(seed->timed ? &queue->scheduled : &lane->ready, key, seed->task) ||
		(urgent && (fanout_shared->free_tasks > 0 || evict_for(queue))))
		task = enter_from_seed(queue, lane, seed);
	lane->tasks--;
	if (task == NULL)
	{
		lane_release(lane);
		return NULL;
	}
	lane_set_sample(lane, seed->task);
	task->tid = *tid;
	task->flags |= TASK_FLAG_UNTOUCHED;
	lane_join_group(lane, seed->group, seed->task);
	if (seed_is_due(seed, now))
	{
		if (seed->timed && queue->timed > 0)
			queue->timed--;
		insert_ready(task);
	}
	else
		insert_scheduled(queue, task, seed->run_at);
	return task;
}

/* A task without a place in memory, at a rebuild. */
static void
rebuild_on_disk(Queue *queue, Lane *lane, const TaskSeed *seed, bool scheduled)
{
	database_note_deadline(database_of(queue), seed->deadline);
	if (scheduled)
	{
		queue->timed++;
		window_leave_on_disk(database_of(queue), &queue->scheduled, seed->run_at, seed->task);
	}
	else if (lane != NULL)
		lane_leave_on_disk(lane, seed->rank, seed->task);
	else
		queue_leave_stray(queue, seed->rank, seed->task);
}

/*
 * (on disk) -> READY or SCHEDULED, for a rebuild, which also counts.  A task
 * that has been attempted, or whose time was changed, has to be in memory;
 * NULL if the pool is used up: it has not been counted then, and is to be
 * entered as its row has it.  NULL as well for any other one that has no place.
 */
Task *
task_rebuild(Queue *queue, const TaskSeed *seed, ItemPointer tid, int attempts, bool own_due, TimestampTz now)
{
	bool		due = seed_is_due(seed, now);
	bool		scheduled = !due || (!own_due && seed->timed);
	Lane	   *lane = lane_for_task(queue, seed->partition, due);
	Task	   *task = NULL;

	if (lane == NULL && own_due && evict_any_lane())
		lane = lane_for(queue, seed->partition);
	if (lane != NULL)
	{
		lane->tasks++;			/* while room is made, it is not to go away */
		if (own_due ? (fanout_shared->free_tasks > 0 || evict_for(queue) || evict_any()) :
			make_room(queue, scheduled ? &queue->scheduled : &lane->ready,
					  scheduled ? seed->run_at : seed->rank, seed->task))
			task = enter_from_seed(queue, lane, seed);
		lane->tasks--;
	}
	queue->waiting += task != NULL || !own_due;
	if (task == NULL)
	{
		if (!own_due && lane != NULL)
			lane_count_backlog(lane, 1);
		if (!own_due)
			rebuild_on_disk(queue, lane, seed, scheduled);
		if (lane != NULL)
			lane_release(lane);
		return NULL;
	}
	lane_count_backlog(lane, 1);
	lane_set_sample(lane, seed->task);
	task->tid = *tid;
	task->attempts = attempts;
	task->flags |= own_due ? 0 : TASK_FLAG_UNTOUCHED;
	lane_join_group(lane, seed->group, seed->task);
	if (due)
		insert_ready(task);
	else
	{
		queue->timed++;
		insert_scheduled(queue, task, seed->run_at);
	}
	return task;
}

/*
 * SCHEDULED -> READY for what is due; false if there is more than one call
 * should do.  What is in memory need not wait for what is on disk: the order
 * of the schedule is none of the tasks' turns.
 */
bool
queue_promote_due(Queue *queue, TimestampTz now)
{
	if (!queue_release_throttled(queue, now))
		return false;
	for (int i = 0; i < FANOUT_WORK_CHUNK; i++)
	{
		OrderNode  *first = order_first(&queue->scheduled.set);
		Task	   *task;

		if (queue->scheduled.bound_key <= now && !queue->due_held)
			queue->wants_refill = true;
		if (first == NULL || first->key > now)
			return true;

		task = order_container(Task, node, first);
		Assert(task->state == TASK_SCHEDULED);
		lane_unschedule(lane_of(task), task);
		if (queue->timed > 0)
			queue->timed--;
		lane_await_retry_no_more(task);
		insert_ready(task);
	}
	return false;
}
