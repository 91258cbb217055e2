#!/usr/bin/python3
"""Calls all functions of schema fanout with random arguments, from several sessions at once.

    fuzz.py SEED SECONDS DIRECTORY

The server's data are in DIRECTORY/data, with the extension in an empty database. Arguments are typed: what is known (ids,
leases, queues), what is at the edge of a type, NULL, arrays with NULLs, of no or two dimensions. Calls come in
transactions and savepoints that end one way or the other, from cursors that are not read to their end, in subqueries, in
deferred triggers and by roles without rights. What must hold: no error is an internal one (SQLSTATE
XX...), the keeper has no error, nothing is violated; in the end counts agree with the tables, also after a crash, and
memory is empty when the queues are gone. Each session writes down its statements in DIRECTORY/NAME.sql.
"""
import random
import re
import subprocess
import sys
import threading
import time

import psycopg

SESSIONS = 4
QUEUES = [f"q{n}" for n in range(4)]
ROLES = ["fuzz_granted", "fuzz_nobody"]
# _set_point would stop the server itself, and _register is the install script's
LEFT_OUT = ("_set_point", "_register")
# by what is likely to be worth more calls than others
OFTEN = ("enqueue", "enqueue_many", "fan_out", "dequeue", "complete", "fail", "release", "checkpoint", "create_queue")
SETTINGS = ["concurrency", "worker_concurrency", "max_backlog", "partition_concurrency", "partition_rate_limit",
            "aging", "rate_limit", "rate_limits", "partition_max_backlog", "retention", "weight", "max_backlog"]

INTS = [0, 1, 1, 2, 3, 5, 10, 100, -1, 1000, 32767, 32768, 65536, 2**31 - 1, -2**31, 2**31 - 2, -2**31 + 1]
BIGINTS = INTS + [2**31, 2**32, 2**62, 2**63 - 1, 2**63 - 2, -2**63, -2**63 + 1]
INTERVALS = ["0", "1 us", "1 ms", "10 ms", "50 ms", "200 ms", "1 s", "1 hour", "1 day", "-1 s", "1 mon -30 days", "1 year", "178000000 years",
             "-178000000 years", "2147483647 months", "2147483647 days", "9223372036854775807 us", "-9223372036854775808 us",
             "2147483647 months 2147483647 days", "9223372036854 seconds", "292000 years", "300000 years"]
# durations that no function takes: below 0, or above 100 years
NO_DURATIONS = INTERVALS[9:10] + INTERVALS[12:]
TIMES = ["now", "infinity", "-infinity", "epoch", "4713-01-01 00:00:00+00 BC", "294276-12-31 23:59:59.999999+00", "2000-01-01 00:00+00",
         "tomorrow", "294000-01-01 00:00+00"]
TEXTS = ["", " ", "a", "b", "k0", "k1", "k2", "x" * 70, "y" * 300, "z" * 10000, "é" * 40, "q0", "\n", "'", '"', "\\", "%s %n %d", "{a,b}",
         "null", "NULL", "\U0001f600"]
WORDS = {
    "queue": QUEUES * 4 + ["none", "Q0"],
    "join": ["all", "any", "n", "fail_fast"] * 3 + ["none"],
    "on_conflict": ["return", "reject", "replace", "supersede"] * 3 + ["none"],
    "partition_retries": ["block", "pass"] * 3 + ["none"],
    "unset": SETTINGS, "privileges": ["enqueue", "dequeue", "manage"] * 3 + ["all"],
    "step": ["one", "two", "three"], "worker": ["w0", "w1", "w2"], "partition_key": [f"k{n}" for n in range(12)],
    "key": ["u0", "u1", "u2", "k0", "k1", "k2"], "fair_group": ["g0", "g1", "g2"], "role": ROLES + ["postgres"],
    "name": ["n0", "n1", "n2"],
}
JSONS = ["null", "{}", "[]", "1", '"text"', "1e300", '{"a": 1}', '{"a": {"b": [1, 2, null]}}', "[" * 50 + "]" * 50, '"' + "j" * 20000 + '"',
         '{"a": 1, "a": 2}', "false"]
KNOWN = {"task": "tasks", "tasks": "tasks", "lease": "leases", "leases": "leases", "batch": "batches", "queue_id": "ids"}
INTERNAL = re.compile("^XX")


