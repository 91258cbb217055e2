/*
 * commit_hooks.c
 *		What waits for the end of the transaction to take effect in memory.
 *
 * Every function that changes something leaves a note (pending.c), with the nest
 * level of the transaction it ran in.  At commit the notes are carried out in
 * their order; at abort, of the transaction or of a subtransaction, they are
 * undone in reverse.  The commit callback runs after the transaction's rows
 * have become visible to others, so a worker that is woken finds its row; it
 * runs before the transaction's locks are released, so who waited for such a
 * lock finds memory up to date.
 *
 * Nothing in the callbacks allocates or throws: an error after commit would
 * be a PANIC.  What a note speaks of may have gone meanwhile (DROP EXTENSION,
 * drop_queue), or have another pool entry after a rebuild: notes hold numbers,
 * and pool entries as hints only.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "lane.h"
#include "lane_limits.h"
#include "pending.h"
#include "points.h"
#include "return.h"
#include "segments.h"
#include "starts.h"
#include "wait.h"

/* The note's lane is kept no longer; one of a queue that was built anew never was. */
static void
let_lane_go(const Pending *op, Queue *queue)
{
	if (queue->generation == op->generation)
		lane_let_go(queue, op->u.lane.partition);
}

/* Let others have the lock in the middle of long work. */
static void
breathe(int64 done)
{
	if (done % FANOUT_WORK_CHUNK == FANOUT_WORK_CHUNK - 1)
	{
		dispatcher_unlock();
		FANOUT_POINT(NOTES_CHUNK);
		dispatcher_lock();
	}
}

/* The pool entry of one of the note's tasks, or NULL; it has no other one until it is committed. */
static Task *
enqueued_task(const Pending *op, int64 i)
{
	Task	   *task = op->u.enqueue.places[i].entry;

	if (!task_is(task, MyDatabaseId, op->u.enqueue.first.task + i) || task->state != TASK_ENQUEUED)
		return NULL;
	return task;
}

/* The note's tasks are pending no more; a queue that was built anew never counted them. */
static void
count_pending_off(const Pending *op, Queue *queue)
{
	if (queue->generation == op->generation)
		queue->pending -= op->u.enqueue.count;
}

/* The note's tasks are counted in their lanes, or no more. */
static void
count_in_lanes(const Pending *op, int by)
{
	Queue	   *queue = queue_of_note(op);

	if (op->u.enqueue.partitions == NULL)
	{
		if (queue != NULL)
			queue_count_backlog(queue, op->u.enqueue.first.partition, by * op->u.enqueue.counted);
		return;
	}
	for (int64 i = 0; i < op->u.enqueue.counted && queue != NULL; i++)
	{
		queue_count_backlog(queue, op->u.enqueue.partitions[i], by);
		breathe(i);
		queue = queue_of_note(op);
	}
}

/* "count" of the note's tasks, from the i-th on, have no pool entry. */
static void
leave_on_disk(const Pending *op, Queue *queue, int64 i, int64 count)
{
	TaskSeed	seed = op->u.enqueue.first;

	seed.task += i;
	if (op->u.enqueue.partitions != NULL)
		seed.partition = op->u.enqueue.partitions[i];
	queue_leave_on_disk(queue, &seed, count);
}

/*
 * One of the note's tasks has an entry that the note does not know: this
 * transaction has withdrawn it to change or end it, or somebody else has met
 * its row, which is committed already, before we came to it.
 */
static void
count_committed(const Pending *op, Queue *queue, Task *task)
{
	if (task->state == TASK_ENDING && (task->flags & TASK_FLAG_NEW) != 0)
		task_admit_withdrawn(task);
	else
		queue_count_committed(queue, op->u.enqueue.first.timed, 1);
}

