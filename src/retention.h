/*
 * retention.h
 *		How long what is finished is kept: what the keeper does about it, and when.
 */
#ifndef FANOUT_RETENTION_H
#define FANOUT_RETENTION_H

#include "shared_state.h"

/* For the keeper: do the next part of what there is to do; when to be called again, or 0 for at once. */
extern TimestampTz retention_run(Database *database, TimestampTz now);

#endif							/* FANOUT_RETENTION_H */
