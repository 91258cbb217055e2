/*
 * cancel.c
 *		Ending tasks that wait, and giving ended ones another life.
 *
 * A cancel takes the task out of its window first, so that nobody claims it
 * while the transaction that cancels it is open.  A task that is on disk only
 * gets an entry for that time, so that a refill does not take it for waiting.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "cancel.h"
#include "commit_hooks.h"
#include "finish.h"
#include "queues.h"
#include "segments.h"
#include "spi.h"
#include "storage.h"
#include "wait.h"

PG_FUNCTION_INFO_V1(fanout_cancel);
PG_FUNCTION_INFO_V1(fanout_cancel_many);
PG_FUNCTION_INFO_V1(fanout_retry);
PG_FUNCTION_INFO_V1(fanout_retry_many);

static SpiStatement select_early_join = {
	"SELECT FROM fanout.batch WHERE id = $1 AND join_policy <> 'all'", 1, {INT8OID}
};
#define DELETE_OUTCOME(segment) { \
	"DELETE FROM fanout.outcome" segment " WHERE task = $1 AND status IN ('f', 'c')" \
	" RETURNING coalesce(lease, 0), finished_at, worker, value #>> '{}'", 1, {INT8OID} \
}
static SpiStatement delete_outcome[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(DELETE_OUTCOME);

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

/* Read the task's row: its queue, and what an entry for it needs.  False if there is none. */
static bool
read_task(int64 task, TaskSeed *seed, int32 *queue_id)
{
	TaskReader *reader = task_reader_open();
	ItemPointerData nowhere;
	Datum		row[TASK_COLUMNS];
	bool		nulls[TASK_COLUMNS];
	bool		found;

	ItemPointerSetInvalid(&nowhere);
	memset(seed, 0, sizeof(TaskSeed));
	found = task_reader_fetch(reader, task, &nowhere, row, nulls);
	if (found)
	{
		*queue_id = DatumGetInt32(row[TASK_QUEUE]);
		seed->task = task;
		seed->priority = nulls[TASK_PRIORITY] ? 0 : DatumGetInt32(row[TASK_PRIORITY]);
		seed->partition = nulls[TASK_LANE] ? 0 : DatumGetInt64(row[TASK_LANE]);
		seed->cost = nulls[TASK_COST] ? 1 : DatumGetInt32(row[TASK_COST]);
		seed->batch = nulls[TASK_BATCH] ? 0 : DatumGetInt64(row[TASK_BATCH]);
		seed->max_attempts = nulls[TASK_MAX_ATTEMPTS] ? 0 : DatumGetInt16(row[TASK_MAX_ATTEMPTS]);
		seed->timed = !nulls[TASK_RUN_AT];
		seed->run_at = nulls[TASK_RUN_AT] ? 0 : DatumGetTimestampTz(row[TASK_RUN_AT]);
	}
	task_reader_close(reader);
	seed->early_join = seed->batch != 0 && ends_early(seed->batch);
	return found;
}

typedef enum Withdrawal
{
	WITHDRAWN,
	NOT_WAITING,
	NO_MEMORY,
	BEING_ENDED					/* by another transaction */
} Withdrawal;

static Withdrawal
try_to_withdraw(Queue *queue, const TaskSeed *seed, TransactionId me, TransactionId *ender)
{
	Withdrawal	result = NOT_WAITING;
	Task	   *task;

	dispatcher_lock();
	task = task_find(MyDatabaseId, seed->task);
	if (queue->state == QUEUE_CLOSED)
		result = NOT_WAITING;
	else if (task == NULL)
		result = task_withdraw_from_disk(queue, seed, me) != NULL ? WITHDRAWN : NO_MEMORY;
	else if (task->state == TASK_READY || task->state == TASK_SCHEDULED)
	{
		task_withdraw(task, me);
		result = WITHDRAWN;
	}
	else if (task->state == TASK_ENDING && !TransactionIdEquals(task->ender, me))
	{
		*ender = task->ender;
		result = BEING_ENDED;
	}
	if (result == WITHDRAWN)
		pending_withdraw(seed->task);
	dispatcher_unlock();
	return result;
}

