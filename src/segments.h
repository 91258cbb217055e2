/*
 * segments.h
 *		The segments of the log: which of them has a task, and the move to the
 *		next one.
 */
#ifndef FANOUT_SEGMENTS_H
#define FANOUT_SEGMENTS_H

#include "shared_state.h"

/* A statement for each segment, from a macro that takes what the segment's tables have at the end of their names. */
#define FOR_EACH_SEGMENT(statement) {statement("_1"), statement("_2"), statement("_3"), statement("_4")}

/* The segment that has all the rows of the task, from 0 on; -1 if none can have any. */
extern int	segment_of(int64 task);

/*
 * For the keeper: the segments that are in use, in the order of their tasks,
 * and their number; read from the catalogue which they are, in a transaction;
 * and make the next one the current one, in a transaction of its own.
 */
extern int	segments_in_use(const Database *database, int *segments);
extern void segments_load(Database *database);
extern void segments_move_on(Database *database);

#endif							/* FANOUT_SEGMENTS_H */