/* One of the note's tasks, or from the i-th on all that are left; how many it was. */
static int64
apply_enqueued(const Pending *op, Queue *queue, int64 i, TimestampTz now)
{
	Task	   *task;

	if (i >= op->u.enqueue.reserved && op->u.enqueue.partitions == NULL)
	{
		leave_on_disk(op, queue, i, op->u.enqueue.count - i);
		return op->u.enqueue.count - i;
	}
	task = i < op->u.enqueue.reserved ? enqueued_task(op, i) : NULL;
	if (task != NULL)
	{
		task->tid = op->u.enqueue.places[i].tid;
		task_admit(task, op->u.enqueue.first.group, now);
	}
	else if ((task = task_find(MyDatabaseId, op->u.enqueue.first.task + i)) == NULL)
		leave_on_disk(op, queue, i, 1);
	else if (queue->generation == op->generation)
		count_committed(op, queue, task);
	return 1;
}

static void
apply_enqueue(const Pending *op, TimestampTz now)
{
	Queue	   *queue = queue_of_note(op);
	int64		done = 0;

	if (queue != NULL)
		count_pending_off(op, queue);

	/* lanes that were built anew know nothing of them */
	if (queue != NULL && queue->generation != op->generation)
	{
		count_in_lanes(op, 1);
		queue = queue_of_note(op);
	}
	while (queue != NULL && done < op->u.enqueue.count)
	{
		done += apply_enqueued(op, queue, done, now);
		if (done % FANOUT_WORK_CHUNK == FANOUT_WORK_CHUNK - 1)
		{
			queue_wake(queue);
			breathe(done);
			queue = queue_of_note(op);
		}
	}
	if (queue != NULL)
		queue_wake(queue);
}

static void
undo_enqueue(const Pending *op)
{
	Queue	   *queue = queue_of_note(op);

	for (int64 i = 0; i < op->u.enqueue.reserved; i++)
	{
		Task	   *task = enqueued_task(op, i);

		if (task != NULL)
			task_forget(task);
		breathe(i);
	}
	if (queue != NULL && (queue = queue_of_note(op)) != NULL)
	{
		count_pending_off(op, queue);
		if (queue->generation == op->generation)
			count_in_lanes(op, -1);
	}
}

/* Memory was built anew while the transaction was open, and does not know the lease. */
static void
end_without_lease(const Pending *op)
{
	Task	   *task = task_find(MyDatabaseId, op->u.lease.task);

	Queue	   *queue;

	if (task == NULL || (task->state != TASK_READY && task->state != TASK_SCHEDULED))
		return;
	queue = &fanout_queues[task->queue];
	task_end_unforeseen(task, op->u.lease.outcome);
	queue_wake(queue);
}

/* The task of a note, if it is still withdrawn for this transaction. */
static Task *
withdrawn_task(const Pending *op)
{
	Task	   *task = task_find(MyDatabaseId, op->u.task.task);

	if (task == NULL || task->state != TASK_ENDING || !TransactionIdEquals(task->ender, GetTopTransactionIdIfAny()))
		return NULL;
	return task;
}

static void
apply_withdraw(const Pending *op)
{
	Task	   *task = withdrawn_task(op);
	Queue	   *queue;

	if (task == NULL)
		return;
	queue = &fanout_queues[task->queue];
	task_end(task, OUTCOME_CANCELLED);
	queue_wake(queue);			/* those behind it may have waited for its next attempt */
}

/* The queue that the note's task was in, unless it has gone. */
static Queue *
queue_before_change(const Pending *op)
{
	Queue	   *queue = &fanout_queues[op->u.task.from];

	return queue->state != QUEUE_FREE && queue->db == MyDatabaseId && queue->id == op->u.task.from_id ? queue : NULL;
}

/* The task is what this note, the last one about it, says. */
static void
carry_out_change(const Pending *op, Queue *target, TimestampTz now)
{
	Task	   *task = withdrawn_task(op);

	if (task == NULL)
	{
		/* memory was built anew while the transaction was open, or the queue that it was in dropped by it */
		task = task_find(MyDatabaseId, op->u.task.task);
		if (task == NULL && target != NULL)
			task_change_on_disk(op->u.task.task, queue_before_change(op), target, &op->u.task.terms);
		if (task == NULL || (task->state != TASK_READY && task->state != TASK_SCHEDULED))
			return;
		task_withdraw(task, InvalidTransactionId);
	}
	if (target != NULL)
		task_change(task, target, &op->u.task.terms, now);
	else
		task_forget_changed(task);
}

