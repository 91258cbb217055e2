/*
 * rebuild.h
 *		Memory from the tables: all of it at start, windows later on.
 */
#ifndef FANOUT_REBUILD_H
#define FANOUT_REBUILD_H

#include "shared_state.h"

/*
 * Fill memory, which has nothing of this database yet, in transactions of its
 * own.  "foreign": the tables were filled by other hands, as by a restore.
 */
extern void rebuild(Database *database, bool foreign);

/* Read more of the queue's waiting tasks into its windows; false if that made no headway. */
extern bool refill_queue(Queue *queue);

/* A keeper has died in the middle of a refill. */
extern void refill_reset(Database *database);

#endif							/* FANOUT_REBUILD_H */
