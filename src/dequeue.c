/*
 * dequeue.c
 *		Leasing tasks to workers.
 *
 * The claim is made in memory, under the dispatcher lock, together with the
 * note that undoes it should the transaction abort.  Then the rows are
 * fetched.  Nothing is written, unless the queue wants its claims to be
 * synchronous.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "commit_hooks.h"
#include "finish.h"
#include "lease.h"
#include "points.h"
#include "return.h"
#include "snapshot.h"
#include "starts.h"
#include "storage.h"
#include "wait.h"
#include "window.h"

PG_FUNCTION_INFO_V1(fanout_dequeue);
PG_FUNCTION_INFO_V1(fanout_dequeue_queues);
PG_FUNCTION_INFO_V1(fanout_complete_and_dequeue);
PG_FUNCTION_INFO_V1(fanout_complete_many_and_dequeue);
PG_FUNCTION_INFO_V1(fanout_dequeue_wait);
PG_FUNCTION_INFO_V1(fanout_dequeue_wait_queues);

#define MAX_TASKS			10000
#define WAIT_SLICE			(30 * USECS_PER_SEC)	/* look again at least so often, should a wake-up be lost */
#define CLIENT_PATIENCE		USECS_PER_SEC

/* From libpq/libpq.h, which wants headers of Kerberos where the server was built with it. */
extern bool pq_check_connection(void);

enum DequeueColumn
{
	DEQUEUE_LEASE, DEQUEUE_TASK, DEQUEUE_QUEUE, DEQUEUE_NAME, DEQUEUE_ARGS, DEQUEUE_ATTEMPT, DEQUEUE_CHECKPOINTS,
	DEQUEUE_LEASE_UNTIL, DEQUEUE_PRIORITY, DEQUEUE_BATCH, DEQUEUE_MAX_ATTEMPTS, DEQUEUE_ENQUEUED_AT, DEQUEUE_COLUMNS
};

/* The queues that one call names, in its order. */
typedef struct QueueList
{
	QueueRef	refs[FANOUT_WAIT_QUEUES];
	int32		slots[FANOUT_WAIT_QUEUES];
	int			count;
} QueueList;

typedef struct DequeueOptions
{
	char		worker[FANOUT_NAME_LEN];
	int			max_tasks;
	int64		lease;			/* 0: the queue's */
	int64		wait;
	bool		bound;
	struct Lease **ending;		/* room for the leases that this transaction ends */
} DequeueOptions;

static void
add_queue(QueueList *list, text *name)
{
	QueueRef	ref = registry_queue(name, PRIVILEGE_DEQUEUE);

	for (int i = 0; i < list->count; i++)
	{
		if (list->refs[i].id == ref.id)
			return;
	}
	if (list->count == FANOUT_WAIT_QUEUES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("too many queues"),
				 errdetail("One call may name up to %d.", FANOUT_WAIT_QUEUES)));
	list->refs[list->count] = ref;
	list->slots[list->count] = ref.queue - fanout_queues;
	list->count++;
}

static void
take_queue(FunctionCallInfo fcinfo, int arg, QueueList *list)
{
	require_arg(fcinfo, arg, "queue");
	add_queue(list, PG_GETARG_TEXT_PP(arg));
}

