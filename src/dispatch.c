/*
 * dispatch.c
 *		The transitions of tasks, leases and queues: how tasks and queues end.
 *
 * Each function of the dispatch files is one edge of the state machines that
 * README.md shows as tables: it asserts the state that it starts from, moves
 * the task or lease, and keeps the counts.  Nothing else changes a state.  All
 * of it runs under the dispatcher lock, so a limit is compared and taken in one
 * step, and a claim that is not committed yet counts like any other.
 *
 * The others are dispatch_waiting.c (how tasks come to memory and wait),
 * dispatch_leases.c (claims and leases) and dispatch_changes.c (tasks that are
 * withdrawn, to be ended or changed).
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/timestamp.h"

#include "dispatch_internal.h"
#include "strays.h"
#include "wait.h"

/* RUNNING -> READY, or SCHEDULED if it is due later than now. */
void
task_requeue(Task *task, TimestampTz due, bool counts, TimestampTz now)
{
	Queue	   *queue = queue_of(task);

	Assert(task->state == TASK_RUNNING);
	lease_end(lease_of(task));
	if (!counts)
		task->attempts--;
	insert_again(queue, task, due, now);
}

/* The task has its outcome although nobody withdrew it: memory was built anew in between. */
void
task_end_unforeseen(Task *task, Outcome outcome)
{
	task_withdraw(task, InvalidTransactionId);
	task_end(task, outcome);
}

/* Have the keeper look whether the batch has ended by its join. */
void
database_note_dirty_join(Database *database, int64 batch)
{
	for (int i = 0; i < database->dirty_join_count; i++)
	{
		if (database->dirty_joins[i] == batch)
			return;
	}
	if (database->dirty_join_count < FANOUT_DIRTY_JOINS)
		database->dirty_joins[database->dirty_join_count++] = batch;
	else
		database->dirty_join_overflow = true;
	keeper_wake(database);
}

/*
 * RUNNING or ENDING -> (gone): the task has its outcome.  While a refill
 * reads that may come upon it, an ENDED tombstone stays: the refill's snapshot
 * may not show the outcome yet.
 */
void
task_end(Task *task, Outcome outcome)
{
	Queue	   *queue = queue_of(task);
	Database   *database = database_of(queue);

	Assert(task->state == TASK_RUNNING || task->state == TASK_ENDING);
	if (task->state == TASK_RUNNING)
		lease_end(lease_of(task));
	else
	{
		lane_await_retry_no_more(task);
		queue->waiting--;
		lane_count_backlog(lane_of(task), -1);
		if ((task->flags & TASK_FLAG_WAS_SCHEDULED) && queue->timed > 0)
			queue->timed--;
	}

	if (outcome == OUTCOME_SUCCEEDED)
		queue->succeeded++;
	else if (outcome == OUTCOME_FAILED)
		queue->failed++;
	else
		queue->cancelled++;

	results_note_end(database, task);
	if (task->flags & TASK_FLAG_EARLY_JOIN)
		database_note_dirty_join(database, task->batch);

	if (queue->refilling > 0 || task_is_kept(task, database))
	{
		Lane	   *lane = lane_of(task);

		task->state = TASK_ENDED;
		task->lane = 0;
		short_list_push_tail(&database->ended, &task->link);
		lane->tasks--;
		lane_release(lane);
	}
	else
		task_drop(task);
}

/* ENDED -> (gone), for all of the database: no refill is reading. */
void
database_forget_ended(Database *database)
{
	short_list_foreach_modify(node, &database->ended)
	{
		short_list_delete(&database->ended, node);
		task_free(link_container(Task, link, node));
	}
}

/* OPEN -> CLOSED: a transaction drops or purges the queue.  False if another one does already. */
bool
queue_close(Queue *queue, bool dropping, TransactionId closer)
{
	if (queue->state == QUEUE_CLOSED)
		return false;
	queue->was_new = queue->state == QUEUE_NEW;
	queue->state = QUEUE_CLOSED;
	queue->dropping = dropping;
	queue->closer = closer;
	queue->epoch++;
	return true;
}

/* So many of its waiting tasks that are on disk have been cancelled: all there are. */
void
queue_purged_on_disk(Queue *queue, int64 count)
{
	int64		timed = Max(queue->timed - (int64) queue->scheduled.set.count, 0);

	queue->waiting -= count;
	queue->cancelled += count;
	queue->timed -= Min(timed, count);
	if (count > 0)
		queue_recount_backlogs(queue);
}

/* CLOSED -> what it was before. */
void
queue_reopen(Queue *queue)
{
	if (queue->state != QUEUE_CLOSED)
		return;
	queue->state = queue->was_new ? QUEUE_NEW : QUEUE_OPEN;
	queue->wants_refill = true;
	keeper_wake(database_of(queue));
	queue_wake(queue);
}

/* Free a task of the queue that is being removed, and its lease with it. */
static void
forget_if_of_queue(Task *task, void *arg)
{
	Queue	   *queue = arg;

	if (task->queue != queue_index(queue))
		return;
	if (task->state == TASK_RUNNING)
		lease_end(lease_of(task));
	else if (task->state == TASK_ENDED)
		short_list_delete(&database_of(queue)->ended, &task->link);
	task_free(task);			/* the lanes go as a whole */
}

/*
 * The queue has been dropped, or its creation rolled back: nothing of it
 * stays in memory.  Who waits for it is woken and will find it gone.
 */
void
queue_remove(Queue *queue)
{
	task_iterate(forget_if_of_queue, queue);

	/* a refill of another queue may see tasks that have moved here from there */
	database_of(queue)->refill_void = true;
	fanout_shared->reserved -= queue->reserved;
	fanout_shared->spare -= queue->spare;
	queue_clear_lanes(queue);
	lanes_freed();
	stop_all_waiting_for(queue);
	results_wake_all(database_of(queue));
	queue->state = QUEUE_FREE;
}
