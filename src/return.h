/*
 * return.h
 *		Permits that are kept for a moment for the worker that gave them back.
 */
#ifndef FANOUT_RETURN_H
#define FANOUT_RETURN_H

#include "shared_state.h"

/* This backend looks for work; without the lock. */
extern void note_return(void);

/* These expect the dispatcher lock to be held, and cannot throw. */

/* This backend's transaction, which has claimed nothing, has given back one of the queue's permits. */
extern void expect_return(Queue *queue);

/* It is back, or will not be: the queue whose waiters may have the permits that it does not take, or NULL. */
extern Queue *forget_return(Waiter *waiter);

/* Forget who has not come back in time; by wait_clock(), when to call it again, or 0. */
extern int64 end_overdue_returns(Database *database, int64 now);

#endif							/* FANOUT_RETURN_H */
