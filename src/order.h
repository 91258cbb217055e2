/*
 * order.h
 *		An ordered set of nodes that live in shared memory.
 */
#ifndef FANOUT_ORDER_H
#define FANOUT_ORDER_H

#include "link.h"

/*
 * Embedded in what is ordered.  Sorted by key, then id; those that are even, in
 * the order of their insertion.
 */
typedef struct OrderNode
{
	Link		left;
	Link		right;
	Link		parent;
	int64		key;
	int64		id;
}

/* There are three links: without this, four bytes of each node would be of no use. */
#if defined(pg_attribute_packed) && defined(pg_attribute_aligned)
			pg_attribute_packed()
			pg_attribute_aligned(4)
#endif
OrderNode;

typedef struct OrderedSet
{
	Link		root;
	Link		first;
	Link		last;
	int32		count;
} OrderedSet;

#define order_container(type, member, node) link_container(type, member, node)

static inline bool
order_less(int64 key1, int64 id1, int64 key2, int64 id2)
{
	return key1 < key2 || (key1 == key2 && id1 < id2);
}

/* The first and the last node of the set, or NULL. */
static inline OrderNode *
order_first(const OrderedSet *set)
{
	return link_target(set->first);
}

static inline OrderNode *
order_last(const OrderedSet *set)
{
	return link_target(set->last);
}

extern void order_init(OrderedSet *set);
extern void order_insert(OrderedSet *set, OrderNode *node);
extern void order_remove(OrderedSet *set, OrderNode *node);
extern OrderNode *order_next(const OrderNode *node);
extern OrderNode *order_previous(const OrderNode *node);

#endif							/* FANOUT_ORDER_H */
