/*
 * pool.h
 *		A pool of things of one kind in shared memory, found by a hash.
 *
 * All of it expects the dispatcher lock to be held, and cannot throw.
 */
#ifndef FANOUT_POOL_H
#define FANOUT_POOL_H

#include "link.h"

/* In shared memory, before the elements. */
typedef struct PoolHead
{
	Link		free;			/* elements that were in use before */
	int32		begun;			/* so many have been in use */
} PoolHead;

/* How an element begins.  All of one that is free is zero, but for the link. */
typedef struct PoolElement
{
	Link		next;			/* in its bucket; of a free one, another one */
} PoolElement;

/* What a process knows of a pool. */
typedef struct Pool
{
	PoolHead   *head;
	Link	   *buckets;
	uint32		bucket_mask;
	char	   *elements;
	Size		element_size;
	int64		count;
} Pool;

extern Size pool_size(int64 count, Size element_size);
extern void pool_attach(Pool *pool, const char *name, int64 count, Size element_size);

/* A new element, zeroed; NULL if the pool is used up. */
extern void *pool_enter(Pool *pool, uint32 hash);
extern void pool_free(Pool *pool, uint32 hash, void *element);

/* The first element of the hash's bucket, of which PoolElement.next leads to the others. */
static inline void *
pool_bucket(const Pool *pool, uint32 hash)
{
	return link_target(pool->buckets[hash & pool->bucket_mask]);
}

/* The elements that are or have been in use, by their numbers. */
static inline void *
pool_element(const Pool *pool, int32 number)
{
	return number < pool->head->begun ? pool->elements + (Size) number * pool->element_size : NULL;
}

#endif							/* FANOUT_POOL_H */
