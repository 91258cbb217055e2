/*
 * cancel.h
 *		Ending tasks that wait.
 */
#ifndef FANOUT_CANCEL_H
#define FANOUT_CANCEL_H

typedef enum CancelResult
{
	CANCEL_DONE,
	CANCEL_NOT_WAITING,
	CANCEL_UNKNOWN
} CancelResult;

/* Cancel the task in this transaction if it waits; "check" the caller's right to. */
extern CancelResult cancel_task(int64 task, const char *reason, bool check);

#endif							/* FANOUT_CANCEL_H */
