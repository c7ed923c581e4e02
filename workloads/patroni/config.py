"""Patroni's configuration as a value. Pure; the supervisor writes it, as JSON (which is YAML), for itself alone.

The numbers, and why:
- `ttl` 20 is Patroni's least; Consul turns it into a session of 10 s, its own least. It only bounds what neither the
  supervisor nor the coordinators see (`sessions`).
- `loop_wait` 2: a replica sleeps in a blocking query on the leader key, which a shorter pause would turn into polling.
- `retry_timeout` 5: a leader whose coordinators do not answer for so long asks its members whether it may go on.
- `primary_start_timeout` 0: a leader whose PostgreSQL crashed hands over instead of recovering in place.
- `wal-segsize` 1 (MB; PostgreSQL's own is 16): a promotion copies the last segment whole and waits until the disk has
  it. `min_wal_size` and `max_wal_size`, which initdb counts in segments, stay at PostgreSQL's own sizes.
- `authentication_timeout` 10 s, not a minute: before version 18 a shutdown waits for whoever has not said who he is.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The health check needs the names in here, and none of these.
    from runtime.secret import Secret
    from workloads.patroni.passwords import Passwords
    from workloads.patroni.settings import Settings

SUPERUSER = "postgres"
REPLICATION = "replicator"
REWIND = "rewinder"
REST_USER = "patroni"
NAMESPACE = "service"
CALLBACK = "callback.sh"
BEFORE_STOP = "before_stop.sh"
STOP_REPLY = "stop"
"""The pipe of one stop is called `stop.<number of the process that waits>`. The supervisor removes it."""
EVENTS = "events"
CONFIG = "patroni.yml"
PEER_SETTING = "mesh.peer_id"
"""A setting of the database that says whose it is: `SHOW mesh.peer_id`."""


def render(settings: Settings, passwords: Passwords, token: Secret, postgres_bin: Path) -> dict[str, object]:
    """The configuration of this member."""
    own = settings.identity
    return {
        "scope": own.cluster,
        "name": own.peer_id,
        "namespace": f"/{NAMESPACE}/",
        "log": {"level": "INFO", "format": "patroni %(asctime)s %(levelname)s %(message)s"},
        # On loopback only. Other members come through a route of the mesh, one for each member, that their own group
        # alone may call. What changes anything wants the password.
        "restapi": {
            "listen": f"127.0.0.1:{settings.rest_port}",
            "connect_address": f"{settings.rest_host}:{settings.rest_route[1]}",
            "authentication": {"username": REST_USER, "password": passwords.rest.reveal()},
        },
        # Of this project, not Patroni's: by whom the list of members is found (`members`).
        "mesh": {
            "hosts": str(settings.hosts),
            "route": settings.rest_route[0],
            "port": settings.rest_route[1],
        },
        # Of the client that Patroni makes itself, which is never used: it opens no session (`daemon`).
        "patronictl": True,
        "consul": {
            "host": f"127.0.0.1:{settings.consul_port}",
            "token": token.reveal(),
            "register_service": False,
            # A server that restarts alone leads before it has replayed its log. By default it answers meanwhile with
            # what was once: with an earlier leader, before which the present one would demote itself.
            "consistency": "consistent",
            # An empty list is honoured as it is: Consul's agent/session_endpoint.go, fixupEmptySessionChecks. Who ends
            # the session instead: `sessions`.
            "checks": [],
        },
        "bootstrap": {
            "dcs": _cluster_wide(settings),
            "initdb": [
                {"encoding": "UTF8"},
                {"locale": "C"},
                {"auth": "scram-sha-256"},
                {"wal-segsize": "1"},
                "data-checksums",
            ],
        },
        "postgresql": _postgresql(settings, passwords, postgres_bin),
    }


def leader_key(settings: Settings) -> str:
    """Patroni's leader key, as a path below `/v1/kv/`."""
    return f"{NAMESPACE}/{settings.identity.cluster}/leader"


