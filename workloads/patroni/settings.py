"""What the supervisor reads from its environment and from the sidecar's `identity.json`. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.env import ConfigError, EnvReader, Problem

PREFIX = "POSTGRES_"
_ROLE = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_SECRET = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
RESERVED_ROLES = frozenset({"postgres", "replicator", "rewinder"})
"""The roles that Patroni logs in as (`workloads.patroni.config`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppUser:
    """A database role of an application: its password is a workload secret that the manifest grants."""

    role: str
    """Also the name of the database that it owns."""
    secret: str
    """Name of the file in the folder of secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this member is."""

    cluster: str
    peer_id: str
    address: str
    """Mesh address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one member is set up."""

    identity: Identity
    service: str
    """The Consul service that the members register: the backend's `registration.parent`."""
    data: Path
    """PostgreSQL's data directory; its parent is a volume that outlives the container."""
    run: Path
    """Private folder on tmpfs: configuration, sockets, password file."""
    secrets: Path
    guest: Path
    port: int
    rest_port: int
    rest_route: tuple[str, int]
    """Name of the route that has an instance for each slot, and its port: the members' REST interfaces."""
    hosts: Path
    """The mesh's hosts file, which lists every slot's instance of that route."""
    rest_host: str
    """Name under which the other members reach this member's REST API: the route of this slot."""
    follow: tuple[str, int]
    """Host and port at which members reach the leader: a role route."""
    consul_port: int
    synchronous: bool
    users: tuple[AppUser, ...]


def read(environ: Mapping[str, str], identity: str) -> Settings:
    """The settings from the variables and the text of `identity.json`. ConfigError lists everything that is wrong."""
    reader = EnvReader(environ, PREFIX)
    own = _identity(identity, reader)
    rest_port = reader.optional("POSTGRES_REST_PORT", _port, 8008)
    rest_route = reader.optional("POSTGRES_REST_ROUTE", _route, ("patroni", 0))
    settings = Settings(
        identity=own,
        service=reader.optional("POSTGRES_SERVICE", _service, own.cluster),
        data=reader.optional("POSTGRES_DATA", _folder, Path("/pgdata/data")),
        run=reader.optional("POSTGRES_RUN", _folder, Path("/run/patroni")),
        secrets=reader.optional("POSTGRES_SECRETS", _folder, Path("/run/mesh/secrets")),
        guest=reader.optional("POSTGRES_GUEST_AGENT", _folder, Path("/var/run/dstack.sock")),
        port=reader.optional("POSTGRES_PORT", _port, 5432),
        rest_port=rest_port,
        rest_route=(rest_route[0], rest_route[1] or rest_port),
        hosts=reader.optional("POSTGRES_HOSTS", _folder, Path("/run/mesh/hosts")),
        rest_host=member_route(rest_route[0], own.peer_id),
        follow=reader.optional("POSTGRES_FOLLOW", _host_port, ("postgres-master", 5432)),
        consul_port=reader.optional("POSTGRES_CONSUL_PORT", _port, 8500),
        synchronous=reader.optional("POSTGRES_SYNCHRONOUS", _switch, True),
        users=reader.optional("POSTGRES_USERS", _users, ()),
    )
    # There is no other source on purpose: a password in the environment is one that the host can read and change.
    reader.required("DERIVE_PATRONI_PASSWORDS", _one, True, '"1": the passwords are derived inside the TEE')
    reader.finish()
    return settings


def member_route(route: str, peer_id: str) -> str:
    """The route of one slot: a route with `members = true` becomes one for each, `<route>-<index of the slot>`."""
    return f"{route}-{peer_id.rpartition('-')[2]}"


def _identity(text: str, reader: EnvReader) -> Identity:
    try:
        tree = json.loads(text)
        found = Identity(cluster=tree["cluster"], peer_id=tree["peer_id"], address=tree["address"])
        ipaddress.IPv4Address(found.address)
        if not all(isinstance(tree[name], str) and tree[name] for name in ("cluster", "peer_id")):
            raise ValueError("cluster and peer_id must be text")
    except (ValueError, KeyError, TypeError) as error:
        reader.problems.append(
            Problem("identity.json", f"cannot be read ({error!r}); expected cluster, peer_id and a mesh address")
        )
        return Identity(cluster="", peer_id="", address="")
    return found


def _route(text: str) -> tuple[str, int]:
    name, colon, port = text.partition(":")
    return _service(name), _port(port) if colon else 0


def _service(text: str) -> str:
    if not _SECRET.fullmatch(text):
        raise ValueError(f"is {text!r}, expected the name of a Consul service")
    return text


def _folder(text: str) -> Path:
    if not text.startswith("/"):
        raise ValueError(f"is {text!r}, expected an absolute path")
    return Path(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ValueError(f"is {text!r}, expected a port from 1 to 65535")
    return int(text)


def _host_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[A-Za-z0-9.-]+", host):
        raise ValueError(f"is {text!r}, expected HOST:PORT, such as postgres-master:5432")
    return host, _port(port)


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"is {text!r}, expected on or off")
    return text == "on"


def _one(text: str) -> bool:
    if text != "1":
        raise ValueError(f'is {text!r}, expected "1": there is no other source of passwords')
    return True


def _users(text: str) -> tuple[AppUser, ...]:
    found = []
    for item in text.replace(",", " ").split():
        role, equals, secret = item.partition("=")
        if not equals or not _ROLE.fullmatch(role) or not _SECRET.fullmatch(secret):
            raise ValueError(f"has {item!r}, expected ROLE=SECRET, such as webdemo=db-webdemo")
        if role in RESERVED_ROLES or role.startswith("pg_"):
            raise ValueError(f"has the role {role!r}, which belongs to the database itself; choose another")
        found.append(AppUser(role=role, secret=secret))
    if len({user.role for user in found}) != len(found):
        raise ValueError(f"is {text!r}, which names a role twice")
    return tuple(found)


__all__ = ["PREFIX", "RESERVED_ROLES", "AppUser", "ConfigError", "Identity", "Settings", "read"]
