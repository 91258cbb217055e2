/*
 * finish.h
 *		How an attempt ends by its worker's word.
 */
#ifndef FANOUT_FINISH_H
#define FANOUT_FINISH_H

#include "fmgr.h"

#include "lease.h"
#include "storage.h"

/* One row of fanout.outcome; "held" is NULL for a task that was not running. */
extern void write_outcome(LogWriter *writer, int64 task, const HeldLease *held, Outcome outcome, TimestampTz at,
						  Datum value, bool isnull);

/* An error, given as text, as the value of an outcome. */
extern Datum error_value(const char *error, int length);

/* One row of fanout.attempt; "until" 0 and a NULL worker are stored as NULL. */
extern void write_attempt(LogWriter *writer, int64 lease, int64 task, char event, TimestampTz at, TimestampTz until,
						  const char *worker, Datum error, bool error_isnull);

/* With what reason somebody has asked to cancel the task while it ran; NULL if with none. */
extern char *cancel_reason(int64 task);

/* The lease is held to end its task as cancelled. */
extern void end_cancelled(const HeldLease *held);

/* complete(lease, result): false if the lease had done it before; throws FO001 if it is lost. */
extern bool complete_lease(int64 lease, Datum result, bool isnull);

/* complete(leases[], results[]), of the first two arguments: for each lease, was it done by this call? */
extern int	complete_leases(FunctionCallInfo fcinfo, Datum **leases, bool **done);

#endif							/* FANOUT_FINISH_H */
