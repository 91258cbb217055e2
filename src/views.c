/*
 * views.c
 *		What the extension shows of itself: the live side of its views.
 *
 * Counts, leases and states are copied out of memory under the dispatcher
 * lock, into room that was made before, and formatted after it is released:
 * nothing here allocates, looks into a catalogue or throws under the lock.
 *
 * Views must not fail where there is no memory to look at, on a standby or
 * while the keeper rebuilds it: they then show what the tables alone tell.
 * So nothing here waits for a keeper either.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "lane_pools.h"
#include "registry.h"
#include "spi.h"
#include "storage.h"
#include "version.h"
#include "views.h"
#include "window.h"

PG_FUNCTION_INFO_V1(fanout_queue_visible);
PG_FUNCTION_INFO_V1(fanout_role_visible);
PG_FUNCTION_INFO_V1(fanout_live_task);
PG_FUNCTION_INFO_V1(fanout_live_queues);
PG_FUNCTION_INFO_V1(fanout_live_leases);

/* Priorities among which the oldest ready task is looked for, the most urgent ones. */
#define OLDEST_MAX_PRIORITIES	64


/* A task, as memory has it. */
typedef struct LiveTask
{
	const char *state;
	TimestampTz due;			/* 0: at once */
	int32		attempt;		/* -1: not known */
	int64		lease;			/* 0: none, and nothing of the following */
	TimestampTz until;
	char		worker[FANOUT_NAME_LEN];
} LiveTask;

/* What fanout_live_task() keeps from one row of a query to the next. */
typedef struct LiveTaskCache
{
	TupleDesc	desc;
	VisibleQueues *visible;
} LiveTaskCache;

typedef struct LiveQueue
{
	int32		id;
	int64		scheduled;
	int64		ready;
	int64		running;
	int64		in_memory;
	int64		oldest_task;	/* 0: none is ready in memory */
	ItemPointerData oldest_tid;
	int32		waiting_workers;
	int64		enqueued;
	int64		dequeued;
	int64		succeeded;
	int64		failed;
	int64		cancelled;
} LiveQueue;

typedef struct LiveLease
{
	int64		lease;
	int64		task;
	int32		queue_id;
	int32		attempt;
	TimestampTz claimed_at;
	TimestampTz until;
	int32		holder_pid;
	bool		committed;
	char		worker[FANOUT_NAME_LEN];
} LiveLease;

/* Leases on their way out of memory; those that found no room are counted only. */
typedef struct LeaseCopy
{
	int64		room;
	int64		count;
	LiveLease  *leases;
} LeaseCopy;

static SpiStatement select_queue_roles = {
	"SELECT id, owner::oid FROM fanout.queue UNION ALL SELECT queue, grantee::oid FROM fanout.queue_grant ORDER BY 1",
	0, {0}
};

/*
 * Read who may do something with which queue: ids and roles, in the order of
 * ids.  The caller's rights are compared by the caller: in here, we are the
 * extension's owner.
 */
static int
read_queue_roles(int32 **ids, Oid **roles)
{
	MemoryContext caller = CurrentMemoryContext;
	SpiScope	scope;
	uint64		rows;
	bool		isnull;

	spi_begin(&scope);
	rows = spi_read_latest(&select_queue_roles, NULL, NULL);
	*ids = MemoryContextAlloc(caller, Max(rows, 1) * sizeof(int32));
	*roles = MemoryContextAlloc(caller, Max(rows, 1) * sizeof(Oid));
	for (uint64 i = 0; i < rows; i++)
	{
		(*ids)[i] = DatumGetInt32(spi_value(i, 1, &isnull));
		(*roles)[i] = DatumGetObjectId(spi_value(i, 2, &isnull));
	}
	spi_end(&scope);
	return rows;
}

VisibleQueues *
read_visible_queues(void)
{
	int32	   *ids;
	Oid		   *roles;
	int			rows = read_queue_roles(&ids, &roles);
	VisibleQueues *queues = palloc(offsetof(VisibleQueues, ids) + rows * sizeof(int32));

	queues->role = GetUserId();
	queues->count = 0;
	for (int i = 0; i < rows; i++)
	{
		if (queues->count > 0 && queues->ids[queues->count - 1] == ids[i])
			continue;
		if (role_is_mine(roles[i]))
			queues->ids[queues->count++] = ids[i];
	}
	pfree(ids);
	pfree(roles);
	return queues;
}

static int
compare_ids(const void *a, const void *b)
{
	int32		left = *(const int32 *) a;
	int32		right = *(const int32 *) b;

	return left < right ? -1 : left > right;
}

bool
queue_is_visible(const VisibleQueues *queues, int32 id)
{
	return bsearch(&id, queues->ids, queues->count, sizeof(int32), compare_ids) != NULL;
}

