/*
 * survivors.h
 *		Which tasks of a segment have to stay when it is retired.
 */
#ifndef FANOUT_SURVIVORS_H
#define FANOUT_SURVIVORS_H

#include "shared_state.h"

#define SURVIVORS_MOST	10000	/* tasks that are moved when a segment is retired */

typedef enum LookPhase
{
	LOOK_TASKS,					/* at the tasks themselves */
	LOOK_BATCHES,				/* at batches that have tasks here and elsewhere */
	LOOK_EXPAND,				/* for all tasks of those that go on */
	LOOK_DONE
} LookPhase;

typedef struct IdList
{
	int64	   *ids;
	int64		count;
	int64		room;
} IdList;

/* A look at a segment, a part at a time. */
typedef struct SurvivorLook
{
	MemoryContext context;
	int			segment;
	int64		first;			/* its ids: from here on, */
	int64		end;			/* and below */
	uint64		unsettled;		/* as it was when the look began: if it is another one by now, it tells nothing */
	TimestampTz cut;			/* what has ended since then stays, */
	TimestampTz failed_cut;		/* and what has failed since then */
	LookPhase	phase;
	int64		from;			/* go on from this id of a task or batch, or place in the list */
	IdList		survivors;
	IdList		batches;		/* that have not ended for long enough */
	int64		reasons[KEPT_BATCH + 1];	/* how many stay for which */
} SurvivorLook;

/*
 * Begin to look, in a transaction of its own; false if somebody may just be
 * making a task of the segment unfinished.
 */
extern bool survivors_begin(Database *database, SurvivorLook *look, MemoryContext context);

/* Look at the next part, in a transaction of its own; true once all is known, or that too many have to stay. */
extern bool survivors_continue(SurvivorLook *look);

/* For what most of them stay. */
extern KeptReason survivors_reason(const SurvivorLook *look);

extern bool survivors_too_many(const SurvivorLook *look);

/*
 * A look for unfinished tasks alone.  What it has passed stays passed, as long
 * as the segment is not unsettled: it goes on where it met one.
 */
typedef struct FinishLook
{
	bool		begun;
	uint64		unsettled;
	int64		from;
} FinishLook;

typedef enum FinishResult
{
	FINISH_LATER,				/* a task is unfinished, or somebody is in the way */
	FINISH_MORE,				/* all that was looked at has ended, and there is more */
	FINISHED					/* all tasks have ended, and that is on disk */
} FinishResult;

extern FinishResult finish_continue(Database *database, int segment, FinishLook *look);

#endif							/* FANOUT_SURVIVORS_H */
