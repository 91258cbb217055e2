/*
 * lane_pools.c
 *		The pools of lanes, and of what lanes have: limits and fair groups.
 *
 * A queue's main lane is part of its slot; all others are here.
 */
#include "postgres.h"

#include "storage/shmem.h"

#include "lane.h"
#include "lane_pools.h"
#include "pool.h"
#include "window.h"

static Pool lane_pool;
static Pool limits_pool;
static Pool group_pool;

/* Fair groups that are kept: most lanes are in none, or share one with others. */
int
max_groups(void)
{
	return Max(fanout_max_lanes / 32, 4);
}

Size
lane_pools_size(void)
{
	Size		size = pool_size(fanout_max_lanes, sizeof(Lane));

	size = add_size(size, pool_size(fanout_max_limited_lanes, sizeof(LaneLimits)));
	return add_size(size, pool_size(max_groups(), sizeof(FairGroup)));
}

void
lane_pools_attach(void)
{
	pool_attach(&lane_pool, "pg_fanout lanes", fanout_max_lanes, sizeof(Lane));
	pool_attach(&limits_pool, "pg_fanout limited lanes", fanout_max_limited_lanes, sizeof(LaneLimits));
	pool_attach(&group_pool, "pg_fanout fair groups", max_groups(), sizeof(FairGroup));
}

static uint32
hash_in_queue(const Queue *queue, int64 number)
{
	return (uint32) number ^ (uint32) ((uint64) number >> 32) ^ (uint32) (queue - fanout_queues) * 0x9e3779b9U;
}

Lane *
lane_find(Queue *queue, int64 partition)
{
	Lane	   *lane;

	if (partition == 0)
		return &queue->main;
	lane = pool_bucket(&lane_pool, hash_in_queue(queue, partition));
	while (lane != NULL && (lane->partition != partition || queue_of_lane(lane) != queue))
		lane = link_target(lane->next);
	return lane;
}

/* The lane, entered if it is not known yet; NULL if the pool is used up. */
Lane *
lane_enter(Queue *queue, int64 partition)
{
	Lane	   *lane = lane_find(queue, partition);

	if (lane != NULL || fanout_shared->free_lanes == 0)
		return lane;
	lane = pool_enter(&lane_pool, hash_in_queue(queue, partition));
	lane->partition = partition;
	lane->turn.queue = queue - fanout_queues;
	window_init(&lane->ready);
	short_list_push_tail(&queue->lanes, &lane->link);
	queue->lane_count++;
	fanout_shared->free_lanes--;
	return lane;
}

/* Take the lane from the list of its queue, and what points into that with it. */
static void
leave_list(Queue *queue, Lane *lane)
{
	Link		link = link_to(&lane->link);
	Link		before = queue->lanes.first != link ? lane->link.previous : 0;

	if (queue->walk == link)
		queue->walk = before;
	if (queue->last_asker == link)
		queue->last_asker = before;
	short_list_delete(&queue->lanes, &lane->link);
}

/* The lane asks for a refill, and stands behind those that do already. */
void
lane_ask_for_refill(Lane *lane)
{
	Queue	   *queue = queue_of_lane(lane);

	Assert(lane->partition != 0 && !lane->wants_refill);
	lane->wants_refill = true;
	leave_list(queue, lane);
	if (queue->last_asker != 0)
		short_list_insert_after(link_target(queue->last_asker), &lane->link);
	else
		short_list_push_head(&queue->lanes, &lane->link);
	queue->last_asker = link_to(&lane->link);
}

/* The lane that has asked for a refill first, and asks no more; NULL: none does, or it is "but_not". */
Lane *
queue_take_asker(Queue *queue, const Lane *but_not)
{
	Lane	   *lane;

	if (queue->last_asker == 0)
		return NULL;
	lane = link_container(Lane, link, short_list_first(&queue->lanes));
	if (lane == but_not)
		return NULL;
	Assert(lane->wants_refill);
	lane->wants_refill = false;
	lane_stand_last(lane);
	return lane;
}

