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
#include "common/hashfn.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "batch.h"
#include "commit_hooks.h"
#include "ids.h"
#include "lease.h"
#include "partitions.h"
#include "queue_settings.h"
#include "queues.h"
#include "storage.h"

PG_FUNCTION_INFO_V1(fanout_enqueue);
PG_FUNCTION_INFO_V1(fanout_enqueue_many);
PG_FUNCTION_INFO_V1(fanout_fan_out);
PG_FUNCTION_INFO_V1(fanout_fan_out_names);

/* The tasks of one call. */
typedef struct Request
{
	QueueRef	ref;
	int64		count;
	Datum	   *names;			/* one for each, or */
	Datum		name;			/* one for all */
	Datum	   *args;
	bool	   *arg_nulls;
	Datum	   *partition_keys; /* one for each, or NULL */
	bool	   *partition_nulls;
	Datum		partition_key;	/* one for all, or 0 */
	Datum		fair_group;		/* of all, or 0 */
	int64	   *partitions;		/* their hashes, where there is one for each */
	int64		parent;			/* 0: none */
	bool		ranked;			/* the queue has aging: rows tell the rank */
	TaskSeed	seed;			/* of the first task */
	TimestampTz now;

	/* For the tasks that have a place in memory, which are the first ones. */
	TaskPlace  *places;
	int64		place_count;	/* how many there may be */
	int64		reserved;		/* how many there are */
} Request;

static void
take_common_args(FunctionCallInfo fcinfo, Request *request, int priority_arg)
{
	int			delay_arg = priority_arg + 1;
	int			run_at_arg = priority_arg + 2;
	int			max_attempts_arg = priority_arg + 3;

	request->now = GetCurrentTimestamp();
	request->seed.priority = PG_ARGISNULL(priority_arg) ? 0 : PG_GETARG_INT32(priority_arg);

	if (!PG_ARGISNULL(delay_arg) && !PG_ARGISNULL(run_at_arg))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("delay and run_at cannot both be given")));
	if (!PG_ARGISNULL(delay_arg))
		request->seed.run_at = request->now + arg_duration(fcinfo, delay_arg, "delay", 0);
	if (!PG_ARGISNULL(run_at_arg))
	{
		request->seed.run_at = PG_GETARG_TIMESTAMPTZ(run_at_arg);
		if (TIMESTAMP_NOT_FINITE(request->seed.run_at))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("run_at must be finite")));
	}
	/* what is due now is not timed: it costs no index entry */
	request->seed.timed = (!PG_ARGISNULL(delay_arg) || !PG_ARGISNULL(run_at_arg)) &&
		request->seed.run_at > request->now;

	if (!PG_ARGISNULL(max_attempts_arg))
	{
		int32		max_attempts = PG_GETARG_INT32(max_attempts_arg);

		if (max_attempts < 1 || max_attempts > PG_INT16_MAX)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("max_attempts must be from 1 to %d", PG_INT16_MAX)));
		request->seed.max_attempts = max_attempts;
	}
}

static void
take_partition_keys(FunctionCallInfo fcinfo, int arg, Request *request)
{
	int			count;

	if (PG_ARGISNULL(arg))
		return;
	if (request->partition_key != (Datum) 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("partition_key and partition_keys cannot both be given")));
	count = array_elements(PG_GETARG_ARRAYTYPE_P(arg), TEXTOID, "partition_keys", &request->partition_keys,
						   &request->partition_nulls, true);
	if (count != request->count)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%d partition keys were given for " INT64_FORMAT " args", count, request->count)));
	request->partitions = MemoryContextAllocHuge(TopTransactionContext, Max(count, 1) * sizeof(int64));
	for (int i = 0; i < count; i++)
		request->partitions[i] = request->partition_nulls[i] ? 0 : partition_of(DatumGetTextPP(request->partition_keys[i]));
}

static void
take_partition_key(FunctionCallInfo fcinfo, int arg, Request *request)
{
	if (PG_ARGISNULL(arg))
		return;
	request->partition_key = PG_GETARG_DATUM(arg);
	request->seed.partition = partition_of(PG_GETARG_TEXT_PP(arg));
}

/* To be called after keys have been taken. */
static void
take_fair_group(FunctionCallInfo fcinfo, int arg, Request *request)
{
	bool		keyed = request->seed.partition != 0 || request->partitions != NULL;

	if (PG_ARGISNULL(arg))
		return;
	for (int64 i = 0; request->partitions != NULL && i < request->count; i++)
		keyed &= !request->partition_nulls[i];
	if (!keyed)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("fair_group needs a partition key for each task"),
				 errhint("Give a partition_key: a fair group is of partitions, which share one turn.")));
	request->fair_group = PG_GETARG_DATUM(arg);
	request->seed.group = fair_group_of(PG_GETARG_TEXT_PP(arg));
}