def literal(value, kind):
    if value is None:
        return f"NULL::{kind}"
    return "E'" + str(value).replace("\\", "\\\\").replace("'", "''") + f"'::{kind}"


class Known:
    """What any session has been told; the oldest is forgotten, and some of what is left is out of date."""

    def __init__(self):
        self.values = {"tasks": [], "leases": [], "batches": [], "ids": [1, 2, 3, 4]}

    def add(self, kind, value):
        if isinstance(value, int):
            self.values[kind].append(value)
            if len(self.values[kind]) > 400:
                del self.values[kind][:100]


class Session(threading.Thread):
    def __init__(self, name, seed, known, functions, directory):
        super().__init__(daemon=True)
        self.session, self.random, self.known, self.functions = name, random.Random(seed), known, functions
        self.file = open(f"{directory}/{name}.sql", "w", encoding="utf-8")
        self.connection = None
        self.calls = self.good = 0
        self.states = {}
        self.wrong = []
        self.stopping = False

    # -- arguments

    def pick(self, values):
        return self.random.choice(values)

    def chance(self, probability):
        return self.random.random() < probability

    def scalar(self, name, kind):
        if self.chance(0.06):
            return None
        if kind == "text":
            return self.pick(WORDS[name]) if name in WORDS and self.chance(0.85) else self.pick(TEXTS)
        if kind in ("bigint", "oid"):
            known = self.known.values[KNOWN[name]] if name in KNOWN else []
            if known and self.chance(0.85):
                return self.pick(known[-60:] if self.chance(0.7) else known)
            return abs(self.pick(INTS)) if kind == "oid" else self.pick(BIGINTS)
        if kind in ("integer", "smallint"):
            value = self.pick(INTS[:8]) if self.chance(0.7) else self.pick(INTS)
            return max(min(value, 32767), -32768) if kind == "smallint" else value
        if kind == "interval" and name in ("wait", "timeout") and self.chance(0.9):
            return self.pick(INTERVALS[:4])
        if kind == "interval":
            return self.pick(INTERVALS[:9]) if self.chance(0.7) else self.pick(INTERVALS)
        if kind == "timestamp with time zone":
            return "now" if self.chance(0.3) else self.pick(TIMES)
        if kind == "jsonb":
            return self.pick(JSONS)
        if kind == "boolean":
            return self.pick(["true", "false"])
        if kind == "regrole":
            return self.pick(WORDS["role"])
        raise ValueError(f"no values of type {kind}")

    def array(self, name, kind):
        length = self.pick([0, 1, 1, 2, 3, 5, 20]) if self.chance(0.97) else 700
        items = ", ".join(literal(self.scalar(name, kind), kind) for _ in range(length))
        if self.chance(0.03) and length:
            return f"ARRAY[[{items}], [{items}]]::{kind}[]"
        if self.chance(0.03) and length == 1:
            return f"('[5:5]={{\"' || coalesce(replace(replace({items}::text, '\\', ''), '\"', ''), '') || '\"}}')::{kind}[]"
        if self.chance(0.03):
            return f"array_fill({literal(self.scalar(name, kind), kind)}, ARRAY[{self.pick([1, 300, 2000])}])"
        return f"ARRAY[{items}]::{kind}[]"

    def argument(self, name, kind):
        if kind.endswith("[]"):
            return f"NULL::{kind}" if self.chance(0.05) else self.array(name, kind[:-2])
        return literal(self.scalar(name, kind), kind)

    def call(self):
        """A function, its name, and a call of it, with a random choice of the arguments that have a default."""
        function = self.pick(self.functions)
        given = []
        usual = self.pick([0.1, 0.3, 0.9])      # of a call with all arguments one is wrong, nearly always
        for position, (name, kind) in enumerate(function["arguments"]):
            if position < function["required"] or self.chance(usual):
                given.append(f'"{name}" => {self.argument(name, kind)}' if name else self.argument(name, kind))
        return function, f'fanout."{function["name"]}"({", ".join(given)})'

    # -- statements

    def execute(self, statement):
        self.file.write(statement + ";\n")
        self.calls += 1
        try:
            cursor = self.connection.execute(statement)
            self.good += 1
            return cursor
        except psycopg.Error as error:
            state = error.diag.sqlstate
            self.file.write(f"-- {state} {str(error).splitlines()[0] if str(error) else ''}\n")
            self.file.flush()
            self.states[state] = self.states.get(state, 0) + 1
            if state and INTERNAL.match(state):
                self.wrong.append(f"{state} {error} from {statement[:2000]}")
            if self.connection.closed:
                self.connect()
            return None

    def remember(self, cursor):
        if cursor is None or cursor.description is None:
            return
        names = [column.name for column in cursor.description]
        for row in cursor.fetchmany(50):
            for name, value in zip(names, row):
                if name in KNOWN:
                    self.known.add(KNOWN[name], value)

    def no_duration(self):
        """A call with a duration that is out of range fails, whatever else it says."""
        function = self.pick([f for f in self.functions if any(kind == "interval" for _, kind in f["arguments"])])
        given = []
        for position, (name, kind) in enumerate(function["arguments"]):
            if kind == "interval":
                given.append(f'"{name}" => {literal(self.pick(NO_DURATIONS), kind)}')
            elif position < function["required"]:
                value = self.argument(name, kind)
                given.append(f'"{name}" => {value}')
        verb = "CALL" if function["kind"] == "p" else "SELECT * FROM"
        statement = f'{verb} fanout."{function["name"]}"({", ".join(given)})'
        if self.execute(statement) is not None and "NULL" not in statement and "ARRAY[]" not in statement:
            self.wrong.append(f"no error from {statement[:2000]}")

    def one_call(self):
        function, call = self.call()
        name = function["name"]
        if function["kind"] == "p":
            self.execute(f"CALL {call}")
        elif self.chance(0.85):
            column = {"enqueue": "task", "fan_out": "batch", "create_batch": "batch", "debounce": "task"}.get(name)
            self.remember(self.execute(f"SELECT * FROM {call}" + (f" AS f ({column})" if column else "")))
        else:
            self.execute(self.pick([
                f"SELECT {call}",
                f"SELECT {call} LIMIT 1",
                f"SELECT {call}, {self.call()[1]}",
                f"SELECT count(*) FROM generate_series(1, 3), LATERAL (SELECT {call}) s",
                f"SELECT EXISTS (SELECT FROM {call})",
                f"SELECT ({call})::text WHERE random() < 2",
                f"SELECT * FROM {call} f, {call} g LIMIT 3",
                f"CREATE TEMP TABLE t ON COMMIT DROP AS SELECT {call} AS c",
                f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT * FROM {call}",
                "INSERT INTO deferred VALUES ($x$SELECT " + call + "$x$)",
                "DO $y$ BEGIN PERFORM " + call + "; RAISE division_by_zero; EXCEPTION WHEN OTHERS THEN NULL; END $y$",
                "DO $y$ BEGIN PERFORM " + call + "; COMMIT; PERFORM " + self.call()[1] + "; ROLLBACK; END $y$",
            ]))

    def cursor(self):
        function, call = self.call()
        if function["kind"] == "p":
            return
        self.execute(f"DECLARE c CURSOR {self.pick(['', 'WITH HOLD'])} FOR SELECT * FROM {call}")
        self.execute(f"FETCH {self.pick([1, 3])} FROM c")
        if self.chance(0.5):
            self.execute("CLOSE ALL")

    def look(self):
        self.execute(self.pick([f"SELECT * FROM fanout.{view} LIMIT {self.pick([0, 1, 1000])}" for view in
                                ("queues", "tasks", "leases", "workers", "attempts", "batches", "partitions", "segments", "status()")]))

    def transaction(self):
        self.execute(self.pick(["BEGIN"] * 8 + ["BEGIN ISOLATION LEVEL REPEATABLE READ", "BEGIN ISOLATION LEVEL SERIALIZABLE",
                                                "BEGIN READ ONLY"]))
        level = 0
        for _ in range(self.random.randrange(1, 8)):
            what = self.random.random()
            if what < 0.15:
                level += 1
                self.execute(f"SAVEPOINT s{level}")
            elif what < 0.3 and level:
                self.execute(self.pick(["ROLLBACK TO", "RELEASE"]) + f" s{level}")
            else:
                # an error ends what the savepoint began, and not all
                self.execute("SAVEPOINT each")
                errors = self.calls - self.good
                if what < 0.35:
                    self.cursor()
                elif what < 0.4:
                    self.execute("SET CONSTRAINTS ALL IMMEDIATE")
                else:
                    self.one_call()
                if self.calls - self.good > errors or self.chance(0.1):
                    self.execute("ROLLBACK TO each")
        self.execute(self.pick(["COMMIT", "COMMIT", "COMMIT", "ROLLBACK", "PREPARE TRANSACTION 'fuzz'"]))
        self.execute("ROLLBACK")

    def step(self):
        what = self.random.random()
        if what < 0.02:
            self.execute("RESET ROLE")
            if self.chance(0.5):
                self.execute(f"SET ROLE {self.pick(ROLES)}")
        elif what < 0.03:
            self.execute(f"SET statement_timeout = {self.pick([1, 5, 100, 100, 300])}")
        elif what < 0.06:
            self.look()
        elif what < 0.08:
            self.no_duration()
        elif what < 0.4:
            self.transaction()
        elif what < 0.405:
            self.connection.close()
            self.connect()
        elif what < 0.407:
            self.execute("SELECT pg_cancel_backend(pid), pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity"
                         " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name = 'fuzz' ORDER BY random() LIMIT 1) p")
        elif what < 0.41:
            # a queue is there again soon after it was dropped
            self.execute(f"SELECT fanout.create_queue('{self.pick(QUEUES)}', if_not_exists => true, lease => '{self.pick(['50 ms', '1 s', '1 min'])}')")
        else:
            self.one_call()

    def connect(self):
        self.connection = psycopg.connect(autocommit=True, application_name="fuzz",
                                          options="-c client_min_messages=error -c statement_timeout=100 -c lock_timeout=200 -c deadlock_timeout=50")

    def run(self):
        self.connect()
        while not self.stopping:
            try:
                self.step()
            except psycopg.Error as error:      # the connection was terminated
                self.file.write(f"-- {error}\n")
                while not self.stopping:
                    try:
                        self.connect()
                        break
                    except psycopg.Error:
                        time.sleep(0.1)
        self.connection.close()
        self.file.close()


