/*
 * enqueue.c
 *		Adding tasks, in the caller's transaction.
 *
 * A call adds any number of tasks that differ in name and args only.  Their
 * ids follow on, in their order.  The steps are: check the backlog, number the
 * tasks and count them as pending; take pool entries for as many as have a
 * place in memory (the rest will be left on disk); insert the rows.  Nobody
 * sees any of it before the commit callback.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "batch.h"
#include "cancel.h"
#include "commit_hooks.h"
#include "ids.h"
#include "keys.h"
#include "lane.h"
#include "lease.h"
#include "points.h"
#include "queue_settings.h"
#include "queues.h"
#include "request.h"
#include "storage.h"

PG_FUNCTION_INFO_V1(fanout_enqueue);
PG_FUNCTION_INFO_V1(fanout_debounce);
PG_FUNCTION_INFO_V1(fanout_enqueue_many);
PG_FUNCTION_INFO_V1(fanout_fan_out);
PG_FUNCTION_INFO_V1(fanout_fan_out_names);

typedef enum Admission
{
	ADMITTED,
	NO_NUMBERS,					/* the keeper has to raise the ceiling first */
	BACKLOG_FULL,
	PARTITION_FULL,
	QUEUE_GONE
} Admission;

/* What a limit on the backlog says of a call that would exceed it. */
typedef struct Backlog
{
	int64		waiting;		/* in the queue */
	int32		partition_waiting;
	int32		partition_most;
} Backlog;

/* Count the next tasks in their lanes, up to a chunk; false if the one of the first that is not has no room.  Under the lock. */
static bool
count_chunk(Request *request, Backlog *backlog)
{
	Queue	   *queue = request->ref.queue;
	int64		at_a_time = request->partitions != NULL ? 1 : request->count;
	int64		stop = Min(request->counted + FANOUT_WORK_CHUNK, request->count);
	bool		admitted = true;

	while (request->counted < stop && admitted)
	{
		int64		partition = request->partitions != NULL ? request->partitions[request->counted] : request->seed.partition;

		admitted = queue_take_backlog(queue, partition, !request->seed.timed || request->seed.run_at <= request->now, at_a_time,
									  partition == request->freed_partition ? request->freed : 0,
									  &backlog->partition_waiting, &backlog->partition_most);
		if (admitted)
			request->counted += at_a_time;
	}
	pending_enqueue_counted(request->counted);
	return admitted;
}

/* Take pool entries for the next tasks, up to a chunk, as long as they have a place in memory.  Under the lock. */
static void
reserve_chunk(Request *request)
{
	int64		stop = Min(request->reserved + FANOUT_WORK_CHUNK, request->place_count);
	TaskSeed	seed = request->seed;

	while (request->reserved < stop)
	{
		Task	   *task;

		seed.task = request->seed.task + request->reserved;
		if (request->partitions != NULL)
			seed.partition = request->partitions[request->reserved];
		task = task_reserve(request->ref.queue, &seed, request->now);
		if (task == NULL && request->partitions == NULL)
		{
			request->place_count = request->reserved;	/* the rest, of the same lane, stays on disk */
			break;
		}
		request->places[request->reserved++].entry = task;
	}
	pending_enqueue_reserved(request->reserved);
}

/* Number the tasks, count them among the pending ones, and begin to take pool entries.  Under the lock. */
static Admission
admit(Request *request, Database *database, Backlog *backlog)
{
	Queue	   *queue = request->ref.queue;
	const QueueSettings *settings;

	if (!queue_ref_is_valid(&request->ref))
		return QUEUE_GONE;

	/* not before the queue's lock was taken: who changes its aging keeps others from it until that has committed */
	settings = pending_settings(queue);
	request->ranked = settings->aging > 0;
	request->seed.rank = rank_of(settings, request->seed.priority,
								 request->seed.timed ? request->seed.run_at : request->now);
	backlog->waiting = queue->waiting + queue->pending;
	if (queue->settings.max_backlog > 0 && backlog->waiting + request->count - request->freed > queue->settings.max_backlog)
		return BACKLOG_FULL;
	request->seed.task = ids_take_tasks(database, request->count);
	if (request->seed.task == 0)
		return NO_NUMBERS;
	queue->pending += request->count;
	pending_enqueue(queue, &request->seed, request->count, 0, request->places, request->partitions);
	if (!count_chunk(request, backlog))
		return PARTITION_FULL;
	reserve_chunk(request);
	return ADMITTED;
}

