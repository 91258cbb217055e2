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
extern void pending_withdraw(Task *task);
extern void pending_change(Task *task);
extern void pending_cancel_request(int64 task);
extern void pending_batch_change(int64 batch);
extern void pending_batch_seal(int64 batch);
extern void pending_queue_create(Queue *queue);
extern const QueueSettings *pending_settings(Queue *queue);
extern void pending_queue_alter(Queue *queue, const QueueSettings *settings);
extern void pending_lane_set(Queue *queue, int64 partition, const LaneSettings *settings);
extern void pending_queue_drop(Queue *queue);
extern void pending_queue_close(Queue *queue);
extern void pending_queue_purge(Queue *queue, int64 on_disk);
extern void pending_register(Oid db);
extern void pending_reload(void);

/* For the keeper: these are the segments then. */
extern void pending_segments(const SegmentMap *map);


/* So many of the tasks of the last pending_enqueue() have a place by now, or are counted in their lanes. */
extern void pending_enqueue_reserved(int64 reserved);
extern void pending_enqueue_counted(int64 counted);

/* The last note was one of a withdrawal from disk that turned out to be wrong. */
extern void pending_forget_withdrawal(void);

/* The last note is one of a withdrawal: undo it. */
extern void pending_undo_withdrawal(void);

/*
 * A task that this transaction has withdrawn: was the last thing it did with
 * it to change it?  Then it still waits as far as this transaction goes, in
 * that queue and on those terms.
 */
extern bool pending_is_change(const Task *task);
extern Queue *pending_queue(const Task *task);
extern TaskTerms pending_terms(const Task *task);

/*
 * pending_change() alone leaves the task as it is; these tell what it is to
 * be.  The first asks whether the task comes to the partition by that, so that
 * it is to be counted there.  The second reserves a place in the queue, and one
 * for the lane: false if there is no room for that.  The last cannot fail.
 */
extern bool pending_change_enters(const Task *task, const Queue *target, int64 partition);
extern bool pending_change_reserve(Task *task, Queue *target, int64 partition);
extern void pending_change_set(const Task *task, const TaskTerms *terms);

/* Has this transaction enqueued the task, or given it another life?  Not to be called under the lock: it may take long. */
extern bool pending_enqueues(int64 task);

/* The ids of tasks that this transaction has enqueued are among these; false if there are none. */
extern bool pending_range(int64 *first, int64 *last);

/* So many of the tasks that wait in the queue will have left it at commit. */
extern int64 pending_leave(const Queue *queue);

/* How many notes there are. */
extern int	pending_notes(void);

/*
 * Tell the claimant the leases of the queue that this transaction ends and
 * whose permits it has not passed on; only the worker's if there is a limit
 * for each.  Under the lock; there must be room for pending_notes().
 */
extern void pending_ends(Queue *queue, Claimant *claimant);

extern void commit_hooks_init(void);

#endif							/* FANOUT_COMMIT_HOOKS_H */