def _cluster_wide(settings: Settings) -> dict[str, object]:
    """What the first member puts into Consul; later it is changed by `patronictl edit-config`."""
    return {
        "ttl": 20,
        "loop_wait": 2,
        "retry_timeout": 5,
        "maximum_lag_on_failover": 1 << 20,
        "primary_start_timeout": 0,
        "synchronous_mode": settings.synchronous,
        # With no coordinator left nobody can become leader: the leader goes on for as long as every member agrees.
        "failsafe_mode": True,
        "postgresql": {
            "use_pg_rewind": True,
            "use_slots": True,
            "parameters": {
                "wal_log_hints": "on",
                "max_wal_senders": 10,
                "max_replication_slots": 10,
                "wal_keep_size": "256MB",
                "min_wal_size": "80MB",
                "max_wal_size": "1GB",
            },
        },
    }


def _postgresql(settings: Settings, passwords: Passwords, postgres_bin: Path) -> dict[str, object]:
    # Read by a shell, not executed: a container's tmpfs is mounted noexec.
    callback = shlex.join(["/bin/sh", str(settings.run / CALLBACK)])
    accounts = {"superuser": (SUPERUSER, passwords.superuser), "replication": (REPLICATION, passwords.replication)}
    accounts["rewind"] = (REWIND, passwords.rewind)
    return {
        "listen": f"127.0.0.1:{settings.port}",
        # Every member gives the route, not itself: whoever follows the leader finds it through the mesh.
        "connect_address": f"{settings.follow[0]}:{settings.follow[1]}",
        "data_dir": str(settings.data),
        "bin_dir": str(postgres_bin),
        "pgpass": str(settings.run / "pgpass"),
        "use_unix_socket": True,
        "use_unix_socket_repl": True,
        "authentication": {
            # The peer link and mutual TLS are around it already; asking for TLS would cost a round trip.
            name: {"username": user, "password": password.reveal(), "sslmode": "disable"}
            for name, (user, password) in accounts.items()
        },
        "parameters": {
            "unix_socket_directories": str(settings.run),
            "password_encryption": "scram-sha-256",
            "authentication_timeout": "10s",
            # Shared memory in /dev/shm would outlive a process that is killed; files in the data directory do not.
            "dynamic_shared_memory_type": "mmap",
            # The mesh moves the name first: ask again soon, not after 5 s.
            "wal_retrieve_retry_interval": "500ms",
            "wal_receiver_timeout": "10s",
            "wal_sender_timeout": "10s",
            "log_statement": "none",
            "logging_collector": "off",
            PEER_SETTING: settings.identity.peer_id,
        },
        # Callers come from the ingress Envoy, which has checked who they are and dials from a loopback address. The
        # superuser has no business there.
        "pg_hba": [
            "local all all scram-sha-256",
            "local replication all scram-sha-256",
            f"host all {SUPERUSER} all reject",
            f"host replication {REPLICATION} 127.0.0.0/8 scram-sha-256",
            "host all all 127.0.0.0/8 scram-sha-256",
        ],
        "callbacks": dict.fromkeys(("on_start", "on_stop", "on_restart", "on_role_change"), callback),
        "before_stop": shlex.join(["/bin/sh", str(settings.run / BEFORE_STOP)]),
        "basebackup": [{"checkpoint": "fast"}],
        # Data may be the only copy of a history: they are set aside, not removed (`aside`). Said here, because what the
        # member itself says overrules what an operator writes into Consul (`patronictl edit-config`).
        "remove_data_directory_on_rewind_failure": False,
        "remove_data_directory_on_diverged_timelines": False,
    }


_CALLBACK = """\
#!/bin/sh
# Written by the supervisor; Patroni calls it with action, role and scope.
printf '%s %s\\n' "$1" "$2" >'{events}'
"""


def callback_script(events: Path) -> str:
    """The program that Patroni starts at a role change: one write into a pipe, about a millisecond."""
    return _CALLBACK.format(events=events)


_BEFORE_STOP = """\
#!/bin/sh
# Written by the supervisor; Patroni calls it before it stops PostgreSQL, and waits for its end. It returns when the
# supervisor has stopped PostgreSQL itself, or leaves that to Patroni.
reply='{reply}'.$$
mkfifo -m 600 "$reply" || exit 0
exec 3<>"$reply"
printf 'before_stop %s\\n' "$$" >'{events}'
read -r answer <&3
"""


def before_stop_script(run: Path) -> str:
    """Patroni's hook `before_stop`: tells the supervisor, and waits for a line in a pipe of its own."""
    return _BEFORE_STOP.format(reply=run / STOP_REPLY, events=run / EVENTS)