/* Take the task out of its window; "wait" for a transaction that has done so before us. */
static Withdrawal
withdraw(Queue *queue, const TaskSeed *seed, bool wait)
{
	TransactionId me = GetTopTransactionId();
	TransactionId ender = InvalidTransactionId;
	Withdrawal	result;

	pending_prepare(1);
	while ((result = try_to_withdraw(queue, seed, me, &ender)) == BEING_ENDED && wait)
		XactLockTableWait(ender, NULL, NULL, XLTW_None);
	return result;
}

/* The task had ended before it was withdrawn from disk: undo that, as nothing was to be withdrawn. */
static void
forget_withdrawal(int64 number)
{
	Task	   *task;

	dispatcher_lock();
	task = task_find(MyDatabaseId, number);
	if (task != NULL && task->state == TASK_ENDING)
		task_forget_withdrawn(task);
	pending_forget_withdrawal();
	dispatcher_unlock();
}

/* Give a task that this transaction has withdrawn its outcome. */
static void
cancel_withdrawn(int64 task, const char *reason)
{
	LogWriter  *writer = log_writer_open(LOG_OUTCOME, 1);
	Datum		value = reason != NULL ? error_value(reason, strlen(reason)) : (Datum) 0;

	write_outcome(writer, task, NULL, OUTCOME_CANCELLED, GetCurrentTimestamp(), value, reason == NULL);
	log_writer_close(writer);
}

static CancelResult
cancel_in(Queue *queue, const TaskSeed *seed, const char *reason, bool wait)
{
	if (outcome_of(seed->task) != 0)
		return CANCEL_NOT_WAITING;

	switch (withdraw(queue, seed, wait))
	{
		case NOT_WAITING:
			return CANCEL_NOT_WAITING;
		case NO_MEMORY:
			return CANCEL_NO_MEMORY;
		case BEING_ENDED:
			return CANCEL_LATER;
		case WITHDRAWN:
			break;
	}

	/* between our first look and the withdrawal it may have run and ended */
	if (outcome_of(seed->task) != 0)
	{
		forget_withdrawal(seed->task);
		return CANCEL_NOT_WAITING;
	}
	cancel_withdrawn(seed->task, reason);
	return CANCEL_DONE;
}

CancelResult
cancel_task_at_once(int64 task, const char *reason)
{
	TaskSeed	seed;
	int32		queue_id;
	Queue	   *queue;
	bool		closed;

	if (!read_task(task, &seed, &queue_id))
		return CANCEL_UNKNOWN;
	dispatcher_lock();
	queue = queue_find(MyDatabaseId, queue_id);
	closed = queue != NULL && queue->state == QUEUE_CLOSED;
	dispatcher_unlock();
	if (queue == NULL)
		return CANCEL_UNKNOWN;
	if (closed)
		return CANCEL_LATER;
	return cancel_in(queue, &seed, reason, false);
}

/* Can a task that did not wait a moment ago be cancelled otherwise? */
typedef enum CancelWay
{
	ASK_WORKER,
	LOOK_AGAIN,					/* it waits again */
	NO_WAY						/* it has ended, its worker is asked already, we are ending it ourselves, or its
								 * queue is being purged or dropped */
} CancelWay;

static CancelWay
way_to_cancel(int64 number, int64 *lease)
{
	TransactionId ender = InvalidTransactionId;
	CancelWay	way = NO_WAY;
	Task	   *task;

	dispatcher_lock();
	task = task_find(MyDatabaseId, number);
	if (task != NULL && (task->flags & TASK_FLAG_CANCELLED) == 0 && fanout_queues[task->queue].state != QUEUE_CLOSED)
	{
		if (task->state == TASK_RUNNING)
		{
			way = ASK_WORKER;
			*lease = task->lease->key.lease;
			ender = task->lease->ender;
		}
		else if (task->state == TASK_READY || task->state == TASK_SCHEDULED)
			way = LOOK_AGAIN;
	}
	dispatcher_unlock();
	return TransactionIdIsValid(ender) && TransactionIdIsCurrentTransactionId(ender) ? NO_WAY : way;
}

/* Have the worker of a running task told, once this transaction commits, to stop. */
static void
ask_worker(int64 task, int64 lease, const char *reason)
{
	LogWriter  *writer = log_writer_open(LOG_ATTEMPT, 1);

	write_attempt(writer, lease, task, 'k', GetCurrentTimestamp(), 0, NULL,
				  reason != NULL ? CStringGetTextDatum(reason) : (Datum) 0, reason == NULL);
	log_writer_close(writer);
	pending_prepare(1);
	pending_cancel_request(task);
}

