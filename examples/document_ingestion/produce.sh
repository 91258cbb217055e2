#!/bin/bash
# The producer: reads file names, one a line, and fans out one task for each of them. Prints the batch's id.
# The list and the tasks are one transaction: either both are there, or neither.
set -euo pipefail

# The delimiter and the quote are characters that no line contains: a line is a name, whatever is in it.
psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 --single-transaction \
	--command "COPY source (path) FROM STDIN (FORMAT csv, DELIMITER E'\x01', QUOTE E'\x02')" \
	--command "SELECT fanout.fan_out('indexing', 'index_document',
	               ARRAY(SELECT jsonb_build_object('path', path) FROM source ORDER BY ordinal))"