PREPARE = """
CREATE ROLE fuzz_granted;
CREATE ROLE fuzz_nobody;
GRANT USAGE ON SCHEMA fanout TO fuzz_granted, fuzz_nobody;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA fanout TO fuzz_granted, fuzz_nobody;
GRANT SELECT ON ALL TABLES IN SCHEMA fanout TO fuzz_granted;
CREATE TABLE deferred (command text);
GRANT INSERT ON deferred TO fuzz_granted;
CREATE FUNCTION run_deferred() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE NEW.command; RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER run AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION run_deferred();
"""

# what queues count, and what the tables have
COUNTS = """
SELECT q.queue, q.scheduled + q.ready + q.running AS counted, u.n AS unfinished FROM fanout.queues q JOIN fanout.queue c ON c.name = q.queue,
       LATERAL (SELECT count(*) AS n FROM fanout.task t WHERE t.queue = c.id AND NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id)) u
 WHERE q.scheduled + q.ready + q.running <> u.n OR q.running <> (SELECT count(*) FROM fanout.leases l WHERE l.queue = q.queue)
"""
TWICE = "SELECT task FROM fanout.outcome GROUP BY task HAVING count(*) > 1"
LEFT_OVER = """
SELECT item, value FROM fanout.status()
 WHERE item IN ('tasks in memory', 'leases in memory', 'workers in memory', 'lanes in memory', 'journal lag') AND value !~ '^0 '
"""


