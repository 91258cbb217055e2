/*
 * order.c
 *		An ordered set of nodes that live in shared memory: a treap.
 *
 * Ready tasks are ordered by priority and id, delayed ones and leases by
 * time.  What we need of the order is its first (to take) and its last (to
 * evict), insertion anywhere and removal of anything (a cancel), each in
 * O(log n), without allocation and without a callback.  The server's own
 * structures do not offer that: pairingheap and binaryheap know one end
 * only, and rbtree keeps its header in private memory.
 *
 * A treap is a search tree by key and a heap by a random rank at once, which
 * keeps it balanced in expectation.  The rank is a hash of the node's id, so
 * that it needs no room.  New tasks mostly come last in their order, and a
 * worker takes the first: both ends are remembered, which makes an append
 * and a pop O(1) in expectation.
 *
 * Nodes may be even, with the same key and id: two lanes whose turns are at one
 * time, and whose first task was the same when they came back, as it was moved
 * from one to the other.  They keep the order in which they were inserted.
 */
#include "postgres.h"

#include "common/hashfn.h"

#include "order.h"

static inline OrderNode *
node_of(Link link)
{
	return link_target(link);
}

static inline uint32
rank_of(const OrderNode *node)
{
	return murmurhash32((uint32) node->id ^ (uint32) ((uint64) node->id >> 32) * 0x9e3779b9U);
}

static inline bool
node_less(const OrderNode *a, const OrderNode *b)
{
	return order_less(a->key, a->id, b->key, b->id);
}

/* Put "replacement" (may be none) where "node" hangs from its parent. */
static void
replace_child(OrderedSet *set, OrderNode *node, Link replacement)
{
	OrderNode  *parent = node_of(node->parent);

	if (parent == NULL)
		set->root = replacement;
	else if (parent->left == link_to(node))
		parent->left = replacement;
	else
		parent->right = replacement;
	if (replacement != 0)
		node_of(replacement)->parent = node->parent;
}

/* Rotate "node" up over its parent. */
static void
rotate_up(OrderedSet *set, OrderNode *node)
{
	Link		link = link_to(node);
	Link		parent_link = node->parent;
	OrderNode  *parent = node_of(parent_link);

	replace_child(set, parent, link);
	if (parent->left == link)
	{
		parent->left = node->right;
		if (node->right != 0)
			node_of(node->right)->parent = parent_link;
		node->right = parent_link;
	}
	else
	{
		parent->right = node->left;
		if (node->left != 0)
			node_of(node->left)->parent = parent_link;
		node->left = parent_link;
	}
	parent->parent = link;
}

/* The node after this one, or NULL. */
OrderNode *
order_next(const OrderNode *node)
{
	OrderNode  *next = node_of(node->right);
	Link		link = link_to(node);

	if (next != NULL)
	{
		while (next->left != 0)
			next = node_of(next->left);
		return next;
	}
	for (next = node_of(node->parent); next != NULL && next->right == link; next = node_of(next->parent))
		link = link_to(next);
	return next;
}

/* The node before this one, or NULL. */
OrderNode *
order_previous(const OrderNode *node)
{
	OrderNode  *previous = node_of(node->left);
	Link		link = link_to(node);

	if (previous != NULL)
	{
		while (previous->right != 0)
			previous = node_of(previous->right);
		return previous;
	}
	for (previous = node_of(node->parent); previous != NULL && previous->left == link; previous = node_of(previous->parent))
		link = link_to(previous);
	return previous;
}

void
order_init(OrderedSet *set)
{
	memset(set, 0, sizeof(OrderedSet));
}

/* Insert a node whose key and id the caller has set. */
void
order_insert(OrderedSet *set, OrderNode *node)
{
	Link		link = link_to(node);
	OrderNode  *last = order_last(set);
	OrderNode  *parent;
	bool		goes_left = false;

	node->left = node->right = node->parent = 0;
	set->count++;

	if (last == NULL)
	{
		set->root = set->first = set->last = link;
		return;
	}

	if (!node_less(node, last))
		parent = last;			/* after those that are even with it, as below */
	else
	{
		Link		next = set->root;

		do
		{
			parent = node_of(next);
			goes_left = node_less(node, parent);
			next = goes_left ? parent->left : parent->right;
		} while (next != 0);
	}

	node->parent = link_to(parent);
	if (goes_left)
	{
		parent->left = link;
		if (node->parent == set->first)
			set->first = link;
	}
	else
	{
		parent->right = link;
		if (node->parent == set->last)
			set->last = link;
	}

	while (node->parent != 0 && rank_of(node) < rank_of(node_of(node->parent)))
		rotate_up(set, node);
}

/* Remove a node that is in the set. */
void
order_remove(OrderedSet *set, OrderNode *node)
{
	Assert(set->count > 0);
	set->count--;

	if (set->first == link_to(node))
		set->first = link_to(order_next(node));
	if (set->last == link_to(node))
		set->last = link_to(order_previous(node));

	/* sink it below its lower-ranked child until it has but one */
	while (node->left != 0 && node->right != 0)
	{
		OrderNode  *left = node_of(node->left);
		OrderNode  *right = node_of(node->right);

		rotate_up(set, rank_of(left) < rank_of(right) ? left : right);
	}
	replace_child(set, node, node->left != 0 ? node->left : node->right);

	node->left = node->right = node->parent = 0;
}
