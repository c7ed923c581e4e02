"""Patroni's daemon as a member of the mesh runs it: `MeshPatroni`, which `patroni.daemon.abstract_main` is given.

`Patroni.__init__` assigns its parts to the attributes `dcs`, `request` and `ha`. This subclass has properties of those
names: an assignment makes the mesh's own part, a subclass of the one that Patroni made. Nothing of Patroni's own
objects, classes or modules is changed. There is no public way to choose these classes: Patroni finds the DCS by the
name of a module in its own package (`patroni.dynamic_loader`).

- `dcs`: `workloads.patroni.dcs.MeshConsul`. The one that Patroni made is dropped. It has asked nothing and opened no
  session, because the configuration says `patronictl: true`, with which Patroni makes clients for its command line.
- `request`: a client of other members' REST that is patient only with those whom gossip has not given up.
- `ha`: refuses to let a leader go on without Consul when it knows of another leader, and does not start PostgreSQL on
  data that a pg_rewind left half changed (`workloads.patroni.rewinding`).

And each round of the loop writes a byte into the supervisor's pipe: by that it knows that Patroni lives.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from patroni import postgresql  # noqa: F401 -- before `patroni.ha`: the two import each other, this way round
from patroni.__main__ import Patroni
from patroni.ha import Ha
from patroni.request import PatroniRequest
from urllib3.exceptions import MaxRetryError, NewConnectionError
from urllib3.exceptions import TimeoutError as LateError

from workloads.patroni.dcs import Guard, MeshConsul, OpenGuard
from workloads.patroni.rewinding import MeshRewind

log = logging.getLogger(__name__)

GOSSIP_SECONDS = 0.5
"""For the question to the local agent whether gossip has given a member up."""
FIRST_SECONDS = 0.3
"""A member that has not answered within that time gets the rest of Patroni's 2 s only if gossip has not given it up."""
STATUS_SECONDS = 1.0
"""For the question to a member how far it is, when this one shuts down."""
STATUS_BYTES = 1 << 20
"""The longest answer that is read: the status of a member has about 2 kB, and some 200 bytes for each replica."""


def has_failed(checks: Any) -> bool:
    """Whether gossip has given a member up, by the answer of `/v1/health/node/<name>`. Pure."""
    return any(
        c.get("CheckID") == "serfHealth" and c.get("Status") == "critical" for c in checks if isinstance(c, dict)
    )


def consul_address(consul: dict[str, Any]) -> str:
    """Host and port of the agent, by Patroni's section for it. Pure.

    Patroni takes host and port apart in place, until its configuration is read again.
    """
    host = str(consul["host"])
    return host if ":" in host else f"{host}:{consul['port']}"


def ask_twice(ask: Callable[[float], Any], seconds: float, failed: Callable[[], bool]) -> Any:
    """The answer of `ask(seconds)`: asked briefly first, and for the rest of the time only where nobody has failed.

    `ask` raises TimeoutError where there is no answer in time, and whatever else it likes. Most answer the first time,
    and so nobody has to find out first who has failed.
    """
    brief = min(FIRST_SECONDS, seconds)
    try:
        return ask(brief)
    except TimeoutError:
        if seconds <= brief or failed():
            raise
    return ask(seconds - brief)


