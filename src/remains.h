/*
 * remains.h
 *		What is left in the small catalogues of tasks that are gone.
 */
#ifndef FANOUT_REMAINS_H
#define FANOUT_REMAINS_H

#include "datatype/timestamp.h"

/* A walk through the catalogues, a part at a time; it begins with zeros. */
typedef struct RemainsWalk
{
	int			phase;
	int64		from;
} RemainsWalk;

/* Remove the next ones, in a transaction of its own; false if that was all. */
extern bool remains_continue(RemainsWalk *walk, TimestampTz cut);

#endif							/* FANOUT_REMAINS_H */