/* Read once for a query, not for each of its rows. */
Datum
fanout_queue_visible(PG_FUNCTION_ARGS)
{
	VisibleQueues *queues = fcinfo->flinfo->fn_extra;

	require_readable();
	if (queues == NULL || queues->role != GetUserId())
	{
		MemoryContext caller = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);

		queues = read_visible_queues();
		MemoryContextSwitchTo(caller);
		fcinfo->flinfo->fn_extra = queues;
	}
	PG_RETURN_BOOL(queue_is_visible(queues, PG_GETARG_INT32(0)));
}

Datum
fanout_role_visible(PG_FUNCTION_ARGS)
{
	require_readable();
	PG_RETURN_BOOL(role_is_mine(PG_GETARG_OID(0)));
}

const char *
state_on_disk(bool timed, TimestampTz run_at, TimestampTz now)
{
	return timed && run_at > now ? "scheduled" : "ready";
}

/* Does the task's node hold a time, and not a priority? */
static bool
waits_for_time(const Task *task)
{
	switch ((TaskState) task->state)
	{
		case TASK_SCHEDULED:
			return true;
		case TASK_ENQUEUED:
			return (task->flags & TASK_FLAG_TIMED) != 0;
		case TASK_ENDING:
			return (task->flags & TASK_FLAG_WAS_SCHEDULED) != 0;
		default:
			return false;
	}
}

/*
 * A task that has ended, but not yet for the query's snapshot, counts as
 * running: that is what the tables say of its attempt.
 */
const char *
state_in_memory(const Task *task, TimestampTz now)
{
	if (task->state == TASK_RUNNING || task->state == TASK_ENDED)
		return "running";
	return state_on_disk(waits_for_time(task), task->node.key, now);
}

static void
copy_task(const Task *task, TimestampTz now, LiveTask *live)
{
	live->state = state_in_memory(task, now);
	live->due = waits_for_time(task) ? task->node.key : 0;
	live->attempt = task->attempts;
	if (task->state == TASK_RUNNING)
	{
		live->lease = lease_of(task)->node.id;
		live->until = lease_of(task)->node.key;
		memcpy(live->worker, worker_of(lease_of(task))->key.name, FANOUT_NAME_LEN);
	}
}

/* Are all tasks of the queue that wait in memory, with those that are being committed? */
static bool
queue_is_all_in_memory(const Queue *queue)
{
	return queue != NULL && queue->state != QUEUE_FREE && queue->pending == 0 &&
		!window_is_bounded(&queue->main.ready) && !window_is_bounded(&queue->scheduled) && queue->lane_count == 0 &&
		!window_is_bounded(&queue->strays);
}

/* Look for the task in memory; false if there is no memory to tell. */
static bool
find_live_task(int64 id, int32 queue_id, bool timed, TimestampTz run_at, LiveTask *live)
{
	TimestampTz now = GetCurrentTimestamp();
	Database   *database;
	Task	   *task;

	memset(live, 0, sizeof(LiveTask));
	live->state = state_on_disk(timed, run_at, now);
	if (RecoveryInProgress())
		return false;

	dispatcher_lock();
	database = database_find(MyDatabaseId);
	task = task_find(MyDatabaseId, id);
	if (task != NULL)			/* of a queue that the query's snapshot does not show yet, if it moves */
		copy_task(task, now, live);
	else if (database != NULL && database->state == DATABASE_READY &&
			 queue_is_all_in_memory(queue_find(MyDatabaseId, queue_id)))
	{
		/* so it has ended, after the query took its snapshot */
		live->state = "running";
		live->attempt = -1;
	}
	dispatcher_unlock();
	return true;
}

/* Made at the query's first row. */
static LiveTaskCache *
live_task_cache(FunctionCallInfo fcinfo)
{
	LiveTaskCache *cache = fcinfo->flinfo->fn_extra;

	if (cache == NULL || cache->visible->role != GetUserId())
	{
		MemoryContext caller = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);

		cache = palloc(sizeof(LiveTaskCache));
		if (get_call_result_type(fcinfo, NULL, &cache->desc) != TYPEFUNC_COMPOSITE)
			elog(ERROR, "return type must be a row type");
		cache->desc = BlessTupleDesc(cache->desc);
		cache->visible = read_visible_queues();
		MemoryContextSwitchTo(caller);
		fcinfo->flinfo->fn_extra = cache;
	}
	return cache;
}

