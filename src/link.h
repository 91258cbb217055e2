/*
 * link.h
 *		Links of four bytes between what lives in our part of shared memory.
 *
 * There are many small things there, and each is linked to several others.  So
 * a link is the distance from the begin of that part in units of four bytes,
 * on which all that is linked to is aligned.  It reaches 16 GB, and the server
 * does not start with settings for which that is not enough.
 */
#ifndef FANOUT_LINK_H
#define FANOUT_LINK_H

typedef uint32 Link;			/* 0: none */

#define LINK_UNIT	4
#define LINK_REACH	((Size) PG_UINT32_MAX * LINK_UNIT)

/* Nothing links to what is here, so that no link is 0. */
extern char *link_base;

static inline void *
link_target(Link link)
{
	return link != 0 ? link_base + (Size) link * LINK_UNIT : NULL;
}

static inline Link
link_to(const void *target)
{
	return target != NULL ? ((const char *) target - link_base) / LINK_UNIT : 0;
}

/* What has this member. */
#define link_container(type, member, target) \
	((type *) ((char *) (target) - offsetof(type, member)))

#endif							/* FANOUT_LINK_H */
