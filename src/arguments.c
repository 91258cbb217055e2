/*
 * arguments.c
 *		Reading the arguments of SQL functions, and giving sets back.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "shared_state.h"
#include "wait.h"

/* Longer ones would run into the end of time; a month counts as 30 days. */
#define DURATION_MAX	(INT64CONST(100) * 365 * USECS_PER_DAY)

int64
duration_of(Interval *interval, const char *name)
{
	double		approximate;

	approximate = (double) interval->time + (interval->day + interval->month * 30.0) * (double) USECS_PER_DAY;
	if (approximate < 0 || approximate > (double) DURATION_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is out of range", name),
				 errdetail("A duration must be from 0 to 100 years.")));
	return interval->time + (interval->day + (int64) interval->month * 30) * USECS_PER_DAY;
}

int64
arg_duration(FunctionCallInfo fcinfo, int arg, const char *name, int64 missing)
{
	return PG_ARGISNULL(arg) ? missing : duration_of(PG_GETARG_INTERVAL_P(arg), name);
}

void
check_max_attempts(int32 max_attempts)
{
	if (max_attempts < 1 || max_attempts > PG_INT16_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_attempts must be from 1 to %d", PG_INT16_MAX)));
}

void
require_arg(FunctionCallInfo fcinfo, int arg, const char *name)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be NULL", name)));
}

void
arg_worker(FunctionCallInfo fcinfo, int arg, char *buffer)
{
	text	   *name;
	int			length;

	if (PG_ARGISNULL(arg))
	{
		snprintf(buffer, FANOUT_NAME_LEN, "pid:%d", MyProcPid);
		return;
	}
	name = PG_GETARG_TEXT_PP(arg);
	length = VARSIZE_ANY_EXHDR(name);
	if (length == 0 || length >= FANOUT_NAME_LEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid worker name"),
				 errdetail("A worker's name must have from 1 to %d bytes.", FANOUT_NAME_LEN - 1)));
	text_to_cstring_buffer(name, buffer, FANOUT_NAME_LEN);
}

int
array_elements(ArrayType *array, Oid type, const char *name, Datum **values, bool **nulls, bool allow_nulls)
{
	int			count;
	int16		length;
	bool		by_value;
	char		alignment;

	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be an array of one dimension", name)));
	if (!allow_nulls && array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not contain NULL", name)));
	get_typlenbyvalalign(type, &length, &by_value, &alignment);
	deconstruct_array(array, type, length, by_value, alignment, values, nulls, &count);
	return count;
}

int
arg_ids(FunctionCallInfo fcinfo, const char *name, Datum **ids)
{
	bool	   *nulls;

	require_arg(fcinfo, 0, name);
	return array_elements(PG_GETARG_ARRAYTYPE_P(0), INT8OID, name, ids, &nulls, false);
}

ResultSet
result_set_begin(FunctionCallInfo fcinfo)
{
	ReturnSetInfo *info = (ReturnSetInfo *) fcinfo->resultinfo;
	ResultSet	set;

#if PG_VERSION_NUM >= 160000
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
#else
	SetSingleFuncCall(fcinfo, SRF_SINGLE_USE_EXPECTED);
#endif
	set.store = info->setResult;
	set.desc = info->setDesc;
	return set;
}

void
result_set_add(ResultSet *set, const Datum *values, const bool *nulls)
{
	tuplestore_putvalues(set->store, set->desc, (Datum *) values, (bool *) nulls);
}

int64
wait_deadline(int64 wait, bool capped)
{
	if (capped)
		wait = Min(wait, fanout_max_wait * INT64CONST(1000));
	return wait_clock() + wait;
}
