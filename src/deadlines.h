/*
 * deadlines.h
 *		Tasks that should have started by now.
 */
#ifndef FANOUT_DEADLINES_H
#define FANOUT_DEADLINES_H

#include "shared_state.h"

/* For the keeper: cancel those whose deadline has passed. */
extern void deadlines_run(Database *database, TimestampTz now);

/* When to look again.  Under the lock. */
extern TimestampTz deadlines_next_look(const Database *database);

/* The last keeper may not have come to the end of what it had begun.  Under the lock. */
extern void deadlines_take_over(Database *database);

/* The error of a task that was cancelled as its deadline had passed. */
#define DEADLINE_PASSED "the deadline passed before it had started"

#endif							/* FANOUT_DEADLINES_H */
