/*
 * queue_settings.h
 *		Settings of queues, as the catalogue has them.
 */
#ifndef FANOUT_QUEUE_SETTINGS_H
#define FANOUT_QUEUE_SETTINGS_H

#include "shared_state.h"

/* The columns that queue_settings_read() expects, in a row of SPI_tuptable; "queue" is fanout.queue. */
#define QUEUE_SETTINGS_COLUMNS \
	"concurrency, worker_concurrency, max_backlog, lease, backoff, backoff_max, max_attempts, synchronous_claims, paused," \
	" partition_concurrency, partition_rate_limit, partition_rate_period, held_until," \
	" partition_retries = 'pass', aging, partition_max_backlog," \
	" (SELECT array_agg(r.units ORDER BY r.period) FROM fanout.rate r WHERE r.queue = queue.id)," \
	" (SELECT array_agg(r.period ORDER BY r.period) FROM fanout.rate r WHERE r.queue = queue.id)"

extern QueueSettings queue_settings_read(uint64 row, int first_column);

/* The place in its lane of a task that has been waiting, or is to wait, since then; smaller comes first. */
extern int64 rank_of(const QueueSettings *settings, int32 priority, TimestampTz since);

/* All that follows is to be called in an SpiScope. */

extern QueueSettings queue_settings_load(int32 id);

/* A limit and its period from two columns; none if they are NULL. */
extern RateLimit rate_limit_read(uint64 row, int column);

/* Add a window to the queue's rate limit, or change the one of that period. */
extern void rate_limit_store(int32 id, Datum units, Datum period);
extern void rate_limits_delete(int32 id);

#endif							/* FANOUT_QUEUE_SETTINGS_H */