static void
take_cost(FunctionCallInfo fcinfo, int arg, Request *request)
{
	request->seed.cost = PG_ARGISNULL(arg) ? 1 : PG_GETARG_INT32(arg);
	if (request->seed.cost < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cost must be at least 1")));
}

static void
check_task_name(Datum name)
{
	if (VARSIZE_ANY_EXHDR(DatumGetPointer(name)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a task's name must not be empty")));
}

typedef enum Admission
{
	ADMITTED,
	NO_NUMBERS,					/* the keeper has to raise the ceiling first */
	BACKLOG_FULL,
	QUEUE_GONE
} Admission;

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
admit(Request *request, Database *database, int64 *backlog)
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
	*backlog = queue->waiting + queue->pending;
	if (queue->settings.max_backlog > 0 && *backlog + request->count > queue->settings.max_backlog)
		return BACKLOG_FULL;
	request->seed.task = ids_take_tasks(database, request->count);
	if (request->seed.task == 0)
		return NO_NUMBERS;
	queue->pending += request->count;
	pending_enqueue(queue, &request->seed, request->count, 0, request->places, request->partitions);
	reserve_chunk(request);
	return ADMITTED;
}

/* Have the tasks admitted to the queue, as pending; throws FO003 if they are too many. */
static void
admit_to_queue(Request *request)
{
	Database   *database = require_database();
	Admission	admission;
	int64		backlog;

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
		ereport(ERROR,
				(errcode(ERRCODE_BACKLOG_FULL),
				 errmsg("queue \"%s\" is full", request->ref.name),
				 errdetail(INT64_FORMAT " tasks wait, " INT64_FORMAT " are to be added, max_backlog is " INT64_FORMAT ".",
						   backlog, request->count, request->ref.queue->settings.max_backlog),
				 errhint("Try again when workers have caught up, or raise max_backlog.")));

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
		log_writer_add(writer, values, nulls, i < request->reserved ? &request->places[i].tid : NULL);
	}
	log_writer_close(writer);
}

/* Add the tasks; seed.task is the first one's id then. */
static void
enqueue_tasks(Request *request)
{
	if (request->count == 0)
		return;
	if (request->names == NULL)
		check_task_name(request->name);
	for (int64 i = 0; request->names != NULL && i < request->count; i++)
		check_task_name(request->names[i]);

	queue_lock(request->ref.id, RowExclusiveLock);
	admit_to_queue(request);
	insert_rows(request);
	if (request->seed.batch != 0)
		batch_add_part(request->seed.batch, request->seed.task, request->count);
}

static uint64
hash_datum(uint64 hash, Datum datum, bool isnull)
{
	struct varlena *value;

	if (isnull)
		return hash_combine64(hash, 1);
	value = PG_DETOAST_DATUM_PACKED(datum);
	return hash_combine64(hash, hash_bytes_extended((unsigned char *) VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value), 0));
}

/* A digest of what the call is to do, for one that is repeated under a step name. */
static uint64
digest_of(const Request *request, uint64 start)
{
	uint64		hash = hash_combine64(start, request->ref.id);

	hash = hash_combine64(hash, request->count);
	hash = hash_combine64(hash, request->seed.priority);
	hash = hash_combine64(hash, request->seed.max_attempts);
	hash = hash_combine64(hash, request->seed.partition);
	hash = hash_combine64(hash, request->seed.group);
	hash = hash_combine64(hash, request->seed.cost);
	if (request->names == NULL)
		hash = hash_datum(hash, request->name, false);
	for (int64 i = 0; i < request->count; i++)
	{
		if (request->names != NULL)
			hash = hash_datum(hash, request->names[i], false);
		hash = hash_datum(hash, request->args[i], request->arg_nulls[i]);
		if (request->partitions != NULL)
			hash = hash_combine64(hash, request->partitions[i]);
	}
	return hash;
}

static void
take_batch_arg(FunctionCallInfo fcinfo, int arg, Request *request)
{
	if (PG_ARGISNULL(arg))
		return;
	request->seed.batch = PG_GETARG_INT64(arg);
	batch_open_for_tasks(request->seed.batch, &request->seed.early_join);
}

