/*
 * request.c
 *		Reading what a call asks to enqueue.
 *
 * The functions that enqueue have most of their arguments in common, at other
 * places each: a RequestArgs says where.  A new argument is a member of that,
 * one of Request, and a function here that takes it.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "keys.h"
#include "partitions.h"
#include "request.h"

void
check_task_name(Datum name)
{
	if (VARSIZE_ANY_EXHDR(DatumGetPointer(name)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a task's name must not be empty")));
}

void
request_take_target(FunctionCallInfo fcinfo, Request *request)
{
	require_arg(fcinfo, 0, "queue");
	require_arg(fcinfo, 1, "name");
	request->ref = registry_queue(PG_GETARG_TEXT_PP(0), PRIVILEGE_ENQUEUE);
	request->name = PointerGetDatum(PG_GETARG_TEXT_PP(1));
	check_task_name(request->name);
}

void
request_take_args(FunctionCallInfo fcinfo, int arg, Request *request)
{
	require_arg(fcinfo, arg, "args");
	request->count = array_elements(PG_GETARG_ARRAYTYPE_P(arg), JSONBOID, "args", &request->args,
									&request->arg_nulls, true);
}

void
request_take_one(FunctionCallInfo fcinfo, int arg, Request *request)
{
	request->count = 1;
	request->args = palloc(sizeof(Datum));
	request->arg_nulls = palloc(sizeof(bool));
	request->arg_nulls[0] = PG_ARGISNULL(arg);
	request->args[0] = PG_ARGISNULL(arg) ? (Datum) 0 : PG_GETARG_DATUM(arg);
}

static void
take_time(FunctionCallInfo fcinfo, const RequestArgs *where, Request *request)
{
	bool		delayed = arg_given(fcinfo, where->delay);
	bool		timed = arg_given(fcinfo, where->run_at);

	if (delayed && timed)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("delay and run_at cannot both be given")));
	if (delayed)
		request->seed.run_at = request->now + arg_duration(fcinfo, where->delay, "delay", 0);
	if (timed)
	{
		request->seed.run_at = PG_GETARG_TIMESTAMPTZ(where->run_at);
		if (TIMESTAMP_NOT_FINITE(request->seed.run_at))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("run_at must be finite")));
	}
	/* what is due now is not timed: it costs no index entry */
	request->seed.timed = (delayed || timed) && request->seed.run_at > request->now;
}

static void
take_deadline(FunctionCallInfo fcinfo, int arg, Request *request)
{
	TimestampTz deadline;

	if (!arg_given(fcinfo, arg))
		return;
	deadline = PG_GETARG_TIMESTAMPTZ(arg);
	if (TIMESTAMP_NOT_FINITE(deadline))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("deadline must be finite")));
	if (deadline <= request->now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("deadline has passed"),
				 errdetail("It is %s.", timestamptz_to_str(deadline))));
	if (request->seed.timed && deadline <= request->seed.run_at)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("deadline must be later than the time from which the task may start")));
	request->seed.deadline = deadline;
}

static void
take_max_attempts(FunctionCallInfo fcinfo, int arg, Request *request)
{
	if (!arg_given(fcinfo, arg))
		return;
	check_max_attempts(PG_GETARG_INT32(arg));
	request->seed.max_attempts = PG_GETARG_INT32(arg);
}

static void
take_partition_keys(FunctionCallInfo fcinfo, int arg, Request *request)
{
	int			count;

	if (!arg_given(fcinfo, arg))
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
	if (!arg_given(fcinfo, arg))
		return;
	request->partition_key = PG_GETARG_DATUM(arg);
	request->seed.partition = partition_of(PG_GETARG_TEXT_PP(arg));
}

/* To be called after keys have been taken. */
static void
take_fair_group(FunctionCallInfo fcinfo, int arg, Request *request)
{
	bool		keyed = request->seed.partition != 0 || request->partitions != NULL;

	if (!arg_given(fcinfo, arg))
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
	request->seed.cost = arg_given(fcinfo, arg) ? PG_GETARG_INT32(arg) : 1;
	if (request->seed.cost < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cost must be at least 1")));
}

static KeyConflict
conflict_named(text *value)
{
	static const char *const names[] = {
		[KEY_RETURN] = "return",[KEY_REJECT] = "reject",[KEY_REPLACE] = "replace",[KEY_SUPERSEDE] = "supersede"
	};
	char	   *name = text_to_cstring(value);

	for (int i = 0; i < lengthof(names); i++)
	{
		if (strcmp(name, names[i]) == 0)
			return i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown on_conflict \"%s\"", name),
			 errhint("It is return, reject, replace or supersede.")));
	return KEY_RETURN;
}

