"""The process that becomes Patroni: a user that PostgreSQL accepts, then Patroni's own main program.

`python -m workloads.patroni.member CONFIG [DESCRIPTOR]`. What differs from `patroni CONFIG`:

- PostgreSQL refuses user 0, which is what a container's processes often are. A user namespace gives this process and
  its children another number; files stay those of the user outside. Where namespaces are refused, the process becomes
  the user of that name for real, and the folders it needs are given to it.
- The daemon is `workloads.patroni.remembering.RememberingPatroni`, a subclass of Patroni's. DESCRIPTOR is the pipe for
  its heartbeats.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import signal
import sys
from pathlib import Path

_CLONE_NEWUSER = 0x10000000  # linux/sched.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_USERS = ("postgres", "nobody", "daemon")
"""The first of these that the system has: PostgreSQL wants its user to have a name."""


def become_unprivileged(folders: tuple[Path, ...]) -> None:
    """Makes this process one that is not user 0, if it is. It has one thread still."""
    if os.geteuid() != 0:
        return
    user = _user()
    try:
        _map_user(user.pw_uid, user.pw_gid)
    except OSError:
        for folder in folders:
            _give(folder, user.pw_uid, user.pw_gid)
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)


def _user() -> pwd.struct_passwd:
    for name in _USERS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        if found.pw_uid != 0:
            return found
    raise SystemExit(f"patroni: the system has none of the users {', '.join(_USERS)}; add one: PostgreSQL refuses root")


def _map_user(uid: int, gid: int) -> None:
    """A user namespace in which user 0 of ours is `uid`. OSError where that is forbidden."""
    outside, outside_group = os.geteuid(), os.getegid()
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_CLONE_NEWUSER) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{uid} {outside} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{gid} {outside_group} 1", encoding="ascii")


def _give(folder: Path, uid: int, gid: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, gid, follow_symlinks=False)


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when `parent` ends. After the change of user, which would clear it."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(127)


def main(config_file: str, heartbeat: int | None) -> None:
    """Becomes Patroni, which writes its heartbeats to the descriptor `heartbeat`. Returns when it has ended."""
    parent = os.getppid()
    settings = json.loads(Path(config_file).read_text(encoding="utf-8"))["postgresql"]
    become_unprivileged((Path(config_file).parent, Path(settings["data_dir"]).parent))
    die_with_parent(parent)

    from patroni.daemon import abstract_main

    from workloads.patroni.remembering import RememberingPatroni

    class Member(RememberingPatroni):
        """Patroni with this process' pipe."""

    if heartbeat is not None:
        # Neither PostgreSQL nor a callback is to have it.
        os.set_inheritable(heartbeat, False)
        os.set_blocking(heartbeat, False)
        Member.heartbeat = heartbeat
    abstract_main(Member, config_file)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
