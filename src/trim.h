/*
 * trim.h
 *		Queues that keep what is finished for a shorter time.
 */
#ifndef FANOUT_TRIM_H
#define FANOUT_TRIM_H

#include "shared_state.h"

/* A walk through the log for such queues, a part at a time. */
typedef struct TrimWalk
{
	MemoryContext context;
	int			queue_count;
	Datum	   *queues;			/* their ids, */
	Datum	   *cuts;			/* what has ended by then goes, */
	Datum	   *failed_cuts;	/* and what has failed by then */
	TimestampTz latest_cut;
	int			segments[FANOUT_SEGMENTS];	/* those to go through, */
	int			segment_count;
	int			at;				/* of which this one is next, */
	int64		from;			/* from this task on */
	Datum		ended;			/* batches of the last part that have ended long enough ago, */
	Datum		alive;			/* and those that have not, */
	Datum		alive_cuts;		/* by this time */
	int64		removed;
} TrimWalk;

/* Begin a walk, unless there are no such queues; after how long to begin the next one. */
extern int64 trim_begin(Database *database, TrimWalk *walk, TimestampTz now);

/* Remove the next ones, in a transaction of its own; false if that was all, or a queue is to keep its tasks for another time. */
extern bool trim_continue(Database *database, TrimWalk *walk);

#endif							/* FANOUT_TRIM_H */
