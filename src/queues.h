/*
 * queues.h
 *		Queues as the catalogue has them.
 */
#ifndef FANOUT_QUEUES_H
#define FANOUT_QUEUES_H

#include "fmgr.h"
#include "storage/lockdefs.h"

#include "registry.h"

/* Have memory follow what the catalogue says of the queue now, when this transaction commits; in an SpiScope. */
extern void queue_follow_catalogue(const QueueRef *ref);

/* Throws 22023 for a period that is not longer than 0. */
extern void check_period(FunctionCallInfo fcinfo, int arg, const char *name);

/* Throws 22023 for a rate limit (an argument, and its period the next) that is none. */
extern void check_rate(FunctionCallInfo fcinfo, int arg, const char *limit_name, const char *period_name);

/*
 * Lock the queue until the transaction ends: RowExclusiveLock to add tasks,
 * AccessExclusiveLock to drop or purge it.  It may have gone when the lock is
 * granted: look by queue_ref_is_valid().
 */
extern void queue_lock(int32 id, LOCKMODE mode);

#endif							/* FANOUT_QUEUES_H */
