/*
 * pending.h
 *		Notes of what is to take effect in memory when the transaction ends: for
 *		pending.c and commit_hooks.c alone.
 */
#ifndef FANOUT_PENDING_H
#define FANOUT_PENDING_H

#include "miscadmin.h"

#include "commit_hooks.h"

typedef enum PendingKind
{
	PENDING_ENQUEUE,
	PENDING_CLAIM,
	PENDING_END,
	PENDING_REQUEUE,
	PENDING_PIN,
	PENDING_WITHDRAW,
	PENDING_CHANGE,
	PENDING_CANCEL_REQUEST,
	PENDING_BATCH_CHANGE,
	PENDING_BATCH_SEAL,
	PENDING_QUEUE_CREATE,
	PENDING_QUEUE_ALTER,
	PENDING_LANE_SET,
	PENDING_QUEUE_DROP,
	PENDING_QUEUE_CLOSE,		/* as it is being purged */
	PENDING_QUEUE_PURGE,
	PENDING_REGISTER,
	PENDING_RELOAD,
	PENDING_SEGMENTS
} PendingKind;

typedef struct Pending
{
	PendingKind kind;
	int			level;
	int32		queue;			/* index, of a queue that had this id */
	int32		queue_id;
	int64		generation;		/* of that queue's slot */
	union
	{
		struct
		{
			TaskSeed	first;
			int64		count;
			int64		reserved;	/* the first so many have a place */
			int64		counted;	/* and so many are counted in their lanes */
			TaskPlace  *places;
			const int64 *partitions;	/* NULL: all are of the first one's */
		}			enqueue;
		struct
		{
			Lease	   *entry;
			int64		number;
			int64		task;	/* end */
			TimestampTz due;
			Outcome		outcome;
			bool		flag;	/* claim: journaled; requeue: counts as an attempt */
		}			lease;
		struct
		{
			int64		task;
			int32		previous;	/* this transaction's last note about it before, or -1 */
			int32		from;	/* change: the queue it was in, as the note's own is the one it goes to */
			int32		from_id;
			bool		superseded; /* change: there is a later note about it */
			bool		counted;	/* change: among the pending ones of its queue */
			bool		lane_kept;	/* change: lane_keep() */
			bool		in_backlog; /* change: counted in the lane that it goes to */
			TaskTerms	terms;	/* change */
		}			task;
		int64		batch;
		int64		on_disk;
		Oid			db;
		QueueSettings settings;
		SegmentMap	segments;
		struct
		{
			int64		partition;
			LaneSettings settings;
		}			lane;
	}			u;
} Pending;

/* In their order; those of deeper nest levels come last. */
extern Pending *pending;
extern int	pending_used;

/* The queue of a note, unless it has gone. */
static inline Queue *
queue_of_note(const Pending *op)
{
	Queue	   *queue = &fanout_queues[op->queue];

	if (queue->state == QUEUE_FREE || queue->db != MyDatabaseId || queue->id != op->queue_id)
		return NULL;
	return queue;
}

/* The lease of a note while it still has its task, or NULL. */
static inline Lease *
lease_of_note(const Pending *op)
{
	Lease	   *lease = op->u.lease.entry;

	if (!lease_is(lease, MyDatabaseId, op->u.lease.number))
		lease = lease_find(MyDatabaseId, op->u.lease.number);
	return lease != NULL && lease->task != 0 ? lease : NULL;
}

/* Has the transaction claimed anything? */
extern bool pending_claims_any(void);

/* The last note, to be undone: it is taken off. */
extern Pending *pending_pop(void);

/* The transaction has ended: there are no notes any more. */
extern void pending_forget_all(void);

#endif							/* FANOUT_PENDING_H */
