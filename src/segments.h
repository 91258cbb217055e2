/*
 * segments.h
 *		The segments of the log: which of them has a task, and the move to the
 *		next one.
 */
#ifndef FANOUT_SEGMENTS_H
#define FANOUT_SEGMENTS_H

#include "storage/lock.h"

#include "registry.h"

/* A statement for each segment, from a macro that takes what the segment's tables have at the end of their names. */
#define FOR_EACH_SEGMENT(statement) {statement("_1"), statement("_2"), statement("_3"), statement("_4")}

/* The segment that has all the rows of the task, from 0 on; a guess, unless a table of it is locked. */
extern int	segment_of(int64 task);

/* Lock the segment's table of that kind until the transaction ends, and with it the task's place: its segment. */
extern int	segment_hold(LogKind kind, int64 task, LOCKMODE mode);

/* Keep every task in its segment until the transaction ends. */
extern void segments_pin(void);

extern bool segment_is_current(int segment);

/*
 * The transaction, which holds the segment, is about to make a task of it
 * unfinished, be it by an enqueue that was numbered long ago.  May wait for the
 * keeper.
 */
extern void segment_unsettle(int segment);

/*
 * For the keeper: the segments that are in use, in the order of their tasks,
 * and their number; those of them that may have unfinished tasks.
 */
extern int	segments_in_use(const Database *database, int *segments);
extern int	segments_unfinished(const Database *database, int *segments);

/* Read from the catalogue what segments there are, in a transaction. */
extern void segments_load(Database *database);
extern void segments_forget_finished(void);

/* Make the next one the current one, in a transaction of its own; false if none is free. */
extern bool segments_move_on(Database *database);

/* Have no segment count as finished, in a transaction of its own. */
extern void segments_reopen(Database *database);

/* A transaction that changes the catalogue and, when it commits, memory. */
extern void segments_begin_change(Database *database, SegmentMap *map);
extern void segment_store_finished(int segment, bool finished);
extern void segments_commit_change(const SegmentMap *map);

/* For the keeper, in an SpiScope: tasks below that id are removed. */
extern void segments_note_removed(int64 below);

/* Under the lock. */
extern void database_set_segments(Database *database, const SegmentMap *map);

#endif							/* FANOUT_SEGMENTS_H */
