/*
 * retire.h
 *		A segment whose time has come: what has to stay goes to the next one, the
 *		rest goes.
 */
#ifndef FANOUT_RETIRE_H
#define FANOUT_RETIRE_H

#include "survivors.h"

typedef enum RetireResult
{
	RETIRED,					/* truncated, or emptied and to be truncated */
	RETIRE_LOCKED,				/* somebody uses a table */
	RETIRE_UNSETTLED,			/* the look tells nothing any more */
	RETIRE_SLOW					/* it took too long to move what has to stay */
} RetireResult;

/* Retire the segment of the look, which is done, in a transaction of its own; "heir" is the one that comes next. */
extern RetireResult segment_retire(Database *database, const SurvivorLook *look, int heir);

/* Truncate a segment that was emptied, in a transaction of its own; false if somebody uses a table. */
extern bool segment_truncate(Database *database, int segment);

/* May a snapshot be in use that was taken before that transaction ended? */
extern bool segment_is_seen(int segment, TransactionId emptied_by);

/* The transaction that emptied the segment, as far as this keeper knows: else none that is to come has. */
extern TransactionId segment_emptied_by(int segment);

#endif							/* FANOUT_RETIRE_H */