static void
take_queues(FunctionCallInfo fcinfo, int arg, QueueList *list)
{
	Datum	   *names;
	bool	   *nulls;
	int			count;

	require_arg(fcinfo, arg, "queue");
	count = array_elements(PG_GETARG_ARRAYTYPE_P(arg), TEXTOID, "queue", &names, &nulls, false);
	if (count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no queue is named")));
	for (int i = 0; i < count; i++)
		add_queue(list, DatumGetTextPP(names[i]));
}

/* The arguments from worker to bind_to_session follow on in all forms of dequeue. */
static DequeueOptions
take_options(FunctionCallInfo fcinfo, int first)
{
	DequeueOptions options;

	arg_worker(fcinfo, first, options.worker);
	options.max_tasks = PG_ARGISNULL(first + 1) ? 1 : PG_GETARG_INT32(first + 1);
	if (options.max_tasks < 1 || options.max_tasks > MAX_TASKS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_tasks must be from 1 to %d", MAX_TASKS)));
	options.lease = arg_duration(fcinfo, first + 2, "lease", 0);
	if (options.lease == 0 && !PG_ARGISNULL(first + 2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lease must be longer than 0")));
	options.wait = arg_duration(fcinfo, first + 3, "wait", 0);
	options.bound = !PG_ARGISNULL(first + 4) && PG_GETARG_BOOL(first + 4);
	return options;
}

/* The first of the queues that has been dropped, or NULL.  Under the lock. */
static const QueueRef *
find_gone(const QueueList *list)
{
	for (int i = 0; i < list->count; i++)
	{
		if (!queue_ref_is_valid(&list->refs[i]))
			return &list->refs[i];
	}
	return NULL;
}

/* Claim from the queues in their order, and note it.  Under the lock. */
static int
claim(const QueueList *list, const DequeueOptions *options, Claim *claims)
{
	TimestampTz now = GetCurrentTimestamp();
	Claimant	claimant = {.worker = options->worker, .lease = options->lease, .bound = options->bound,
	.ending = options->ending};
	int			count = 0;

	for (int i = 0; i < list->count && count < options->max_tasks; i++)
	{
		Queue	   *queue = list->refs[i].queue;

		pending_ends(queue, &claimant);
		count += queue_claim(queue, &claimant, options->max_tasks - count, now, &claims[count]);
	}
	for (int i = 0; i < count; i++)
		pending_claim(claims[i].entry, claims[i].lease, claims[i].synchronous);
	return count;
}

/* Let others have what this backend was woken for and could not use.  Under the lock. */
static void
pass_on(const QueueList *list)
{
	for (int i = 0; i < list->count; i++)
	{
		if (queue_ref_is_valid(&list->refs[i]))
			queue_wake(list->refs[i].queue);
	}
}

/* This backend was woken for nothing.  Under the lock. */
static void
note_idle_wakeup(void)
{
	Database   *database = database_find(MyDatabaseId);

	if (database != NULL)
		database->idle_wakeups++;
}

/* What one look at the queues does; its result ends the wait unless it is 0.  Under the lock. */
typedef int (*LookFunction) (const QueueList *list, const DequeueOptions *options, Claim *claims);

/* Leave the lists on an error, and when the session is ended. */
static void
stop_waiting(int code, Datum arg)
{
	abandon_waits();
}

/*
 * End the session if the client has gone meanwhile: it would get a task that
 * nobody works on until the lease ends.  That is not worth the system calls to
 * who is woken soon; a client goes while it waits for long.
 */
static void
require_client(int64 waited)
{
	if (waited < CLIENT_PATIENCE || whereToSendOutput != DestRemote || MyProcPort == NULL || pq_check_connection())
		return;
	ClientConnectionLost = true;
	InterruptPending = true;
	CHECK_FOR_INTERRUPTS();
}

/*
 * Look, and wait for something to be there until the deadline.  A backend is
 * in the lists of waiters only while it sleeps.
 */
static int
look_and_wait(const QueueList *list, const DequeueOptions *options, LookFunction look, Claim *claims,
			  int64 deadline)
{
	int64		since = wait_clock();
	int64		now = since;

	note_return();
	for (;;)
	{
		const QueueRef *gone;
		Queue	   *returned_to;
		int			count = 0;
		bool		woken;
		bool		sleep;

		dispatcher_lock();
		woken = stop_waiting_for_queues();
		returned_to = forget_return(waiter_of_backend());
		gone = find_gone(list);
		if (gone == NULL)
			count = look(list, options, claims);
		pass_on(list);
		if (returned_to != NULL)
			queue_wake(returned_to);	/* it may be none of these */
		if (woken && count == 0)
			note_idle_wakeup();
		sleep = gone == NULL && count == 0 && now < deadline;
		if (sleep)
			wait_for_queues(list->slots, list->count, options->worker, since);
		dispatcher_unlock();

		if (gone != NULL)
			throw_queue_gone(gone->name);
		if (!sleep)
			return count;

		PG_ENSURE_ERROR_CLEANUP(stop_waiting, (Datum) 0);
		{
			(void) wait_on_latch(Min(deadline, now + WAIT_SLICE), PG_WAIT_EXTENSION);
			require_client(wait_clock() - since);
		}
		PG_END_ENSURE_ERROR_CLEANUP(stop_waiting, (Datum) 0);
		now = wait_clock();
	}
}

/* Journal the claims of queues that want it so in this very transaction. */
static void
journal_synchronous(const Claim *claims, int count, const DequeueOptions *options)
{
	LogWriter  *writer = NULL;

	for (int i = 0; i < count; i++)
	{
		if (!claims[i].synchronous)
			continue;
		if (writer == NULL)
			writer = log_writer_open(LOG_ATTEMPT, count);
		write_attempt(writer, claims[i].lease, claims[i].task, options->bound ? 'b' : 'c', claims[i].claimed_at,
					  claims[i].until, options->worker, (Datum) 0, true);
	}
	if (writer != NULL)
		log_writer_close(writer);
}

static const char *
name_of_queue(const QueueList *list, int32 id)
{
	for (int i = 0; i < list->count; i++)
	{
		if (list->refs[i].id == id)
			return list->refs[i].name;
	}
	return NULL;
}

/* What a task is returned with that has none: an empty object, made once. */
static Datum
no_checkpoints(void)
{
	static Jsonb *empty = NULL;

	if (empty == NULL)
	{
		MemoryContext caller = MemoryContextSwitchTo(TopMemoryContext);

		empty = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
		MemoryContextSwitchTo(caller);
	}
	return JsonbPGetDatum(empty);
}

static void
return_claim(ResultSet *set, TaskReader *reader, const QueueList *list, const Claim *claim)
{
	Datum		row[TASK_COLUMNS];
	bool		row_nulls[TASK_COLUMNS];
	Datum		values[DEQUEUE_COLUMNS];
	bool		nulls[DEQUEUE_COLUMNS] = {0};
	Jsonb	   *checkpoints = NULL;

	if (!task_reader_fetch(reader, claim->task, (ItemPointer) &claim->tid, row, row_nulls))
	{
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("task " INT64_FORMAT " has no row in fanout.task", claim->task),
				 errdetail("It is left out; its lease will expire.")));
		return;
	}
	if (!claim->fresh)
		checkpoints = checkpoints_of(claim->task, &nulls[DEQUEUE_CHECKPOINTS]);

	values[DEQUEUE_LEASE] = Int64GetDatum(claim->lease);
	values[DEQUEUE_TASK] = Int64GetDatum(claim->task);
	values[DEQUEUE_QUEUE] = CStringGetTextDatum(name_of_queue(list, claim->queue_id));
	values[DEQUEUE_NAME] = row[TASK_NAME];
	values[DEQUEUE_ARGS] = row[TASK_ARGS];
	nulls[DEQUEUE_ARGS] = row_nulls[TASK_ARGS];
	values[DEQUEUE_ATTEMPT] = Int32GetDatum(claim->attempt);
	values[DEQUEUE_CHECKPOINTS] = checkpoints != NULL ? JsonbPGetDatum(checkpoints) : no_checkpoints();
	values[DEQUEUE_LEASE_UNTIL] = TimestampTzGetDatum(claim->until);
	values[DEQUEUE_PRIORITY] = Int32GetDatum(claim->priority);
	values[DEQUEUE_BATCH] = Int64GetDatum(claim->batch);
	nulls[DEQUEUE_BATCH] = claim->batch == 0;
	values[DEQUEUE_MAX_ATTEMPTS] = Int32GetDatum(claim->max_attempts);
	values[DEQUEUE_ENQUEUED_AT] = row[TASK_ENQUEUED_AT];
	result_set_add(set, values, nulls);
}

static void
dequeue(FunctionCallInfo fcinfo, const QueueList *list, DequeueOptions *options)
{
	ResultSet	set = result_set_begin(fcinfo);
	Claim	   *claims = palloc(options->max_tasks * sizeof(Claim));
	int64		deadline = options->wait > 0 ? wait_deadline(options->wait, true) : 0;
	int			count;

	(void) require_database();
	pending_prepare(options->max_tasks);
	options->ending = palloc(Max(pending_notes(), 1) * sizeof(Lease *));
	if (options->bound)
		end_bound_leases_at_exit();
	count = look_and_wait(list, options, claim, claims, deadline);

	if (count > 0)
	{
		TaskReader *reader = task_reader_open();

		FANOUT_POINT(CLAIM_MADE);
		journal_synchronous(claims, count, options);
		FANOUT_POINT(CLAIM_JOURNALED);
		for (int i = 0; i < count; i++)
			return_claim(&set, reader, list, &claims[i]);
		task_reader_close(reader);
		FANOUT_POINT(CLAIM_RETURNED);
	}
	pfree(claims);
}

Datum
fanout_dequeue(PG_FUNCTION_ARGS)
{
	QueueList	list = {.count = 0};
	DequeueOptions options;

	require_writable("fanout.dequeue()");
	options = take_options(fcinfo, 1);
	take_queue(fcinfo, 0, &list);
	dequeue(fcinfo, &list, &options);
	return (Datum) 0;
}

Datum
fanout_dequeue_queues(PG_FUNCTION_ARGS)
{
	QueueList	list = {.count = 0};
	DequeueOptions options;

	require_writable("fanout.dequeue()");
	options = take_options(fcinfo, 1);
	take_queues(fcinfo, 0, &list);
	dequeue(fcinfo, &list, &options);
	return (Datum) 0;
}

/*
 * What was completed takes effect when the transaction commits, so a call
 * that has completed something must not sit on it: it does not wait.
 */
Datum
fanout_complete_and_dequeue(PG_FUNCTION_ARGS)
{
	QueueList	list = {.count = 0};
	DequeueOptions options;

	require_writable("fanout.complete_and_dequeue()");
	options = take_options(fcinfo, 3);
	take_queue(fcinfo, 2, &list);
	if (!PG_ARGISNULL(0) &&
		complete_lease(PG_GETARG_INT64(0), PG_ARGISNULL(1) ? (Datum) 0 : PG_GETARG_DATUM(1), PG_ARGISNULL(1)))
		options.wait = 0;
	dequeue(fcinfo, &list, &options);
	return (Datum) 0;
}

Datum
fanout_complete_many_and_dequeue(PG_FUNCTION_ARGS)
{
	QueueList	list = {.count = 0};
	DequeueOptions options;
	Datum	   *leases;
	bool	   *done;
	int			count = 0;

	require_writable("fanout.complete_and_dequeue()");
	options = take_options(fcinfo, 3);
	take_queue(fcinfo, 2, &list);
	if (!PG_ARGISNULL(0))
		count = complete_leases(fcinfo, &leases, &done);
	for (int i = 0; i < count; i++)
	{
		if (done[i])
			options.wait = 0;
		else
			ereport(NOTICE,		/* for the client: the server's log has no use for it */
					(errcode(ERRCODE_LEASE_LOST),
					 errmsg("lease " INT64_FORMAT " is lost or was completed before", DatumGetInt64(leases[i]))));
	}
	dequeue(fcinfo, &list, &options);
	return (Datum) 0;
}

/* Is there something that the worker could claim? */
static int
look_only(const QueueList *list, const DequeueOptions *options, Claim *claims)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < list->count; i++)
	{
		Queue	   *queue = list->refs[i].queue;

		if (queue->state != QUEUE_OPEN || queue->settings.paused)
			continue;
		(void) queue_promote_due(queue, now);
		if (queue_startable(queue) > 0 && queue_admits(queue, options->worker))
			return 1;
	}
	return 0;
}

