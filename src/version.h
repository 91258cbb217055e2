/*
 * version.h
 *		The library and the catalogue have to be of one version.
 */
#ifndef FANOUT_VERSION_H
#define FANOUT_VERSION_H

#include "nodes/nodes.h"

/* The version of the extension in this database, as the caller's snapshot of the catalogue has it; NULL: there is none. */
extern char *extension_version(void);

/* Throws 55000 unless the library is of that version. */
extern void require_same_version(void);

/* For the keeper: is it?  If not, the log is told why nothing goes on in this database. */
extern bool library_fits(void);

/* ALTER EXTENSION pg_fanout UPDATE: throws 55000 unless it is to the library's version. */
extern bool updates_extension(Node *statement);
extern void check_update(Node *statement);

#endif							/* FANOUT_VERSION_H */
