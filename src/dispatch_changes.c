/*
 * dispatch_changes.c
 *		Tasks that wait and are withdrawn, to be ended or changed.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/timestamp.h"

#include "dispatch_internal.h"
#include "groups.h"
#include "lane.h"
#include "room.h"
#include "window.h"

/* The task's worker is to be told to stop; if it waits by now, it is not to start again. */
void
task_request_cancel(Task *task)
{
	Queue	   *queue = queue_of(task);
	bool		waits = task->state == TASK_READY || task->state == TASK_SCHEDULED;

	if (task->state == TASK_READY)
		lane_take(lane_of(task), task);
	else if (task->state == TASK_SCHEDULED)
	{
		lane_unschedule(lane_of(task), task);
		queue->timed -= queue->timed > 0;
	}
	task->flags |= TASK_FLAG_CANCELLED;
	if (waits)					/* else it ends, or will be seen when its attempt ends */
		insert_cancelled(queue, task);
}

/*
 * READY, SCHEDULED, or ENQUEUED by the same transaction -> ENDING: nobody may
 * claim it while a transaction ends or changes it.
 */
void
task_withdraw(Task *task, TransactionId ender)
{
	Assert(task->state == TASK_READY || task->state == TASK_SCHEDULED || task->state == TASK_ENQUEUED);
	task->flags &= ~TASK_FLAG_WAS_SCHEDULED;
	if (task->state == TASK_SCHEDULED)
	{
		lane_unschedule(lane_of(task), task);
		task->flags |= TASK_FLAG_WAS_SCHEDULED;
	}
	else if (task->state == TASK_READY)
		lane_take(lane_of(task), task);
	else
		task->flags |= TASK_FLAG_NEW | ((task->flags & TASK_FLAG_TIMED) != 0 ? TASK_FLAG_WAS_SCHEDULED : 0);
	task->state = TASK_ENDING;
	task->ender = ender;
	task->note = -1;
}

/*
 * (on disk) -> ENDING.  NULL if the pool is used up.  The task must not be in
 * memory; "pending" if the same transaction has enqueued it.
 */
Task *
task_withdraw_from_disk(Queue *queue, const TaskSeed *seed, TransactionId ender, bool pending)
{
	Lane	   *lane = lane_for(queue, seed->partition);
	Task	   *task = NULL;

	if (lane == NULL && evict_any_lane())
		lane = lane_for(queue, seed->partition);
	if (lane == NULL)
		return NULL;
	lane->tasks++;				/* while room is made, it is not to go away */
	if (fanout_shared->free_tasks > 0 || evict_for(queue) || evict_any())
		task = enter_from_seed(queue, lane, seed);
	lane->tasks--;
	if (task == NULL)
	{
		lane_release(lane);
		return NULL;
	}
	if (!pending || lane->sample_task == 0)
		lane_set_sample(lane, seed->task);
	task->flags |= TASK_FLAG_UNTOUCHED; /* only such are on disk */
	if (seed->timed)
		task->flags |= TASK_FLAG_WAS_SCHEDULED;
	if (pending)
		task->flags |= TASK_FLAG_NEW | TASK_FLAG_UNPLACED;
	task->state = TASK_ENDING;
	task->ender = ender;
	task->note = -1;
	return task;
}

/* ENDING -> (gone): it had ended before it was withdrawn from disk. */
void
task_forget_withdrawn(Task *task)
{
	Assert(task->state == TASK_ENDING);
	task_drop(task);
}

/*
 * ENDING -> (on disk): its row was changed between being read and its
 * withdrawal from disk, and this is where the task is.  A refill may have
 * passed it by, as it was in memory.
 */
void
task_put_back_on_disk(Task *task, Queue *queue, const TaskTerms *terms)
{
	Assert(task->state == TASK_ENDING);
	database_note_deadline(database_of(queue), terms->deadline);
	leave_on_disk(queue, terms->partition, terms->rank, terms->timed, terms->due, task->node.id);
	task_drop(task);
}

/* ENDING -> ENQUEUED, or (on disk) if it had no place: its enqueuer, the same transaction, goes on. */
static void
restore_enqueued(Task *task)
{
	if ((task->flags & TASK_FLAG_UNPLACED) != 0)
	{
		task_drop(task);		/* at commit, queue_leave_on_disk() will be told */
		return;
	}
	task->flags &= ~(TASK_FLAG_NEW | TASK_FLAG_WAS_SCHEDULED);
	task->state = TASK_ENQUEUED;
}

/* ENDING -> what it was before: the transaction that was to end or change it, or a savepoint of that, has aborted. */
void
task_restore(Task *task)
{
	Queue	   *queue = queue_of(task);

	Assert(task->state == TASK_ENDING);
	if (task->flags & TASK_FLAG_NEW)
		restore_enqueued(task);
	else if (task->flags & TASK_FLAG_CANCELLED)
	{
		/* somebody else has cancelled it meanwhile */
		if (task->flags & TASK_FLAG_WAS_SCHEDULED)
			queue->timed -= queue->timed > 0;
		insert_cancelled(queue, task);
	}
	else if (task->flags & TASK_FLAG_WAS_SCHEDULED)
		insert_scheduled(queue, task, task->node.key);
	else
		insert_ready(task);
}

