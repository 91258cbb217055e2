/*
 * results.h
 *		Batches as they are waited for, collected and counted.
 */
#ifndef FANOUT_RESULTS_H
#define FANOUT_RESULTS_H

#include "access/tupdesc.h"
#include "fmgr.h"

/* What is waited for. */
typedef struct Target
{
	/* Read the tables: has it ended?  If not, ends_wanted is set. */
	bool		(*look) (struct Target *target);
	int64		ends_wanted;	/* it cannot have ended before so many more of its tasks have */

	int64		batch;			/* 0: the tasks */
	int64		first_task;
	int64		last_task;
	bool		drop_snapshot;	/* in a procedure: hold no snapshot while asleep */
} Target;

typedef enum JoinPolicy
{
	JOIN_ON_ALL,
	JOIN_ON_SUCCESSES,			/* "any" is one */
	JOIN_ON_FAILURE
} JoinPolicy;

typedef struct Batch
{
	Target		target;
	JoinPolicy	policy;
	int64		successes;		/* that JOIN_ON_SUCCESSES asks for */

	/* as last read */
	bool		sealed;
	bool		ended_early;
	int64		total;
	int64		ended;
	int64		succeeded;		/* these three only if the policy needs them */
	int64		failed;
	int64		cancelled;
} Batch;

/* Task ids that follow on. */
typedef struct TaskRange
{
	int64		first;
	int64		count;
} TaskRange;

/* The batch of that id; throws unless it is there and the caller's. */
extern void open_batch(int64 id, Batch *batch);

/* Has the batch ended, by what was last read of it? */
extern bool batch_has_ended(const Batch *batch);

/* The ranges of the batch's tasks in order, those that follow on joined into one; their number.  Throws if it has been removed. */
extern int64 read_ranges(const Batch *batch, TaskRange **ranges);

/* The row type that the function returns. */
extern TupleDesc row_type(FunctionCallInfo fcinfo);

#endif							/* FANOUT_RESULTS_H */