Datum
fanout_live_task(PG_FUNCTION_ARGS)
{
	LiveTaskCache *cache;
	Datum		values[6] = {0};
	bool		nulls[6] = {true, true, true, true, true, true};
	LiveTask	live;

	require_readable();
	cache = live_task_cache(fcinfo);
	if (!PG_ARGISNULL(0) && !PG_ARGISNULL(1) && queue_is_visible(cache->visible, PG_GETARG_INT32(1)) &&
		find_live_task(PG_GETARG_INT64(0), PG_GETARG_INT32(1), !PG_ARGISNULL(2),
					   PG_ARGISNULL(2) ? 0 : PG_GETARG_TIMESTAMPTZ(2), &live))
	{
		values[0] = CStringGetTextDatum(live.state);
		nulls[0] = false;
		values[1] = TimestampTzGetDatum(live.due);
		nulls[1] = live.due == 0;
		values[2] = Int32GetDatum(live.attempt);
		nulls[2] = live.attempt < 0;
		values[3] = Int64GetDatum(live.lease);
		values[4] = CStringGetTextDatum(live.worker);
		values[5] = TimestampTzGetDatum(live.until);
		nulls[3] = nulls[4] = nulls[5] = live.lease == 0;
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(cache->desc, values, nulls)));
}

/* The set's first node that does not come before (key, id), or NULL. */
static OrderNode *
first_not_before(const OrderedSet *set, int64 key, int64 id)
{
	OrderNode  *node = link_target(set->root);
	OrderNode  *found = NULL;

	while (node != NULL)
	{
		if (order_less(node->key, node->id, key, id))
			node = link_target(node->right);
		else
		{
			found = node;
			node = link_target(node->left);
		}
	}
	return found;
}

/*
 * The task that has been there for longest, that is, with the smallest id:
 * within a priority it comes first.  Tasks on disk are later ones, except
 * where those in memory are more urgent.
 */
static Task *
oldest_ready(const Queue *queue)
{
	const OrderedSet *set = &queue->main.ready.set;
	OrderNode  *node = order_first(set);
	OrderNode  *oldest = node;

	for (int i = 0; node != NULL && i < OLDEST_MAX_PRIORITIES; i++)
	{
		if (node->id < oldest->id)
			oldest = node;
		node = first_not_before(set, node->key + 1, PG_INT64_MIN);
	}
	return oldest != NULL ? order_container(Task, node, oldest) : NULL;
}

static void
copy_queue(const Queue *queue, LiveQueue *live)
{
	Task	   *oldest = oldest_ready(queue);

	live->id = queue->id;
	live->scheduled = Min(queue->timed, queue->waiting);
	live->ready = queue->waiting - live->scheduled;
	live->running = queue->running;
	live->in_memory = queue->ready_count + queue->scheduled.set.count + queue->reserved + queue->running;
	live->oldest_task = oldest != NULL ? oldest->node.id : 0;
	if (oldest != NULL)
		live->oldest_tid = oldest->tid;
	live->waiting_workers = queue->waiter_count;
	live->enqueued = queue->enqueued;
	live->dequeued = queue->dequeued;
	live->succeeded = queue->succeeded;
	live->failed = queue->failed;
	live->cancelled = queue->cancelled;
}

/* Copy the database's queues out; since when they count goes to "since". */
static int
copy_queues(LiveQueue *queues, TimestampTz *since)
{
	Database   *database;
	int			count = 0;

	dispatcher_lock();
	database = database_find(MyDatabaseId);
	*since = database != NULL && database->ready_since != 0 ? database->ready_since : PgStartTime;
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		if (fanout_queues[i].state != QUEUE_FREE && fanout_queues[i].db == MyDatabaseId)
			copy_queue(&fanout_queues[i], &queues[count++]);
	}
	dispatcher_unlock();
	return count;
}

/*
 * When the task became ready, as far as its row tells: when it was enqueued,
 * or the time it was to run at.  False if the row has gone.
 */
static bool
ready_time(TaskReader *reader, LiveQueue *queue, TimestampTz *at)
{
	Datum		values[TASK_COLUMNS];
	bool		nulls[TASK_COLUMNS];

	if (queue->oldest_task == 0 ||
		!task_reader_fetch(reader, queue->oldest_task, &queue->oldest_tid, values, nulls))
		return false;
	*at = DatumGetTimestampTz(values[TASK_ENQUEUED_AT]);
	if (!nulls[TASK_RUN_AT])
		*at = Max(*at, DatumGetTimestampTz(values[TASK_RUN_AT]));
	return true;
}

