/*
 * journal.h
 *		Claims and their unspoken ends, written behind.
 */
#ifndef FANOUT_JOURNAL_H
#define FANOUT_JOURNAL_H

#include "shared_state.h"

/* When the oldest claim was made that is yet to be written, as far as a short look tells; 0: none.  Under the lock. */
extern TimestampTz journal_oldest(Database *database);

/* Write what there is, in a transaction of its own; false if there was nothing. */
extern bool journal_flush(Database *database);

#endif							/* FANOUT_JOURNAL_H */
