/*
 * arguments.h
 *		Reading the arguments of SQL functions, and giving sets back.
 */
#ifndef FANOUT_ARGUMENTS_H
#define FANOUT_ARGUMENTS_H

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "nodes/execnodes.h"
#include "utils/array.h"
#include "utils/tuplestore.h"

/* A duration in microseconds, from 0 to some hundred years; throws 22023 otherwise. */
extern int64 duration_of(Interval *interval, const char *name);

/* The same of an argument; "missing" if it is NULL. */
extern int64 arg_duration(FunctionCallInfo fcinfo, int arg, const char *name, int64 missing);

/* Throws 22023 for a number of attempts that a task cannot have. */
extern void check_max_attempts(int32 max_attempts);

/* Throws 22004 if the argument is NULL. */
extern void require_arg(FunctionCallInfo fcinfo, int arg, const char *name);

/* A worker's name into a buffer of FANOUT_NAME_LEN; NULL names the backend. */
extern void arg_worker(FunctionCallInfo fcinfo, int arg, char *buffer);

/* The elements of a one-dimensional array; throws 22004 on a NULL element unless allowed. */
extern int	array_elements(ArrayType *array, Oid type, const char *name, Datum **values, bool **nulls,
						   bool allow_nulls);

/* The ids that argument 0 has to be an array of; throws 22004 if it is NULL, or has NULL. */
extern int	arg_ids(FunctionCallInfo fcinfo, const char *name, Datum **ids);

/* Begin a materialized result; each row goes in by tuplestore_putvalues(). */
typedef struct ResultSet
{
	Tuplestorestate *store;
	TupleDesc	desc;
} ResultSet;

extern ResultSet result_set_begin(FunctionCallInfo fcinfo);
extern void result_set_add(ResultSet *set, const Datum *values, const bool *nulls);

/* The moment, by wait_clock(), at which a wait of so many microseconds ends; "capped" by pg_fanout.max_wait. */
extern int64 wait_deadline(int64 wait, bool capped);

#endif							/* FANOUT_ARGUMENTS_H */