static void
take_key_ttl(FunctionCallInfo fcinfo, int arg, Request *request)
{
	request->key_ttl = arg_duration(fcinfo, arg, "key_ttl", 0);
	if (request->key_ttl < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key_ttl must be longer than 0"),
				 errhint("Leave it out for a key that is held until its task has ended.")));
	if (request->on_conflict != KEY_RETURN && request->on_conflict != KEY_REJECT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key_ttl goes with on_conflict \"return\" and \"reject\" only")));
}

static void
take_key(FunctionCallInfo fcinfo, const RequestArgs *where, Request *request)
{
	if (!arg_given(fcinfo, where->key))
	{
		if (arg_given(fcinfo, where->on_conflict) || arg_given(fcinfo, where->key_ttl))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("on_conflict and key_ttl go with a key only")));
		return;
	}
	request->key = PG_GETARG_TEXT_PP(where->key);
	check_key(request->key);
	if (arg_given(fcinfo, where->on_conflict))
		request->on_conflict = conflict_named(PG_GETARG_TEXT_PP(where->on_conflict));
	if (arg_given(fcinfo, where->key_ttl))
		take_key_ttl(fcinfo, where->key_ttl, request);
	if (arg_given(fcinfo, where->batch) && (request->on_conflict == KEY_RETURN || request->on_conflict == KEY_REPLACE))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch and key cannot both be given, unless on_conflict is \"reject\" or \"supersede\""),
				 errdetail("The task that holds the key is in the batch of its own enqueue, or in none.")));
}

void
request_take_options(FunctionCallInfo fcinfo, const RequestArgs *where, Request *request)
{
	request->now = GetCurrentTimestamp();
	request->seed.priority = arg_given(fcinfo, where->priority) ? PG_GETARG_INT32(where->priority) : 0;
	take_time(fcinfo, where, request);
	take_deadline(fcinfo, where->deadline, request);
	take_max_attempts(fcinfo, where->max_attempts, request);
	take_partition_key(fcinfo, where->partition_key, request);
	take_partition_keys(fcinfo, where->partition_keys, request);
	take_fair_group(fcinfo, where->fair_group, request);
	take_cost(fcinfo, where->cost, request);
	take_key(fcinfo, where, request);
}

uint64
digest_datum(uint64 hash, Datum datum, bool isnull)
{
	struct varlena *value;

	if (isnull)
		return hash_combine64(hash, 1);
	value = PG_DETOAST_DATUM_PACKED(datum);
	return hash_combine64(hash, hash_bytes_extended((unsigned char *) VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value), 0));
}

uint64
request_digest(const Request *request, uint64 start)
{
	uint64		hash = hash_combine64(start, request->ref.id);

	hash = hash_combine64(hash, request->count);
	hash = hash_combine64(hash, request->seed.priority);
	hash = hash_combine64(hash, request->seed.max_attempts);
	hash = hash_combine64(hash, request->seed.partition);
	hash = hash_combine64(hash, request->seed.group);
	hash = hash_combine64(hash, request->seed.cost);
	if (request->key != NULL)
	{
		hash = digest_datum(hash, PointerGetDatum(request->key), false);
		hash = hash_combine64(hash, request->on_conflict);
		hash = hash_combine64(hash, request->key_ttl);
	}
	if (request->names == NULL)
		hash = digest_datum(hash, request->name, false);
	for (int64 i = 0; i < request->count; i++)
	{
		if (request->names != NULL)
			hash = digest_datum(hash, request->names[i], false);
		hash = digest_datum(hash, request->args[i], request->arg_nulls[i]);
		if (request->partitions != NULL)
			hash = hash_combine64(hash, request->partitions[i]);
	}
	return hash;
}