/* What a withdrawn task was before. */
TaskTerms
task_terms(const Task *task)
{
	TaskTerms	terms;

	Assert(task->state == TASK_ENDING);
	terms.partition = lane_of(task)->partition;
	terms.group = 0;
	terms.rank = task->rank;
	terms.priority = task->priority;
	terms.timed = (task->flags & TASK_FLAG_TIMED) != 0;
	terms.due = (task->flags & TASK_FLAG_WAS_SCHEDULED) != 0 ? task->node.key : 0;
	terms.deadline = task->deadline;
	terms.cost = task->cost;
	terms.max_attempts = task->max_attempts;
	terms.tid = task->tid;
	return terms;
}

/* The task, which stands in no set, belongs to the lane from now on. */
static void
enter_lane(Task *task, Lane *lane)
{
	Lane	   *old = lane_of(task);

	if (old == lane)
		return;
	task->lane = link_to(lane);
	task->queue = lane->turn.queue;
	lane->tasks++;
	lane_set_sample(lane, task->node.id);
	lane_forget_sample(old, task->node.id);
	old->tasks--;
	lane_release(old);
}

/*
 * Is there a place in memory for a changed task that has an entry?  It must
 * have one if its row alone does not say what it is, and while a refill reads
 * that may see the row as it was.
 */
static bool
stays_in_memory(Task *task, Queue *queue, bool scheduled)
{
	Window	   *window = scheduled ? &queue->scheduled : &lane_of(task)->ready;
	int64		key = scheduled ? task->node.key : task->rank;

	if ((task->flags & TASK_FLAG_UNTOUCHED) == 0 || task->kept_for != 0 ||
		(!scheduled && (task->flags & TASK_FLAG_TIMED) != 0))
		return true;
	return !window_is_beyond(window, key, task->node.id) &&
		(queue_is_within_share(queue) || window_evict_after(window, key, task->node.id));
}

/*
 * ENDING -> READY, SCHEDULED or (on disk): the transaction that has changed
 * the task has committed.  A refill that began before may have a snapshot in
 * which it has not: the task is in memory then until that refill has ended,
 * whichever queue or order it reads, so that it does not load what it sees.
 */
void
task_change(Task *task, Queue *target, const TaskTerms *terms, TimestampTz now)
{
	Queue	   *queue = queue_of(task);
	Database   *database = database_of(queue);
	bool		scheduled = terms->due > now;
	Lane	   *lane = lane_for(target, terms->partition);

	Assert(task->state == TASK_ENDING);
	database->changes++;
	if (lane == NULL && evict_any_lane())
		lane = lane_for(target, terms->partition);	/* memory was built anew, and it is not kept any more */
	if (lane == NULL)
	{
		lane_count_backlog(lane_of(task), -1);
		task_change_on_disk(task->node.id, queue, target, terms);
		task_drop(task);
		return;
	}
	queue->waiting--;
	lane_count_backlog(lane_of(task), -1);
	if ((task->flags & TASK_FLAG_WAS_SCHEDULED) != 0 && queue->timed > 0)
		queue->timed--;
	lane_await_retry_no_more(task);
	enter_lane(task, lane);
	lane_join_group(lane, terms->group, task->node.id);
	lane_count_backlog(lane, 1);
	task->flags &= ~(TASK_FLAG_NEW | TASK_FLAG_UNPLACED | TASK_FLAG_TIMED);
	task->flags |= terms->timed ? TASK_FLAG_TIMED : 0;
	task->rank = terms->rank;
	task->priority = terms->priority;
	task->deadline = terms->deadline;
	task->cost = terms->cost;
	task->max_attempts = terms->max_attempts;
	task->node.key = scheduled ? terms->due : terms->rank;
	task->tid = terms->tid;
	task->kept_for = (database->refill_serial & 1) != 0 ? database->refill_serial : 0;

	target->waiting++;
	if (task->flags & TASK_FLAG_CANCELLED)
		insert_cancelled(target, task);
	else if (stays_in_memory(task, target, scheduled))
	{
		if (scheduled)
		{
			target->timed++;
			insert_scheduled(target, task, terms->due);
		}
		else
			insert_ready(task);
	}
	else
	{
		target->timed += scheduled;
		note_deadline(task);
		leave_on_disk(target, terms->partition, terms->rank, scheduled, terms->due, task->node.id);
		task_drop(task);
	}
}

/* ENDING -> (gone): the queue that it was to move to was dropped by the same transaction. */
void
task_forget_changed(Task *task)
{
	Queue	   *queue = queue_of(task);

	Assert(task->state == TASK_ENDING);
	queue->waiting--;
	lane_count_backlog(lane_of(task), -1);
	if ((task->flags & TASK_FLAG_WAS_SCHEDULED) != 0 && queue->timed > 0)
		queue->timed--;
	task_drop(task);
}

/* The same for a task that is not in memory, as that was built anew meanwhile, with the row as it was. */
void
task_change_on_disk(int64 task, Queue *from, Queue *target, const TaskTerms *terms)
{
	database_of(target)->changes++;
	if (from != NULL)
	{
		from->waiting--;
		target->waiting++;
	}
	database_note_deadline(database_of(target), terms->deadline);
	leave_on_disk(target, terms->partition, terms->rank, terms->timed, terms->due, task);
}
