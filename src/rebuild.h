/*
 * rebuild.h
 *		Memory from the tables, at start.
 */
#ifndef FANOUT_REBUILD_H
#define FANOUT_REBUILD_H

#include "shared_state.h"

/*
 * Fill memory, which has nothing of this database yet, in transactions of its
 * own.  "foreign": the tables were filled by other hands, as by a restore.
 */
extern void rebuild(Database *database, bool foreign);

#endif							/* FANOUT_REBUILD_H */
