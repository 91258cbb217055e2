/*
 * groups.c
 *		The turns of lanes, of which those of a fair group share one.
 *
 * There are two levels.  In a queue, groups take turns with the lanes that are
 * in none; in a group, its lanes do.  A group waits for its turn as long as
 * one of its lanes does, and a claim is a turn of the lane and of its group.
 * So who spreads work over many partition keys has the share of one.
 *
 * Tasks say which group their lane is in; the latest that has come to memory
 * counts.  A group is there as long as it has lanes.  If the pool of groups is
 * used up, a lane that should be in another one takes its turns as if it were
 * in none.
 */
#include "postgres.h"

#include "groups.h"
#include "lane.h"
#include "lane_limits.h"

/* Those that the lane takes turns with. */
static Turns *
turns_of(Lane *lane)
{
	return lane->group != 0 ? &group_of(lane)->lanes : &queue_of_lane(lane)->turns;
}

/*
 * A throttled lane stands in a set that is ordered by its virtual time, too:
 * it has to leave that while this changes.
 */
static TimestampTz
leave_throttled(Lane *lane)
{
	TimestampTz until = lane_throttled_until(lane);

	if (until != 0)
		turn_bring_back(&queue_of_lane(lane)->throttled, &lane->turn);
	return until;
}

static void
enter_throttled(Lane *lane, TimestampTz until)
{
	if (until != 0)
		turn_set_aside(&queue_of_lane(lane)->throttled, &lane->turn, until);
}

void
lane_begin_turns(Lane *lane)
{
	turn_begin(turns_of(lane), &lane->turn);
}

/* Take the lane, which does not wait for its turn, out of its group, if it is in one. */
static void
leave_group(Lane *lane)
{
	FairGroup  *group = group_of(lane);

	turn_forget(turns_of(lane), &lane->turn);
	lane->group = 0;
	if (group == NULL || --group->lane_count > 0)
		return;
	turn_forget(&queue_of_lane(lane)->turns, &group->turn);
	group_free(group);
}

void
lane_forget_turns(Lane *lane)
{
	leave_group(lane);
}

/* The group, entered if it is not known yet; NULL if there is no room for one. */
static FairGroup *
group_for(Queue *queue, int64 number)
{
	FairGroup  *group = group_find(queue, number);

	if (group != NULL)
		return group;
	group = group_enter(queue, number);
	if (group != NULL)
		turn_begin(&queue->turns, &group->turn);
	return group;
}

/*
 * A lane that goes from one group to another starts there as a new one does.
 * A claim that is undone later gives its turn back to the group that the lane
 * is in by then.
 */
void
lane_join_group(Lane *lane, int64 number, int64 task)
{
	FairGroup  *group = group_of(lane);
	bool		waits = lane->turn.waits;

	if ((group != NULL ? group->number : 0) != number)
	{
		TimestampTz until = leave_throttled(lane);

		if (waits)
			lane_stop_waiting_for_turn(lane);
		leave_group(lane);
		group = number != 0 ? group_for(queue_of_lane(lane), number) : NULL;
		lane->group = link_to(group);
		if (group != NULL)
			group->lane_count++;
		lane_begin_turns(lane);
		if (waits)
			lane_wait_for_turn(lane, lane->turn.node.id);
		enter_throttled(lane, until);
	}
	if (group != NULL)
		group->sample_task = task;
}

void
lane_wait_for_turn(Lane *lane, int64 task)
{
	FairGroup  *group = group_of(lane);

	turn_wait(turns_of(lane), &lane->turn, task);
	if (group != NULL && !group->turn.waits)
		turn_wait(&queue_of_lane(lane)->turns, &group->turn, task);
}

void
lane_stop_waiting_for_turn(Lane *lane)
{
	FairGroup  *group = group_of(lane);

	turn_stop(turns_of(lane), &lane->turn);
	if (group != NULL && group->lanes.set.count == 0)
		turn_stop(&queue_of_lane(lane)->turns, &group->turn);
}

void
lane_take_turn(Lane *lane)
{
	turn_take(turns_of(lane), &lane->turn, lane_settings(lane)->weight);
	if (lane->group != 0)
		turn_take(&queue_of_lane(lane)->turns, &group_of(lane)->turn, 1);
}

void
lane_give_turn_back(Lane *lane)
{
	TimestampTz until = leave_throttled(lane);

	turn_give_back(turns_of(lane), &lane->turn, lane_settings(lane)->weight);
	enter_throttled(lane, until);
	if (lane->group != 0)
		turn_give_back(&queue_of_lane(lane)->turns, &group_of(lane)->turn, 1);
}

Lane *
queue_lane_in_turn(Queue *queue)
{
	OrderNode  *first = order_first(&queue->turns.set);
	Turn	   *turn;

	if (first == NULL)
		return NULL;
	turn = order_container(Turn, node, first);
	if (turn->shared)
		turn = order_container(Turn, node, order_first(&order_container(FairGroup, turn, turn)->lanes.set));
	return order_container(Lane, turn, turn);
}
