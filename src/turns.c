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
 * forgotten had come to, but no more than a turn late.
 *
 * A turn that was for nothing is given back, and who had it is behind the
 * others until it has made up for that.  The clock stays where it was: who
 * comes meanwhile must not go before those who have had their turns.  It goes
 * back only if all who wait are behind it, to the last of them.  And who has
 * come since does not wait until turns of earlier are made up for, which may be
 * as many as a transaction has claimed: nobody is put back further than to
 * where the last one that came has started.
 */
#include "postgres.h"

#include "turns.h"

#define TURN	INT64CONST(1048576) /* virtual time of a turn at weight 1 */

void
turn_begin(Turns *turns, Turn *turn)
{
	Assert(!turn->waits && !turn->aside);
	turn->node.key = turns->forgotten_time;
}

void
turn_forget(Turns *turns, Turn *turn)
{
	Assert(!turn->waits && !turn->aside);
	turns->forgotten_time = Max(turns->forgotten_time, turn->node.key);
}

static void
put_clock_back(Turns *turns)
{
	OrderNode  *last = order_last(&turns->set);

	if (last != NULL)
		turns->clock = Min(turns->clock, last->key);
}

/* Of those that are even, the one with the smallest id is first. */
void
turn_wait(Turns *turns, Turn *turn, int64 id)
{
	Assert(!turn->waits && !turn->aside);
	put_clock_back(turns);
	turn->waits = true;
	turn->node.key = Min(Max(turn->node.key, turns->clock), turns->clock + TURN);
	turn->node.id = id;
	order_insert(&turns->set, &turn->node);
	turns->last_start = turns->clock;
}

void
turn_stop(Turns *turns, Turn *turn)
{
	Assert(turn->waits);
	turn->waits = false;
	order_remove(&turns->set, &turn->node);
}

/* The order of the other set is by this key, and of those that are even, by virtual time. */
void
turn_set_aside(OrderedSet *set, Turn *turn, int64 key)
{
	Assert(!turn->waits && !turn->aside);
	turn->aside = true;
	turn->node.id = turn->node.key;
	turn->node.key = key;
	order_insert(set, &turn->node);
}

void
turn_bring_back(OrderedSet *set, Turn *turn)
{
	Assert(turn->aside);
	order_remove(set, &turn->node);
	turn->aside = false;
	turn->node.key = turn->node.id;
}

/* Move its time on, or back. */
static void
move_time(Turns *turns, Turn *turn, int64 time)
{
	Assert(!turn->aside);
	if (!turn->waits || turns->set.count == 1)
		turn->node.key = time;	/* it has no turn, or every one */
	else
	{
		order_remove(&turns->set, &turn->node);
		turn->node.key = time;
		order_insert(&turns->set, &turn->node);
	}
}

void
turn_take(Turns *turns, Turn *turn, int32 weight)
{
	int64		time = turn->node.key;

	put_clock_back(turns);
	turns->clock = Max(turns->clock, time);
	move_time(turns, turn, time + TURN / weight);
}

void
turn_give_back(Turns *turns, Turn *turn, int32 weight)
{
	int64		time = turn->node.key;

	move_time(turns, turn, Max(time - TURN / weight, Min(time, turns->last_start)));
}
