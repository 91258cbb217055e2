/*
 * withdraw.c
 *		Taking a task that waits out of everybody's reach, to end or change it.
 *
 * A task is withdrawn before anything is written, so that nobody claims it
 * while the transaction is open: it is ENDING, with that transaction as its
 * ender, and whoever else wants to end or change it waits for that.  A task
 * that is on disk only gets an entry for that time, so that a refill does not
 * take it for waiting.
 *
 * The row is read before, as it says in which queue to look.  If the task is
 * in memory, that tells whether the row was right.  If it is not, the row is
 * read again after the withdrawal: by then nobody else can change it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "commit_hooks.h"
#include "partitions.h"
#include "spi.h"
#include "withdraw.h"

static SpiStatement select_early_join = {
	"SELECT FROM fanout.batch WHERE id = $1 AND join_policy <> 'all'", 1, {INT8OID}
};

/* May the batch end before all of its tasks have? */
static bool
ends_early(int64 batch)
{
	SpiScope	scope;
	Datum		values[1] = {Int64GetDatum(batch)};
	bool		early;

	spi_begin(&scope);
	early = spi_read_latest(&select_early_join, values, NULL) == 1;
	spi_end(&scope);
	return early;
}

bool
task_row_read(int64 task, TaskRow *row)
{
	TaskReader *reader = task_reader_open();
	TaskSeed   *seed = &row->seed;
	ItemPointerData nowhere;
	Datum		values[TASK_COLUMNS];
	bool		nulls[TASK_COLUMNS];
	bool		found;

	ItemPointerSetInvalid(&nowhere);
	memset(row, 0, sizeof(TaskRow));
	found = task_reader_fetch(reader, task, &nowhere, values, nulls);
	if (found)
	{
		row->queue_id = DatumGetInt32(values[TASK_QUEUE]);
		row->enqueued_at = DatumGetTimestampTz(values[TASK_ENQUEUED_AT]);
		if (!nulls[TASK_PARTITION_KEY])
			row->partition_key = DatumGetTextPCopy(values[TASK_PARTITION_KEY]);
		seed->task = task;
		seed->priority = nulls[TASK_PRIORITY] ? 0 : DatumGetInt32(values[TASK_PRIORITY]);
		seed->rank = nulls[TASK_RANK] ? seed->priority : DatumGetInt64(values[TASK_RANK]);
		seed->partition = nulls[TASK_LANE] ? 0 : DatumGetInt64(values[TASK_LANE]);
		if (!nulls[TASK_FAIR_GROUP])
			row->group = hash_of_key(DatumGetTextPP(values[TASK_FAIR_GROUP]));
		seed->group = nulls[TASK_LANE] ? 0 : row->group;
		seed->cost = nulls[TASK_COST] ? 1 : DatumGetInt32(values[TASK_COST]);
		seed->batch = nulls[TASK_BATCH] ? 0 : DatumGetInt64(values[TASK_BATCH]);
		seed->max_attempts = nulls[TASK_MAX_ATTEMPTS] ? 0 : DatumGetInt16(values[TASK_MAX_ATTEMPTS]);
		seed->timed = !nulls[TASK_RUN_AT];
		seed->run_at = nulls[TASK_RUN_AT] ? 0 : DatumGetTimestampTz(values[TASK_RUN_AT]);
		seed->deadline = nulls[TASK_DEADLINE] ? 0 : DatumGetTimestampTz(values[TASK_DEADLINE]);
	}
	task_reader_close(reader);
	seed->early_join = seed->batch != 0 && ends_early(seed->batch);
	return found;
}

static bool
is_late(TimestampTz deadline)
{
	return deadline != 0 && deadline <= GetCurrentTimestamp();
}

static bool
suits(const Task *task, WithdrawPurpose purpose)
{
	if (purpose == TO_REPLACE)
		return task->attempts == 0 && (task->flags & TASK_FLAG_CANCELLED) == 0;
	return purpose != TO_END_LATE || is_late(task->deadline);
}

/* Is the entry of a task in memory free for us to be withdrawn, or has it been by us?  Under the lock. */
static Withdrawal
look_at(const Queue *queue, const Task *task, TransactionId me, Withdrawn *withdrawn)
{
	bool		mine = TransactionIdEquals(task->ender, me);

	switch ((TaskState) task->state)
	{
		case TASK_READY:
		case TASK_SCHEDULED:
			if (&fanout_queues[task->queue] != queue)
				return MOVED;
			return queue->state == QUEUE_CLOSED ? NOT_WAITING : WITHDRAWN;
		case TASK_ENQUEUED:
		case TASK_ENDING:
			if (!mine)
			{
				/* of an enqueued one we see the row: its enqueuer has committed, and is about to say so in memory */
				withdrawn->other = task->ender;
				return BUSY;
			}
			return task->state == TASK_ENQUEUED || pending_is_change(task) ? WITHDRAWN : NOT_WAITING;
		case TASK_RUNNING:
		case TASK_ENDED:
			break;
	}
	return NOT_WAITING;
}