static void
throw_queue_full(const Request *request, const Backlog *backlog)
{
	ereport(ERROR,
			(errcode(ERRCODE_BACKLOG_FULL),
			 errmsg("queue \"%s\" is full", request->ref.name),
			 errdetail(INT64_FORMAT " tasks wait, " INT64_FORMAT " are to be added, max_backlog is " INT64_FORMAT ".",
					   backlog->waiting, request->count, request->ref.queue->settings.max_backlog),
			 errhint("Try again when workers have caught up, or raise max_backlog.")));
}

/* The first task that was not counted is one of the partition. */
static void
throw_partition_full(const Request *request, const Backlog *backlog)
{
	int64		at = request->counted;
	Datum		key = request->partitions != NULL ? request->partition_keys[at] : request->partition_key;
	int64		added = request->count;
	int64		waiting = backlog->partition_waiting;

	if (request->partitions != NULL)
	{
		added = 0;
		for (int64 i = 0; i < request->count; i++)
			added += request->partitions[i] == request->partitions[at];
		for (int64 i = 0; i < at; i++)
			waiting -= request->partitions[i] == request->partitions[at];
	}
	ereport(ERROR,
			(errcode(ERRCODE_BACKLOG_FULL),
			 errmsg("partition \"%s\" of queue \"%s\" is full", TextDatumGetCString(key), request->ref.name),
			 errdetail(INT64_FORMAT " tasks of it wait, " INT64_FORMAT " are to be added, its max_backlog is %d.",
					   waiting, added, backlog->partition_most),
			 errhint("Try again when workers have caught up, or raise the limit with fanout.set_partition() or, for each partition, fanout.alter_queue().")));
}

/* Have the tasks admitted to the queue, as pending; throws FO003 if they are too many. */
static void
admit_to_queue(Request *request)
{
	Database   *database = require_database();
	Admission	admission;
	Backlog		backlog;

	request->place_count = Min(request->count, fanout_max_tracked_tasks);
	request->places = MemoryContextAllocHuge(TopTransactionContext, request->place_count * sizeof(TaskPlace));
	pending_prepare(1);
	(void) GetTopTransactionId();	/* for task_reserve() */
	for (;;)
	{
		dispatcher_lock();
		admission = admit(request, database, &backlog);
		dispatcher_unlock();
		if (admission != NO_NUMBERS)
			break;
		ids_wait();
	}
	ConditionVariableCancelSleep();

	if (admission == QUEUE_GONE)
		throw_queue_gone(request->ref.name);
	if (admission == BACKLOG_FULL)
		throw_queue_full(request, &backlog);
	while (admission == ADMITTED && request->counted < request->count)
	{
		dispatcher_lock();
		if (!count_chunk(request, &backlog))
			admission = PARTITION_FULL;
		dispatcher_unlock();
	}
	if (admission == PARTITION_FULL)
		throw_partition_full(request, &backlog);

	while (request->reserved < request->place_count)
	{
		dispatcher_lock();
		reserve_chunk(request);
		dispatcher_unlock();
	}
}

static void
insert_rows(const Request *request)
{
	LogWriter  *writer = log_writer_open(LOG_TASK, request->count);
	Datum		values[TASK_COLUMNS];
	bool		nulls[TASK_COLUMNS] = {0};

	values[TASK_ENQUEUED_AT] = TimestampTzGetDatum(request->now);
	values[TASK_QUEUE] = Int32GetDatum(request->ref.id);
	values[TASK_PRIORITY] = Int32GetDatum(request->seed.priority);
	nulls[TASK_PRIORITY] = request->seed.priority == 0;
	values[TASK_RANK] = Int64GetDatum(request->seed.rank);
	nulls[TASK_RANK] = !request->ranked;
	values[TASK_RUN_AT] = TimestampTzGetDatum(request->seed.run_at);
	nulls[TASK_RUN_AT] = !request->seed.timed;
	values[TASK_BATCH] = Int64GetDatum(request->seed.batch);
	nulls[TASK_BATCH] = request->seed.batch == 0;
	values[TASK_PARENT] = Int64GetDatum(request->parent);
	nulls[TASK_PARENT] = request->parent == 0;
	values[TASK_MAX_ATTEMPTS] = Int16GetDatum(request->seed.max_attempts);
	nulls[TASK_MAX_ATTEMPTS] = request->seed.max_attempts == 0;
	values[TASK_COST] = Int32GetDatum(request->seed.cost);
	nulls[TASK_COST] = request->seed.cost == 1;
	values[TASK_DEADLINE] = TimestampTzGetDatum(request->seed.deadline);
	nulls[TASK_DEADLINE] = request->seed.deadline == 0;
	values[TASK_KEY_UNTIL] = TimestampTzGetDatum(request->key_until);
	nulls[TASK_KEY_UNTIL] = request->key_until == 0;
	values[TASK_KEY] = PointerGetDatum(request->key);
	nulls[TASK_KEY] = request->key == NULL;
	values[TASK_PARTITION_KEY] = request->partition_key;
	values[TASK_LANE] = Int64GetDatum(request->seed.partition);
	nulls[TASK_LANE] = nulls[TASK_PARTITION_KEY] = request->partition_key == (Datum) 0;
	values[TASK_FAIR_GROUP] = request->fair_group;
	nulls[TASK_FAIR_GROUP] = request->fair_group == (Datum) 0;
	for (int64 i = 0; i < request->count; i++)
	{
		values[TASK_ID] = Int64GetDatum(request->seed.task + i);
		values[TASK_NAME] = request->names != NULL ? request->names[i] : request->name;
		values[TASK_ARGS] = request->args[i];
		nulls[TASK_ARGS] = request->arg_nulls[i];
		if (request->partitions != NULL)
		{
			values[TASK_PARTITION_KEY] = request->partition_keys[i];
			values[TASK_LANE] = Int64GetDatum(request->partitions[i]);
			nulls[TASK_LANE] = nulls[TASK_PARTITION_KEY] = request->partition_nulls[i];
		}
		log_writer_add(writer, values, nulls, i < request->place_count ? &request->places[i].tid : NULL);
	}
	log_writer_close(writer);
}