static void
add_queue(ResultSet *set, TaskReader *reader, LiveQueue *queue, double seconds)
{
	Datum		values[15];
	bool		nulls[15] = {false};
	TimestampTz oldest = 0;

	nulls[5] = !ready_time(reader, queue, &oldest);
	values[0] = Int32GetDatum(queue->id);
	values[1] = Int64GetDatum(queue->scheduled);
	values[2] = Int64GetDatum(queue->ready);
	values[3] = Int64GetDatum(queue->running);
	values[4] = Int64GetDatum(queue->in_memory);
	values[5] = TimestampTzGetDatum(oldest);
	values[6] = Int32GetDatum(queue->waiting_workers);
	values[7] = Int64GetDatum(queue->enqueued);
	values[8] = Int64GetDatum(queue->dequeued);
	values[9] = Int64GetDatum(queue->succeeded);
	values[10] = Int64GetDatum(queue->failed);
	values[11] = Int64GetDatum(queue->cancelled);
	values[12] = Float8GetDatum(queue->enqueued / seconds);
	values[13] = Float8GetDatum(queue->dequeued / seconds);
	values[14] = Float8GetDatum((queue->succeeded + queue->failed + queue->cancelled) / seconds);
	result_set_add(set, values, nulls);
}

Datum
fanout_live_queues(PG_FUNCTION_ARGS)
{
	ResultSet	set;
	VisibleQueues *visible;
	LiveQueue  *queues;
	TaskReader *reader;
	TimestampTz since;
	double		seconds;
	int			count;

	require_readable();
	set = result_set_begin(fcinfo);
	if (RecoveryInProgress())
		return (Datum) 0;

	visible = read_visible_queues();
	queues = palloc_extended(fanout_max_queues * sizeof(LiveQueue), MCXT_ALLOC_HUGE);
	count = copy_queues(queues, &since);
	seconds = Max(GetCurrentTimestamp() - since, 1) / (double) USECS_PER_SEC;

	reader = task_reader_open();
	for (int i = 0; i < count; i++)
	{
		if (queue_is_visible(visible, queues[i].id))
			add_queue(&set, reader, &queues[i], seconds);
	}
	task_reader_close(reader);
	pfree(queues);
	return (Datum) 0;
}

/* Copy a lease out, if it is one of this database that still runs its task. */
static void
copy_lease(Lease *lease, void *arg)
{
	LeaseCopy  *copy = arg;
	LiveLease  *live;

	if (lease->db != MyDatabaseId || lease->task == 0)
		return;
	if (copy->count++ >= copy->room)
		return;
	live = &copy->leases[copy->count - 1];
	live->lease = lease->node.id;
	live->task = lease->task_id;
	live->queue_id = fanout_queues[task_of(lease)->queue].id;
	live->attempt = lease->attempt;
	live->claimed_at = lease->claimed_at;
	live->until = lease->node.key;
	live->holder_pid = backend_pid(lease->holder);
	live->committed = lease->committed;
	memcpy(live->worker, worker_of(lease)->key.name, FANOUT_NAME_LEN);
}

/* Copy all leases; once more if there are more than expected by then. */
static void
copy_leases(LeaseCopy *copy)
{
	dispatcher_lock();
	copy->count = fanout_max_tracked_tasks - fanout_shared->free_leases;
	dispatcher_unlock();

	do
	{
		copy->room = copy->count + copy->count / 8 + 64;
		copy->leases = palloc_extended(copy->room * sizeof(LiveLease), MCXT_ALLOC_HUGE);
		copy->count = 0;

		dispatcher_lock();
		lease_iterate(copy_lease, copy);
		dispatcher_unlock();

		if (copy->count > copy->room)
			pfree(copy->leases);
	} while (copy->count > copy->room);
}

static void
add_lease(ResultSet *set, const LiveLease *lease)
{
	Datum		values[9];
	bool		nulls[9] = {false};

	values[0] = Int64GetDatum(lease->lease);
	values[1] = Int64GetDatum(lease->task);
	values[2] = Int32GetDatum(lease->queue_id);
	values[3] = CStringGetTextDatum(lease->worker);
	values[4] = Int32GetDatum(lease->attempt);
	values[5] = TimestampTzGetDatum(lease->claimed_at);
	values[6] = TimestampTzGetDatum(lease->until);
	values[7] = Int32GetDatum(lease->holder_pid);
	nulls[7] = lease->holder_pid == 0;
	values[8] = BoolGetDatum(lease->committed);
	result_set_add(set, values, nulls);
	pfree(DatumGetPointer(values[3]));
}

Datum
fanout_live_leases(PG_FUNCTION_ARGS)
{
	ResultSet	set;
	VisibleQueues *visible;
	LeaseCopy	copy;

	require_readable();
	set = result_set_begin(fcinfo);
	if (RecoveryInProgress())
		return (Datum) 0;

	visible = read_visible_queues();
	copy_leases(&copy);
	for (int64 i = 0; i < copy.count; i++)
	{
		if (queue_is_visible(visible, copy.leases[i].queue_id))
			add_lease(&set, &copy.leases[i]);
	}
	pfree(copy.leases);
	return (Datum) 0;
}
