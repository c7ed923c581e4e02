"""The process that becomes Patroni: a user that PostgreSQL accepts, then Patroni's own main program.

`python -m workloads.patroni.member CONFIG`. What differs from `patroni CONFIG`:

- PostgreSQL refuses user 0, which is what a container's processes often are. A user namespace gives this process and
  its children another number; files stay those of the user outside. Where namespaces are refused, the process becomes
  the user of that name for real, and the folders it needs are given to it.
- A member that has not said within 0.3 s how far it is gets its 2 s only if gossip does not call it failed: that is
  what took the leader key away, and the one who held it is most likely gone. One that lives after all, a false alarm,
  answers in time.
- How a leader gives its key away, how a standby watches, waits, takes the key and takes over: see `handover`, `watch`,
  `standby`, `acquire`, `takeover`.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import pwd
import signal
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from workloads.patroni import acquire, handover, standby, takeover, watch

log = logging.getLogger(__name__)

_CLONE_NEWUSER = 0x10000000  # linux/sched.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_USERS = ("postgres", "nobody", "daemon")
"""The first of these that the system has: PostgreSQL wants its user to have a name."""
_ASK_SECONDS = 0.5
_FIRST_SECONDS = 0.3


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


def consul_address(consul: dict[str, Any]) -> str:
    """Host and port of the agent, by Patroni's section for it. Pure.

    Patroni takes host and port apart in place, until its configuration is read again.
    """
    host = str(consul["host"])
    return host if ":" in host else f"{host}:{consul['port']}"


def _checks_of(name: str, consul: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://{consul_address(consul)}/v1/health/node/{quote(name)}",
        headers={"X-Consul-Token": str(consul.get("token", ""))},
    )
    with urllib.request.urlopen(request, timeout=_ASK_SECONDS) as answer:
        return json.load(answer)


def ask_twice(ask: Callable[[float], Any], seconds: float, failed: Callable[[], bool]) -> Any:
    """The answer of `ask(seconds)`: asked briefly first, and for the rest of the time only where nobody has failed.

    `ask` raises TimeoutError where there is no answer in time, and whatever else it likes. Most answer the first time,
    and so nobody has to find out first who has failed.
    """
    brief = min(_FIRST_SECONDS, seconds)
    try:
        return ask(brief)
    except TimeoutError:
        if seconds <= brief or failed():
            raise
    return ask(seconds - brief)


def main(config_file: str) -> None:
    """Becomes Patroni. Returns when it has ended."""
    parent = os.getppid()
    settings = json.loads(Path(config_file).read_text(encoding="utf-8"))["postgresql"]
    become_unprivileged((Path(config_file).parent, Path(settings["data_dir"]).parent))
    die_with_parent(parent)

    from patroni.__main__ import Patroni
    from patroni.daemon import abstract_main
    from patroni.request import PatroniRequest
    from urllib3.exceptions import MaxRetryError, NewConnectionError
    from urllib3.exceptions import TimeoutError as LateError

    class Request(PatroniRequest):  # type: ignore[misc]
        """Patroni's client to other members; see the module's docstring."""

        def __init__(self, config: Any) -> None:
            super().__init__(config, True)
            self._config = config

        def __call__(self, member: Any, *args: Any, **kwargs: Any) -> Any:
            if args or set(kwargs) != {"timeout", "retries"}:
                # No question how far it is.
                return super().__call__(member, *args, **kwargs)

            def ask(seconds: float) -> Any:
                try:
                    return super(Request, self).__call__(member, timeout=seconds, retries=kwargs["retries"])
                except MaxRetryError as error:
                    # To urllib3 a refusal is one that came too late, too.
                    if isinstance(error.reason, LateError) and not isinstance(error.reason, NewConnectionError):
                        raise TimeoutError(str(error)) from error
                    raise

            return ask_twice(ask, kwargs["timeout"], lambda: self._failed(member.name))

        def _failed(self, name: str) -> bool:
            try:
                failed = has_failed(_checks_of(name, self._config["consul"]))
                log.info(
                    "%s does not answer, and gossip %s", name, "has given it up" if failed else "has not given it up"
                )
                return failed
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("Consul does not say whether %s has failed: %r", name, error)
                return False

    class Member(Patroni):  # type: ignore[misc]
        """Patroni with that client."""

        def __init__(self, config: Any, logger: Any) -> None:
            super().__init__(config, logger)
            self.request = Request(config)
            watch.hasten(self.dcs)
            standby.steady(self.dcs, self.ha)
            handover.hasten(self.dcs, self.postgresql, self.ha)
            takeover.hasten(self.dcs, self.postgresql, self.ha)
            acquire.hasten(self.dcs, self.ha)

    abstract_main(Member, config_file)


if __name__ == "__main__":
    main(sys.argv[1])
