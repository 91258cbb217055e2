/*
 * version.c
 *		The library and the catalogue have to be of one version.
 *
 * The library is loaded when the server starts, so a new one comes with a
 * restart, for all databases at once; the catalogue changes with ALTER
 * EXTENSION ... UPDATE, in each database for itself.  In between a function
 * might be called with other arguments than it knows, or a table have other
 * columns.  So as long as the two differ, each function throws, and there is no
 * keeper.  What was going on is in the tables, as at any restart.
 *
 * The order is: restart, then update.  An update to any other version than that
 * of the library is refused: it would stop all work until the restart.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"

#include "spi.h"
#include "version.h"

static SpiStatement select_default_version = {
	"SELECT default_version FROM pg_catalog.pg_available_extensions WHERE name = 'pg_fanout'", 0, {0}
};

/* Not by SPI: the install script asks when there is no table of ours yet, and the keeper when there is no snapshot. */
char *
extension_version(void)
{
	Relation	relation = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *version = NULL;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ, CStringGetDatum("pg_fanout"));
	scan = systable_beginscan(relation, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, Anum_pg_extension_extversion, RelationGetDescr(relation), &isnull);

		version = TextDatumGetCString(value);
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return version;
}

static bool
is_ours(const char *version)
{
	return version != NULL && strcmp(version, PG_FANOUT_VERSION) == 0;
}

static int
hint_of_versions(const char *version)
{
	return errhint("If the library is newer, run ALTER EXTENSION pg_fanout UPDATE in this database."
				   " If it is older, install version %s and restart the server.", version);
}

void
require_same_version(void)
{
	char	   *version = extension_version();

	if (version == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension \"pg_fanout\" does not exist"),
				 errhint("Create the extension with CREATE EXTENSION pg_fanout.")));
	if (!is_ours(version))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the preloaded pg_fanout library is version %s, the extension in this database is version %s",
						PG_FANOUT_VERSION, version),
				 errdetail("No function works, and nothing goes on in this database, until they are the same."),
				 hint_of_versions(version)));
	pfree(version);
}

bool
library_fits(void)
{
	char	   *version = extension_version();

	if (version == NULL || is_ours(version))
		return true;
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("pg_fanout stands still in database \"%s\"", get_database_name(MyDatabaseId)),
			 errdetail("The preloaded library is version %s, the extension in this database is version %s.",
					   PG_FANOUT_VERSION, version),
			 hint_of_versions(version)));
	return false;
}

bool
updates_extension(Node *statement)
{
	return IsA(statement, AlterExtensionStmt) && strcmp(((AlterExtensionStmt *) statement)->extname, "pg_fanout") == 0;
}

/* The version that the control file names, in the caller's memory; NULL if there is none. */
static char *
default_version(void)
{
	MemoryContext caller = CurrentMemoryContext;
	SpiScope	scope;
	char	   *version = NULL;

	spi_begin(&scope);
	if (spi_read_latest(&select_default_version, NULL, NULL) == 1)
		version = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (version != NULL)
		version = MemoryContextStrdup(caller, version);
	spi_end(&scope);
	return version;
}

void
check_update(Node *statement)
{
	char	   *version = NULL;
	ListCell   *cell;

	if (extension_version() == NULL)
		return;					/* it is for the command to say so */
	foreach(cell, ((AlterExtensionStmt *) statement)->options)
	{
		if (strcmp(lfirst_node(DefElem, cell)->defname, "new_version") == 0)
			version = defGetString(lfirst_node(DefElem, cell));
	}
	if (version == NULL)
		version = default_version();
	if (version != NULL && !is_ours(version))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_fanout cannot be updated to version %s, as the preloaded library is version %s",
						version, PG_FANOUT_VERSION),
				 errdetail("Nothing would go on in this database until a restart of the server."),
				 errhint("Install version %s, restart the server, then run ALTER EXTENSION pg_fanout UPDATE.", version)));
}
