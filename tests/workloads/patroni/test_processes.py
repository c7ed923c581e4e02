"""Certain death. Each test runs in a process of its own: the code under test reaps every child that it finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support import ROOT

PRELUDE = """
import asyncio, os, pathlib, signal, subprocess, sys, time
import psutil
from workloads.patroni import processes
from workloads.patroni.processes import Processes
folder = pathlib.Path(sys.argv[1])
# A daemon as PostgreSQL is one: its own session, an orphan, deaf to polite signals, with a child.
DAEMON = '''
import os, signal, sys, time
os.setsid()
if os.fork(): os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child: open(sys.argv[1], "w").write(f"{os.getpid()} {child}")
time.sleep(600)
'''
async def pids():
    while True:
        try:
            found = [int(word) for word in (folder / "pids").read_text().split()]
            if len(found) == 2: return found
        except OSError: pass
        await asyncio.sleep(0.01)
def start(made):
    run = "subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"
    code = f"import subprocess, sys, time; {run}; time.sleep(600)"
    return made.start((sys.executable, "-c", code, DAEMON, str(folder / "pids")), dict(os.environ))
"""


def run(body: str, folder: Path) -> str:
    """What the script prints."""
    script = PRELUDE + "async def main():\n" + "\n".join(f"    {line}" for line in body.strip().splitlines())
    script += "\nasyncio.run(asyncio.wait_for(main(), 90))\n"
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_clear_leaves_nothing_alive(tmp_path: Path) -> None:
    """After the program was killed, `clear` ends what it left, however detached, and returns when all is reaped."""
    body = """
with Processes(lambda pid: None) as made:
    start(made)
    family = await pids()
    made.signal(signal.SIGKILL)
    await made.ended()
    alive = [psutil.pid_exists(pid) for pid in family]
    await made.clear()
    print(made.last_exit, alive, [psutil.pid_exists(pid) for pid in family])
"""
    assert run(body, tmp_path) == "SIGKILL [True, True] [False, False]"


def test_end_of_a_detached_child_is_noticed(tmp_path: Path) -> None:
    """A daemon's first process becomes our child: its end is told the moment it comes, and it is no zombie after."""
    body = """
gone = asyncio.get_running_loop().create_future()
with Processes(lambda pid: gone.done() or pid != wanted or gone.set_result(pid)) as made:
    wanted = 0
    start(made)
    family = await pids()
    wanted = family[0]
    os.kill(wanted, signal.SIGKILL)
    print(await gone == wanted, psutil.pid_exists(wanted), made.running)
    await made.clear()
    print(made.running)
"""
    assert run(body, tmp_path) == "True False True\nFalse"


def test_exit_code_is_told(tmp_path: Path) -> None:
    """A program that ends by itself tells its code."""
    body = """
with Processes(lambda pid: None) as made:
    made.start((sys.executable, "-c", "raise SystemExit(3)"), dict(os.environ))
    await made.ended()
    print(made.last_exit, made.running)
"""
    assert run(body, tmp_path) == "exit code 3 False"


def test_predecessor_is_ended_only_where_it_is_one(tmp_path: Path) -> None:
    """The process in the PID file dies if it works in the data directory; a number that was reused is left alone."""
    body = """
data = folder / "data"; data.mkdir()
print(processes.end_predecessor(data))
code = "import time; time.sleep(600)"
other = subprocess.Popen([sys.executable, "-c", code])
(data / "postmaster.pid").write_text(f"{other.pid}\\n/somewhere\\n")
print(processes.end_predecessor(data), other.poll())
own = subprocess.Popen([sys.executable, "-c", code], cwd=data)
(data / "postmaster.pid").write_text(f"{own.pid}\\n{data}\\n")
print(processes.end_predecessor(data), psutil.pid_exists(own.pid))
other.kill(); other.wait()
(data / "postmaster.pid").write_text("garbage")
print(processes.postmaster_pid(data))
"""
    assert run(body, tmp_path) == "False\nFalse None\nTrue False\nNone"


def test_descendants_are_found_with_and_without_the_kernels_lists(tmp_path: Path) -> None:
    """However deep, and whoever of a parent's threads started them; nobody else, and nothing for one that is gone."""
    body = """
start_thread = 'import subprocess, sys, threading; '
start_thread += 'threading.Thread(target=lambda: subprocess.run([sys.executable, *sys.argv[1:]])).start()'
inner = "import pathlib, os, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
outside = subprocess.Popen(["sleep", "600"])
child = subprocess.Popen([sys.executable, "-c", start_thread, "-c", inner, str(folder / "pid")])
while not (folder / "pid").exists() or not (folder / "pid").read_text(): await asyncio.sleep(0.01)
grandchild = int((folder / "pid").read_text())
lists = processes.descendants(child.pid), set(processes.descendants(os.getpid()))
def no_lists(_): raise processes.NoListsError
processes._of_task = no_lists
scans = processes.descendants(child.pid), set(processes.descendants(os.getpid()))
print(lists == scans == ([grandchild], {child.pid, grandchild, outside.pid}))
os.kill(grandchild, 9), child.wait(), outside.kill(), outside.wait()
print(processes._children(child.pid))
"""
    assert run(body, tmp_path) == "True\n[]"