class Request(PatroniRequest):  # type: ignore[misc]
    """Patroni's client of other members' REST API.

    A lost CVM costs the standby that takes over 0.3 s, not Patroni's 2 s: a member that does not answer in that time
    is asked again only where gossip has not given it up. It is a hint about time alone: who is asked in vain counts as
    silent either way.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config, True)
        self._config = config

    def __call__(self, member: Any, *args: Any, **kwargs: Any) -> Any:
        """As Patroni has it."""
        if args or set(kwargs) != {"timeout", "retries"}:
            # No question how far it is.
            return super().__call__(member, *args, **kwargs)
        send = super().__call__

        def ask(seconds: float) -> Any:
            try:
                return send(member, timeout=seconds, retries=kwargs["retries"])
            except MaxRetryError as error:
                # To urllib3 a refusal is one that came too late, too.
                if isinstance(error.reason, LateError) and not isinstance(error.reason, NewConnectionError):
                    raise TimeoutError(str(error)) from error
                raise

        return ask_twice(ask, kwargs["timeout"], lambda: self._failed(member.name))

    def status(self, member: Any) -> Any:
        """What `member` says to `GET /patroni`, parsed. Raises where it is silent, or its answer cannot be read."""
        response = super().__call__(member, timeout=STATUS_SECONDS, retries=0, preload_content=False)
        try:
            body = response.read(STATUS_BYTES)
        finally:
            response.release_conn()
        return json.loads(body)

    def _failed(self, name: str) -> bool:
        consul = self._config["consul"]
        request = urllib.request.Request(
            f"http://{consul_address(consul)}/v1/health/node/{quote(name)}",
            headers={"X-Consul-Token": str(consul.get("token", ""))},
        )
        try:
            with urllib.request.urlopen(request, timeout=GOSSIP_SECONDS) as answer:
                failed = has_failed(json.load(answer))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("Consul does not say whether %s has failed: %r", name, error)
            return False
        log.info("%s does not answer, and gossip %s", name, "has given it up" if failed else "has not given it up")
        return failed


class MeshHa(Ha):  # type: ignore[misc]
    """Patroni's HA loop, with the mesh's pg_rewind."""

    def __init__(self, patroni: Patroni) -> None:
        super().__init__(patroni)
        self._rewind = MeshRewind(self.state_handler)

    @property
    def rewind_failed(self) -> bool:
        """Whether `pg_rewind` has failed, and the data are not to be used."""
        return self._rewind.failed

    def recover(self) -> str:
        """Starts a PostgreSQL that is down, as Patroni does; not on data that are to be set aside."""
        if self.rewind_failed:
            return "pg_rewind has failed: not starting PostgreSQL on these data"
        return str(super().recover())

    def update_failsafe(self, data: dict[str, Any]) -> int | str | None:
        """As Patroni has it: a text refuses the leader of `data`, who asks whether it may go on without Consul.

        Patroni agrees unless it is the leader itself, and then holds the asker for the leader for 20 s. One that was
        cut off and is back would keep everybody from taking over from the next leader for so long.
        """
        cluster = self.dcs.cluster
        leader = cluster.leader.name if cluster is not None and cluster.leader else None
        if leader and leader != data.get("name"):
            return f"{leader} leads"
        answer: int | str | None = super().update_failsafe(data)
        return answer


class MeshPatroni(Patroni):  # type: ignore[misc]
    """Patroni's daemon; see the module's docstring. A subclass may choose another `guard`."""

    heartbeat: ClassVar[int | None] = None
    """The supervisor's pipe, non-blocking; None: nobody listens."""
    _dcs: MeshConsul
    _request: Request
    _ha: MeshHa

    def guard(self) -> Guard:
        """Whoever says whether this member may lead. Called once, when `config` is there and nothing else."""
        return OpenGuard()

    @property
    def dcs(self) -> MeshConsul:
        """The DCS."""
        return self._dcs

    @dcs.setter
    def dcs(self, made: Any) -> None:
        section = {**self.config["consul"], "patronictl": False}
        data = Path(self.config["postgresql"]["data_dir"])
        self._dcs = MeshConsul(section, made.mpp, data=data, ask=self._ask, guard=self.guard())

    def _ask(self, member: Any) -> Any:
        # The DCS comes first, the client of the members after it.
        return self.request.status(member)

    @property
    def request(self) -> Request:
        """The client of other members' REST API."""
        return self._request

    @request.setter
    def request(self, _: Any) -> None:
        self._request = Request(self.config)

    @property
    def ha(self) -> MeshHa:
        """The HA loop."""
        return self._ha

    @ha.setter
    def ha(self, _: Any) -> None:
        self._ha = MeshHa(self)

    def _run_cycle(self) -> None:
        """One round of the loop, after a heartbeat."""
        if self.heartbeat is not None:
            # Full: the supervisor does not read just now, and will find enough.
            with contextlib.suppress(BlockingIOError):
                os.write(self.heartbeat, b".")
        super()._run_cycle()