/* Add the tasks; seed.task is the first one's id then. */
static void
enqueue_tasks(Request *request)
{
	if (request->count == 0)
		return;
	queue_lock(request->ref.id, RowExclusiveLock);
	admit_to_queue(request);
	FANOUT_POINT(ENQUEUE_RESERVED);
	insert_rows(request);
	FANOUT_POINT(ENQUEUE_WRITTEN);
	if (request->seed.batch != 0)
		batch_add_part(request->seed.batch, request->seed.task, request->count);
}

static void
take_batch(FunctionCallInfo fcinfo, const RequestArgs *where, Request *request)
{
	if (!arg_given(fcinfo, where->batch))
		return;
	request->seed.batch = PG_GETARG_INT64(where->batch);
	batch_open_for_tasks(request->seed.batch, &request->seed.early_join);
}

/*
 * Enqueue what was taken from the arguments, with the task that holds the key,
 * if it is that which is asked for, as the result.
 */
static void
enqueue_request(FunctionCallInfo fcinfo, const RequestArgs *where, Request *request)
{
	int64		superseded = 0;

	if (request->key != NULL)
	{
		queue_lock(request->ref.id, RowExclusiveLock);
		if (key_settle(request, &superseded))
			return;
	}
	take_batch(fcinfo, where, request);
	enqueue_tasks(request);
	if (superseded != 0)
		cancel_withdrawn(superseded, psprintf("superseded by task " INT64_FORMAT, request->seed.task));
}

/* The same, unless it was done under the step name before. */
static void
enqueue_under_step(FunctionCallInfo fcinfo, const RequestArgs *where, Request *request, const char *kind, Spawn *spawn)
{
	uint64		digest = 0;

	if (!PG_ARGISNULL(where->lease))
		digest = request_digest(request, arg_given(fcinfo, where->batch) ? PG_GETARG_INT64(where->batch) : 0);
	if (spawn_begin(fcinfo, where->lease, where->step, kind, digest, spawn))
		return;
	request->parent = spawn->parent;
	enqueue_request(fcinfo, where, request);
	spawn->batch = request->seed.batch;
	spawn->first_task = request->seed.task;
	spawn->tasks = request->count;
	spawn_end(spawn);
}

Datum
fanout_enqueue(PG_FUNCTION_ARGS)
{
	static const RequestArgs where = {
		.priority = 3, .delay = 4, .run_at = 5, .max_attempts = 6, .batch = 7, .lease = 8, .step = 9,
		.partition_key = 10, .cost = 11, .key = 12, .on_conflict = 13, .key_ttl = 14,
		.deadline = 15, .fair_group = 16
	};
	Request		request = {0};
	Spawn		spawn;

	require_writable("fanout.enqueue()");
	request_take_target(fcinfo, &request);
	request_take_one(fcinfo, 2, &request);
	request_take_options(fcinfo, &where, &request);
	enqueue_under_step(fcinfo, &where, &request, "task", &spawn);
	PG_RETURN_INT64(spawn.first_task);
}