/* Withdraw the task; "pending" if this transaction has enqueued it.  Under the lock. */
static Withdrawal
try_to_withdraw(Queue *queue, const TaskRow *row, bool pending, WithdrawPurpose purpose, TransactionId me,
				bool *from_disk, Withdrawn *withdrawn)
{
	Task	   *task = task_find(MyDatabaseId, row->seed.task);
	Withdrawal	result;

	*from_disk = task == NULL;
	if (queue->state == QUEUE_FREE || queue->db != MyDatabaseId || queue->id != row->queue_id)
		return MOVED;			/* its queue has just been dropped */
	if (task != NULL)
	{
		result = look_at(queue, task, me, withdrawn);
		if (result != WITHDRAWN)
			return result;
		if (!suits(task, purpose))
			return NOT_WAITING;
		if (task->state != TASK_ENDING)
			task_withdraw(task, me);
	}
	else
	{
		if (queue->state == QUEUE_CLOSED || (purpose == TO_END_LATE && !is_late(row->seed.deadline)))
			return NOT_WAITING;
		task = task_withdraw_from_disk(queue, &row->seed, me, pending);
		if (task == NULL)
			return NO_MEMORY;
	}
	withdrawn->terms = pending_is_change(task) ? pending_terms(task) : task_terms(task);
	withdrawn->untouched = (task->flags & TASK_FLAG_UNTOUCHED) != 0;
	withdrawn->fresh = (task->flags & TASK_FLAG_FRESH) != 0;
	if (purpose == TO_END || purpose == TO_END_LATE)
		pending_withdraw(task);
	else
		pending_change(task);
	return WITHDRAWN;
}

/* Does the row still say what is in the entry that was made of it? */
static bool
same_place(const TaskRow *left, const TaskRow *right)
{
	return left->queue_id == right->queue_id && left->seed.priority == right->seed.priority && left->seed.rank == right->seed.rank &&
		left->seed.partition == right->seed.partition && left->seed.timed == right->seed.timed &&
		left->seed.run_at == right->seed.run_at && left->seed.deadline == right->seed.deadline;
}

/*
 * Undo a withdrawal from disk of a task that had ended before, or that is
 * somewhere else: its row says where.
 */
static void
forget_withdrawal(int64 number, const TaskRow *row, bool ended)
{
	TaskTerms	terms = {.partition = row->seed.partition, .group = row->seed.group, .rank = row->seed.rank, .priority = row->seed.priority,
	.timed = row->seed.timed, .due = row->seed.run_at, .deadline = row->seed.deadline};
	Queue	   *queue;
	Task	   *task;

	dispatcher_lock();
	task = task_find(MyDatabaseId, number);
	queue = queue_find(MyDatabaseId, row->queue_id);
	if (task != NULL && task->state == TASK_ENDING)
	{
		if (ended || queue == NULL)
			task_forget_withdrawn(task);
		else
			task_put_back_on_disk(task, queue, &terms);
	}
	pending_forget_withdrawal();
	dispatcher_unlock();
}

/* Between the first look at its row and the withdrawal from disk the task may have run and ended, or moved. */
static Withdrawal
check_withdrawal(const TaskRow *row)
{
	TaskRow		now;

	/* and is gone, if its queue keeps such for a short time only */
	if (outcome_of(row->seed.task) != 0 || !task_row_read(row->seed.task, &now))
	{
		forget_withdrawal(row->seed.task, row, true);
		return NOT_WAITING;
	}
	if (same_place(row, &now))
		return WITHDRAWN;
	forget_withdrawal(row->seed.task, &now, false);
	return MOVED;
}

Withdrawal
task_row_withdraw(Queue *queue, const TaskRow *row, WithdrawPurpose purpose, Withdrawn *withdrawn)
{
	TransactionId me = GetTopTransactionId();
	bool		pending = pending_enqueues(row->seed.task);
	bool		from_disk;
	Withdrawal	result;

	if (outcome_of(row->seed.task) != 0)
		return NOT_WAITING;
	pending_prepare(1);
	dispatcher_lock();
	result = try_to_withdraw(queue, row, pending, purpose, me, &from_disk, withdrawn);
	dispatcher_unlock();
	if (result == WITHDRAWN && from_disk)
		result = check_withdrawal(row);
	return result;
}

void
wait_for_other(const Withdrawn *withdrawn)
{
	XactLockTableWait(withdrawn->other, NULL, NULL, XLTW_None);
}

void
throw_unknown_task(int64 task)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("task " INT64_FORMAT " does not exist", task)));
}

void
throw_no_memory_for_task(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("the pool of tracked tasks is used up"),
			 errdetail("A transaction keeps each task that it cancels or changes in memory until it has ended."),
			 errhint("Try again when tasks have finished, with fewer tasks in a transaction, or raise pg_fanout.max_tracked_tasks (or max_lanes and max_limited_lanes, with partitions) and restart the server.")));
}
