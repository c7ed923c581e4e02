"""Routes of the environment: names and VIPs for the time before there is a manifest. Pure.

Nobody vouches for them. They lead nowhere, since nothing listens before an admission, and the first manifest takes
their place.
"""

from __future__ import annotations

import ipaddress
import reprlib
from dataclasses import dataclass

from runtime import values
from topology.addresses import DNS_ADDRESS, INGRESS_SOURCE, VIP_POOL
from topology.manifest import Manifest
from topology.names import why_no_label

_FORM = "{name, vip, port, role, backend, service}"
_TAKEN = (DNS_ADDRESS, INGRESS_SOURCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteHint:
    """One route as the environment has it."""

    name: str
    vip: str
    port: int
    role: str | None
    service: str


def parse(text: str) -> tuple[RouteHint, ...]:
    """The routes in the JSON list `text`. ValueError says what was expected."""
    return tuple(_route(item) for item in values.json_list(text, _FORM))


def _route(item: object) -> RouteHint:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise ValueError(f"holds {reprlib.repr(item)}, expected objects {_FORM}")
    name, vip, port = item["name"], item.get("vip"), item.get("port")
    if (reason := why_no_label(name)) is not None:
        raise ValueError(f"has a route whose name {reason}")
    if not isinstance(vip, str) or not _is_vip(vip):
        raise ValueError(f"has route {name!r} with the VIP {reprlib.repr(vip)}, expected one of {VIP_POOL}")
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise ValueError(f"has route {name!r} with port {reprlib.repr(port)}, expected 1 to 65535")
    role = item.get("role")
    return RouteHint(
        name=name, vip=vip, port=port, role=None if role is None else str(role), service=str(item.get("service"))
    )


def _is_vip(text: str) -> bool:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return address in ipaddress.IPv4Network(VIP_POOL) and str(address) not in _TAKEN


def differences(manifest: Manifest, hints: tuple[RouteHint, ...] | None) -> tuple[str, ...]:
    """How `hints` differ from the routes of `manifest`, which count. None say nothing."""
    if hints is None:
        return ()
    signed = {
        it.name: RouteHint(name=it.name, vip=it.vip, port=it.port, role=it.role, service=it.service)
        for it in manifest.routes
    }
    given = {hint.name: hint for hint in hints}
    found = [f"route {name!r} is not in the manifest" for name in sorted(given.keys() - signed.keys())]
    found += [f"route {name!r} of the manifest is missing" for name in sorted(signed.keys() - given.keys())]
    for name in sorted(given.keys() & signed.keys()):
        if signed[name] != given[name]:
            found.append(f"route {name!r} is {_told(given[name])}, and {_told(signed[name])} in the manifest")
    return tuple(f"{text}; the manifest counts" for text in found)


def _told(hint: RouteHint) -> str:
    role = f" ({hint.role})" if hint.role is not None else ""
    return f"{hint.vip}:{hint.port} of service {hint.service}{role}"
