/*
 * dispatch.h
 *		Who may run next: the transitions of tasks and leases.
 *
 * All of it expects the dispatcher lock to be held, and cannot throw.  Times
 * are the caller's, so that one call sees one time.
 */
#ifndef FANOUT_DISPATCH_H
#define FANOUT_DISPATCH_H

#include "shared_state.h"

typedef enum Outcome
{
	OUTCOME_SUCCEEDED = 's',
	OUTCOME_FAILED = 'f',
	OUTCOME_CANCELLED = 'c'
} Outcome;

/* What is needed to enter a task. */
typedef struct TaskSeed
{
	int64		task;
	int64		batch;
	int64		partition;		/* 0: none */
	int64		group;			/* 0: none */
	int64		rank;			/* rank_of() */
	int32		priority;
	int32		cost;			/* units of rate limits; 0: 1 */
	int16		max_attempts;
	bool		timed;
	bool		early_join;
	TimestampTz run_at;
	TimestampTz deadline;		/* it is cancelled unless it has started by then; 0: none */
} TaskSeed;

/* What can be changed of a task that waits. */
typedef struct TaskTerms
{
	int64		partition;		/* 0: none */
	int64		group;			/* 0: none, or not known: of a task that does not change */
	int64		rank;			/* rank_of() */
	int32		priority;
	bool		timed;			/* its row has a run_at */
	TimestampTz due;			/* 0: at once */
	TimestampTz deadline;		/* 0: none, or it has started */
	int32		cost;
	int16		max_attempts;	/* 0: the queue's */
	ItemPointerData tid;		/* of its row, which a change moves */
} TaskTerms;

/* What a claim gave, copied out. */
typedef struct Claim
{
	Lease	   *entry;
	int64		lease;
	int64		task;
	int64		batch;
	int32		queue_id;
	int32		priority;
	int32		attempt;
	int32		max_attempts;
	ItemPointerData tid;
	bool		fresh;
	bool		synchronous;
	TimestampTz claimed_at;
	TimestampTz until;
} Claim;

/* One that asks for work. */
typedef struct Claimant
{
	const char *worker;
	int64		lease;			/* microseconds; 0: the queue's */
	bool		bound;
	Lease	  **ending;			/* leases of this queue whose permits its transaction gives back at commit */
	int			ending_count;
	int			ended_count;	/* the first so many of them end their tasks */
} Claimant;

/* enqueue */
extern Task *task_reserve(Queue *queue, const TaskSeed *seed, TimestampTz now);
extern void task_admit(Task *task, int64 group, TimestampTz now);
extern void task_forget(Task *task);
extern void task_admit_withdrawn(Task *task);
extern void queue_leave_on_disk(Queue *queue, const TaskSeed *first, int64 count);
extern void queue_count_committed(Queue *queue, bool timed, int64 count);

/* from disk */
extern Task *task_load(Queue *queue, const TaskSeed *seed, ItemPointer tid, bool urgent, TimestampTz now);

extern Task *task_rebuild(Queue *queue, const TaskSeed *seed, ItemPointer tid, int attempts, bool own_due,
						  TimestampTz now);

/* dequeue */
extern int	queue_claim(Queue *queue, const Claimant *claimant, int max, TimestampTz now, Claim *claims);
extern bool queue_admits(Queue *queue, const char *worker);
extern void lease_commit(Lease *lease, bool journaled);
extern void lease_undo(Lease *lease);
extern Lease *lease_restore(Task *task, int64 number, const char *worker, TimestampTz claimed_at, TimestampTz until);

/* a lease's life */
extern void lease_extend(Lease *lease, TimestampTz until);
extern void lease_take_back_permit(Lease *lease);
extern void lease_pin(Lease *lease);
extern void lease_unpin(Lease *lease);
extern void lease_expire(Lease *lease, TimestampTz now);
extern void lease_journal(Lease *lease, uint8 what);
extern void lease_journaled(Lease *lease);

/* ends */
extern void task_requeue(Task *task, TimestampTz due, bool counts, TimestampTz now);
extern void task_request_cancel(Task *task);
extern void task_withdraw(Task *task, TransactionId ender);
extern Task *task_withdraw_from_disk(Queue *queue, const TaskSeed *seed, TransactionId ender, bool pending);
extern void task_forget_withdrawn(Task *task);
extern void task_put_back_on_disk(Task *task, Queue *queue, const TaskTerms *terms);
extern void task_restore(Task *task);
extern TaskTerms task_terms(const Task *task);
extern void task_change(Task *task, Queue *target, const TaskTerms *terms, TimestampTz now);
extern void task_forget_changed(Task *task);
extern void task_change_on_disk(int64 task, Queue *from, Queue *target, const TaskTerms *terms);
extern void task_end(Task *task, Outcome outcome);
extern void task_end_unforeseen(Task *task, Outcome outcome);
extern void database_note_dirty_join(Database *database, int64 batch);

/* time, and memory */
extern void database_note_deadline(Database *database, TimestampTz deadline);
extern bool queue_promote_due(Queue *queue, TimestampTz now);
extern void database_forget_ended(Database *database);
extern bool queue_close(Queue *queue, bool dropping, TransactionId closer);
extern void queue_purged_on_disk(Queue *queue, int64 count);
extern void queue_reopen(Queue *queue);
extern void queue_remove(Queue *queue);

#endif							/* FANOUT_DISPATCH_H */
