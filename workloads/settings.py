"""What a demo program reads from its surroundings: name, port, address. IO: environment, `/run/mesh`, `/proc`."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

IDENTITY_FILE = Path("/run/mesh/identity.json")
PLATFORM_INTERFACE = "dstack-wg0"
"""The interface at which dstack's gateway dials a CVM (dstack.md 5)."""
_ROUTES_FILE = Path("/proc/net/route")
_SIOCGIFADDR = 0x8915
"""ioctl: IPv4 address of an interface (linux/sockios.h)."""
_MAX_FANOUT = 256


class SettingsError(Exception):
    """The operator's mistake in an environment variable; the message says what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one demo program is set up."""

    peer: Callable[[], str]
    """The peer ID, as of now: a CVM may become another peer while its programs run."""
    port: int
    public: str | None
    """Host address on which it listens besides 127.0.0.1; None: nowhere else."""
    target: str
    """The URL that it calls."""
    samples: int
    """Calls per fan-out."""


def read(environ: Mapping[str, str], *, port: int, target: str, target_variable: str, public: bool) -> Settings:
    """The settings from `PORT`, `FANOUT_N`, `PUBLIC_BIND` and `target_variable`; the arguments are the defaults."""
    return Settings(
        peer=partial(peer_name, environ, IDENTITY_FILE),
        port=_integer(environ, "PORT", port, 65535),
        public=public_address(environ.get("PUBLIC_BIND") or ("auto" if public else "off")),
        target=environ.get(target_variable) or target,
        samples=_integer(environ, "FANOUT_N", 8, _MAX_FANOUT),
    )


def service_url(environ: Mapping[str, str], name: str, default: str) -> str:
    """The base URL of a service to call, `http://HOST:PORT`, from the variable `name`. SettingsError for another."""
    text = environ.get(name) or default
    found = re.fullmatch(r"http://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", text)
    if found is None or not 1 <= int(found[2]) <= 65535:
        raise SettingsError(f"{name} is {text!r}, expected http://HOST:PORT, such as {default}")
    return text


def peer_name(environ: Mapping[str, str], identity: Path) -> str:
    """The peer ID that the sidecar wrote, else `PEER_ID`, else the host's name."""
    try:
        found = json.loads(identity.read_bytes())
    except (OSError, ValueError):
        found = None
    name = found.get("peer_id") if isinstance(found, dict) else None
    return name if isinstance(name, str) and name else environ.get("PEER_ID") or socket.gethostname()


def public_address(choice: str) -> str | None:
    """The address for `PUBLIC_BIND`: `auto`, `off` or an IPv4 address. None when nothing public is wanted or there.

    A wildcard is refused: it would take the port on the mesh address and the VIPs too.
    """
    if choice == "off":
        return None
    if choice == "auto":
        default = default_interface(_ROUTES_FILE)
        return interface_address(PLATFORM_INTERFACE) or (interface_address(default) if default else None)
    try:
        address = ipaddress.IPv4Address(choice)
    except ValueError as error:
        raise SettingsError(f"PUBLIC_BIND is {choice!r}, expected auto, off or an IPv4 address") from error
    if address.is_unspecified or address.is_loopback:
        raise SettingsError(
            f"PUBLIC_BIND is {choice!r}, expected one address of the host's interface: a wildcard takes the port "
            "on the mesh address too, and loopback is served anyway; try auto"
        )
    return choice


def default_interface(routes: Path) -> str | None:
    """The interface of the IPv4 default route with the lowest metric, from a file such as `/proc/net/route`."""
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return None
    # Iface Destination Gateway Flags RefCnt Use Metric Mask …
    rows = [line.split() for line in lines]
    defaults = [(int(row[6]), row[0]) for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"]
    return min(defaults)[1] if defaults else None


def interface_address(name: str) -> str | None:
    """The first IPv4 address of interface `name`; None when there is no such interface or it has none."""
    import fcntl

    request = struct.pack("256s", name[:15].encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        try:
            answer = fcntl.ioctl(handle.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def _integer(environ: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise SettingsError(f"{name} is {text!r}, expected a whole number from 1 to {most}")
    return int(text)
