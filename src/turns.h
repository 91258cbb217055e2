/*
 * turns.h
 *		Whose turn it is, of those that take turns by weight.
 *
 * All of it expects the dispatcher lock to be held, and cannot throw.
 */
#ifndef FANOUT_TURNS_H
#define FANOUT_TURNS_H

#include "order.h"

/* The turns of one: embedded in what has them. */
typedef struct Turn
{
	OrderNode	node;			/* in Turns.set, while it waits for its turn; the key is its virtual time, also when
								 * it does not */
	uint16		queue;			/* index of its Queue */
	bool		waits:1;
	bool		shared:1;		/* it is that of a FairGroup, else that of a Lane */
	bool		aside:1;		/* the node is in another set, and its virtual time is the id */
} Turn;

/* Those that take turns with each other. */
typedef struct Turns
{
	OrderedSet	set;			/* those that wait for their turn */
	int64		clock;			/* the virtual time of the latest turn */
	int64		last_start;		/* where the last one that came to wait has started */
	int64		forgotten_time; /* the latest one of those that have gone */
} Turns;

/* It is new among them; it goes. */
extern void turn_begin(Turns *turns, Turn *turn);
extern void turn_forget(Turns *turns, Turn *turn);

/* It has something to do, for which this id stands, and waits for its turn; it waits no longer. */
extern void turn_wait(Turns *turns, Turn *turn, int64 id);
extern void turn_stop(Turns *turns, Turn *turn);

/* It does not wait: its node may stand in another set meanwhile, but not while its virtual time changes. */
extern void turn_set_aside(OrderedSet *set, Turn *turn, int64 key);
extern void turn_bring_back(OrderedSet *set, Turn *turn);

/* It has its turn; that was for nothing. */
extern void turn_take(Turns *turns, Turn *turn, int32 weight);
extern void turn_give_back(Turns *turns, Turn *turn, int32 weight);

#endif							/* FANOUT_TURNS_H */
