/*
 * cancel.h
 *		Ending tasks that wait, and asking workers to stop.
 */
#ifndef FANOUT_CANCEL_H
#define FANOUT_CANCEL_H

#include "registry.h"

typedef enum CancelResult
{
	CANCEL_DONE,
	CANCEL_NOT_WAITING,
	CANCEL_UNKNOWN,
	CANCEL_NO_MEMORY,			/* for the entries of tasks that are on disk */
	CANCEL_LATER				/* another transaction is deciding about it */
} CancelResult;

/* Which tasks are meant, where the caller has not named them. */
typedef struct CancelFilter
{
	int32		queue_id;
	bool		(*matches) (int64 task, void *arg); /* of one that is withdrawn or runs */
	void	   *arg;
} CancelFilter;

/*
 * Cancel the task in this transaction if it waits, or have its worker told if
 * it runs; whoever decides about it is waited for.  "filter" may be NULL.
 * Throws 42501, and 53400 if there is no memory for it.
 */
extern CancelResult cancel_task(int64 task, const char *reason, const CancelFilter *filter);

/*
 * For the keeper: cancel the task in this transaction if it waits, whoever
 * owns its queue, and do not wait for anybody.
 */
extern CancelResult cancel_task_at_once(int64 task, const char *reason);

/* The same for one whose deadline has passed, unless it has started once. */
extern CancelResult cancel_late_task(int64 task);

/*
 * Cancel a task of the queue in two steps: if it waits, be it that this
 * transaction has enqueued it itself, nobody can claim it from the first one
 * on, and the second one has to follow.  Waits for another transaction that is
 * about to end or change it; throws 53400 if there is no memory for it.
 */
extern CancelResult cancel_begin(const QueueRef *ref, int64 task, int64 *partition);
extern void cancel_withdrawn(int64 task, const char *reason);

#endif							/* FANOUT_CANCEL_H */
