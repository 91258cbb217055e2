/*
 * registry.h
 *		What this backend knows of the extension's catalogues: relations,
 *		queues, who may use them.
 */
#ifndef FANOUT_REGISTRY_H
#define FANOUT_REGISTRY_H

#include "shared_state.h"

#if PG_VERSION_NUM < 180000
#define pg_noreturn	pg_attribute_noreturn()
#endif

/* What the log has rows of; of each, a table in every segment. */
typedef enum LogKind
{
	LOG_TASK,
	LOG_ATTEMPT,
	LOG_CHECKPOINT,
	LOG_OUTCOME,
	LOG_KINDS
} LogKind;

typedef enum QueuePrivilege
{
	PRIVILEGE_ENQUEUE,
	PRIVILEGE_DEQUEUE,
	PRIVILEGE_MANAGE
} QueuePrivilege;

/* A queue that was looked up. */
typedef struct QueueRef
{
	int32		id;
	Queue	   *queue;			/* its slot; look at it under the dispatcher lock */
	char		name[FANOUT_NAME_LEN];
} QueueRef;

extern void registry_init(void);
extern void registry_invalidate(void);

/* OIDs of fanout.queue, and of a table of the log; both throw if the extension is not there. */
extern Oid	registry_anchor(void);
extern Oid	registry_relation(LogKind kind, int segment);
extern bool registry_extension_exists(void);

/* Was the extension created by the transaction that is open? */
extern bool registry_extension_is_ours(void);
extern Oid	registry_owner(void);

/* Throws unless the library is preloaded and fits the catalogue; and unless the server can take changes. */
extern void require_readable(void);
extern void require_writable(const char *function);

/* This database's slot, once its keeper has memory ready; waits for that, and throws if it takes too long. */
extern Database *require_database(void);

/* A queue by its name; throws 42704 if there is none and 42501 if the caller may not use it so. */
extern QueueRef registry_queue(text *name, QueuePrivilege privilege);

/* The same by id, for the task of a lease; a queue that has been dropped meanwhile is false. */
extern bool registry_queue_by_id(int32 id, QueuePrivilege privilege, QueueRef *ref);

/* Does its slot still hold the queue?  Under the dispatcher lock. */
extern bool queue_ref_is_valid(const QueueRef *ref);

/* It was there a moment ago: throws 42704. */
pg_noreturn extern void throw_queue_gone(const char *name);

/* The id of the queue that was looked up last, if the caller may use it so, or 0. */
extern int32 registry_recent_queue(QueuePrivilege privilege);

/* May the caller use the queue so? */
extern bool registry_queue_allows(int32 id, QueuePrivilege privilege);

extern bool registry_queue_exists(int32 id);

/* May the caller see the queue, that is, has it any privilege on it? */
extern bool registry_queue_visible(int32 id);

extern bool role_is_mine(Oid role);

#endif							/* FANOUT_REGISTRY_H */
