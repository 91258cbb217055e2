/*
 * change.h
 *		Changing tasks that wait.
 */
#ifndef FANOUT_CHANGE_H
#define FANOUT_CHANGE_H

#include "registry.h"

/* What is to be set; all else stays: the place among equals, cost, batch, limits, checkpoints, attempts. */
typedef struct TaskChange
{
	bool		set_priority;
	int32		priority;
	bool		set_time;
	TimestampTz run_at;			/* what is past, or 0: now */
	bool		set_args;
	Datum		args;			/* jsonb */
	bool		args_isnull;
	text	   *name;			/* NULL: stays */
	const QueueRef *queue;		/* NULL: stays */
	bool		set_partition;
	text	   *partition_key;	/* NULL: none */
	bool		set_rest;		/* of what enqueue() says; the task's key is held until it has ended, too */
	int32		cost;
	int16		max_attempts;	/* 0: the queue's */
	TimestampTz deadline;		/* 0: none */
	text	   *fair_group;		/* NULL: none */
	int64		group;			/* its hash, or 0 */
	bool		unstarted;		/* only a task that has not been attempted, and is not to be cancelled */
} TaskChange;

typedef enum ChangeResult
{
	CHANGE_DONE,
	CHANGE_NOT_WAITING,			/* it runs or has ended, also if this transaction has cancelled it; or it has started */
	CHANGE_UNKNOWN				/* there is no such task, or its queue has been dropped */
} ChangeResult;

/*
 * Change a task that waits, ready or scheduled, when this transaction commits;
 * until then it is nobody's.  It may have been enqueued, changed or given
 * another life by this very transaction.  Waits for another transaction that
 * is changing or ending it, and looks at what that has made of it.
 *
 * The caller needs the right to enqueue to the task's queue, and has that for
 * change->queue.  Throws 42501 without it, FO003 if that queue, or the partition
 * that the task goes to, is full, 53400 if there is no memory for the entry of a task that is on disk.
 */
extern ChangeResult change_task(int64 task, const TaskChange *change);

#endif							/* FANOUT_CHANGE_H */