/* A duration that must be longer than 0; 0 if it is NULL. */
static int64
take_period(FunctionCallInfo fcinfo, int arg, const char *name)
{
	int64		period = arg_duration(fcinfo, arg, name, 0);

	if (period < 1 && !PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be longer than 0", name)));
	return period;
}

Datum
fanout_debounce(PG_FUNCTION_ARGS)
{
	static const RequestArgs where = {
		.key = 2, .priority = 6, .max_attempts = 7, .partition_key = 8, .cost = 9
	};
	Request		request = {0};

	require_writable("fanout.debounce()");
	request_take_target(fcinfo, &request);
	require_arg(fcinfo, where.key, "key");
	require_arg(fcinfo, 4, "period");
	request_take_one(fcinfo, 3, &request);
	request_take_options(fcinfo, &where, &request);
	request.on_conflict = KEY_REPLACE;
	request.period = take_period(fcinfo, 4, "period");
	request.max_wait = take_period(fcinfo, 5, "max_wait");
	enqueue_request(fcinfo, &where, &request);
	PG_RETURN_INT64(request.seed.task);
}

Datum
fanout_enqueue_many(PG_FUNCTION_ARGS)
{
	static const RequestArgs where = {
		.priority = 3, .delay = 4, .run_at = 5, .max_attempts = 6, .batch = 7, .lease = 8, .step = 9,
		.partition_key = 10, .cost = 11, .partition_keys = 12, .deadline = 13,
		.fair_group = 14
	};
	Request		request = {0};
	Spawn		spawn;
	ResultSet	set;

	require_writable("fanout.enqueue_many()");
	request_take_target(fcinfo, &request);
	request_take_args(fcinfo, 2, &request);
	request_take_options(fcinfo, &where, &request);
	enqueue_under_step(fcinfo, &where, &request, "tasks", &spawn);

	set = result_set_begin(fcinfo);
	for (int64 i = 0; i < spawn.tasks; i++)
	{
		Datum		values[2] = {Int64GetDatum(i + 1), Int64GetDatum(spawn.first_task + i)};
		bool		nulls[2] = {false, false};

		result_set_add(&set, values, nulls);
	}
	return (Datum) 0;
}

/* The last arguments of both fan_outs. */
static const RequestArgs fan_out_args = {
	.priority = 5, .delay = 6, .run_at = 7, .max_attempts = 8, .lease = 9, .step = 10,
	.partition_key = 11, .cost = 12, .partition_keys = 13, .deadline = 14, .fair_group = 15
};

static int64
fan_out(FunctionCallInfo fcinfo, Request *request)
{
	const RequestArgs *where = &fan_out_args;
	int64		join_count = PG_ARGISNULL(4) ? 0 : PG_GETARG_INT64(4);
	text	   *join;
	uint64		digest = 0;
	Spawn		spawn;

	join = PG_ARGISNULL(3) ? cstring_to_text("all") : PG_GETARG_TEXT_PP(3);
	if (!PG_ARGISNULL(4) && join_count < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("join_count must be at least 1")));
	request_take_options(fcinfo, where, request);
	if (!PG_ARGISNULL(where->lease))
		digest = request_digest(request, digest_datum(join_count, PointerGetDatum(join), false));
	if (spawn_begin(fcinfo, where->lease, where->step, "fan_out", digest, &spawn))
		return spawn.batch;

	request->parent = spawn.parent;
	spawn.batch = request->seed.batch = batch_create(join, join_count, true, &request->seed.early_join);
	enqueue_tasks(request);
	spawn.first_task = request->seed.task;
	spawn.tasks = request->count;
	spawn_end(&spawn);
	return spawn.batch;
}

Datum
fanout_fan_out(PG_FUNCTION_ARGS)
{
	Request		request = {0};

	require_writable("fanout.fan_out()");
	request_take_target(fcinfo, &request);
	request_take_args(fcinfo, 2, &request);
	PG_RETURN_INT64(fan_out(fcinfo, &request));
}

Datum
fanout_fan_out_names(PG_FUNCTION_ARGS)
{
	Request		request = {0};
	bool	   *nulls;
	int			names;

	require_writable("fanout.fan_out()");
	require_arg(fcinfo, 0, "queue");
	require_arg(fcinfo, 1, "names");
	request.ref = registry_queue(PG_GETARG_TEXT_PP(0), PRIVILEGE_ENQUEUE);
	names = array_elements(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, "names", &request.names, &nulls, false);
	for (int i = 0; i < names; i++)
		check_task_name(request.names[i]);
	request_take_args(fcinfo, 2, &request);
	if (names != request.count)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%d names were given for " INT64_FORMAT " args", names, request.count)));
	PG_RETURN_INT64(fan_out(fcinfo, &request));
}
