"""The process that becomes Patroni: a user that PostgreSQL accepts, then Patroni's own main program.

`python -m workloads.patroni.member CONFIG`. Two things differ from `patroni CONFIG`:

- PostgreSQL refuses user 0, which is what a container's processes often are. A user namespace gives this process and
  its children another number; files stay those of the user outside. Where namespaces are refused, the process becomes
  the user of that name for real, and the folders it needs are given to it.
- A member that Consul's gossip calls failed is not asked how far it is. The answer would be 2 s of silence, at the very
  moment at which a leader was lost. Whether it may still be leader is not decided by asking it: the leader key is.
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
from typing import Any

_CLONE_NEWUSER = 0x10000000  # linux/sched.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_USERS = ("postgres", "nobody", "daemon")
"""The first of these that the system has: PostgreSQL wants its user to have a name."""
_FAILED = 4
"""serf's status of a member that no longer answers (hashicorp/serf, MemberStatus)."""
_ASK_SECONDS = 0.5


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


def has_failed(name: str, members: Any) -> bool:
    """Whether member `name` is failed in the agent's answer to `/v1/agent/members`. Pure."""
    return any(m.get("Name") == name and m.get("Status") == _FAILED for m in members if isinstance(m, dict))


def _ask_agent(consul: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://{consul['host']}/v1/agent/members", headers={"X-Consul-Token": str(consul.get("token", ""))}
    )
    with urllib.request.urlopen(request, timeout=_ASK_SECONDS) as answer:
        return json.load(answer)


def main(config_file: str) -> None:
    """Becomes Patroni. Returns when it has ended."""
    parent = os.getppid()
    settings = json.loads(Path(config_file).read_text(encoding="utf-8"))["postgresql"]
    become_unprivileged((Path(config_file).parent, Path(settings["data_dir"]).parent))
    die_with_parent(parent)

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
                failed = has_failed(member.name, _ask_agent(self._config["consul"]))
            except (OSError, ValueError, KeyError):
                failed = False
            if failed:
                raise ConnectionError(f"gossip says that {member.name} has failed")
            return super().__call__(member, *args, **kwargs)

    class Member(Patroni):  # type: ignore[misc]
        """Patroni with that client."""

        def __init__(self, config: Any, logger: Any) -> None:
            super().__init__(config, logger)
            self.request = Request(config)

    abstract_main(Member, config_file)


if __name__ == "__main__":
    main(sys.argv[1])
