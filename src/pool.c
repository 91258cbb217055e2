/*
 * pool.c
 *		A pool of things of one kind in shared memory, found by a hash.
 *
 * The server's own hash tables of fixed size do the same, but take 24 bytes for
 * each element beside what is in it, and a hash that is kept with it.  Here it
 * is eight at most.  Elements never move, so others link to them, and
 * they are an array, so a walk through all of them is one through memory.
 *
 * The key is part of the element: who looks for one walks through its bucket
 * and compares.
 */
#include "postgres.h"

#include "storage/shmem.h"

#include "pool.h"

/* One or two elements a bucket. */
static Size
bucket_count(int64 count)
{
	Size		buckets = 1;

	while ((int64) buckets * 2 <= count)
		buckets *= 2;
	return buckets;
}

/* A cache line each, so that elements begin with one. */
static Size
head_size(void)
{
	return CACHELINEALIGN(sizeof(PoolHead));
}

static Size
buckets_size(int64 count)
{
	return CACHELINEALIGN(mul_size(bucket_count(count), sizeof(Link)));
}

Size
pool_size(int64 count, Size element_size)
{
	return add_size(add_size(head_size(), buckets_size(count)), mul_size(count, element_size));
}

/* Find it, or lay it out; at server start. */
void
pool_attach(Pool *pool, const char *name, int64 count, Size element_size)
{
	bool		found;
	char	   *memory = ShmemInitStruct(name, pool_size(count, element_size), &found);

	Assert(element_size % LINK_UNIT == 0);
	pool->head = (PoolHead *) memory;
	pool->buckets = (Link *) (memory + head_size());
	pool->bucket_mask = bucket_count(count) - 1;
	pool->elements = memory + head_size() + buckets_size(count);
	pool->element_size = element_size;
	pool->count = count;
	if (!found)
		memset(memory, 0, pool_size(count, element_size));
}

void *
pool_enter(Pool *pool, uint32 hash)
{
	PoolHead   *head = pool->head;
	Link	   *bucket = &pool->buckets[hash & pool->bucket_mask];
	PoolElement *element = link_target(head->free);

	if (element != NULL)
		head->free = element->next;
	else if (head->begun == pool->count)
		return NULL;
	else
		element = (PoolElement *) (pool->elements + (Size) head->begun++ * pool->element_size);
	element->next = *bucket;
	*bucket = link_to(element);
	return element;
}

void
pool_free(Pool *pool, uint32 hash, void *element)
{
	PoolHead   *head = pool->head;
	Link		link = link_to(element);
	Link	   *place = &pool->buckets[hash & pool->bucket_mask];

	while (*place != link)
	{
		Assert(*place != 0);
		place = &((PoolElement *) link_target(*place))->next;
	}
	*place = ((PoolElement *) element)->next;

	memset(element, 0, pool->element_size);
	((PoolElement *) element)->next = head->free;
	head->free = link;
}
