/*
 * request.h
 *		What a call asks to enqueue.
 */
#ifndef FANOUT_REQUEST_H
#define FANOUT_REQUEST_H

#include "fmgr.h"

#include "commit_hooks.h"
#include "registry.h"

/* What becomes of a call whose key another task holds. */
typedef enum KeyConflict
{
	KEY_RETURN,					/* nothing: the task that holds it is the result */
	KEY_REJECT,					/* an error */
	KEY_REPLACE,				/* that task becomes what the call asks for, unless it has started */
	KEY_SUPERSEDE				/* that task is cancelled, unless it runs */
} KeyConflict;

/* The tasks of one call, which differ in name, args and partition only. */
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

	text	   *key;			/* NULL: none */
	KeyConflict on_conflict;
	int64		key_ttl;		/* microseconds; 0: as long as the task is unfinished */
	TimestampTz key_until;		/* 0: that long */
	int64		period;			/* of debounce(), microseconds; 0: another call */
	int64		max_wait;		/* 0: any time */

	/* For the tasks that have a place in memory, which are the first ones. */
	TaskPlace  *places;
	int64		place_count;	/* how many there may be */
	int64		reserved;		/* how many there are */
	int64		counted;		/* and how many are counted in their lanes */
	int64		freed;			/* waiting tasks that go when these come */
	int64		freed_partition;	/* theirs */
} Request;

/*
 * Where a function has the arguments that several have, counted from 0; 0: it
 * has none such, as the first one is always the queue.
 */
typedef struct RequestArgs
{
	int			priority;
	int			delay;
	int			run_at;
	int			max_attempts;
	int			batch;
	int			lease;
	int			step;
	int			partition_key;
	int			partition_keys;
	int			cost;
	int			key;
	int			on_conflict;
	int			key_ttl;
	int			deadline;
	int			fair_group;
} RequestArgs;

/* Was the argument given? */
static inline bool
arg_given(FunctionCallInfo fcinfo, int arg)
{
	return arg != 0 && !PG_ARGISNULL(arg);
}

/* Throws 22023 for a name that is none. */
extern void check_task_name(Datum name);

/* The queue and the name, which are the first two arguments. */
extern void request_take_target(FunctionCallInfo fcinfo, Request *request);

/* The args of each task, or of one. */
extern void request_take_args(FunctionCallInfo fcinfo, int arg, Request *request);
extern void request_take_one(FunctionCallInfo fcinfo, int arg, Request *request);

/* The rest, once the number of tasks is known.  Throws 22023 for what is out of range. */
extern void request_take_options(FunctionCallInfo fcinfo, const RequestArgs *where, Request *request);

/* A digest of what the call is to do, for one that is repeated under a step name. */
extern uint64 request_digest(const Request *request, uint64 start);

/* The same with one more value. */
extern uint64 digest_datum(uint64 digest, Datum datum, bool isnull);

#endif							/* FANOUT_REQUEST_H */
