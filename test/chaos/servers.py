"""The private server in the chaos, how it goes away and comes back, and the standby that takes its place."""
import os
import shutil
import signal
import subprocess
import time

import psycopg

from actors import NOW

PORTS = (5432, 5433)
PATIENCE = 60.0


class Server:
    """Whoever is primary; clients find it among both ports."""

    def __init__(self, directory, random):
        self.directory, self.random = directory, random
        self.data, self.port, self.standbys = f"{directory}/data", PORTS[0], 0
        self.quiet = f"{directory}/logs/quiet"
        self.stops = []             # times between which the server went away and came back, in microseconds
        self.to_come = []           # kinds of stops, each of which comes before any comes again
        self.counts = {how: 0 for how in self.kinds()}
        os.environ["PGHOST"] = ",".join([directory] * len(PORTS))
        os.environ["PGPORT"] = ",".join(map(str, PORTS))

    def kinds(self):
        return {"fast": self.restart_fast, "immediate": self.restart_immediate, "postmaster killed": self.kill_postmaster,
                "backend killed": self.kill_backend, "keeper killed": self.kill_keeper, "launcher killed": self.kill_launcher,
                "killed at a point": self.kill_at_point, "promotion": self.promote}

    # -- connections

    def connect(self):
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                connection = psycopg.connect(autocommit=True, connect_timeout=5, target_session_attrs="read-write")
                while connection.execute("SELECT value FROM fanout.status() WHERE item = 'state'").fetchone()[0] != "ready":
                    time.sleep(0.02)
                    if time.monotonic() > give_up:
                        raise TimeoutError("the server has not become ready")
                return connection
            except psycopg.Error:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.05)

    def query(self, query, *parameters):
        with self.connect() as connection:
            cursor = connection.execute(query, parameters or None)
            return cursor.fetchall() if cursor.description else []

    # -- commands

    def as_user(self, *command, check=True):
        """Without our settings for clients, which a server would take for its own."""
        environment = {name: value for name, value in os.environ.items() if name not in ("PGHOST", "PGPORT")}
        return subprocess.run([os.environ["REPO_DIR"] + "/test/harness/run_as", f"{os.environ['PG_BINDIR']}/{command[0]}", *command[1:]],
                              check=check, env=environment, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    def start(self, data, port, check=True):
        return self.as_user("pg_ctl", f"--pgdata={data}", f"--log={self.directory}/server.log", "--wait", "--timeout=120",
                            f"--options=-p {port}", "start", check=check)

    def stop(self, data, how):
        self.as_user("pg_ctl", f"--pgdata={data}", f"--mode={how}", "--wait", "--timeout=120", "stop")

    def restart(self, how="fast"):
        self.stop(self.data, how)
        self.start(self.data, self.port)

    # -- stops

    def stop_somehow(self):
        if not self.to_come:
            self.to_come = [*self.kinds()]
            self.random.shuffle(self.to_come)
        how = self.to_come.pop()
        self.counts[how] += 1
        begin = self.query(NOW)[0][0]
        self.kinds()[how]()
        self.stops.append((begin, self.query(NOW)[0][0]))

    def restart_fast(self):
        self.restart("fast")

    def restart_immediate(self):
        self.restart("immediate")

    def kill_postmaster(self):
        """What it leaves behind keeps its memory for a moment, and another one from starting."""
        with open(f"{self.data}/postmaster.pid") as file:
            os.kill(int(file.readline()), signal.SIGKILL)
        give_up = time.monotonic() + PATIENCE
        while self.start(self.data, self.port, check=False).returncode != 0:
            if time.monotonic() > give_up:
                raise TimeoutError("the server does not start after its postmaster was killed")
            time.sleep(0.1)

    def launcher(self):
        """Another one: the postmaster has begun anew."""
        return self.query("SELECT pid FROM pg_stat_activity WHERE backend_type ~ 'fanout launcher'")

    def kill(self, which):
        before = self.launcher()
        pids = self.query(f"SELECT pid FROM pg_stat_activity WHERE {which} ORDER BY random() LIMIT 1")
        if not pids:
            return
        try:
            os.kill(pids[0][0], signal.SIGKILL)     # the postmaster begins anew
        except ProcessLookupError:
            return
        self.wait_for_another(before, PATIENCE)

    def wait_for_another(self, launcher, seconds):
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            try:
                if self.launcher() not in ([], launcher):
                    return True
            except psycopg.Error:
                pass
            time.sleep(0.05)
        return False

    def kill_backend(self):
        self.kill("datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()")

    def kill_keeper(self):
        self.kill("backend_type ~ 'fanout keeper'")

    def kill_launcher(self):
        self.kill("backend_type ~ 'fanout launcher'")

    def points(self, condition):
        """Those that a server at work comes to."""
        return [row[0] for row in self.query(
            f"SELECT point FROM fanout._points() WHERE point !~ '^(rebuild|segment|ceiling)' AND {condition} ORDER BY point")]

    def kill_at_point(self):
        """Whoever comes to a point of the code kills itself there; nobody may come."""
        before = self.launcher()
        point, skip = self.random.choice(self.points("true")), self.random.choice([0, 0, 3, 20])
        self.query("SELECT fanout._set_point(%s, 'kill', skip => %s)", point, skip)
        if not self.wait_for_another(before, 2):
            self.clear_points()

    def clear_points(self):
        """The server may go away over it."""
        while True:
            try:
                self.query("SELECT fanout._set_point(point, 'nothing') FROM fanout._points() WHERE action <> 'nothing'")
                return
            except psycopg.Error:
                time.sleep(0.1)

    def plant_error(self):
        """Whoever comes to a point of the code fails there, as for a disk that is full."""
        point, action = self.random.choice(self.points("may_fail")), self.random.choice(["error", "disk full"])
        try:
            self.query("SELECT fanout._set_point(%s, %s, times => %s, skip => %s)", point, action,
                       self.random.choice([1, 1, 2]), self.random.choice([0, 0, 5]))
        except psycopg.Error:
            pass

    # -- the standby

    def promote(self):
        """
        A standby that has every commit takes the primary's place. Meanwhile nothing is cut off while it waits for
        the standby: such a commit would be confirmed although only the primary has it.
        """
        self.standbys += 1
        standby, port = f"{self.directory}/data{self.standbys}", PORTS[self.standbys % 2]
        open(self.quiet, "w").close()
        time.sleep(1)
        self.clear_points()
        self.as_user("pg_basebackup", f"--host={self.directory}", f"--port={self.port}", f"--pgdata={standby}", "--checkpoint=fast",
                     "--write-recovery-conf", "--no-sync")
        self.start(standby, port)
        self.query("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.query("SELECT pg_reload_conf()")
        self.wait_for_standby("sync_state = 'sync'")
        time.sleep(0.2)
        self.wait_for_standby(f"flush_lsn >= '{self.query('SELECT pg_current_wal_lsn()')[0][0]}'")
        time.sleep(1.5)
        self.stop(self.data, "immediate")
        self.as_user("pg_ctl", f"--pgdata={standby}", "--wait", "promote")
        shutil.rmtree(self.data, ignore_errors=True)
        self.data, self.port = standby, port
        self.connect().close()
        os.unlink(self.quiet)

    def wait_for_standby(self, condition):
        give_up = time.monotonic() + PATIENCE
        while not self.query(f"SELECT pid FROM pg_stat_replication WHERE application_name = 'walreceiver' AND {condition}"):
            if time.monotonic() > give_up:
                raise TimeoutError(f"the standby does not come to {condition}")
            time.sleep(0.05)
