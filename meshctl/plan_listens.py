"""What listens where, as a plan prints it: for each backend its ports, how it is reached there, and by whom. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from meshctl.plan_calls import names_of
from meshctl.plan_snapshot import Snapshot
from topology.public import GATEWAY, HTTP2, MTLS, OFF, TLS, WILDCARD, covers

ANYBODY = "anybody"
"""Who may call a public listener."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One port of each CVM of a group."""

    backend: str
    """`group/backend`."""
    place: str
    """`mesh`, `public` or `loopback`."""
    port: int
    mode: str
    """MTLS, TLS, or OFF for plain TCP that the mesh does not serve."""
    called_by: tuple[str, ...]
    """Groups, EVERYBODY, or ANYBODY."""
    names: tuple[str, ...] = ()
    """What its certificate says, where it is public."""
    alpn: tuple[str, ...] = ()
    """What it offers, where it is public."""

    def row(self) -> tuple[str, str, str, str]:
        """The cells of a table: backend, where, mode, called by."""
        modes = {MTLS: "mutual TLS", TLS: f"TLS as {', '.join(self.names)}", OFF: "off: no TLS, not served by the mesh"}
        return self.backend, f"{self.place}, port {self.port}", modes[self.mode], names_of(self.called_by)


def listeners(snapshot: Snapshot) -> tuple[Listener, ...]:
    """In the order of the backends. Of a snapshot that knows no backends: nothing."""
    return tuple(_listeners(snapshot))


def _listeners(snapshot: Snapshot) -> Iterator[Listener]:
    for name, facts in (snapshot.backends or {}).items():
        if facts["ingress"] == OFF:
            own = (name.partition("/")[0],)
            yield Listener(backend=name, place="loopback", port=facts["port"], mode=OFF, called_by=own)
            continue
        callers = tuple(facts["callers"])
        yield Listener(backend=name, place="mesh", port=facts["sidecar_port"], mode=MTLS, called_by=callers)
        public = facts["public"]
        if public is not None:
            yield Listener(
                backend=name,
                place="public",
                port=public["port"],
                mode=TLS,
                called_by=(ANYBODY,),
                names=tuple(public["sans"]),
                alpn=tuple(public["alpn"]),
            )


def warnings(snapshot: Snapshot) -> Iterator[str]:
    """What a person should know before it is so."""
    found = listeners(snapshot)
    off = [it.backend for it in found if it.mode == OFF]
    if off:
        yield (
            f'no TLS and no mesh for {", ".join(off)} (ingress = "{OFF}"): meant for programs of its own CVM; its '
            "server has to bind 127.0.0.1, for on any other address it answers others in clear"
        )
    wide = [f"{name} ({it.backend})" for it in found for name in it.names if name.startswith(WILDCARD)]
    if wide:
        yield (
            f"certificates for every name of a domain: {', '.join(wide)}; whoever takes such a CVM over can speak for "
            "all of them"
        )
    for one, other, name in _coalesced([it for it in found if it.place == "public"]):
        yield (
            f"{name} is in the certificates of {one} and {other}: who speaks HTTP/2 to {one} may send it what is meant "
            f"for {other}, where both have one address and port, as behind the gateway (RFC 9113, 9.1.1); leave it to "
            "one of them"
        )


def _coalesced(found: list[Listener]) -> Iterator[tuple[str, str, str]]:
    """Listeners that offer HTTP/2, others, and names of those for which the first ones' certificate is good, too; each
    two once. A client that has a connection for one name takes it for each other name that the certificate has.
    """
    said: set[tuple[frozenset[str], str]] = set()
    for one in found:
        for other in found if HTTP2 in one.alpn and len(one.names) > 1 else ():
            for name in other.names if other is not one else ():
                both = frozenset((one.backend, other.backend)), name
                if both not in said and name != GATEWAY and any(covers(san, name) or san == name for san in one.names):
                    said.add(both)
                    yield one.backend, other.backend, name
