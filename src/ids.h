/*
 * ids.h
 *		Numbers of tasks and leases.
 */
#ifndef FANOUT_IDS_H
#define FANOUT_IDS_H

#include "shared_state.h"

/*
 * Take numbers for so many tasks, that follow on; the first.  0 if the keeper
 * has to raise the ceiling before: then wait and try again, and when it has
 * worked, call ConditionVariableCancelSleep().  Under the dispatcher lock.
 */
extern int64 ids_take_tasks(Database *database, int64 count);
extern void ids_wait(void);

/* A number of the leases, for an event of a task that waits: it comes after all of its leases so far.  May wait. */
extern int64 ids_take_lease(Database *database);

/*
 * For the keeper: read where to go on, in a transaction; and move the ceilings
 * ahead if it is time, in one of its own.
 */
extern void ids_load(Database *database, bool foreign);
extern bool ids_want_ceiling(const Database *database);
extern void ids_raise_ceilings(Database *database);

/* For qsort() and the like. */
extern int	ids_compare(const void *a, const void *b);

#endif							/* FANOUT_IDS_H */
