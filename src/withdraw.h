/*
 * withdraw.h
 *		Taking a task that waits out of everybody's reach, to end or change it.
 */
#ifndef FANOUT_WITHDRAW_H
#define FANOUT_WITHDRAW_H

#include "registry.h"
#include "storage.h"

/* What its row says of a task. */
typedef struct TaskRow
{
	TaskSeed	seed;
	int32		queue_id;
	TimestampTz enqueued_at;
	text	   *partition_key;	/* NULL: none */
	int64		group;			/* the fair group that it names, which counts in a partition only; 0: none */
} TaskRow;

typedef enum Withdrawal
{
	WITHDRAWN,
	NOT_WAITING,				/* it runs, has ended, is being ended by us, its queue is purged or dropped by us, or
								 * it does not suit the purpose */
	NO_MEMORY,					/* for the entry of a task that is on disk */
	BUSY,						/* another transaction decides about it: wait for that, and read the row again */
	MOVED						/* it has been changed since its row was read: read that again */
} Withdrawal;

/* To what end a task is withdrawn. */
typedef enum WithdrawPurpose
{
	TO_CHANGE,
	TO_REPLACE,					/* only if it has not been attempted, and is not to be cancelled */
	TO_END,
	TO_END_LATE					/* only if it should have started by now */
} WithdrawPurpose;

/* A task that waits, as far as the transaction goes that has withdrawn it. */
typedef struct Withdrawn
{
	TaskTerms	terms;
	bool		untouched;		/* its row says all of it */
	bool		fresh;			/* it has never been leased, not even in an earlier life */
	TransactionId other;		/* BUSY: whom to wait for */
} Withdrawn;

/* False if there is no such task. */
extern bool task_row_read(int64 task, TaskRow *row);

/*
 * Withdraw the task, whose row says this, from its queue, and leave a note
 * that gives it back if the transaction aborts: one of an end, for which the
 * outcome is to be written then, or of a change.  What this transaction has
 * enqueued or changed itself can be withdrawn as well.  Waits for nobody.
 */
extern Withdrawal task_row_withdraw(Queue *queue, const TaskRow *row, WithdrawPurpose purpose, Withdrawn *withdrawn);

/* Wait for the transaction that decides about a task. */
extern void wait_for_other(const Withdrawn *withdrawn);

/* These throw 42704 and, for NO_MEMORY, 53400. */
pg_noreturn extern void throw_unknown_task(int64 task);
pg_noreturn extern void throw_no_memory_for_task(void);

#endif							/* FANOUT_WITHDRAW_H */
