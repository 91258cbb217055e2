/*
 * lease.c
 *		What a worker does under its lease: hold it, extend it.
 *
 * A lease number is the fencing token.  Whatever is done under it looks it up
 * in memory, where it is found as long as it is live; what writes to the log
 * pins it as well, so that it does not expire, and the task is not given to
 * somebody else, before the fate of what was written is known.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "commit_hooks.h"
#include "lease.h"

PG_FUNCTION_INFO_V1(fanout_extend);
PG_FUNCTION_INFO_V1(fanout_extend_many);
PG_FUNCTION_INFO_V1(fanout_heartbeat);

void
throw_lease_lost(int64 lease)
{
	ereport(ERROR,
			(errcode(ERRCODE_LEASE_LOST),
			 errmsg("lease " INT64_FORMAT " is lost", lease),
			 errdetail("It has expired, has been ended, or was never given out."),
			 errhint("Stop working on the task: another worker may have it.")));
}

void
throw_not_held(int64 lease, const HeldLease *held)
{
	if (!held->cancelled)
		throw_lease_lost(lease);
	ereport(ERROR,
			(errcode(ERRCODE_TASK_CANCELLED),
			 errmsg("the task of lease " INT64_FORMAT " has been cancelled", lease),
			 errhint("Stop working on it, and let it go with fanout.fail() or fanout.release(): it will not be tried again.")));
}

/* The lease if it is live for this backend, or NULL.  Under the lock. */
static Lease *
find_live(int64 number)
{
	Lease	   *lease = lease_find(MyDatabaseId, number);

	if (lease == NULL || lease->task == 0)
		return NULL;
	if (!lease->committed && lease->holder != backend_number())
		return NULL;
	return lease;
}

/* Whose end decides about the lease: who ends it, or who drops its queue.  Under the lock. */
static TransactionId
decider_of(const Lease *lease)
{
	const Queue *queue = &fanout_queues[task_of(lease)->queue];

	if (TransactionIdIsValid(lease->ender))
		return lease->ender;
	return queue->state == QUEUE_CLOSED && queue->dropping ? queue->closer : InvalidTransactionId;
}

static void
copy_out(Lease *lease, HeldLease *held)
{
	const Task *task = task_of(lease);
	const QueueSettings *settings = &fanout_queues[task->queue].settings;

	held->entry = lease;
	held->lease = lease->node.id;
	held->task = task->node.id;
	held->queue_id = fanout_queues[task->queue].id;
	held->attempt = lease->attempt;
	held->max_attempts = task->max_attempts > 0 ? task->max_attempts : settings->max_attempts;
	held->claimed_at = lease->claimed_at;
	held->journaled = lease->committed && (lease->journal & LEASE_JOURNAL_CLAIM) == 0;
	held->cancelled = (task->flags & TASK_FLAG_CANCELLED) != 0;
	held->lease_duration = settings->lease;
	held->backoff = settings->backoff;
	held->backoff_max = settings->backoff_max;
	memcpy(held->worker, worker_of(lease)->key.name, FANOUT_NAME_LEN);
}

typedef enum HoldResult
{
	HELD,
	NOT_LIVE,
	NOT_CHECKED,				/* may the caller dequeue from its queue? */
	BEING_ENDED					/* by another transaction */
} HoldResult;

/*
 * Hold the lease if it is one of the queue "allowed" and nobody else decides
 * about it.  Otherwise its queue, or who decides, is told.  Under the lock.
 */
static HoldResult
try_to_hold(int64 number, LeaseUse use, int32 allowed, TransactionId me, HeldLease *held, TransactionId *other)
{
	Lease	   *lease = find_live(number);

	held->cancelled = false;
	if (lease == NULL)
		return NOT_LIVE;
	copy_out(lease, held);
	if (held->queue_id != allowed)
		return NOT_CHECKED;

	if (held->cancelled && (use == LEASE_USE_EXTEND || use == LEASE_USE_WRITE))
		return NOT_LIVE;

	/* to extend a lease that is being ended does no harm: a heartbeat need not wait for that */
	if (use == LEASE_USE_EXTEND)
		return HELD;
	*other = decider_of(lease);
	if (TransactionIdIsValid(*other))
		return TransactionIdEquals(*other, me) ? NOT_LIVE : BEING_ENDED;

	lease_pin(lease);
	if (use == LEASE_USE_WRITE)
		pending_pin(lease, number);
	else
		lease->ender = me;
	if (use == LEASE_USE_COMPLETE)
		pending_end(lease, number, held->task, OUTCOME_SUCCEEDED);
	return HELD;
}

void
lease_hold_many(const Datum *leases, int count, LeaseUse use, HeldLease *held)
{
	int32		allowed;
	TransactionId me = InvalidTransactionId;
	int			i = 0;

	(void) require_database();
	allowed = registry_recent_queue(PRIVILEGE_DEQUEUE);
	if (use != LEASE_USE_EXTEND)
	{
		me = GetTopTransactionId();
		pending_prepare(count);
	}

	while (i < count)
	{
		int			stop = Min(i + FANOUT_WORK_CHUNK, count);
		HoldResult	result = HELD;
		TransactionId other = InvalidTransactionId;
		QueueRef	ref;

		dispatcher_lock();
		for (; i < stop; i++)
		{
			result = try_to_hold(DatumGetInt64(leases[i]), use, allowed, me, &held[i], &other);
			if (result == NOT_LIVE)
				held[i].lease = 0;
			else if (result != HELD)
				break;
		}
		dispatcher_unlock();

		if (i == stop)
			continue;
		if (result == BEING_ENDED)
		{
			/* Its commit callback has run by the time its lock on itself is released. */
			XactLockTableWait(other, NULL, NULL, XLTW_None);
		}
		else if (registry_queue_by_id(held[i].queue_id, PRIVILEGE_DEQUEUE, &ref))
			allowed = ref.id;
		else
			held[i++].lease = 0;	/* the queue was dropped */
	}
}

