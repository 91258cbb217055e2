/*
 * batch.h
 *		Batches, and what a leased task has spawned under a step name.
 */
#ifndef FANOUT_BATCH_H
#define FANOUT_BATCH_H

#include "fmgr.h"

#include "registry.h"

/* What a step spawned. */
typedef struct Spawn
{
	int64		parent;			/* 0: not under a lease */
	text	   *step;
	const char *kind;
	uint64		digest;
	int64		batch;			/* 0: none */
	int64		first_task;
	int64		tasks;
} Spawn;

/*
 * Begin to spawn under the lease and step of these arguments (both NULL:
 * nothing to do).  True if the step has spawned before: then the rest of
 * "spawn" says what.  Throws FO001 if the lease is lost and FO004 if the step
 * spawned something else.
 */
extern bool spawn_begin(FunctionCallInfo fcinfo, int lease_arg, int step_arg, const char *kind, uint64 digest,
						Spawn *spawn);

/* Store what was spawned. */
extern void spawn_end(const Spawn *spawn);

/* A new batch of the current role; throws 22023 for a join that is none. */
extern int64 batch_create(text *join, int64 join_count, bool sealed, bool *early_join);

/* 42704 */
pg_noreturn extern void throw_missing_batch(int64 batch);

/* Throw unless the batch, of this owner as was read, is there (42704) and the current role's (42501). */
extern void check_batch_owner(int64 batch, Oid owner);

/*
 * Make sure that the batch can take tasks: 42704, 42501, FO005 if not.  It
 * cannot be sealed before this transaction ends.
 */
extern void batch_open_for_tasks(int64 batch, bool *early_join);

extern void batch_add_part(int64 batch, int64 first_task, int64 tasks);

#endif							/* FANOUT_BATCH_H */
