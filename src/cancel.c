/*
 * cancel.c
 *		Ending tasks that wait, and giving ended ones another life.
 *
 * What waits is withdrawn and given its outcome; of what runs the worker is
 * asked to stop.
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
#include "deadlines.h"
#include "finish.h"
#include "ids.h"
#include "lane.h"
#include "queue_settings.h"
#include "queues.h"
#include "segments.h"
#include "spi.h"
#include "storage.h"
#include "wait.h"
#include "withdraw.h"

PG_FUNCTION_INFO_V1(fanout_cancel);
PG_FUNCTION_INFO_V1(fanout_cancel_many);
PG_FUNCTION_INFO_V1(fanout_retry);
PG_FUNCTION_INFO_V1(fanout_retry_many);

#define DELETE_OUTCOME(segment) { \
	"DELETE FROM fanout.outcome" segment " WHERE task = $1 AND status IN ('f', 'c')" \
	" RETURNING coalesce(lease, 0), finished_at, worker, value #>> '{}'", 1, {INT8OID} \
}
static SpiStatement delete_outcome[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(DELETE_OUTCOME);
#define RENEW_ROW(segment) { \
	"UPDATE fanout.task" segment " SET run_at = NULL, rank = $2, deadline = $3 WHERE id = $1 RETURNING ctid", \
	3, {INT8OID, INT8OID, TIMESTAMPTZOID} \
}
static SpiStatement renew_row[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(RENEW_ROW);
static SpiStatement select_start = {
	"SELECT FROM fanout.attempt WHERE task = $1 AND event IN ('c', 'b', 'f', 'r', 'x') LIMIT 1", 1, {INT8OID}
};

/* Give a task that this transaction has withdrawn its outcome. */
void
cancel_withdrawn(int64 task, const char *reason)
{
	LogWriter  *writer = log_writer_open(LOG_OUTCOME, 1);
	Datum		value = reason != NULL ? error_value(reason, strlen(reason)) : (Datum) 0;

	write_outcome(writer, task, NULL, OUTCOME_CANCELLED, GetCurrentTimestamp(), value, reason == NULL);
	log_writer_close(writer);
}

static CancelResult
cancel_at_once(int64 task, const char *reason, WithdrawPurpose purpose)
{
	TaskRow		row;
	Queue	   *queue;
	Withdrawn	withdrawn;
	bool		closed;

	if (!task_row_read(task, &row))
		return CANCEL_UNKNOWN;
	dispatcher_lock();
	queue = queue_find(MyDatabaseId, row.queue_id);
	closed = queue != NULL && queue->state == QUEUE_CLOSED;
	dispatcher_unlock();
	if (queue == NULL)
		return CANCEL_UNKNOWN;
	if (closed)
		return CANCEL_LATER;
	switch (task_row_withdraw(queue, &row, purpose, &withdrawn))
	{
		case WITHDRAWN:
			cancel_withdrawn(task, reason);
			return CANCEL_DONE;
		case NO_MEMORY:
			return CANCEL_NO_MEMORY;
		case BUSY:
		case MOVED:
			return CANCEL_LATER;
		case NOT_WAITING:
			break;
	}
	return CANCEL_NOT_WAITING;
}

CancelResult
cancel_task_at_once(int64 task, const char *reason)
{
	return cancel_at_once(task, reason, TO_END);
}

CancelResult
cancel_late_task(int64 task)
{
	return cancel_at_once(task, DEADLINE_PASSED, TO_END_LATE);
}

