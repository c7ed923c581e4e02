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
    async def in_catalog(self, *, healthy): story.append(f"catalog {healthy}")
class Database:
    state = None
    async def in_recovery(self):
        if self.state is None: raise DatabaseDownError("none")
        return self.state
def program(code):
    argv = (sys.executable, "-c", "import subprocess, sys, time; " + code, str(folder))
    return Program(argv=argv, env=dict(os.environ), data=folder, rest=("127.0.0.1", 1))
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


def test_check_turns_critical_only_after_everything_is_dead(tmp_path: Path) -> None:
    """Patroni is killed: when the member is published as gone, what it left is gone too; then it starts again."""
    body = """
publisher = Publisher()
seen = []
original = publisher.want
def want(**changes):
    if changes.get("member") is False and daemon(): seen.append(alive(daemon()))
    original(**changes)
publisher.want = want
it = Life(program(DAEMON), publisher, Database())
async with TaskScope() as scope:
    task = scope.start("life", it.run())
    await until(daemon)
    first = daemon()
    story.clear()
    it._processes.signal(signal.SIGKILL)
    await until(lambda: story.count("catalog True") == 1 and daemon() not in (0, first))
    print(*story)
    print(*seen[:1])
    task.cancel()
print(alive(daemon()))
"""
    assert run(body, tmp_path) == ["-/None catalog False member/None catalog True", "False", "False"]


@pytest.mark.parametrize(("role", "ended"), [("primary", True), ("replica", False)])
def test_killed_postgresql_of_a_leader_ends_patroni(tmp_path: Path, role: str, ended: bool) -> None:
    """PostgreSQL dies with its PID file left behind: the leader's Patroni is ended at once, a replica's is not."""
    body = f"""
publisher = Publisher()
it = Life(program(DAEMON), publisher, Database())
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
it = Life(program("time.sleep(600)"), publisher, database)
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
it = Life(program("time.sleep(600)"), publisher, database)
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


def test_patroni_without_a_heartbeat_is_killed(tmp_path: Path) -> None:
    """One that told a heartbeat and then hangs is ended; one that never told any is waiting, and left alone."""
    body = """
lives.PROBE_SECONDS, lives.HANG_SECONDS = 0.05, 0.3
answers, told = False, []
async def beats(host, port):
    told.append(answers)
    return answers
lives._beats = beats
it = Life(program("time.sleep(600)"), Publisher(), Database())
async with TaskScope() as scope:
    tasks = [scope.start("life", it.run()), scope.start("guard", it.guard())]
    await until(lambda: it._processes.running)
    first = it._processes._pid
    await until(lambda: len(told) > 2 * lives.HANG_SECONDS / lives.PROBE_SECONDS)
    print(it._processes._pid == first)
    answers = True
    await until(lambda: any(told))
    answers = False
    await until(lambda: it._processes._pid not in (first, None))
    print(it._processes.last_exit)
    for task in tasks: task.cancel()
"""
    assert run(body, tmp_path) == ["True", "SIGKILL"]
