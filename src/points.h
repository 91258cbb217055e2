/*
 * points.h
 *		Crash points: places between two steps at which a test can stop a process.
 *
 * Only in a checked build (see audit.h).  In any other, nothing of it is left
 * but a function that returns no rows and one that refuses.
 */
#ifndef FANOUT_POINTS_H
#define FANOUT_POINTS_H

#include "audit.h"

#ifdef FANOUT_CHECKED

/*
 * Name, and whether a process may wait or fail there.  In commit and abort
 * callbacks, where an error would be a PANIC, and under the dispatcher lock it
 * may only be killed; but at "notes-chunk", where these callbacks have let the
 * lock go, it may wait.
 */
#define FANOUT_POINTS(POINT) \
	POINT(ENQUEUE_RESERVED, "enqueue-reserved", true) \
	POINT(ENQUEUE_WRITTEN, "enqueue-written", true) \
	POINT(CLAIM_MADE, "claim-made", true) \
	POINT(CLAIM_JOURNALED, "claim-journaled", true) \
	POINT(CLAIM_RETURNED, "claim-returned", true) \
	POINT(CHECKPOINT_HELD, "checkpoint-held", true) \
	POINT(CHECKPOINT_WRITTEN, "checkpoint-written", true) \
	POINT(COMPLETE_HELD, "complete-held", true) \
	POINT(COMPLETE_WRITTEN, "complete-written", true) \
	POINT(END_HELD, "end-held", true) \
	POINT(END_WRITTEN, "end-written", true) \
	POINT(COMMIT_BEGUN, "commit-begun", true) \
	POINT(COMMIT_RECORDED, "commit-recorded", false) \
	POINT(COMMIT_NOTE, "commit-note", false) \
	POINT(NOTES_CHUNK, "notes-chunk", false) \
	POINT(COMMIT_APPLIED, "commit-applied", false) \
	POINT(ABORT_BEGUN, "abort-begun", false) \
	POINT(ABORT_NOTE, "abort-note", false) \
	POINT(ABORT_UNDONE, "abort-undone", false) \
	POINT(JOURNAL_COPIED, "journal-copied", true) \
	POINT(JOURNAL_WRITTEN, "journal-written", true) \
	POINT(JOURNAL_COMMITTED, "journal-committed", true) \
	POINT(JOURNAL_SETTLED, "journal-settled", true) \
	POINT(EXPIRY_TOLD, "expiry-told", true) \
	POINT(EXHAUSTED_HELD, "exhausted-held", true) \
	POINT(EXHAUSTED_WRITTEN, "exhausted-written", true) \
	POINT(CEILING_COMMITTED, "ceiling-committed", true) \
	POINT(SEGMENT_COMMITTED, "segment-committed", true) \
	POINT(SEGMENT_CHOSEN, "segment-chosen", true) \
	POINT(FINISH_LOOKED, "finish-looked", true) \
	POINT(FINISH_STORED, "finish-stored", true) \
	POINT(FINISH_COMMITTED, "finish-committed", true) \
	POINT(REOPEN_STORED, "reopen-stored", true) \
	POINT(REOPEN_COMMITTED, "reopen-committed", true) \
	POINT(LOOK_BEGUN, "look-begun", true) \
	POINT(LOOK_ENDED, "look-ended", true) \
	POINT(RETIRE_LOCKED, "retire-locked", true) \
	POINT(RETIRE_CARRIED, "retire-carried", true) \
	POINT(RETIRE_PASSED_ON, "retire-passed-on", true) \
	POINT(RETIRE_COMMITTED, "retire-committed", true) \
	POINT(TRUNCATE_LOCKED, "truncate-locked", true) \
	POINT(TRUNCATE_DONE, "truncate-done", true) \
	POINT(TRUNCATE_COMMITTED, "truncate-committed", true) \
	POINT(REMAINS_DELETED, "remains-deleted", true) \
	POINT(TRIM_DELETED, "trim-deleted", true) \
	POINT(JOIN_DECIDED, "join-decided", true) \
	POINT(JOIN_CANCELLED, "join-cancelled", true) \
	POINT(JOIN_NOTED, "join-noted", true) \
	POINT(COLLECT_AWAITED, "collect-awaited", true) \
	POINT(REFILL_BEGUN, "refill-begun", true) \
	POINT(REFILL_READ, "refill-read", true) \
	POINT(REFILL_CHUNK, "refill-chunk", true) \
	POINT(REFILL_DONE, "refill-done", true) \
	POINT(EVICT_BOUND, "evict-bound", false) \
	POINT(EVICT_DROPPED, "evict-dropped", false) \
	POINT(EVICT_LANE, "evict-lane", false) \
	POINT(REBUILD_BEGUN, "rebuild-begun", true) \
	POINT(REBUILD_QUEUES, "rebuild-queues", true) \
	POINT(REBUILD_STARTS, "rebuild-starts", true) \
	POINT(REBUILD_HISTORIES, "rebuild-histories", true) \
	POINT(REBUILD_ATTEMPTED, "rebuild-attempted", true) \
	POINT(REBUILD_UNFINISHED, "rebuild-unfinished", true) \
	POINT(REBUILD_COMMITTED, "rebuild-committed", true) \
	POINT(REBUILD_CEILINGS, "rebuild-ceilings", true) \
	POINT(LAUNCHER_WAITED, "launcher-waited", true)

#define FANOUT_POINT_ID(id, name, may_throw) POINT_##id,
typedef enum FanoutPoint
{
	FANOUT_POINTS(FANOUT_POINT_ID)
	POINT_COUNT
} FanoutPoint;

typedef enum PointAction
{
	POINT_NOTHING,
	POINT_WAIT,					/* until the point is set to something else */
	POINT_ERROR,
	POINT_DISK_FULL,			/* an error as the server has it when it cannot extend a table */
	POINT_KILL					/* the process kills itself, as SIGKILL from elsewhere would */
} PointAction;

/* What is to be done at a point, in shared memory; written by whoever sets it and whoever comes there. */
typedef struct PointState
{
	volatile int32 action;
	volatile int32 times;		/* after so many an error goes off */
	volatile int32 skip;		/* so many pass before it */
	volatile int32 reached;
	volatile int32 pid;			/* who waits there, or who came last */
} PointState;

extern void point_reached(FanoutPoint point);

#define FANOUT_POINT(id) point_reached(POINT_##id)

#else

#define FANOUT_POINT(id) ((void) 0)

#endif

#endif							/* FANOUT_POINTS_H */
