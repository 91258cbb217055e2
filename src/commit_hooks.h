/*
 * commit_hooks.h
 *		What waits for the end of the transaction to take effect in memory.
 */
#ifndef FANOUT_COMMIT_HOOKS_H
#define FANOUT_COMMIT_HOOKS_H

#include "dispatch.h"

/* Where an enqueued task is: its pool entry, NULL if it has none, and its row. */
typedef struct TaskPlace
{
	Task	   *entry;
	ItemPointerData tid;
} TaskPlace;

/* Make room for so many of the notes below, so that none of them can fail.  May throw. */
extern void pending_prepare(int count);

/*
 * These cannot throw.  Each takes effect at commit and is undone at abort, of
 * the subtransaction too.  "places", for the first tasks of an enqueue, and
 * "partitions" (NULL: all are of the first one's) must be complete and live
 * when the transaction ends.
 */
extern void pending_enqueue(Queue *queue, const TaskSeed *first, int64 count, int64 reserved, TaskPlace *places,
							const int64 *partitions);
extern void pending_claim(Lease *entry, int64 lease, bool journaled);
extern void pending_end(Lease *entry, int64 lease, int64 task, Outcome outcome);
extern void pending_requeue(Lease *entry, int64 lease, TimestampTz due, bool counts);
extern void pending_pin(Lease *entry, int64 lease);
extern void pending_withdraw(int64 task);
extern void pending_cancel_request(int64 task);
extern void pending_forget_withdrawal(void);
extern void pending_batch_change(int64 batch);
extern void pending_queue_create(Queue *queue);
extern void pending_queue_alter(Queue *queue, const QueueSettings *settings);
extern void pending_lane_set(Queue *queue, int64 partition, const LaneSettings *settings);
extern void pending_queue_drop(Queue *queue);
extern void pending_queue_purge(Queue *queue, int64 on_disk);
extern void pending_register(Oid db);
extern void pending_reload(void);

/* So many of the tasks of the last pending_enqueue() have a place by now. */
extern void pending_enqueue_reserved(int64 reserved);

/* How many notes there are. */
extern int	pending_notes(void);

/*
 * The leases of the queue that this transaction ends and whose permits it has
 * not passed on; only the worker's if there is a limit for each.  Under the
 * lock; there must be room for pending_notes().
 */
extern int	pending_ends(Queue *queue, const char *worker, Lease **leases);

extern void commit_hooks_init(void);

/* Leases of this backend end with it. */
extern void end_bound_leases_at_exit(void);

#endif							/* FANOUT_COMMIT_HOOKS_H */