bool
lease_hold(int64 number, LeaseUse use, HeldLease *held)
{
	Datum		lease = Int64GetDatum(number);

	lease_hold_many(&lease, 1, use, held);
	return held->lease != 0;
}

/* Have the lease end so long from now (0: the queue's lease); false if it is not live. */
static bool
extend_one(int64 number, int64 by, TimestampTz *until, HeldLease *held)
{
	Lease	   *lease;

	if (!lease_hold(number, LEASE_USE_EXTEND, held))
		return false;

	dispatcher_lock();
	lease = find_live(number);
	if (lease != NULL)
	{
		*until = GetCurrentTimestamp() + (by > 0 ? by : held->lease_duration);
		lease_extend(lease, *until);
	}
	dispatcher_unlock();
	return lease != NULL;
}

static int64
extension_of(FunctionCallInfo fcinfo)
{
	int64		by = arg_duration(fcinfo, 1, "by", 0);

	if (by == 0 && !PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("by must be longer than 0"),
				 errhint("Use fanout.release() to give the task back.")));
	return by;
}

Datum
fanout_extend(PG_FUNCTION_ARGS)
{
	TimestampTz until;
	HeldLease	held;

	require_writable("fanout.extend()");
	require_arg(fcinfo, 0, "lease");
	if (!extend_one(PG_GETARG_INT64(0), extension_of(fcinfo), &until, &held))
		throw_not_held(PG_GETARG_INT64(0), &held);
	PG_RETURN_TIMESTAMPTZ(until);
}

Datum
fanout_extend_many(PG_FUNCTION_ARGS)
{
	Datum	   *leases;
	int			count;
	int64		by;
	TimestampTz until;
	HeldLease	held;
	ResultSet	set;

	require_writable("fanout.extend()");
	count = arg_ids(fcinfo, "leases", &leases);
	by = extension_of(fcinfo);
	set = result_set_begin(fcinfo);
	for (int i = 0; i < count; i++)
	{
		bool		isnull = false;

		if (extend_one(DatumGetInt64(leases[i]), by, &until, &held))
			result_set_add(&set, &leases[i], &isnull);
	}
	return (Datum) 0;
}

/* The numbers of the worker's leases, into a fresh array. */
static int64 *
leases_of_worker(const char *name, int *count)
{
	int64	   *leases = NULL;
	int			room = 0;

	for (;;)
	{
		Worker	   *worker;
		int			needed;

		*count = 0;
		dispatcher_lock();
		worker = worker_find(MyDatabaseId, name);
		needed = worker != NULL ? worker->lease_count : 0;
		if (worker != NULL && needed <= room)
		{
			short_list_foreach(node, &worker->leases)
				leases[(*count)++] = link_container(Lease, worker_link, node)->node.id;
		}
		dispatcher_unlock();
		if (needed <= room)
			return leases;
		room = needed * 2;
		leases = palloc(room * sizeof(int64));
	}
}

/* The id of the queue that the lease belongs to; false if it is not live. */
static bool
find_queue_of_lease(int64 number, int32 *queue_id)
{
	Lease	   *lease;

	dispatcher_lock();
	lease = find_live(number);
	if (lease != NULL)
		*queue_id = fanout_queues[task_of(lease)->queue].id;
	dispatcher_unlock();
	return lease != NULL;
}

/* Is the lease one of a queue that the caller may dequeue from? */
static bool
may_dequeue(int64 number)
{
	int32		queue_id = 0;

	return find_queue_of_lease(number, &queue_id) && registry_queue_allows(queue_id, PRIVILEGE_DEQUEUE);
}

Datum
fanout_heartbeat(PG_FUNCTION_ARGS)
{
	char		worker[FANOUT_NAME_LEN];
	int64	   *leases;
	int			count;
	int			extended = 0;
	int64		by;
	int64		cancelled = 0;
	HeldLease	held;

	require_writable("fanout.heartbeat()");
	require_arg(fcinfo, 0, "worker");
	arg_worker(fcinfo, 0, worker);
	by = extension_of(fcinfo);
	(void) require_database();
	leases = leases_of_worker(worker, &count);
	for (int i = 0; i < count; i++)
	{
		TimestampTz until;

		/* others may use the same worker's name */
		if (!may_dequeue(leases[i]))
			continue;
		if (extend_one(leases[i], by, &until, &held))
			extended++;
		else if (held.cancelled)
			cancelled = leases[i];
	}

	/* the others are extended by now, as that is not undone */
	if (cancelled != 0)
	{
		held.cancelled = true;
		throw_not_held(cancelled, &held);
	}
	PG_RETURN_INT32(extended);
}

static void
end_if_bound_to_me(Lease *lease, void *arg)
{
	if (!lease->bound || lease->task == 0 || lease->holder != backend_number() || !lease->committed)
		return;
	lease->bound = false;
	lease->holder = 0;
	lease_extend(lease, *(TimestampTz *) arg);
}

/*
 * The session ends: so do its leases, by the keeper's hand, at once, or as
 * soon as no open transaction writes under them.
 */
static void
exit_callback(int code, Datum arg)
{
	TimestampTz now = GetCurrentTimestamp();

	dispatcher_lock();
	lease_iterate(end_if_bound_to_me, &now);
	dispatcher_unlock();
}

/* To be called before a claim that binds a lease to the session. */
void
end_bound_leases_at_exit(void)
{
	static bool registered = false;

	if (!registered)
		before_shmem_exit(exit_callback, (Datum) 0);
	registered = true;
}