class Fuzz:
    def __init__(self, seed, seconds, directory):
        self.random = random.Random(seed)
        self.seconds, self.directory = seconds, directory
        self.known = Known()
        self.failed = 0

    def look(self, what, wrong):
        self.failed += bool(wrong)
        print(f"{'not ok' if wrong else 'ok'} - {what}{': ' + str(wrong) if wrong else ''}", flush=True)

    def query(self, statement):
        with psycopg.connect(autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def look_for_rows(self, what, statement):
        """There should be none, or soon be none: the keeper may have something to do."""
        give_up = time.monotonic() + 20
        while (wrong := self.query(statement)) and time.monotonic() < give_up:
            time.sleep(0.2)
        self.look(what, wrong)

    def load_functions(self):
        functions = []
        for name, kind, count, defaults, names, modes, kinds in self.query(
                "SELECT p.proname, p.prokind::text, p.pronargs, p.pronargdefaults, p.proargnames, p.proargmodes::text[],"
                " ARRAY(SELECT format_type(t, NULL) FROM unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) WITH ORDINALITY AS a (t, n) ORDER BY n)"
                " FROM pg_proc p WHERE pronamespace = 'fanout'::regnamespace AND prolang = (SELECT oid FROM pg_language WHERE lanname = 'c')"
                " ORDER BY p.oid"):
            if name in LEFT_OUT:
                continue
            inputs = [n for n in range(len(kinds)) if modes is None or modes[n] in ("i", "b")]
            arguments = [((names or [""] * len(kinds))[n], kinds[n]) for n in inputs]
            function = {"name": name, "kind": kind, "arguments": arguments, "required": count - defaults}
            functions += [function] * (8 if name in OFTEN else 1 if name.startswith("_") else 2)
        return functions

    def run(self):
        self.query(PREPARE)
        for queue in QUEUES:
            self.query(f"SELECT fanout.create_queue('{queue}', lease => '1 s')")
        functions = self.load_functions()
        sessions = [Session(f"session{n}", self.random.getrandbits(32), self.known, functions, self.directory) for n in range(SESSIONS)]
        for session in sessions:
            session.start()
        end = time.monotonic() + self.seconds
        while time.monotonic() < end and not any(session.wrong for session in sessions) and not self.bad_lines():
            time.sleep(1)
        for session in sessions:
            session.stopping = True
        for session in sessions:
            session.join(60)
        self.look("all sessions end", [s.session for s in sessions if s.is_alive()])
        self.look("no error is an internal one, and none is missing", [w for s in sessions for w in s.wrong][:3])
        self.check()
        states = {}
        for session in sessions:
            for state, count in session.states.items():
                states[state] = states.get(state, 0) + count
        print(f"{sum(s.calls for s in sessions)} statements, {sum(s.good for s in sessions)} of them without an error; errors:",
              ", ".join(f"{count} {state}" for state, count in sorted(states.items(), key=lambda item: -item[1])))

    def check(self):
        self.look("nothing is violated", self.query("SELECT * FROM fanout._violations() WHERE violations > 0"))
        self.look_for_rows("queues count what is in the tables", COUNTS)
        self.look_for_rows("no task has two outcomes", TWICE)
        self.restart()
        self.look_for_rows("queues count what is in the tables, after a crash", COUNTS)
        self.query("SELECT fanout.drop_queue(queue, true) FROM fanout.queues")
        self.look_for_rows("nothing is left in memory when the queues are gone", LEFT_OVER)
        self.look("nothing is violated, in the end", self.query("SELECT * FROM fanout._violations() WHERE violations > 0"))
        self.look("no process crashed, no keeper failed", self.bad_lines())

    def restart(self):
        for arguments in (["--mode=immediate", "stop"], [f"--log={self.directory}/server.log", "start"]):
            subprocess.run(["pg_ctl", f"--pgdata={self.directory}/data", "--wait", *arguments], check=True, stdout=subprocess.DEVNULL)
        give_up = time.monotonic() + 60
        while not self.query("SELECT FROM fanout.status() WHERE item = 'state' AND value = 'ready'") and time.monotonic() < give_up:
            time.sleep(0.1)

    def bad_lines(self):
        with open(f"{self.directory}/server.log", encoding="utf-8", errors="replace") as log:
            return [line.strip()[:500] for line in log if re.search(
                r"PANIC:|TRAP:|terminated by signal|pg_fanout violation| XX\w{3} (ERROR|FATAL)|pg_fanout (keeper|launcher) \w{5} (ERROR|FATAL)", line)
                and "terminating background worker" not in line][:5]


if __name__ == "__main__":
    fuzz = Fuzz(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
    fuzz.run()
    sys.exit(fuzz.failed > 0)
