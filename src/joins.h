/*
 * joins.h
 *		Batches that end before all of their tasks have.
 */
#ifndef FANOUT_JOINS_H
#define FANOUT_JOINS_H

#include "shared_state.h"

/* For the keeper: look at joins, unless that was done a moment ago; when it may be done again. */
extern TimestampTz joins_run(Database *database);

#endif							/* FANOUT_JOINS_H */
