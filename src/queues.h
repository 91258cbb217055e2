/*
 * queues.h
 *		Queues as the catalogue has them.
 */
#ifndef FANOUT_QUEUES_H
#define FANOUT_QUEUES_H

#include "storage/lockdefs.h"

#include "shared_state.h"

/* The columns that queue_settings_read() expects, in a row of SPI_tuptable. */
#define QUEUE_SETTINGS_COLUMNS \
	"concurrency, worker_concurrency, max_backlog, lease, backoff, backoff_max, max_attempts, synchronous_claims, paused," \
	" partition_concurrency"

extern QueueSettings queue_settings_read(uint64 row, int first_column);

/*
 * Lock the queue until the transaction ends: RowExclusiveLock to add tasks,
 * AccessExclusiveLock to drop or purge it.  It may have gone when the lock is
 * granted: look by queue_ref_is_valid().
 */
extern void queue_lock(int32 id, LOCKMODE mode);

#endif							/* FANOUT_QUEUES_H */
