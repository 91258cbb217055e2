# make, make install     build and install for the PostgreSQL of PG_CONFIG
# make demo              index this machine's documents, with a killed worker and a crashed server on the way
# make test              everything that is tested; ends with "N passed, N failed"
# make bench             measure beside PostgreSQL itself, and print tables: ONLY=, ROWS=, LONG=1, RESULTS=1 and more, see
#                        test/bench/run.sh
# make bench-peers       measure beside DBOS, graphile-worker and pg-boss; needs the npm registry
# make model             check the model of a task's life with spin; FULL=1 for larger runs
# make reference         compare the server with a reference by random operations: SEED=, OPERATIONS= (of each run)
# make chaos             random work, faults, kills, crashes and promotions, then all promises: SEED=, SECONDS=
# make fuzz              all functions with random arguments: SEED=, SECONDS=
# make sanitize          the suite with a build that reports undefined behaviour: SUITES= for some of it
# make valgrind          the main scenarios in a server under valgrind
# make soak              full rate for half an hour with a short retention: SECONDS=, RETENTION=
# make installcheck      the regress, isolation and TAP tests alone, of what is installed
# make indent            format src/ in PostgreSQL's style; make typedefs renews the list it needs
#
# demo, test, bench, bench-peers, model, reference, chaos, fuzz, sanitize, valgrind and soak install with apt what they
# miss, and run a private server in a temporary directory.

PG_CONFIG ?= $(firstword $(wildcard /usr/lib/postgresql/15/bin/pg_config) pg_config)
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)

EXTENSION = pg_fanout
MODULE_big = pg_fanout
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" pg_fanout.control)

OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
DATA = $(wildcard src/sql/upgrades/*.sql)
DATA_built = $(EXTENSION)--$(EXTVERSION).sql

PG_CPPFLAGS = -DPG_FANOUT_VERSION='"$(EXTVERSION)"'
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers
ifdef WERROR
PG_CFLAGS += -Werror
endif
# Count violations of what must always hold in memory, for tests: see src/audit.c
ifdef CHECKED
PG_CPPFLAGS += -DFANOUT_CHECKED
endif
# SANITIZE=undefined: report undefined behaviour when it happens, see test/harness/sanitize
ifdef SANITIZE
PG_CFLAGS += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer
SHLIB_LINK += -fsanitize=$(SANITIZE) -static-libubsan
PG_CPPFLAGS += -DFANOUT_SANITIZE_OPTIONS='"$(SANITIZE_OPTIONS)"'
endif

# Names of tests to run, where not all: make installcheck REGRESS="queues limits"
REGRESS = $(sort $(basename $(notdir $(wildcard sql/*.sql))))
ISOLATION = $(sort $(basename $(notdir $(wildcard test/isolation/*.spec))))
TAP = $(sort $(basename $(notdir $(wildcard test/t/*.pl))))
EXTRA_CLEAN = tmp_check

# Tests run in a private server, see test/harness; no bitcode, so that clang is not needed
NO_INSTALLCHECK = 1
override with_llvm = no

harness = test/harness

ifneq ($(wildcard $(PGXS)),)
include $(PGXS)

$(OBJS): $(wildcard src/*.h) pg_fanout.control Makefile
else
# The server's development files are not installed: only the targets that get them work
.DEFAULT_GOAL := all
all install uninstall installcheck indent typedefs:
	@echo "PostgreSQL's development files are missing: make deps installs them, or set PG_CONFIG" >&2; exit 1
clean:
	rm -rf $(OBJS) $(MODULE_big).so $(DATA_built) $(EXTRA_CLEAN)
endif

$(DATA_built): $(sort $(wildcard src/sql/[0-9]*.sql)) pg_fanout.control
	cat $(filter %.sql,$^) >$@

.PHONY: deps demo test bench bench-peers model reference chaos fuzz sanitize valgrind soak indent typedefs

deps:
	$(harness)/deps build

demo: deps
	$(harness)/build
	examples/document_ingestion/run.sh

test:
	$(harness)/deps test
	$(harness)/run_tests

model:
	test/protocol/run.sh

bench: deps
	$(harness)/build
	test/bench/run.sh

bench-peers: deps
	$(harness)/build
	test/bench/peers/run.sh

reference chaos fuzz valgrind soak: deps
	test/$@/run.sh

sanitize:
	$(harness)/deps test
	$(harness)/sanitize $(SUITES)

ifneq ($(wildcard $(PGXS)),)
installcheck:
	$(harness)/run_tests regress="$(REGRESS)" isolation="$(ISOLATION)" tap="$(TAP)"

indent:
	$(harness)/indent

# Every type in the library's debug information that the sources name: make clean typedefs CHECKED=1
typedefs: all
	$(harness)/typedefs $(MODULE_big).so >src/typedefs.list.new
	mv src/typedefs.list.new src/typedefs.list
endif
