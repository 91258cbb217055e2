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

/* Put "replacement" (may be NULL) where "node" hangs from its parent. */
static void
replace_child(OrderedSet *set, OrderNode *node, OrderNode *replacement)
{
	OrderNode  *parent = node->parent;

	if (parent == NULL)
		set->root = replacement;
	else if (parent->left == node)
		parent->left = replacement;
	else
		parent->right = replacement;
	if (replacement != NULL)
		replacement->parent = parent;
}

/* Rotate "node" up over its parent. */
static void
rotate_up(OrderedSet *set, OrderNode *node)
{
	OrderNode  *parent = node->parent;

	replace_child(set, parent, node);
	if (parent->left == node)
	{
		parent->left = node->right;
		if (node->right != NULL)
			node->right->parent = parent;
		node->right = parent;
	}
	else
	{
		parent->right = node->left;
		if (node->left != NULL)
			node->left->parent = parent;
		node->left = parent;
	}
	parent->parent = node;
}

/* The node after this one, or NULL. */
OrderNode *
order_next(OrderNode *node)
{
	if (node->right != NULL)
	{
		node = node->right;
		while (node->left != NULL)
			node = node->left;
		return node;
	}
	while (node->parent != NULL && node->parent->right == node)
		node = node->parent;
	return node->parent;
}

/* The node before this one, or NULL. */
OrderNode *
order_previous(OrderNode *node)
{
	if (node->left != NULL)
	{
		node = node->left;
		while (node->right != NULL)
			node = node->right;
		return node;
	}
	while (node->parent != NULL && node->parent->left == node)
		node = node->parent;
	return node->parent;
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
	OrderNode  *parent;
	bool		goes_left = false;

	node->left = node->right = node->parent = NULL;
	set->count++;

	if (set->root == NULL)
	{
		set->root = set->first = set->last = node;
		return;
	}

	if (!node_less(node, set->last))
		parent = set->last;		/* after those that are even with it, as below */
	else
	{
		OrderNode  *next = set->root;

		do
		{
			parent = next;
			goes_left = node_less(node, parent);
			next = goes_left ? parent->left : parent->right;
		} while (next != NULL);
	}

	node->parent = parent;
	if (goes_left)
	{
		parent->left = node;
		if (parent == set->first)
			set->first = node;
	}
	else
	{
		parent->right = node;
		if (parent == set->last)
			set->last = node;
	}

	while (node->parent != NULL && rank_of(node) < rank_of(node->parent))
		rotate_up(set, node);
}

/* Remove a node that is in the set. */
void
order_remove(OrderedSet *set, OrderNode *node)
{
	Assert(set->count > 0);
	set->count--;

	if (set->first == node)
		set->first = order_next(node);
	if (set->last == node)
		set->last = order_previous(node);

	/* sink it below its lower-ranked child until it has but one */
	while (node->left != NULL && node->right != NULL)
		rotate_up(set, rank_of(node->left) < rank_of(node->right) ? node->left : node->right);
	replace_child(set, node, node->left != NULL ? node->left : node->right);

	node->left = node->right = node->parent = NULL;
}
