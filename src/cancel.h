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
	CANCEL_UNKNOWN,
	CANCEL_NO_MEMORY,			/* for the entries of tasks that are on disk */
	CANCEL_LATER				/* another transaction is deciding about it */
} CancelResult;

/*
 * For the keeper: cancel the task in this transaction if it waits, whoever
 * owns its queue, and do not wait for anybody.
 */
extern CancelResult cancel_task_at_once(int64 task, const char *reason);

#endif							/* FANOUT_CANCEL_H */