/* What enqueue and enqueue_many have in common, from their fourth argument on; false if it was done before. */
static bool
enqueue_under_step(FunctionCallInfo fcinfo, Request *request, bool many, Spawn *spawn)
{
	take_common_args(fcinfo, request, 3);
	take_partition_key(fcinfo, 10, request);
	take_cost(fcinfo, 11, request);
	if (many)
		take_partition_keys(fcinfo, 12, request);
	take_fair_group(fcinfo, PG_NARGS() - 1, request);
	if (spawn_begin(fcinfo, 8, 9, many ? "tasks" : "task",
					PG_ARGISNULL(8) ? 0 : digest_of(request, PG_ARGISNULL(7) ? 0 : PG_GETARG_INT64(7)), spawn))
		return false;
	take_batch_arg(fcinfo, 7, request);
	request->parent = spawn->parent;
	enqueue_tasks(request);
	spawn->batch = request->seed.batch;
	spawn->first_task = request->seed.task;
	spawn->tasks = request->count;
	spawn_end(spawn);
	return true;
}

Datum
fanout_enqueue(PG_FUNCTION_ARGS)
{
	Request		request = {0};
	Datum		args;
	bool		args_null;
	Spawn		spawn;

	require_writable("fanout.enqueue()");
	require_arg(fcinfo, 0, "queue");
	require_arg(fcinfo, 1, "name");
	request.ref = registry_queue(PG_GETARG_TEXT_PP(0), PRIVILEGE_ENQUEUE);
	request.name = PointerGetDatum(PG_GETARG_TEXT_PP(1));
	request.count = 1;
	args_null = PG_ARGISNULL(2);
	args = args_null ? (Datum) 0 : PG_GETARG_DATUM(2);
	request.args = &args;
	request.arg_nulls = &args_null;
	(void) enqueue_under_step(fcinfo, &request, false, &spawn);
	PG_RETURN_INT64(spawn.first_task);
}

static void
take_args_array(FunctionCallInfo fcinfo, int arg, Request *request)
{
	require_arg(fcinfo, arg, "args");
	request->count = array_elements(PG_GETARG_ARRAYTYPE_P(arg), JSONBOID, "args", &request->args,
									&request->arg_nulls, true);
}

Datum
fanout_enqueue_many(PG_FUNCTION_ARGS)
{
	Request		request = {0};
	Spawn		spawn;
	ResultSet	set;

	require_writable("fanout.enqueue_many()");
	require_arg(fcinfo, 0, "queue");
	require_arg(fcinfo, 1, "name");
	request.ref = registry_queue(PG_GETARG_TEXT_PP(0), PRIVILEGE_ENQUEUE);
	request.name = PointerGetDatum(PG_GETARG_TEXT_PP(1));
	take_args_array(fcinfo, 2, &request);
	(void) enqueue_under_step(fcinfo, &request, true, &spawn);

	set = result_set_begin(fcinfo);
	for (int64 i = 0; i < spawn.tasks; i++)
	{
		Datum		values[2] = {Int64GetDatum(i + 1), Int64GetDatum(spawn.first_task + i)};
		bool		nulls[2] = {false, false};

		result_set_add(&set, values, nulls);
	}
	return (Datum) 0;
}

static int64
fan_out(FunctionCallInfo fcinfo, Request *request)
{
	int64		join_count = PG_ARGISNULL(4) ? 0 : PG_GETARG_INT64(4);
	text	   *join;
	uint64		digest = 0;
	Spawn		spawn;

	join = PG_ARGISNULL(3) ? cstring_to_text("all") : PG_GETARG_TEXT_PP(3);
	if (!PG_ARGISNULL(4) && join_count < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("join_count must be at least 1")));
	take_common_args(fcinfo, request, 5);
	take_partition_key(fcinfo, 11, request);
	take_cost(fcinfo, 12, request);
	take_partition_keys(fcinfo, 13, request);
	take_fair_group(fcinfo, PG_NARGS() - 1, request);
	if (!PG_ARGISNULL(9))
		digest = digest_of(request, hash_datum(join_count, PointerGetDatum(join), false));
	if (spawn_begin(fcinfo, 9, 10, "fan_out", digest, &spawn))
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
	require_arg(fcinfo, 0, "queue");
	require_arg(fcinfo, 1, "name");
	request.ref = registry_queue(PG_GETARG_TEXT_PP(0), PRIVILEGE_ENQUEUE);
	request.name = PointerGetDatum(PG_GETARG_TEXT_PP(1));
	take_args_array(fcinfo, 2, &request);
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
	take_args_array(fcinfo, 2, &request);
	if (names != request.count)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%d names were given for " INT64_FORMAT " args", names, request.count)));
	PG_RETURN_INT64(fan_out(fcinfo, &request));
}