/* What was reserved for the change is not needed any more; a queue that was built anew never knew of it. */
static void
release_reservation(const Pending *op, Queue *target)
{
	if (target == NULL || target->generation != op->generation)
		return;
	if (op->u.task.counted)
		target->pending--;
	if (op->u.task.in_backlog)
		queue_count_backlog(target, op->u.task.terms.partition, -1);
	if (op->u.task.lane_kept)
		lane_let_go(target, op->u.task.terms.partition);
}

static void
apply_change(const Pending *op, TimestampTz now)
{
	Queue	   *target = queue_of_note(op);
	Queue	   *from = queue_before_change(op);

	if (!op->u.task.superseded)
		carry_out_change(op, target, now);
	release_reservation(op, target);
	if (target != NULL)
		queue_wake(target);
	if (from != NULL && from != target)
		queue_wake(from);		/* those behind it may have waited for its next attempt */
}

/* This transaction, or a savepoint of it, has not ended or changed the task after all. */
static void
undo_withdrawn(const Pending *op)
{
	Task	   *task = withdrawn_task(op);

	if (op->kind == PENDING_CHANGE)
		release_reservation(op, queue_of_note(op));
	if (op->u.task.previous >= 0)
		pending[op->u.task.previous].u.task.superseded = false;
	if (task == NULL)
		return;
	if (op->u.task.previous >= 0)
		task->note = op->u.task.previous;
	else
	{
		Queue	   *queue = &fanout_queues[task->queue];

		task_restore(task);
		queue_wake(queue);
	}
}

void
pending_undo_withdrawal(void)
{
	Assert(pending_used > 0 && pending[pending_used - 1].kind == PENDING_WITHDRAW);
	undo_withdrawn(&pending[--pending_used]);
}

static void
undo_cancel_request(const Pending *op)
{
	Task	   *task = task_find(MyDatabaseId, op->u.task.task);

	if (task != NULL && task->state == TASK_RUNNING && TransactionIdEquals(task->ender, GetTopTransactionIdIfAny()))
		task->ender = InvalidTransactionId;
}

/* "claims": the transaction has claimed something, so it is not for want of work that its worker will be back. */
static void
apply_lease(const Pending *op, bool claims, TimestampTz now)
{
	Lease	   *lease = lease_of_note(op);
	Queue	   *queue;

	if (lease == NULL)
	{
		if (op->kind == PENDING_END)
			end_without_lease(op);
		return;
	}
	queue = &fanout_queues[task_of(lease)->queue];
	switch (op->kind)
	{
		case PENDING_CLAIM:
			lease_commit(lease, op->u.lease.flag);
			break;
		case PENDING_END:
			task_end(task_of(lease), op->u.lease.outcome);
			if (!claims)
				expect_return(queue);
			break;
		case PENDING_REQUEUE:
			task_requeue(task_of(lease), op->u.lease.due, op->u.lease.flag, now);
			if (!claims)
				expect_return(queue);
			break;
		default:
			lease_unpin(lease);
			break;
	}
	queue_wake(queue);
}

static void
undo_lease(const Pending *op)
{
	Lease	   *lease = lease_of_note(op);

	if (lease == NULL)
		return;
	switch (op->kind)
	{
		case PENDING_CLAIM:
			{
				Queue	   *queue = &fanout_queues[task_of(lease)->queue];

				lease_undo(lease);
				queue_wake(queue);
				break;
			}
		case PENDING_END:
		case PENDING_REQUEUE:
			lease->ender = InvalidTransactionId;
			lease_take_back_permit(lease);
			lease_unpin(lease);
			break;
		default:
			lease_unpin(lease);
			break;
	}
}