CancelResult
cancel_begin(const QueueRef *ref, int64 task, int64 *partition)
{
	for (;;)
	{
		TaskRow		row;
		Withdrawn	withdrawn;

		CHECK_FOR_INTERRUPTS();
		if (!task_row_read(task, &row) || row.queue_id != ref->id)
			return CANCEL_UNKNOWN;
		*partition = row.seed.partition;
		switch (task_row_withdraw(ref->queue, &row, TO_END, &withdrawn))
		{
			case WITHDRAWN:
				return CANCEL_DONE;
			case NO_MEMORY:
				throw_no_memory_for_task();
			case BUSY:
				wait_for_other(&withdrawn);
				break;
			case NOT_WAITING:
				return CANCEL_NOT_WAITING;
			case MOVED:
				break;
		}
	}
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
		if (task->state == TASK_RUNNING && !TransactionIdEquals(task->ender, GetTopTransactionIdIfAny()))
		{
			way = ASK_WORKER;
			*lease = lease_of(task)->node.id;
			ender = lease_of(task)->ender;
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
	Task	   *entry;

	write_attempt(writer, lease, task, 'k', GetCurrentTimestamp(), 0, NULL,
				  reason != NULL ? CStringGetTextDatum(reason) : (Datum) 0, reason == NULL);
	log_writer_close(writer);
	pending_prepare(1);
	pending_cancel_request(task);
	dispatcher_lock();
	entry = task_find(MyDatabaseId, task);
	if (entry != NULL && entry->state == TASK_RUNNING)
		entry->ender = GetTopTransactionId();	/* a second cancel of this transaction does nothing */
	dispatcher_unlock();
}

/* Ask the worker of a task that does not wait to stop; LOOK_AGAIN if it waits by now. */
static CancelWay
cancel_running(int64 task, const char *reason, const CancelFilter *filter)
{
	int64		lease = 0;
	CancelWay	way = way_to_cancel(task, &lease);

	/* it may have its outcome before its end has come to memory: then there is nothing to ask for */
	if (way != NO_WAY && outcome_of(task) != 0)
		way = NO_WAY;
	if (way == ASK_WORKER && filter != NULL && !filter->matches(task, filter->arg))
		way = NO_WAY;
	if (way == ASK_WORKER)
		ask_worker(task, lease, reason);
	return way;
}

/* The task was withdrawn to be cancelled, but is not one that is meant: it waits again. */
static void
give_back(void)
{
	dispatcher_lock();
	pending_undo_withdrawal();
	dispatcher_unlock();
}

CancelResult
cancel_task(int64 task, const char *reason, const CancelFilter *filter)
{
	for (;;)
	{
		TaskRow		row;
		QueueRef	ref;
		Withdrawn	withdrawn;
		CancelWay	way = LOOK_AGAIN;

		CHECK_FOR_INTERRUPTS();
		if (!task_row_read(task, &row))
			return CANCEL_UNKNOWN;
		if (filter != NULL && row.queue_id != filter->queue_id)
			return CANCEL_NOT_WAITING;	/* it has moved: the caller need have no right there */
		if (!registry_queue_by_id(row.queue_id, PRIVILEGE_ENQUEUE, &ref))
			return CANCEL_UNKNOWN;
		switch (task_row_withdraw(ref.queue, &row, TO_END, &withdrawn))
		{
			case WITHDRAWN:
				if (filter != NULL && !filter->matches(task, filter->arg))
				{
					give_back();
					return CANCEL_NOT_WAITING;
				}
				cancel_withdrawn(task, reason);
				return CANCEL_DONE;
			case NO_MEMORY:
				throw_no_memory_for_task();
			case BUSY:
				wait_for_other(&withdrawn);
				break;
			case NOT_WAITING:
				way = cancel_running(task, reason, filter);
				break;
			case MOVED:
				break;
		}
		if (way != LOOK_AGAIN)
			return way == ASK_WORKER ? CANCEL_DONE : CANCEL_NOT_WAITING;
	}
}

static char *
reason_of(FunctionCallInfo fcinfo)
{
	return PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
}

Datum
fanout_cancel(PG_FUNCTION_ARGS)
{
	CancelResult result;

	require_writable("fanout.cancel()");
	require_arg(fcinfo, 0, "task");
	(void) require_database();
	result = cancel_task(PG_GETARG_INT64(0), reason_of(fcinfo), NULL);
	if (result == CANCEL_UNKNOWN)
		throw_unknown_task(PG_GETARG_INT64(0));
	PG_RETURN_BOOL(result == CANCEL_DONE);
}

Datum
fanout_cancel_many(PG_FUNCTION_ARGS)
{
	Datum	   *tasks;
	char	   *reason = reason_of(fcinfo);
	int			count;
	ResultSet	set;
	bool		isnull = false;

	require_writable("fanout.cancel()");
	(void) require_database();
	count = arg_ids(fcinfo, "tasks", &tasks);
	set = result_set_begin(fcinfo);
	for (int i = 0; i < count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (cancel_task(DatumGetInt64(tasks[i]), reason, NULL) == CANCEL_DONE)
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
	write_attempt(writer, ids_take_lease(require_database()), task, 'n', GetCurrentTimestamp(), 0, NULL, (Datum) 0, true);
	log_writer_close(writer);
}

/* Take the outcome back; false if there is none that can be. */
static bool
take_back_outcome(int64 task)
{
	SpiScope	scope;
	Datum		values[1] = {Int64GetDatum(task)};
	int			segment;
	bool		deleted;

	segment = segment_hold(LOG_OUTCOME, task, RowExclusiveLock);
	if (!segment_is_current(segment))
		segment_unsettle(segment);
	spi_begin(&scope);
	deleted = spi_run_latest(&delete_outcome[segment], values, NULL) == 1;
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
enter_again(const QueueRef *ref, const TaskSeed *seed, ItemPointer tid)
{
	TaskPlace  *place = MemoryContextAlloc(TopTransactionContext, sizeof(TaskPlace));
	Task	   *task = NULL;
	bool		gone;

	place->tid = *tid;
	pending_prepare(1);
	dispatcher_lock();
	gone = !queue_ref_is_valid(ref);
	if (!gone)
	{
		task = task_reserve(ref->queue, seed, GetCurrentTimestamp());
		if (task != NULL)
			task->flags &= ~TASK_FLAG_FRESH;	/* it may have checkpoints */
		place->entry = task;
		ref->queue->pending++;
		pending_enqueue(ref->queue, seed, 1, task != NULL, place, NULL);
		queue_count_backlog(ref->queue, seed->partition, 1);
		pending_enqueue_counted(1);
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
		ender = lease_of(task)->ender;
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
			(void) wait_on_latch(wait_clock() + 10 * 1000, PG_WAIT_EXTENSION);
	} while (ended);
}

/* Has the task, whose outcome was taken back, ever started?  The ends of all of its attempts are on disk. */
static bool
has_started(int64 task)
{
	SpiScope	scope;
	Datum		values[1] = {Int64GetDatum(task)};
	bool		started;

	spi_begin(&scope);
	started = spi_read_latest(&select_start, values, NULL) == 1;
	spi_end(&scope);
	return started;
}

/*
 * The task is due at once, its place goes by the aging that the queue has now,
 * and it has no deadline once that has passed or the task has started.  Its row
 * is to say so, as that alone tells of a task that has not been attempted in
 * this life.
 */
static void
renew(const QueueRef *ref, TaskRow *row, ItemPointer tid)
{
	TaskSeed   *seed = &row->seed;
	QueueSettings settings;
	SpiScope	scope;
	Datum		values[3] = {Int64GetDatum(seed->task)};
	char		nulls[4] = "   ";
	bool		was_timed = seed->timed;
	int64		rank_before = seed->rank;
	bool		isnull;
	bool		free = seed->deadline != 0 && (seed->deadline <= GetCurrentTimestamp() || has_started(seed->task));

	dispatcher_lock();
	settings = *pending_settings(ref->queue);
	dispatcher_unlock();
	seed->timed = false;
	seed->run_at = 0;
	seed->rank = rank_of(&settings, seed->priority, row->enqueued_at);
	if (free)
		seed->deadline = 0;
	ItemPointerSetInvalid(tid);
	if (!was_timed && seed->rank == rank_before && !free)
		return;
	values[1] = Int64GetDatum(seed->rank);
	nulls[1] = settings.aging > 0 ? ' ' : 'n';
	values[2] = TimestampTzGetDatum(seed->deadline);
	nulls[2] = seed->deadline == 0 ? 'n' : ' ';
	spi_begin(&scope);
	if (spi_run_latest(&renew_row[segment_hold(LOG_TASK, seed->task, RowExclusiveLock)], values, nulls) == 1)
		*tid = *(ItemPointer) DatumGetPointer(spi_value(0, 1, &isnull));
	spi_end(&scope);
}

static CancelResult
retry_task(int64 task)
{
	TaskRow		row;
	QueueRef	ref;
	ItemPointerData tid;

	if (!task_row_read(task, &row) || !registry_queue_by_id(row.queue_id, PRIVILEGE_ENQUEUE, &ref))
		return CANCEL_UNKNOWN;
	queue_lock(ref.id, RowExclusiveLock);
	if (ended_by_us(task) || !take_back_outcome(task))
		return CANCEL_NOT_WAITING;
	wait_until_ended(task);
	wait_until_forgotten(task);

	/* before it ended it may have moved; now it stays where it is, as it is ours */
	if (!task_row_read(task, &row) || !registry_queue_by_id(row.queue_id, PRIVILEGE_ENQUEUE, &ref))
		return CANCEL_UNKNOWN;
	queue_lock(ref.id, RowExclusiveLock);
	renew(&ref, &row, &tid);
	enter_again(&ref, &row.seed, &tid);
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
	int			count;
	ResultSet	set;
	bool		isnull = false;

	require_writable("fanout.retry()");
	(void) require_database();
	count = arg_ids(fcinfo, "tasks", &tasks);
	set = result_set_begin(fcinfo);
	for (int i = 0; i < count; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (retry_task(DatumGetInt64(tasks[i])) == CANCEL_DONE)
			result_set_add(&set, &tasks[i], &isnull);
	}
	return (Datum) 0;
}
