/*
 * lane_pools.h
 *		The pools of lanes, and of what lanes have: limits and fair groups.
 */
#ifndef FANOUT_LANE_POOLS_H
#define FANOUT_LANE_POOLS_H

#include "shared_state.h"

extern Size lane_pools_size(void);
extern void lane_pools_attach(void);
extern int	max_groups(void);

/* Everything below expects the dispatcher lock to be held, and cannot throw. */

extern Lane *lane_find(Queue *queue, int64 partition);
extern Lane *lane_enter(Queue *queue, int64 partition);
extern void lane_free(Lane *lane);
extern void lane_ask_for_refill(Lane *lane);
extern void lane_stand_last(Lane *lane);
extern Lane *queue_take_asker(Queue *queue, const Lane *but_not);
extern Lane *queue_walk_lanes(Queue *queue);
extern void queue_clear_lanes(Queue *queue);

extern LaneLimits *lane_limits(const Lane *lane);
extern LaneLimits *lane_limits_enter(Lane *lane);
extern void lane_limits_free(LaneLimits *limits);

extern FairGroup *group_find(Queue *queue, int64 number);
extern FairGroup *group_enter(Queue *queue, int64 number);
extern void group_free(FairGroup *group);

#endif							/* FANOUT_LANE_POOLS_H */
