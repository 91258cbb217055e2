/*
 * starts.h
 *		Starts of tasks, as rate limits remember them.
 *
 * All of it expects the dispatcher lock to be held, and cannot throw.
 */
#ifndef FANOUT_STARTS_H
#define FANOUT_STARTS_H

#include "shared_state.h"

/* When the queue admits a start, and how many tasks may start. */
extern TimestampTz queue_admits_start(Queue *queue, TimestampTz now);
extern int64 queue_startable(Queue *queue);
extern void queue_set(Queue *queue, const QueueSettings *settings);

/* A claim, its undoing, and its way to the disk. */
extern void lease_note_start(Lease *lease);
extern void lease_undo_start(Lease *lease);
extern void lease_start_journaled(Lease *lease);

/* The clock was set back. */
extern void queue_follow_clock(Queue *queue, TimestampTz now);

/* The longest window of the queue's rate limits, those of its partitions included; 0 if it has none. */
extern int64 queue_longest_window(const Queue *queue);

/* For a rebuild. */
extern void queue_remember_start(Queue *queue, int64 partition, int32 cost, TimestampTz at);
extern void queue_remember_unknown_starts(Queue *queue, TimestampTz now);

#endif							/* FANOUT_STARTS_H */
