"""From a group's egresses in the manifest to what Envoy is told of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from topology.addresses import DNS_ADDRESS, DNS_PORT
from topology.egress import MESH, EgressEntry, listen_of, remote_of, server_name
from xds.spec import Endpoint, Outside

RESOLVER = Endpoint(address=DNS_ADDRESS, port=DNS_PORT)
"""Whom Envoy asks for names outside: the sidecar's DNS, which asks the machine's resolvers, as it does for programs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialled:
    """What programs may dial beside the routes' VIPs."""

    doors: Mapping[str, tuple[Endpoint, ...]]
    """Route name to the further addresses that lead there, sorted."""
    outside: tuple[Outside, ...]
    rootless: tuple[str, ...]
    """Names of egresses to servers outside that cannot be: they pin no certificates, and there are none here."""


def dialled(entries: Iterable[EgressEntry], roots_file: str | None) -> Dialled:
    """What `entries` say; `roots_file` is where public authorities' certificates are, None where there are none."""
    doors: dict[str, list[Endpoint]] = {}
    outside, rootless = [], []
    for entry in entries:
        if entry.tls == MESH:
            doors.setdefault(remote_of(entry.remote).host, []).append(Endpoint(*listen_of(entry.listen)))
        elif entry.ca is None and roots_file is None:
            rootless.append(entry.name)
        else:
            outside.append(_outside(entry, roots_file))
    return Dialled(
        doors={name: tuple(sorted(places)) for name, places in doors.items()},
        outside=tuple(outside),
        rootless=tuple(rootless),
    )


def _outside(entry: EgressEntry, roots_file: str | None) -> Outside:
    remote = remote_of(entry.remote)
    return Outside(
        name=entry.name,
        listen=Endpoint(*listen_of(entry.listen)),
        host=remote.host,
        port=remote.port,
        server_name=server_name(entry),
        roots_pem=entry.ca,
        roots_file=roots_file if entry.ca is None else None,
    )