static void
apply_cancel_request(const Pending *op)
{
	Task	   *task = task_find(MyDatabaseId, op->u.task.task);

	if (task == NULL)
		return;
	task_request_cancel(task);
	queue_wake(&fanout_queues[task->queue]);
}

/* The queue may keep what is finished for another time than before. */
static void
note_retention(Queue *queue)
{
	Database   *database = database_of(queue);

	database->retention_changed = true;
	keeper_wake(database);
}

/* Carry out a note about a queue that is there. */
static void
apply_to_queue(const Pending *op, Queue *queue)
{
	switch (op->kind)
	{
		case PENDING_QUEUE_CREATE:
			queue->was_new = false;
			if (queue->state == QUEUE_NEW)
				queue->state = QUEUE_OPEN;
			note_retention(queue);
			break;
		case PENDING_QUEUE_ALTER:
			queue_set(queue, &op->u.settings);
			note_retention(queue);
			queue_wake(queue);
			break;
		case PENDING_LANE_SET:
			(void) lane_set(queue, op->u.lane.partition, &op->u.lane.settings);
			let_lane_go(op, queue);
			queue_wake(queue);
			break;
		case PENDING_QUEUE_DROP:
			queue_remove(queue);
			break;
		case PENDING_QUEUE_CLOSE:

			/*
			 * An error on the way would have reopened it.  Now the note of the purge does, when all that was
			 * withdrawn is counted: a refill that came before would find nothing on disk, where some still count as
			 * waiting.
			 */
			break;
		default:
			Assert(op->kind == PENDING_QUEUE_PURGE);
			queue_purged_on_disk(queue, op->u.on_disk);
			queue_reopen(queue);
			database_of(queue)->dirty_join_overflow |= op->u.on_disk > 0;
			break;
	}
}

/* The database wants a keeper, or to be looked at by the one it has. */
static void
apply_register(const Pending *op)
{
	Database   *database = database_enter(op->u.db);

	if (database != NULL)
	{
		database->keeper_wanted = true;
		keeper_wake(database);
	}
	if (fanout_shared->launcher != NULL)
		set_latch_after_unlock(fanout_shared->launcher);
}

static void
apply_reload(void)
{
	Database   *database = database_find(MyDatabaseId);

	if (database == NULL)
		return;
	/* before our locks are released: what the keeper knows of the segments is out of date */
	for (int i = 0; i < FANOUT_SEGMENTS; i++)
		database->unsettled[i]++;
	database->filled_at = GetCurrentTimestamp();
	database->reload = true;
	keeper_wake(database);
}

static void
apply_segments(const Pending *op)
{
	Database   *database = database_find(MyDatabaseId);

	if (database != NULL)
		database_set_segments(database, &op->u.segments);
}

static void
apply_batch_change(const Pending *op)
{
	Database   *database = database_find(MyDatabaseId);

	if (database == NULL)
		return;
	results_wake_batch(database, op->u.batch);

	/* its tasks may have ended before it was sealed */
	if (op->kind == PENDING_BATCH_SEAL)
		database_note_dirty_join(database, op->u.batch);
}

/* Carry out one note. */
static void
apply(const Pending *op, bool claims, TimestampTz now)
{
	Queue	   *queue;

	switch (op->kind)
	{
		case PENDING_ENQUEUE:
			apply_enqueue(op, now);
			break;
		case PENDING_CLAIM:
		case PENDING_END:
		case PENDING_REQUEUE:
		case PENDING_PIN:
			apply_lease(op, claims, now);
			break;
		case PENDING_WITHDRAW:
			apply_withdraw(op);
			break;
		case PENDING_CHANGE:
			apply_change(op, now);
			break;
		case PENDING_CANCEL_REQUEST:
			apply_cancel_request(op);
			break;
		case PENDING_QUEUE_CREATE:
		case PENDING_QUEUE_ALTER:
		case PENDING_LANE_SET:
		case PENDING_QUEUE_DROP:
		case PENDING_QUEUE_CLOSE:
		case PENDING_QUEUE_PURGE:
			queue = queue_of_note(op);
			if (queue != NULL)
				apply_to_queue(op, queue);
			break;
		case PENDING_BATCH_CHANGE:
		case PENDING_BATCH_SEAL:
			apply_batch_change(op);
			break;
		case PENDING_REGISTER:
			apply_register(op);
			break;
		case PENDING_RELOAD:
			apply_reload();
			break;
		case PENDING_SEGMENTS:
			apply_segments(op);
			break;
	}
}

