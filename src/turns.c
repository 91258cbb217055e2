/*
 * turns.c
 *		Whose turn it is, of those that take turns by weight.
 *
 * Turns are given by virtual time: each one moves the time of who has it on by
 * the inverse of its weight, and the one whose time is earliest is next.  Who
 * comes back after a pause starts at the clock, the time of the last turn, so
 * it has its share from then on and nothing is saved up; what it did not use,
 * the others did.  Who was forgotten in between must not have a turn more than
 * one that was not: who is new starts where the last one of those that were
 * forgotten had come to, which is a turn from the clock at most.
 */
#include "postgres.h"

#include "turns.h"

#define TURN	INT64CONST(1048576) /* virtual time of a turn at weight 1 */

void
turn_begin(Turns *turns, Turn *turn)
{
	turn->time = turns->forgotten_time;
}

void
turn_forget(Turns *turns, Turn *turn)
{
	Assert(!turn->waits);
	turns->forgotten_time = Max(turns->forgotten_time, turn->time);
}

/* Of those that are even, the one with the smallest id is first. */
void
turn_wait(Turns *turns, Turn *turn, int64 id)
{
	Assert(!turn->waits);
	turn->waits = true;
	turn->time = Max(turn->time, turns->clock);
	turn->node.key = turn->time;
	turn->node.id = id;
	order_insert(&turns->set, &turn->node);
}

void
turn_stop(Turns *turns, Turn *turn)
{
	Assert(turn->waits);
	turn->waits = false;
	order_remove(&turns->set, &turn->node);
}

/* Move its time on, or back. */
static void
move_time(Turns *turns, Turn *turn, int64 by)
{
	turn->time += by;
	if (!turn->waits)
		return;
	if (turns->set.count == 1)
	{
		turn->node.key = turn->time;	/* it has every turn */
		return;
	}
	order_remove(&turns->set, &turn->node);
	turn->node.key = turn->time;
	order_insert(&turns->set, &turn->node);
}

void
turn_take(Turns *turns, Turn *turn, int32 weight)
{
	turns->clock = turn->time;
	move_time(turns, turn, TURN / weight);
}

void
turn_give_back(Turns *turns, Turn *turn, int32 weight)
{
	move_time(turns, turn, -(TURN / weight));
}
