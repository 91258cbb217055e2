/*
 * lease.h
 *		What a worker does under its lease.
 */
#ifndef FANOUT_LEASE_H
#define FANOUT_LEASE_H

#include "dispatch.h"
#include "registry.h"

#define ERRCODE_LEASE_LOST			MAKE_SQLSTATE('F', 'O', '0', '0', '1')
#define ERRCODE_TASK_CANCELLED		MAKE_SQLSTATE('F', 'O', '0', '0', '2')
#define ERRCODE_BACKLOG_FULL		MAKE_SQLSTATE('F', 'O', '0', '0', '3')
#define ERRCODE_STEP_MISMATCH		MAKE_SQLSTATE('F', 'O', '0', '0', '4')
#define ERRCODE_BATCH_SEALED		MAKE_SQLSTATE('F', 'O', '0', '0', '5')

/* A lease that is held for this transaction, copied out. */
typedef struct HeldLease
{
	Lease	   *entry;
	int64		lease;			/* 0: it could not be held */
	int64		task;
	int32		queue_id;
	int32		attempt;
	int32		max_attempts;
	TimestampTz claimed_at;
	bool		journaled;		/* its claim is on disk */
	bool		cancelled;		/* its task is to be cancelled: it cannot be extended or written under */
	int64		lease_duration; /* the queue's */
	int64		backoff;
	int64		backoff_max;
	char		worker[FANOUT_NAME_LEN];
} HeldLease;

/* To what end a lease is held. */
typedef enum LeaseUse
{
	LEASE_USE_EXTEND,			/* only if it is held now */
	LEASE_USE_WRITE,			/* pinned until the transaction ends */
	LEASE_USE_END,				/* pinned, and nobody else may end it unless this transaction aborts */
	LEASE_USE_COMPLETE			/* the same, and noted to end as succeeded */
} LeaseUse;

/*
 * Hold a live lease for this transaction; false if it is not live.  Waits
 * while another transaction is ending it.  Checks that the caller may dequeue
 * from the lease's queue.  After LEASE_USE_END the caller must note, before
 * anything that may throw, how it ends: pending_end() or pending_requeue(),
 * for which room has been made.
 */
extern bool lease_hold(int64 lease, LeaseUse use, HeldLease *held);

/* For a lease that could not be held: throws FO002 if its task is to be cancelled, else FO001. */
pg_noreturn extern void throw_not_held(int64 lease, const HeldLease *held);

/* The same for several, to extend, write or complete; held[i].lease is 0 where one is not live. */
extern void lease_hold_many(const Datum *leases, int count, LeaseUse use, HeldLease *held);

pg_noreturn extern void throw_lease_lost(int64 lease);

/* Leases of this backend end with it. */
extern void end_bound_leases_at_exit(void);

#endif							/* FANOUT_LEASE_H */