/* The one INOUT column of the procedures. */
static Datum
return_ready(FunctionCallInfo fcinfo, bool ready)
{
	TupleDesc	desc;
	Datum		values[1] = {BoolGetDatum(ready)};
	bool		nulls[1] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/* Wait outside of any snapshot; what is there is left for a dequeue to claim. */
static Datum
dequeue_wait(FunctionCallInfo fcinfo, void (*take) (FunctionCallInfo, int, QueueList *))
{
	QueueList	list = {.count = 0};
	DequeueOptions options = {.max_tasks = 1};
	int64		wait;
	bool		ready;

	require_nonatomic(fcinfo, "fanout.dequeue_wait()");
	require_writable("fanout.dequeue_wait()");
	arg_worker(fcinfo, 1, options.worker);
	wait = arg_duration(fcinfo, 2, "wait", INT64CONST(100) * 365 * USECS_PER_DAY);
	take(fcinfo, 0, &list);
	(void) require_database();

	release_snapshot();
	ready = look_and_wait(&list, &options, look_only, NULL, wait_deadline(wait, false)) > 0;
	return return_ready(fcinfo, ready);
}

Datum
fanout_dequeue_wait(PG_FUNCTION_ARGS)
{
	return dequeue_wait(fcinfo, take_queue);
}

Datum
fanout_dequeue_wait_queues(PG_FUNCTION_ARGS)
{
	return dequeue_wait(fcinfo, take_queues);
}