/* Cancel the task in this transaction if it waits, or ask its worker to stop, if the caller may. */
static CancelResult
cancel_task(int64 task, const char *reason)
{
	TaskSeed	seed;
	int32		queue_id;
	QueueRef	ref;
	CancelResult result;

	if (!read_task(task, &seed, &queue_id) || !registry_queue_by_id(queue_id, PRIVILEGE_ENQUEUE, &ref))
		return CANCEL_UNKNOWN;
	while ((result = cancel_in(ref.queue, &seed, reason, true)) == CANCEL_NOT_WAITING)
	{
		int64		lease;
		CancelWay	way = way_to_cancel(task, &lease);

		/* it may have its outcome before its end has come to memory: then there is nothing to ask for */
		if (way == NO_WAY || outcome_of(task) != 0)
			break;
		if (way == ASK_WORKER)
		{
			ask_worker(task, lease, reason);
			return CANCEL_DONE;
		}
		CHECK_FOR_INTERRUPTS();
	}
	if (result == CANCEL_NO_MEMORY)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the pool of tracked tasks is used up"),
				 errhint("Try again when tasks have finished, or raise pg_fanout.max_tracked_tasks (or max_lanes, with partitions) and restart the server.")));
	return result;
}

static char *
reason_of(FunctionCallInfo fcinfo)
{
	return PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
}

static void
throw_unknown_task(int64 task)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("task " INT64_FORMAT " does not exist", task)));
}

Datum
fanout_cancel(PG_FUNCTION_ARGS)
{
	CancelResult result;

	require_writable("fanout.cancel()");
	require_arg(fcinfo, 0, "task");
	(void) require_database();
	result = cancel_task(PG_GETARG_INT64(0), reason_of(fcinfo));
	if (result == CANCEL_UNKNOWN)
		throw_unknown_task(PG_GETARG_INT64(0));
	PG_RETURN_BOOL(result == CANCEL_DONE);
}

Datum
fanout_cancel_many(PG_FUNCTION_ARGS)
{
	Datum	   *tasks;
	bool	   *nulls;
	char	   *reason = reason_of(fcinfo);
	int			count;
	ResultSet	set;
	bool		isnull = false;

	require_writable("fanout.cancel()");
	require_arg(fcinfo, 0, "tasks");
	(void) require_database();
	count = array_elements(PG_GETARG_ARRAYTYPE_P(0), INT8OID, "tasks", &tasks, &nulls, false);
	set = result_set_begin(fcinfo);
	for (int i = 0; i < count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (cancel_task(DatumGetInt64(tasks[i]), reason) == CANCEL_DONE)
			result_set_add(&set, &tasks[i], &isnull);
	}
	return (Datum) 0;
}

/* Note in the journal what the outcome alone said of the attempt that failed, and that a new life begins. */
static void
write_new_life(int64 task, int64 lease, TimestampTz finished_at, const char *worker, Datum error, bool error_isnull)
{
	LogWriter  *writer = log_writer_open(LOG_ATTEMPT, 2);

	if (lease != 0)
		write_attempt(writer, lease, task, 'f', finished_at, 0, worker, error, error_isnull);
	write_attempt(writer, 0, task, 'n', GetCurrentTimestamp(), 0, NULL, (Datum) 0, true);
	log_writer_close(writer);
}

/* Take the outcome back; false if there is none that can be. */
static bool
take_back_outcome(int64 task)
{
	SpiScope	scope;
	Datum		values[1] = {Int64GetDatum(task)};
	bool		deleted;

	spi_begin(&scope);
	deleted = spi_run_latest(&delete_outcome[segment_of(task)], values, NULL) == 1;
	if (deleted)
	{
		bool		isnull;
		bool		no_error;
		Datum		error = spi_value(0, 4, &no_error);

		write_new_life(task, spi_int64(0, 1), DatumGetTimestampTz(spi_value(0, 2, &isnull)),
					   SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3), error, no_error);
	}
	spi_end(&scope);
	return deleted;
}

