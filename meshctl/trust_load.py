"""Callers inside a lab's CVMs, and when a manifest that is set has come everywhere. IO: the lab, programs in it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lab.init import start_time
from meshctl import runs
from meshctl import status as statuses
from meshctl.errors import UserError
from meshctl.probes import Probe, ProbeError
from topology.envelope import SHOWN_DIGITS
from topology.model import COORDINATOR

ANSWER_SECONDS = 60.0
"""For a command to a caller; it is asked for things that take seconds."""
LOOK_SECONDS = 0.02
"""Between two looks at all CVMs: what is measured takes ten times as long."""
MOST_SECONDS = 0.2
"""The longest pause. Where a look takes longer than LOOK_SECONDS, as at 20 CVMs on two cores, the pause is as long as
it took: the looks are not to take the time of those whom they look at."""
ACCEPT_SECONDS = 300.0
"""Within which a coordinator enforces it: `./mesh set` asks it twice before, each time from a process of its own."""
FOLLOW_SECONDS = 30.0
"""Within which a manifest has come everywhere; less than a tenth of it is aimed at."""

Life = tuple[int, int, int]
"""A process: its PID, when it started, how often it was restarted."""


class Caller:
    """A `meshctl.trust_client` in the application container of a CVM."""

    def __init__(self, run: runs.Run, peer: str) -> None:
        self.peer = peer
        self._probe = Probe(run, peer, "meshctl.trust_client")

    def do(self, command: str, **fields: Any) -> Any:
        """One command; its answer. UserError when it failed, or took longer than ANSWER_SECONDS."""
        try:
            return self._probe.do(command, ANSWER_SECONDS, **fields)
        except ProbeError as error:
            raise UserError(str(error), f"./mesh logs {self.peer}", exit_code=1) from error

    def close(self) -> None:
        """Ends it."""
        self._probe.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """When a manifest came where; CLOCK_MONOTONIC."""

    set_at: float
    """The last look at which no coordinator enforced it yet: so it is not later than when one did."""
    everywhere: float
    """The first look at which every CVM that is waited for shows a certificate of its authority."""

    @property
    def seconds(self) -> float:
        """From the one to the other."""
        return self.everywhere - self.set_at


def follow(
    look: Callable[[], list[Mapping[str, Any]]],
    digest: str,
    peers: Collection[str],
    *,
    seconds: float = FOLLOW_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Spread:
    """Looks until each of `peers` shows a certificate of the manifest `digest`. UserError names those that do not
    within `seconds`, which begin when a coordinator enforces it.
    """
    shown = digest[:SHOWN_DIGITS]
    before = began = clock()
    accepted = False
    while True:
        at = clock()
        machines = look()
        if not accepted:
            accepted = any(
                machine["group"] == COORDINATOR and (machine["sidecar"] or {}).get("manifest_digest") == shown
                for machine in machines
            )
            before = before if accepted else at
        missing = set(peers) - set(_holders(machines, shown))
        if not missing:
            return Spread(set_at=before, everywhere=clock())
        if accepted and clock() > before + seconds:
            raise UserError(f"the manifest {shown} has not come to {', '.join(sorted(missing))}", "./mesh status")
        if not accepted and clock() > began + ACCEPT_SECONDS:
            raise UserError(f"no coordinator enforces the manifest {shown}", "./mesh status")
        time.sleep(min(max(LOOK_SECONDS, clock() - at), MOST_SECONDS))


def _holders(machines: list[Mapping[str, Any]], shown: str) -> Iterator[str]:
    for machine in machines:
        certificate = (machine["sidecar"] or {}).get("certificate")
        if certificate is not None and certificate["manifest_digest"] == shown:
            yield machine["peer_id"]


@contextlib.contextmanager
def following(run: runs.Run, digest: str, peers: Collection[str]) -> Iterator[Future[Spread]]:
    """`follow` beside what is done within the block."""

    def look() -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = run.call("GET", "/status")["machines"]
        return found

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(follow, look, digest, tuple(peers))


def processes(run: runs.Run, groups: Collection[str]) -> dict[str, Life]:
    """Every process of the CVMs of `groups` that has to go on: containers' first ones and sidecars' children."""
    found = {}
    for machine in statuses.collect(run)["machines"]:
        if machine["group"] not in groups:
            continue
        for container in machine["containers"]:
            found[f"{machine['machine']} {container['name']}"] = _life(container["host_pid"], container["restarts"])
        for name, child in ((machine["sidecar"] or {}).get("children") or {}).items():
            found[f"{machine['machine']} sidecar's {name}"] = _life(child["pid"], child["restarts"])
    return found


def _life(pid: int | None, restarts: int) -> Life:
    started = 0
    if pid is not None:
        with contextlib.suppress(OSError, IndexError):
            started = start_time(pid)
    return pid or 0, started, restarts
