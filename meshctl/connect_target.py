"""What `./mesh connect` needs of a proven manifest: where a route is public, and what a failure there means. Pure."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from meshctl.errors import UserError
from meshctl.runs import nearest
from topology.manifest import Manifest
from topology.public import WILDCARD, Public, covers, gateway_bases, gateway_name

Ports = Mapping[tuple[str, int], int]
"""Of a lab, whose gateway has no name here: group and its port → the port of this machine that leads there."""
GATEWAY_PORT = 443
"""Where dstack's gateway takes TLS."""
LOOPBACK = "127.0.0.1"
"""Where a lab's ports are."""
_NAMES = frozenset({62, 64})
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH (x509_vfy.h)."""
_TIMES = frozenset({9, 10})
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A public listener."""

    route: str
    name: str
    """What the certificate has to be for, and what the server is asked for (SNI)."""
    host: str
    """Where it is dialled."""
    port: int

    @property
    def place(self) -> str:
        """For messages."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def target_of(
    manifest: Manifest, route: str, name: str | None, to: tuple[str, int] | None, ports: Ports | None = None
) -> Target:
    """Where `route` is public by `manifest`. `name` is the one of its names to ask for; None: the gateway's, else the
    first that a client can check. `to` is where to dial; None: at the gateway, or where the name is, or in a lab, which
    has `ports`, at its port. UserError.
    """
    group, app_id, public = _public(manifest, route)
    gateways = [gateway_name(app_id, public.port, base) for base in gateway_bases(app_id, public)]
    names = [*gateways, *(san for san in public.sans if san not in gateways and "://" not in san)]
    if name is None:
        name = next((san for san in names if not san.startswith(WILDCARD)), None)
        if name is None:
            raise UserError(
                f"{route} has no name that could be checked by itself: {', '.join(public.sans)}", "--as NAME says which"
            )
    elif not any(covers(san, name.lower()) for san in names):
        raise UserError(f"{route} has no certificate for {name!r:.100}: it has {', '.join(names)}", "--as one of them")
    if to is None and ports is not None:
        to = LOOPBACK, _port_in_lab(ports, group, public.port)
    host, port = to or (name, GATEWAY_PORT if name in gateways else public.port)
    return Target(route=route, name=name, host=host, port=port)


def _port_in_lab(ports: Ports, group: str, port: int) -> int:
    """The port of this machine that leads to public `port` of `group`. UserError."""
    if (group, port) not in ports:
        named = [f"{LOOPBACK}:{here} leads to {name}, port {inside}" for (name, inside), here in sorted(ports.items())]
        there = "; ".join(named) or "it has none"
        raise UserError(
            f"the lab has no port of this machine that leads to {group}, port {port}: {there}",
            "a lab has one for each group that is public when it begins, to its lowest public port; ./mesh down and "
            "./mesh up, or --to HOST:PORT",
        )
    return ports[group, port]


def _public(manifest: Manifest, route: str) -> tuple[str, str, Public]:
    """Group, app ID and public listener of what `route` leads to. UserError."""
    found = next((entry for entry in manifest.routes if entry.name == route), None)
    if found is None:
        names = [entry.name for entry in manifest.routes]
        raise UserError(
            f"the proven manifest, of epoch {manifest.epoch}, has no route {route!r:.100}", nearest(route, names)
        )
    group = manifest.groups[found.group]
    public = group.backends[found.backend].public
    if public is None:
        others = [
            entry.name for entry in manifest.routes if manifest.groups[entry.group].backends[entry.backend].public
        ]
        told = f"public are {', '.join(others)}" if others else "nothing in it is"
        raise UserError(
            f"{route} is not public in the proven manifest, of epoch {manifest.epoch}: {told}",
            'ingress = "tls" and public = { … } in cluster.tf make it so (docs/public.md)',
        )
    return found.group, group.app_id, public


def place_of(text: str, option: str) -> tuple[str, int]:
    """`HOST:PORT`, an IPv6 address in brackets. UserError."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]") if host.startswith("[") and host.endswith("]") else host
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else -1
    if not colon or not bare or (":" in bare) != host.startswith("[") or not 0 <= number <= 65535:
        raise UserError(f"{option} is {text!r:.100}, expected HOST:PORT", f"{option} 127.0.0.1:8443")
    return bare, number


def listen_of(text: str) -> tuple[str, int]:
    """Where to listen: on loopback, as what is sent there is in clear. Port 0: one that is free. UserError."""
    host, port = place_of(text, "--listen")
    try:
        inside = ip_address(host).is_loopback
    except ValueError:
        inside = False
    if not inside:
        raise UserError(
            f"--listen is {text!r:.100}: what programs send there is in clear, so it has to be an address of loopback",
            "--listen 127.0.0.1:8443",
        )
    return host, port


def refusal(error: BaseException, target: Target, epoch: int, *, by_root: bool) -> str:
    """Why there is no connection to `target`, for a person, from what a TLS client raised. What was to verify it: the
    mesh CA of the manifest of `epoch`, or the root CA (`by_root`).
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        told = f"the certificate at {target.place} does not verify ({error.verify_message})"
        if error.verify_code in _NAMES:
            return f"{told}: it is not for {target.name}"
        if error.verify_code in _TIMES:
            return f"{told}: compare this machine's clock"
        issuer = "the mesh's root CA" if by_root else f"the mesh CA of epoch {epoch}"
        again = "" if by_root else "another manifest is in force, and ./mesh verify shows which; or "
        return f"{told}: {issuer} has not issued it: {again}something else answers there"
    if isinstance(error, TimeoutError):
        return f"no answer from {target.place} in time"
    if isinstance(error, ssl.SSLError):
        return f"{target.place} does not speak TLS as it should: {error}"
    return f"{target.place} cannot be reached: {error}"