/* The task waits again once this transaction commits, as if just enqueued, but in its old place. */
static void
enter_again(const QueueRef *ref, const TaskSeed *seed)
{
	TaskPlace  *place = MemoryContextAlloc(TopTransactionContext, sizeof(TaskPlace));
	TaskSeed	again = *seed;
	Task	   *task = NULL;
	bool		gone;

	again.timed = false;
	ItemPointerSetInvalid(&place->tid);
	pending_prepare(1);
	dispatcher_lock();
	gone = !queue_ref_is_valid(ref);
	if (!gone)
	{
		task = task_reserve(ref->queue, &again, GetCurrentTimestamp());
		if (task != NULL)
			task->flags &= ~TASK_FLAG_FRESH;	/* it may have checkpoints */
		if (task != NULL && seed->timed)
			task->flags &= ~TASK_FLAG_UNTOUCHED;	/* its row says that it is timed */
		place->entry = task;
		ref->queue->pending++;
		pending_enqueue(ref->queue, seed->timed && task == NULL ? seed : &again, 1, task != NULL, place, NULL);
	}
	dispatcher_unlock();
	if (gone)
		throw_queue_gone(ref->name);
}

/* The transaction that is ending the task, or was until a moment ago; invalid if there is none. */
static TransactionId
ender_of(int64 number)
{
	TransactionId ender = InvalidTransactionId;
	Task	   *task;

	dispatcher_lock();
	task = task_find(MyDatabaseId, number);
	if (task != NULL && task->state == TASK_ENDING)
		ender = task->ender;
	else if (task != NULL && task->state == TASK_RUNNING)
		ender = task->lease->ender;
	dispatcher_unlock();
	return ender;
}

static bool
ended_by_us(int64 task)
{
	TransactionId ender = ender_of(task);

	return TransactionIdIsValid(ender) && TransactionIdIsCurrentTransactionId(ender);
}

/*
 * Whoever gave the task its outcome has committed; wait until its commit
 * callback has run, too.
 */
static void
wait_until_ended(int64 task)
{
	TransactionId ender;

	while (TransactionIdIsValid(ender = ender_of(task)))
		XactLockTableWait(ender, NULL, NULL, XLTW_None);
}

/*
 * A refill that began before the task ended may still take it for unfinished,
 * and has its tombstone to tell.  That has to stay, as this transaction may
 * abort, and the task is ended then.
 */
static void
wait_until_forgotten(int64 number)
{
	bool		ended;

	do
	{
		Task	   *task;

		dispatcher_lock();
		task = task_find(MyDatabaseId, number);
		ended = task != NULL && task->state == TASK_ENDED;
		dispatcher_unlock();
		if (ended)
			(void) wait_on_latch(TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 10), PG_WAIT_EXTENSION);
	} while (ended);
}

static CancelResult
retry_task(int64 task)
{
	TaskSeed	seed;
	int32		queue_id;
	QueueRef	ref;

	if (!read_task(task, &seed, &queue_id) || !registry_queue_by_id(queue_id, PRIVILEGE_ENQUEUE, &ref))
		return CANCEL_UNKNOWN;
	queue_lock(ref.id, RowExclusiveLock);
	if (ended_by_us(task) || !take_back_outcome(task))
		return CANCEL_NOT_WAITING;
	wait_until_ended(task);
	wait_until_forgotten(task);
	enter_again(&ref, &seed);
	return CANCEL_DONE;
}

Datum
fanout_retry(PG_FUNCTION_ARGS)
{
	CancelResult result;

	require_writable("fanout.retry()");
	require_arg(fcinfo, 0, "task");
	(void) require_database();
	result = retry_task(PG_GETARG_INT64(0));
	if (result == CANCEL_UNKNOWN)
		throw_unknown_task(PG_GETARG_INT64(0));
	PG_RETURN_BOOL(result == CANCEL_DONE);
}

Datum
fanout_retry_many(PG_FUNCTION_ARGS)
{
	Datum	   *tasks;
	bool	   *nulls;
	int			count;
	ResultSet	set;
	bool		isnull = false;

	require_writable("fanout.retry()");
	require_arg(fcinfo, 0, "tasks");
	(void) require_database();
	count = array_elements(PG_GETARG_ARRAYTYPE_P(0), INT8OID, "tasks", &tasks, &nulls, false);
	set = result_set_begin(fcinfo);
	for (int i = 0; i < count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (retry_task(DatumGetInt64(tasks[i])) == CANCEL_DONE)
			result_set_add(&set, &tasks[i], &isnull);
	}
	return (Datum) 0;
}
