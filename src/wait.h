/*
 * wait.h
 *		Waiting for work and for results, by latch.
 */
#ifndef FANOUT_WAIT_H
#define FANOUT_WAIT_H

#include "shared_state.h"

/* These expect the dispatcher lock to be held, and cannot throw. */
extern void queue_wake(Queue *queue);
extern void wait_for_queues(const int32 *queues, int count, const char *worker, int64 since);
extern bool stop_waiting_for_queues(void);
extern void stop_all_waiting_for(Queue *queue);
extern void results_note_end(Database *database, const Task *task);
extern void results_wake_batch(Database *database, int64 batch);
extern void results_wake_all(Database *database);
extern void wait_for_results(Database *database, int64 batch, int64 first_task, int64 last_task, int64 hits_wanted);
extern void stop_waiting_for_results(void);
extern void keeper_wake(Database *database);
extern void keeper_wake_by(Database *database, TimestampTz time);

/* These take the lock. */
extern void abandon_waits(void);

/*
 * Microseconds by a clock that nobody sets, by which waits are measured; and
 * what the other one shows at such a moment, if it is not set meanwhile.
 */
extern int64 wait_clock(void);
extern TimestampTz wait_clock_time(int64 moment);

/* This waits until wait_clock() shows the deadline: it may throw, and must be called without the lock. */
extern bool wait_on_latch(int64 deadline, uint32 wait_event);

#endif							/* FANOUT_WAIT_H */
