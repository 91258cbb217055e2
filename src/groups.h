/*
 * groups.h
 *		The turns of lanes, of which those of a fair group share one.
 *
 * All of it expects the dispatcher lock to be held, and cannot throw.
 */
#ifndef FANOUT_GROUPS_H
#define FANOUT_GROUPS_H

#include "shared_state.h"

/* A task of the lane has come that names this group (0: none). */
extern void lane_join_group(Lane *lane, int64 group, int64 task);

/* The lane is new, and in no group; it goes. */
extern void lane_begin_turns(Lane *lane);
extern void lane_forget_turns(Lane *lane);

/* It has a task that may start, this one first; it has none any more. */
extern void lane_wait_for_turn(Lane *lane, int64 task);
extern void lane_stop_waiting_for_turn(Lane *lane);

/* It has its turn; that was for nothing. */
extern void lane_take_turn(Lane *lane);
extern void lane_give_turn_back(Lane *lane);

/* The lane whose turn it is, or NULL. */
extern Lane *queue_lane_in_turn(Queue *queue);

#endif							/* FANOUT_GROUPS_H */
