/*
 * room.h
 *		Room in the pool of tasks, and who leaves it for whom.
 *
 * All of it expects the dispatcher lock to be held, and cannot throw.
 */
#ifndef FANOUT_ROOM_H
#define FANOUT_ROOM_H

#include "shared_state.h"

extern int64 queue_window_limit(void);

/*
 * Tasks of open transactions hold their places until these end, and nobody
 * can take them: all queues together may have half of the pool for them, so
 * that refills find memory however many transactions stay open.
 */
static inline int64
reserved_most(void)
{
	return fanout_max_tracked_tasks / 2;
}

/* Has the queue room for one more waiting task, at no other queue's cost?  And for this one, maybe in a later one's place? */
extern bool queue_room(Queue *queue);
extern bool queue_room_for_ready(Queue *queue);
extern bool schedule_is_wide(const Queue *queue);
extern bool make_room(Queue *queue, Window *window, int64 key, int64 id);

/* Leave a task on disk: the window's last after this place, one of the queue that has most, or any. */
extern bool window_evict_after(Window *window, int64 key, int64 id);
extern bool evict_for(const Queue *queue);
extern bool evict_any(void);

/* Who keeps the last ready task that it has in memory?  Only lanes that may start something. */
typedef enum KeepLast
{
	KEEP_NONE,
	KEEP_LAST_IF_MIXED,			/* those that have ready tasks as well which cannot leave */
	KEEP_LAST
} KeepLast;

/* Leave a task of this queue on disk. */
extern bool queue_evict_last(Queue *queue, KeepLast keep);

extern int64 queue_ready_share(const Queue *queue);
extern bool queue_is_within_share(const Queue *queue);
extern bool queue_runs_low(const Queue *queue);
extern int64 free_beyond_reserve(void);
extern bool queue_may_refill_partitions(const Queue *queue);
extern bool queue_can_use_refill(const Queue *queue, int64 more);
extern bool queue_can_use_due(const Queue *queue);

/* A refill that has found no memory goes on now: a task has left the pool. */
extern void tasks_freed(void);

/* The same for lanes: might the queue get room for one more, at the cost of the queue that has most, or at anybody's? */
extern bool queue_may_have_lane(const Queue *queue);
extern bool queue_can_use_lanes(const Queue *queue);
extern void evict_lane_for(Queue *queue);
extern bool evict_any_lane(void);

#endif							/* FANOUT_ROOM_H */
