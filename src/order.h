/*
 * order.h
 *		An ordered set of nodes that live in shared memory.
 */
#ifndef FANOUT_ORDER_H
#define FANOUT_ORDER_H

/* Embedded in what is ordered.  Sorted by key, then id; those that are even, in the order of their insertion. */
typedef struct OrderNode
{
	struct OrderNode *left;
	struct OrderNode *right;
	struct OrderNode *parent;
	int64		key;
	int64		id;
} OrderNode;

typedef struct OrderedSet
{
	OrderNode  *root;
	OrderNode  *first;
	OrderNode  *last;
	int64		count;
} OrderedSet;

#define order_container(type, member, node) \
	((type *) ((char *) (node) - offsetof(type, member)))

static inline bool
order_less(int64 key1, int64 id1, int64 key2, int64 id2)
{
	return key1 < key2 || (key1 == key2 && id1 < id2);
}

extern void order_init(OrderedSet *set);
extern void order_insert(OrderedSet *set, OrderNode *node);
extern void order_remove(OrderedSet *set, OrderNode *node);
extern OrderNode *order_next(OrderNode *node);
extern OrderNode *order_previous(OrderNode *node);

#endif							/* FANOUT_ORDER_H */
