/*
 * audit.h
 *		Violations of what must always hold in memory: found, counted, told.
 *
 * Only in a checked build (make CHECKED=1, or a server with assertions).  In
 * any other, nothing of it is left but a function that returns no rows.
 */
#ifndef FANOUT_AUDIT_H
#define FANOUT_AUDIT_H

#include "rate.h"

#if defined(USE_ASSERT_CHECKING) && !defined(FANOUT_CHECKED)
#define FANOUT_CHECKED
#endif

struct Lease;

#ifdef FANOUT_CHECKED

typedef enum AuditKind
{
	AUDIT_CONCURRENCY,			/* a claim took a permit that there was not */
	AUDIT_RATE,					/* a start that a window did not admit */
	AUDIT_COUNT,				/* a counter is not what the pools have */
	AUDIT_ORDER,				/* an ordered set, or a lane or task in the wrong one */
	AUDIT_WAITING,				/* more in memory than waits, or less although nothing is on disk */
	AUDIT_WAKE,					/* a task may start, and a worker that may take it sleeps */
	AUDIT_KINDS
} AuditKind;

#define AUDIT_DETAIL_LEN	160

/* What was found, in shared memory. */
typedef struct AuditState
{
	int64		looked[AUDIT_KINDS];	/* how often for each kind */
	int64		violations[AUDIT_KINDS];
	int64		reported[AUDIT_KINDS];	/* those of them that are in the server's log */
	char		detail[AUDIT_KINDS][AUDIT_DETAIL_LEN];	/* of the first one */
	int32		skipped;		/* holds of the lock since the last count */
	bool		entries_moved;	/* there was no room for an entry of a rate log: they count for longer than they must */
} AuditState;

/* What a count finds that belongs to a database, queue, lane, worker or use. */
typedef struct Recount
{
	int64		tasks;			/* pool entries */
	int64		ready;
	int64		scheduled;
	int64		ending;
	int64		reserved;
	int64		ended;
	int64		leases;			/* of tasks */
	int64		committed;
	int64		journal;		/* leases with something to be journaled */
	int64		permits;		/* leases whose permits were not passed on */
	int64		unjournaled;	/* units */
	int64		lanes;
	int64		limited;		/* lanes with limits */
	int64		spare;
	int64		delayed;
} Recount;

/* To be called before the dispatcher lock is let go. */
extern void audit_memory(void);

/* A claim has taken its permits; a rate limit has taken a start. */
extern void audit_claim(const struct Lease *lease);
extern void audit_start(const RateView *rate, int32 cost, TimestampTz at);

/* Write to the server's log what has been found since; not under the lock. */
extern void audit_report(void);

#else

#define audit_memory()			((void) 0)
#define audit_claim(lease)		((void) 0)
#define audit_start(rate, cost, at) ((void) 0)
#define audit_report()			((void) 0)

#endif

#endif							/* FANOUT_AUDIT_H */