/* Undo one note. */
static void
undo(const Pending *op)
{
	Queue	   *queue;

	switch (op->kind)
	{
		case PENDING_ENQUEUE:
			undo_enqueue(op);
			break;
		case PENDING_CLAIM:
		case PENDING_END:
		case PENDING_REQUEUE:
		case PENDING_PIN:
			undo_lease(op);
			break;
		case PENDING_WITHDRAW:
		case PENDING_CHANGE:
			undo_withdrawn(op);
			break;
		case PENDING_CANCEL_REQUEST:
			undo_cancel_request(op);
			break;
		case PENDING_QUEUE_CREATE:
			queue = queue_of_note(op);
			if (queue != NULL)
				queue_remove(queue);
			break;
		case PENDING_LANE_SET:
			queue = queue_of_note(op);
			if (queue != NULL)
				let_lane_go(op, queue);
			break;
		case PENDING_QUEUE_DROP:
		case PENDING_QUEUE_CLOSE:
		case PENDING_QUEUE_PURGE:
			queue = queue_of_note(op);
			if (queue != NULL)
				queue_reopen(queue);
			break;
		case PENDING_QUEUE_ALTER:
		case PENDING_BATCH_CHANGE:
		case PENDING_BATCH_SEAL:
		case PENDING_REGISTER:
		case PENDING_RELOAD:
		case PENDING_SEGMENTS:
			break;
	}
}

static void
apply_all(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		claims = pending_claims_any();

	dispatcher_lock();
	for (int i = 0; i < pending_used; i++)
	{
		apply(&pending[i], claims, now);
		FANOUT_POINT(COMMIT_NOTE);
		breathe(i);
	}
	dispatcher_unlock();
}

/* Undo, in reverse, what was noted at this nest level or deeper. */
static void
undo_from_level(int level)
{
	if (pending_used == 0 || pending[pending_used - 1].level < level)
		return;

	dispatcher_lock();
	while (pending_used > 0 && pending[pending_used - 1].level >= level)
	{
		undo(pending_pop());
		FANOUT_POINT(ABORT_NOTE);
		breathe(pending_used);
	}
	dispatcher_unlock();
}

static void
transaction_callback(XactEvent event, void *arg)
{
	if (pending_used == 0)
		return;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			FANOUT_POINT(COMMIT_BEGUN);
			break;
		case XACT_EVENT_COMMIT:
			FANOUT_POINT(COMMIT_RECORDED);
			apply_all();
			FANOUT_POINT(COMMIT_APPLIED);
			pending_forget_all();
			break;
		case XACT_EVENT_ABORT:
			FANOUT_POINT(ABORT_BEGUN);
			undo_from_level(0);
			FANOUT_POINT(ABORT_UNDONE);
			pending_forget_all();
			break;
		case XACT_EVENT_PRE_PREPARE:
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot PREPARE a transaction that has used pg_fanout"),
					 errdetail("What such a transaction did takes effect in memory at its commit, and a prepared one commits elsewhere.")));
			break;
		default:
			break;
	}
}

static void
subtransaction_callback(SubXactEvent event, SubTransactionId subid, SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
		undo_from_level(level);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (int i = pending_used - 1; i >= 0 && pending[i].level >= level; i--)
			pending[i].level = level - 1;
	}
}

/* Called once, when the library is loaded. */
void
commit_hooks_init(void)
{
	RegisterXactCallback(transaction_callback, NULL);
	RegisterSubXactCallback(subtransaction_callback, NULL);
}
