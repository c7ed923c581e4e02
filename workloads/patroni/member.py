"""The process that becomes Patroni: a user that PostgreSQL accepts, then Patroni's own main program.

`python -m workloads.patroni.member CONFIG`. Three things differ from `patroni CONFIG`:

- PostgreSQL refuses user 0, which is what a container's processes often are. A user namespace gives this process and
  its children another number; files stay those of the user outside. Where namespaces are refused, the process becomes
  the user of that name for real, and the folders it needs are given to it.
- A member whose `serfHealth` is critical is given 0.3 s to say how far it is, not 2 s: that is what took the leader
  key away, and the one who held it is most likely gone. One that lives after all, a false alarm, answers in time.
- A PostgreSQL that is told to stop is looked at every 10 ms, not once a second: most of a switchover's pause was that.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import signal
import sys
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

_CLONE_NEWUSER = 0x10000000  # linux/sched.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_USERS = ("postgres", "nobody", "daemon")
"""The first of these that the system has: PostgreSQL wants its user to have a name."""
_ASK_SECONDS = 0.5
_FAILED_SECONDS = 0.3
_STOP_LOOK_SECONDS = 0.01


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


def has_failed(checks: Any) -> bool:
    """Whether gossip has given a member up, by the answer of `/v1/health/node/<name>`. Pure.

    By what the servers hold, since that is what ended the session; the local agent may hear of it later.
    """
    return any(
        c.get("CheckID") == "serfHealth" and c.get("Status") == "critical" for c in checks if isinstance(c, dict)
    )


def _checks_of(name: str, consul: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://{consul['host']}/v1/health/node/{quote(name)}",
        headers={"X-Consul-Token": str(consul.get("token", ""))},
    )
    with urllib.request.urlopen(request, timeout=_ASK_SECONDS) as answer:
        return json.load(answer)


def hasten_stop(patroni_postgresql: ModuleType, postgresql: Any) -> None:
    """Has Patroni notice soon that its PostgreSQL has ended.

    `on_shutdown` is for a PostgreSQL that has shut down and still archives, which ours never does; it begins with a
    second of sleep that a leader would be caught in whenever it is looked at within the last moments of its PostgreSQL.
    """
    patroni_postgresql.STOP_POLLING_INTERVAL = _STOP_LOOK_SECONDS  # type: ignore[attr-defined]
    stop = postgresql.stop

    def without_archiving(*args: Any, **kwargs: Any) -> Any:
        return stop(*args, **{**kwargs, "on_shutdown": None})

    postgresql.stop = without_archiving


def main(config_file: str) -> None:
    """Becomes Patroni. Returns when it has ended."""
    parent = os.getppid()
    settings = json.loads(Path(config_file).read_text(encoding="utf-8"))["postgresql"]
    become_unprivileged((Path(config_file).parent, Path(settings["data_dir"]).parent))
    die_with_parent(parent)

    from patroni import postgresql
    from patroni.__main__ import Patroni
    from patroni.daemon import abstract_main
    from patroni.request import PatroniRequest

    class Request(PatroniRequest):  # type: ignore[misc]
        """Patroni's client to other members; see the module's docstring."""

        def __init__(self, config: Any) -> None:
            super().__init__(config, True)
            self._config = config

        def __call__(self, member: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                failed = has_failed(_checks_of(member.name, self._config["consul"]))
            except (OSError, ValueError, KeyError, TypeError):
                failed = False
            if failed:
                kwargs["timeout"] = _FAILED_SECONDS
            return super().__call__(member, *args, **kwargs)

    class Member(Patroni):  # type: ignore[misc]
        """Patroni with that client."""

        def __init__(self, config: Any, logger: Any) -> None:
            super().__init__(config, logger)
            self.request = Request(config)
            hasten_stop(postgresql, self.postgresql)

    abstract_main(Member, config_file)


if __name__ == "__main__":
    main(sys.argv[1])
