/*
 * lane_limits.h
 *		What only some lanes have: settings of their own, and starts that a rate
 *		limit remembers.
 *
 * All of it expects the dispatcher lock to be held, and cannot throw.
 */
#ifndef FANOUT_LANE_LIMITS_H
#define FANOUT_LANE_LIMITS_H

#include "lane_pools.h"

extern const LaneSettings lane_no_settings;

static inline const LaneSettings *
lane_settings(const Lane *lane)
{
	return lane->limited ? &lane_limits(lane)->settings : &lane_no_settings;
}

/* Give it settings of its own, or take them away; false if there is no room for the lane or for its settings. */
extern bool lane_set(Queue *queue, int64 partition, const LaneSettings *settings);

/*
 * A transaction is about to give it settings, or a task: there is room for
 * that until it has ended; false if there is none.
 */
extern bool lane_keep(Queue *queue, int64 partition);
extern void lane_let_go(Queue *queue, int64 partition);

/* Its limits go if they tell nothing any more. */
extern void lane_drop_idle_limits(Lane *lane);

/* How many of its tasks may run at one time; 0: any number. */
extern int32 lane_limit(const Lane *lane);

/* How many of its tasks may wait; 0: any number. */
extern int32 lane_max_backlog(const Lane *lane);

/* When time lets this task start, its first; 0: now.  Or, without a task, when there is nothing to remember. */
extern TimestampTz lane_held_until(Lane *lane, const Task *first);

/* Its rate limit. */
extern int64 rate_slack(const RateView *rate);
extern bool lane_has_rate(Lane *lane);
extern int64 lane_rate_left(Lane *lane);
extern bool lane_has_room_for_start(Lane *lane);
extern TimestampTz lane_earliest_start(Lane *lane);
extern void lane_start(Lane *lane, int32 cost, TimestampTz at);
extern void lane_unstart(Lane *lane, int32 cost, TimestampTz at);
extern bool lane_has_slack(Lane *lane, int32 cost);
extern bool lane_leave_unjournaled(Lane *lane, int32 cost);
extern void lane_journaled(Lane *lane, int32 cost);
extern void lane_remember_start(Lane *lane, int32 cost, TimestampTz at);
extern void lane_remember_unknown_starts(Lane *lane, TimestampTz at);
extern void lane_recount_rate(Lane *lane);

#endif							/* FANOUT_LANE_LIMITS_H */
