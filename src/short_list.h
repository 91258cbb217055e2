/*
 * short_list.h
 *		Lists in shared memory, of which a node takes eight bytes and a head four.
 *
 * The server's own (ilist.h) take twice as much for a node, and sixteen bytes
 * for a head; there is one in each lane.  Nodes are linked to a ring, of which
 * the head knows the first: so who deletes a node has to name the list.
 */
#ifndef FANOUT_SHORT_LIST_H
#define FANOUT_SHORT_LIST_H

#include "link.h"

typedef struct ShortNode
{
	Link		next;
	Link		previous;
} ShortNode;

typedef struct ShortList
{
	Link		first;
} ShortList;

static inline bool
short_list_is_empty(const ShortList *list)
{
	return list->first == 0;
}

static inline ShortNode *
short_list_first(const ShortList *list)
{
	return link_target(list->first);
}

static inline ShortNode *
short_list_last(const ShortList *list)
{
	return list->first != 0 ? link_target(short_list_first(list)->previous) : NULL;
}

/* The node after this one, or NULL. */
static inline ShortNode *
short_list_next(const ShortList *list, const ShortNode *node)
{
	return node->next != list->first ? link_target(node->next) : NULL;
}

/* The node before this one, or NULL. */
static inline ShortNode *
short_list_previous(const ShortList *list, const ShortNode *node)
{
	return node != short_list_first(list) ? link_target(node->previous) : NULL;
}

static inline void
short_list_push_tail(ShortList *list, ShortNode *node)
{
	Link		link = link_to(node);
	ShortNode  *first = short_list_first(list);

	if (first == NULL)
	{
		node->next = node->previous = list->first = link;
		return;
	}
	node->next = list->first;
	node->previous = first->previous;
	((ShortNode *) link_target(first->previous))->next = link;
	first->previous = link;
}

static inline void
short_list_push_head(ShortList *list, ShortNode *node)
{
	short_list_push_tail(list, node);
	list->first = link_to(node);
}

/* Not before the first. */
static inline void
short_list_insert_after(ShortNode *before, ShortNode *node)
{
	ShortNode  *after = link_target(before->next);

	node->next = before->next;
	node->previous = link_to(before);
	before->next = after->previous = link_to(node);
}

static inline void
short_list_delete(ShortList *list, ShortNode *node)
{
	if (node->next == link_to(node))
		list->first = 0;
	else
	{
		((ShortNode *) link_target(node->previous))->next = node->next;
		((ShortNode *) link_target(node->next))->previous = node->previous;
		if (list->first == link_to(node))
			list->first = node->next;
	}
	node->next = node->previous = 0;
}

#define short_list_foreach(node, list) \
	for (ShortNode *node = short_list_first(list); node != NULL; node = short_list_next(list, node))

/* The same where the node may be deleted, or moved within the list. */
#define short_list_foreach_modify(node, list) \
	for (ShortNode *node = short_list_first(list), *node##_next; \
		 node != NULL && (node##_next = short_list_next(list, node), true); node = node##_next)

#endif							/* FANOUT_SHORT_LIST_H */
