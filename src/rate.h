/*
 * rate.h
 *		Rate limits: how much has started, in windows that slide.
 *
 * All of it expects the dispatcher lock to be held, and cannot throw.
 */
#ifndef FANOUT_RATE_H
#define FANOUT_RATE_H

#include "datatype/timestamp.h"

#define RATE_WINDOWS	4		/* of a queue */
#define RATE_NO_ROOM_PAUSE	(10 * INT64CONST(1000)) /* microseconds after which who found no room looks again */

/* At most so many units may start within any period so long. */
typedef struct RateLimit
{
	int64		units;			/* 0: there is no limit */
	int64		period;			/* microseconds */
} RateLimit;

/* How far a window reaches back into a log, and what it holds. */
typedef struct RateUse
{
	int32		from;			/* its first start */
	int64		used;			/* units */
} RateUse;

/* The starts that are remembered, by their places in a pool; 0: none. */
typedef struct RateLog
{
	int32		oldest;
	int32		newest;
	TimestampTz seen;			/* the windows have slid so far: nothing starts before */
	TimestampTz since;			/* nothing that had started by then is remembered */
	TimestampTz lost;			/* a start for which there was no room: it takes all of the windows; 0: none */
} RateLog;

/* A log with its windows and their limits. */
typedef struct RateView
{
	RateLog    *log;			/* NULL: nothing is remembered, as there is none yet */
	const RateLimit *limits;
	RateUse    *uses;
	int			count;
} RateView;

extern Size rate_pool_size(void);
extern void rate_pool_init(void *memory, bool found);

/* Could a start be remembered? */
extern bool rate_has_room(const RateView *rate);

/* When a start of so many units is admitted: 0 if now. */
extern TimestampTz rate_admits(const RateView *rate, int32 cost, TimestampTz now);

/* How many more units are admitted now. */
extern int64 rate_left(const RateView *rate, TimestampTz now);

/* Remember a start, which must not be earlier than what the log has seen. */
extern void rate_take(const RateView *rate, int32 cost, TimestampTz at);

/* It never was: give its units back. */
extern void rate_give_back(const RateView *rate, int32 cost, TimestampTz at);

/* When it will have forgotten all that it remembers; 0: it has. */
extern TimestampTz rate_empty_at(const RateView *rate);

/* The limits have changed. */
extern void rate_recount(const RateView *rate, TimestampTz now);

/* Forget all of a log that goes away with its windows. */
extern void rate_log_free(RateLog *log);

/* For audits: what the log has of the period before this time, and whether the windows count what it has. */
extern int64 rate_units_within(const RateView *rate, int64 period, TimestampTz at);
extern bool rate_is_consistent(const RateView *rate);

#endif							/* FANOUT_RATE_H */
