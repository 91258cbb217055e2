/*
 * dispatch_internal.h
 *		What the dispatch files have for each other.
 *
 * All of it expects the dispatcher lock to be held, and cannot throw.
 */
#ifndef FANOUT_DISPATCH_INTERNAL_H
#define FANOUT_DISPATCH_INTERNAL_H

#include "dispatch.h"

static inline Queue *
queue_of(const Task *task)
{
	return &fanout_queues[task->queue];
}

static inline int32
queue_index(const Queue *queue)
{
	return queue - fanout_queues;
}

static inline void
note_deadline(const Task *task)
{
	if (task->deadline != 0)
		database_note_deadline(database_of(queue_of(task)), task->deadline);
}

/* dispatch_waiting.c */
extern Task *enter_from_seed(Queue *queue, Lane *lane, const TaskSeed *seed);
extern void insert_ready(Task *task);
extern void insert_scheduled(Queue *queue, Task *task, TimestampTz due);
extern void insert_cancelled(Queue *queue, Task *task);
extern void insert_again(Queue *queue, Task *task, TimestampTz due, TimestampTz now);
extern void leave_on_disk(Queue *queue, int64 partition, int64 rank, bool timed, TimestampTz run_at, int64 task);

/* dispatch_leases.c */
extern void lease_end(Lease *lease);

#endif							/* FANOUT_DISPATCH_INTERNAL_H */