/* The lane goes to the end of the list, where who makes room looks for those that were refilled last. */
void
lane_stand_last(Lane *lane)
{
	Queue	   *queue = queue_of_lane(lane);

	Assert(!lane->wants_refill);
	leave_list(queue, lane);
	short_list_push_tail(&queue->lanes, &lane->link);
}

void
lane_free(Lane *lane)
{
	Queue	   *queue = queue_of_lane(lane);
	LaneLimits *limits = lane_limits(lane);

	Assert(lane->partition != 0);
	if (limits != NULL)
		lane_limits_free(limits);
	leave_list(queue, lane);
	queue->lane_count--;
	pool_free(&lane_pool, hash_in_queue(queue, lane->partition), lane);
	fanout_shared->free_lanes++;
}

/* Another of the queue's lanes, of which there must be one, with each call. */
Lane *
queue_walk_lanes(Queue *queue)
{
	ShortNode  *node = link_target(queue->walk);

	if (node != NULL)
		node = short_list_next(&queue->lanes, node);
	if (node == NULL)
		node = short_list_first(&queue->lanes);
	queue->walk = link_to(node);
	return link_container(Lane, link, node);
}

/* The queue goes, and nothing reads for it any more. */
void
queue_clear_lanes(Queue *queue)
{
	rate_log_free(&queue->rate_log);
	if (queue->refilling > 0)
		window_forget_refills(database_of(queue));
	while (!short_list_is_empty(&queue->lanes))
	{
		Lane	   *lane = link_container(Lane, link, short_list_first(&queue->lanes));
		FairGroup  *group = group_of(lane);

		if (group != NULL && --group->lane_count == 0)
			group_free(group);
		lane_free(lane);
	}
}

/* Lanes are found by their places: most have no limits, and so no link to them. */
static uint32
hash_lane(const Lane *lane)
{
	return link_to(lane) / (sizeof(Lane) / LINK_UNIT);
}

LaneLimits *
lane_limits(const Lane *lane)
{
	LaneLimits *limits;

	if (!lane->limited)
		return NULL;
	limits = pool_bucket(&limits_pool, hash_lane(lane));
	while (limits->lane != link_to(lane))
		limits = link_target(limits->next);
	return limits;
}

/* Those of a lane that has none yet; NULL if the pool is used up. */
LaneLimits *
lane_limits_enter(Lane *lane)
{
	LaneLimits *limits = pool_enter(&limits_pool, hash_lane(lane));

	Assert(!lane->limited && lane->partition != 0);
	if (limits == NULL)
		return NULL;
	limits->lane = link_to(lane);
	limits->settings.weight = 1;
	lane->limited = true;
	fanout_shared->free_limited_lanes--;
	return limits;
}

void
lane_limits_free(LaneLimits *limits)
{
	Lane	   *lane = link_target(limits->lane);

	rate_log_free(&limits->rate_log);
	lane->limited = false;
	pool_free(&limits_pool, hash_lane(lane), limits);
	fanout_shared->free_limited_lanes++;
}

FairGroup *
group_find(Queue *queue, int64 number)
{
	FairGroup  *group = pool_bucket(&group_pool, hash_in_queue(queue, number));

	while (group != NULL && (group->number != number || group->turn.queue != queue - fanout_queues))
		group = link_target(group->next);
	return group;
}

/* A group that is not known yet, without lanes; NULL if the pool is used up. */
FairGroup *
group_enter(Queue *queue, int64 number)
{
	FairGroup  *group = pool_enter(&group_pool, hash_in_queue(queue, number));

	if (group == NULL)
		return NULL;
	group->number = number;
	group->turn.queue = queue - fanout_queues;
	group->turn.shared = true;
	fanout_shared->free_groups--;
	return group;
}

void
group_free(FairGroup *group)
{
	pool_free(&group_pool, hash_in_queue(&fanout_queues[group->turn.queue], group->number), group);
	fanout_shared->free_groups++;
}
