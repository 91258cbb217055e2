/*
 * lane.h
 *		The lanes of a queue, and whose turn it is.
 *
 * All of it expects the dispatcher lock to be held, and cannot throw.
 */
#ifndef FANOUT_LANE_H
#define FANOUT_LANE_H

#include "lane_pools.h"

#define DISK_BEFORE_MOST	((INT64CONST(1) << 27) - 1) /* of Lane.disk_before: at least so far */

static inline Queue *
queue_of_lane(const Lane *lane)
{
	return &fanout_queues[lane->turn.queue];
}

static inline FairGroup *
group_of(const Lane *lane)
{
	return link_target(lane->group);
}

/* When time will change the lane, of which none may start before; 0: it is no matter of time. */
static inline TimestampTz
lane_throttled_until(const Lane *lane)
{
	return lane->turn.aside ? lane->turn.node.key : 0;
}

/* One of its tasks, by which others may find the partition's key; 0: none. */
extern void lane_set_sample(Lane *lane, int64 task);
extern void lane_forget_sample(Lane *lane, int64 task);
extern int64 lane_sample(const Lane *lane);

/* A lane of a partition that has fewer tasks in memory than this asks for a refill, if there are more on disk. */
#define LANE_LOW	8

/*
 * The lane of a partition, entered if it is not known yet; NULL if there is no
 * room for one.  For a task that is not due no other lane has to go.
 */
extern Lane *lane_for(Queue *queue, int64 partition);
extern Lane *lane_for_task(Queue *queue, int64 partition, bool due);

/* Enter one that is not known; what of it may be on disk is the caller's to tell. */
extern Lane *lane_begin(Queue *queue, int64 partition, bool due);

/*
 * So many tasks of the partition wait from now on, or wait no more: of a lane,
 * or of a queue's partition, which has no lane if there is no room for one.
 */
extern void lane_count_backlog(Lane *lane, int64 tasks);
extern void queue_count_backlog(Queue *queue, int64 partition, int64 tasks);

/*
 * The same for tasks that are to be enqueued, unless the partition has no room
 * for them once "freed" ones have gone: false, with the lane as it is.
 */
extern bool queue_take_backlog(Queue *queue, int64 partition, bool due, int64 tasks, int64 freed, int32 *backlog,
							   int32 *most);

/* Would that succeed for one task? */
extern bool queue_has_backlog_room(Queue *queue, int64 partition, int32 *backlog, int32 *most);

/* All that wait are in memory. */
extern void queue_recount_backlogs(Queue *queue);

/* To be called when one of the reasons why a lane is in memory has gone. */
extern void lane_release(Lane *lane);

/* Give back the pool entry of a task of a lane that stands in no set. */
extern void task_drop(Task *task);

/* Its ready tasks. */
extern void lane_add(Lane *lane, Task *task);
extern void lane_take(Lane *lane, Task *task);
extern void lane_leave_on_disk(Lane *lane, int64 key, int64 id);
extern void lane_lower_bound(Lane *lane, int64 key, int64 id);	/* what is there may be on disk, and some were before */
extern int64 lane_disk_first(const Lane *lane);
extern void lane_end_refill(Lane *lane, int64 key, int64 id);
extern Task *lane_first(const Lane *lane);
extern bool lane_is_blocked(const Lane *lane);

/* Does the row of a READY task alone say what it is, and that it is READY? */
static inline bool
ready_task_is_spare(const Task *task)
{
	return (task->flags & (TASK_FLAG_UNTOUCHED | TASK_FLAG_CANCELLED | TASK_FLAG_TIMED)) == TASK_FLAG_UNTOUCHED;
}

/* Its scheduled ones, which stand in the queue's schedule. */
extern void lane_schedule(Lane *lane, Task *task);
extern void lane_unschedule(Lane *lane, Task *task);

/* Those that wait for another attempt, and hold up the others if it runs one at a time. */
extern void lane_await_retry(Task *task);
extern void lane_await_retry_no_more(Task *task);
extern Task *lane_awaited_retry(const Lane *lane);

/* Its permits. */
extern void lane_take_permit(Lane *lane);
extern void lane_give_permit(Lane *lane);

/* To be called when its limit, or what of it is on disk, has changed. */
extern void lane_settle(Lane *lane);
extern void queue_settle_lanes(Queue *queue);

/* Those whose time has come; false if there are more than one call should do. */
extern bool queue_release_throttled(Queue *queue, TimestampTz now);

/* Whose turn it is. */
extern Lane *queue_next_lane(Queue *queue);
extern void lane_serve(Lane *lane, Task *task);
extern void lane_unserve(Lane *lane);

#endif							/* FANOUT_LANE_H */
