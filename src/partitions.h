/*
 * partitions.h
 *		Settings of single partitions.
 */
#ifndef FANOUT_PARTITIONS_H
#define FANOUT_PARTITIONS_H

#include "shared_state.h"

#define PARTITION_KEY_MAX	255 /* bytes */
#define LANE_WEIGHT_MAX		1000

/* What tells the partition in memory: a hash of its key, not 0.  Throws 22023 for a key that is none. */
extern int64 partition_of(text *key);

/* The same for a fair group. */
extern int64 fair_group_of(text *name);

/* The hash alone, of what has been checked before. */
extern int64 hash_of_key(text *key);

/* For a rebuild: the lanes that have settings, in a transaction. */
extern void partitions_load(Database *database);

#endif							/* FANOUT_PARTITIONS_H */
