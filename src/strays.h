/*
 * strays.h
 *		Tasks whose lanes have no place in memory.
 *
 * All of it expects the dispatcher lock to be held, and cannot throw.
 */
#ifndef FANOUT_STRAYS_H
#define FANOUT_STRAYS_H

#include "lane.h"

/* A task that is on disk only, as is its lane. */
extern void queue_leave_stray(Queue *queue, int64 rank, int64 task);

/* How long strays wait for more lanes to be free, at most: microseconds. */
#define STRAYS_PATIENCE	(100 * INT64CONST(1000))

/* There is room for lanes: those of strays may come.  And strays of the queue may, when that is worth a read. */
extern void lanes_freed(void);
extern void queue_ask_for_lanes(Queue *queue);

/* The lane of a stray that is read, entered if it is not known yet; NULL if there is no room for one. */
extern Lane *lane_for_stray(Queue *queue, int64 partition);

/* Strays of the queue may be the lane's own: its bound says so from now on. */
extern void lane_count_strays(Lane *lane);

/* The same for one with strays, when they may not come after all that it has; others stay as they are. */
extern void lane_part_from_strays(Lane *lane);

/* To be called when what the lane has ready has changed. */
extern void lane_check_strays(Lane *lane);

/* Do lanes with strays that have nothing to give out wait in vain?  They are to read on their own then. */
extern bool queue_has_idle_lanes(const Queue *queue);
extern void queue_part_idle_lanes(Queue *queue);

#endif							/* FANOUT_STRAYS_H */
