"""The rules of a member's life, with a program that stands in for Patroni; test_supervisor.py has the real one.

Each test runs in a process of its own: the code under test reaps every child that it finds.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

PRELUDE = """
import asyncio, os, pathlib, signal, sys, time
from runtime.tasks import TaskScope
from workloads.patroni import life as lives, roles
from workloads.patroni.database import DatabaseDownError
from workloads.patroni.life import Life, Program
folder = pathlib.Path(sys.argv[1])
story = []
class Publisher:
    wanted = roles.Public()
    def want(self, **changes):
        now = {n: getattr(self.wanted, n) for n in ("member", "database", "role")} | changes
        if roles.Public(**now) != self.wanted:
            self.wanted = roles.Public(**now)
            story.append(f"{'member' if now['member'] else '-'}/{now['role']}")
    async def reached(self): pass
    def hurry(self): pass
    def promise(self): self.promised = True
    key = True
    async def holds_key(self):
        # None: Consul does not say before the test ends.
        await asyncio.sleep(600 if self.key is None else 0)
        return self.key
class Sessions:
    async def end(self): story.append("session ended")
class Database:
    state = None
    async def in_recovery(self):
        if self.state is None: raise DatabaseDownError("none")
        return self.state
def program(code):
    argv = (sys.executable, "-c", "import os, subprocess, sys, time; " + code, str(folder))
    return Program(argv=argv, env=dict(os.environ), data=folder, run=folder)
def life(code, publisher=None, database=None):
    return Life(program(code), publisher or Publisher(), Sessions(), database or Database())
# A child that detaches itself and works on, as PostgreSQL does.
(folder / "daemon.py").write_text('''
import os, pathlib, sys, time
if os.fork(): os._exit(0)
os.setsid()
pathlib.Path(sys.argv[1], "p").write_text(str(os.getpid()))
time.sleep(600)
''')
DAEMON = "subprocess.run([sys.executable, sys.argv[1] + '/daemon.py', sys.argv[1]]); time.sleep(600)"
async def until(condition):
    while not condition(): await asyncio.sleep(0.01)
def daemon():
    try: return int((folder / "p").read_text())
    except (OSError, ValueError): return 0
def alive(pid):
    try: return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError: return False
"""


def run(body: str, folder: Path) -> list[str]:
    """The lines that the script prints."""
    script = PRELUDE + "async def main():\n" + "\n".join(f"    {line}" for line in body.strip().splitlines())
    script += "\nasyncio.run(asyncio.wait_for(main(), 90))\n"
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_session_ends_only_after_everything_is_dead(tmp_path: Path) -> None:
    """Patroni is killed: when its session is ended, what it left is gone; only then it starts again."""
    body = """
seen = []
class Looking(Sessions):
    async def end(self):
        if daemon(): seen.append((alive(daemon()), it._processes.running))
        await super().end()
it = Life(program(DAEMON), Publisher(), Looking(), Database())
async with TaskScope() as scope:
    task = scope.start("life", it.run())
    await until(daemon)
    first = daemon()
    print(*story)
    story.clear()
    it._processes.signal(signal.SIGKILL)
    await until(lambda: "member/None" in story and daemon() not in (0, first))
    print(*story)
    print(*seen[:1])
    task.cancel()
print(alive(daemon()))
"""
    assert run(body, tmp_path) == [
        "session ended member/None",
        "-/None session ended member/None",
        "(False, False)",
        "False",
    ]


@pytest.mark.parametrize(("role", "ended"), [("primary", True), ("replica", False)])
def test_killed_postgresql_of_a_leader_ends_patroni(tmp_path: Path, role: str, ended: bool) -> None:
    """PostgreSQL dies with its PID file left behind: the leader's Patroni is ended at once, a replica's is not."""
    body = f"""
publisher = Publisher()
it = life(DAEMON, publisher)
async with TaskScope() as scope:
    task = scope.start("life", it.run())
    await until(daemon)
    it.on_event("on_start", {role!r})
    (folder / "postmaster.pid").write_text(f"{{daemon()}}\\n")
    old = it._processes._pid
    os.kill(daemon(), signal.SIGKILL)
    await until(lambda: it._claim is None)
    if {ended}:
        await until(lambda: it._processes._pid not in (old, None))
    print(it._processes._pid == old, publisher.wanted.role)
    task.cancel()
"""
    assert run(body, tmp_path) == [f"{not ended} None"]


def test_tag_follows_the_database(tmp_path: Path) -> None:
    """Announced as primary, it stays a replica until it accepts writes; when it stops, the tag goes at once."""
    body = """
publisher, database = Publisher(), Database()
it = life("time.sleep(600)", publisher, database)
async with TaskScope() as scope:
    task = scope.start("watch", it.watch())
    database.state = True
    it.on_event("on_start", "replica")
    await until(lambda: publisher.wanted.role == "replica")
    it.on_event("on_role_change", "primary")
    print(publisher.wanted.role, publisher.promised)
    database.state = False
    await until(lambda: publisher.wanted.role == "master")
    it.on_event("on_stop", "primary")
    print(publisher.wanted.role)
    database.state = None
    await until(lambda: not publisher.wanted.database)
    task.cancel()
"""
    assert run(body, tmp_path) == ["replica True", "None"]


def test_leader_that_shuts_down_stays_published_until_it_has(tmp_path: Path) -> None:
    """Its replicas still fetch the end of its log through the mesh; what is no leader is published as down at once."""
    body = """
