/*
 * refill.h
 *		More of an order into memory, from the tables.
 */
#ifndef FANOUT_REFILL_H
#define FANOUT_REFILL_H

#include "shared_state.h"

/* Read more of the queue's waiting tasks into its windows; false if that made no headway. */
extern bool refill_queue(Queue *queue);

/* A keeper has died in the middle of a refill. */
extern void refill_reset(Database *database);

#endif							/* FANOUT_REFILL_H */