lives.LOOK_SECONDS = 0.01
looks = []
class Counting(Database):
    async def in_recovery(self):
        looks.append(self.state)
        return await super().in_recovery()
publisher, database = Publisher(), Counting()
it = life("time.sleep(600)", publisher, database)
async with TaskScope() as scope:
    task = scope.start("watch", it.watch())
    database.state = False
    it.on_event("on_start", "primary")
    await until(lambda: publisher.wanted.role == "master")
    (folder / "postmaster.pid").write_text("1234\\n")
    database.state = None
    await until(lambda: looks[-5:] == [None] * 5)
    print(publisher.wanted.database, publisher.wanted.role)
    (folder / "postmaster.pid").unlink()
    await until(lambda: not publisher.wanted.database)
    print(publisher.wanted.role)
    (folder / "postmaster.pid").write_text("1234\\n")
    database.state = True
    it.on_event("on_start", "replica")
    await until(lambda: publisher.wanted.role == "replica")
    database.state = None
    await until(lambda: not publisher.wanted.database)
    task.cancel()
"""
    assert run(body, tmp_path) == ["True master", "None"]


@pytest.mark.parametrize(
    ("code", "killed"),
    [
        ("os.write(int(sys.argv[2]), b'.'); time.sleep(600)", True),
        ("time.sleep(600)", False),
        ("[(os.write(int(sys.argv[2]), b'.'), time.sleep(0.05)) for _ in range(9999)]", False),
    ],
    ids=["hangs", "never told any", "lives"],
)
def test_patroni_without_a_heartbeat_is_killed(tmp_path: Path, code: str, killed: bool) -> None:
    """One that told a heartbeat and then hangs is ended; one that never told any is waiting, and left alone."""
    body = f"""
lives.PROBE_SECONDS, lives.HANG_SECONDS = 0.05, 1.0
it = life({code!r})
async with TaskScope() as scope:
    tasks = [scope.start("life", it.run()), scope.start("guard", it.guard())]
    await until(lambda: it._processes.running)
    first = it._processes._pid
    end = it._now() + 5 * lives.HANG_SECONDS
    await until(lambda: it._processes._pid not in (first, None) or it._now() > end)
    print(it._processes._pid != first, it._processes.last_exit)
    for task in tasks: task.cancel()
"""
    assert run(body, tmp_path) == [f"{killed} {'SIGKILL' if killed else ''}".strip()]


POSTGRES = """
import os, pathlib, signal, sys, time
if os.fork(): os._exit(0)
os.setsid()
here = pathlib.Path(sys.argv[1])
def stop(*_):
    here.joinpath("asked").touch()
    if {ends}:
        here.joinpath("postmaster.pid").unlink()
        os._exit(0)
signal.signal(signal.SIGINT, stop)
here.joinpath("postmaster.pid").write_text(str(os.getpid()))
here.joinpath("p").write_text(str(os.getpid()))
while True: time.sleep(600)
"""
"""A program that takes SIGINT as PostgreSQL does, and lives on where it is told to."""

STOPPING = """
lives.LINGER_SECONDS = 0.3
(folder / "global").mkdir()
import struct
def control(state):
    head = struct.pack("@QIIiqQQI", 7, 1300, 1, state, 1, 1, 1, 1)
    (folder / "global" / "pg_control").write_bytes(head)
control(6)
publisher = Publisher()
publisher.key = {key}
it = life(DAEMON.replace("daemon.py", "postgres.py"), publisher)
reply = folder / "stop.77"
os.mkfifo(reply)
reader = os.open(reply, os.O_RDWR | os.O_NONBLOCK)
def answered():
    try: return os.read(reader, 9) == b"\\n"
    except BlockingIOError: return False
async with TaskScope() as scope:
    tasks = [scope.start("life", it.run()), scope.start("stops", it.stops())]
    await until(daemon)
    it.on_event("on_start", {role!r})
    it.on_stop("77")
    if not {ends} and {key}:
        await until((folder / "asked").exists)
        print("waits", answered())
        control(1)
    await until(answered)
    if {key} is False: await until((folder / "asked").exists)
    print((folder / "asked").exists(), alive(daemon()))
    for task in tasks: task.cancel()
"""


@pytest.mark.parametrize(
    ("role", "key", "ends", "said"),
    [
        ("primary", True, True, ["True False"]),
        ("primary", True, False, ["waits False", "True True"]),
        ("primary", None, True, ["True False"]),
        ("primary", False, False, ["True True"]),
        ("replica", True, True, ["False True"]),
    ],
    ids=["leader", "leader whose PostgreSQL lingers", "Consul is slow", "without its key", "replica"],
)
def test_leaders_database_is_stopped_before_patroni_goes_on(
    tmp_path: Path, role: str, key: bool | None, ends: bool, said: list[str]
) -> None:
    """The hook is answered when PostgreSQL has ended, or has long written its shutdown checkpoint. Whose the key is, is
    asked meanwhile: one that has lost it is left to Patroni, which stops it harder, and so is whoever does not lead.
    """
    (tmp_path / "postgres.py").write_text(POSTGRES.format(ends=ends))
    assert run(STOPPING.format(role=role, key=key, ends=ends), tmp_path) == said
