"""What a workload that keeps its own registration may ask of Consul's HTTP API: a table of calls, and what each may
carry. Pure.

The calls are those that the template promises such a workload: its service and its checks, its keys, its sessions, and
looking at the health of services. Whatever is not in the table is refused. What is in it goes on to the agent with the
workload's own token, so Consul's rights (`coordinator.tokens`) judge it once more.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from sidecar.registration import service_id
from topology.manifest import RESERVED_KEYS, GroupEntry

MAX_OPERATIONS = 64
"""Of one transaction; Consul's own limit is 128, Patroni sends two."""
QUERY = frozenset({
    "acquire", "cached", "cas", "consistent", "filter", "flags", "hash", "index", "keys", "max_age", "near",
    "node-meta", "note", "passing", "raw", "recurse", "release", "replace-existing-checks", "separator", "stale",
    "tag", "wait",
})  # fmt: skip
"""Names that a query may have, as Consul's documents spell them. `token` is none: a token belongs into a header."""
_SERVICE = frozenset({
    "id", "name", "tags", "address", "port", "meta", "check", "checks", "enabletagoverride", "weights",
    "taggedaddresses",
})  # fmt: skip
_CHECK = frozenset({
    "checkid", "deregistercriticalserviceafter", "failuresbeforecritical", "failuresbeforewarning", "http", "interval",
    "name", "notes", "status", "successbeforepassing", "tcp", "timeout", "ttl",
})  # fmt: skip
"""Of a check. Its workload reports it (TTL), or the agent dials one of the workload's own ports. Everything else makes
the agent start programs, follow another's check, or dial by the CVM's network whatever the workload names."""
_SESSION = frozenset({"node", "name", "ttl", "lockdelay", "behavior", "checks", "nodechecks", "servicechecks"})
_OPERATION: Mapping[str, type] = {
    "verb": str, "key": str, "value": str, "flags": int, "index": int, "session": str,
}  # fmt: skip
"""Of a transaction, with what each is. Go takes a list of numbers for a value, too: its length would be another."""


class RefusedError(Exception):
    """The call is not one that a workload may make. The message says why, for its author."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What one CVM's workload may touch."""

    peer_id: str
    services: Mapping[str, str]
    """ID of each service that it registers → its name."""
    ports: frozenset[int]
    """Where its own servers listen on 127.0.0.1."""
    prefixes: tuple[str, ...]
    """Of its keys."""
    sessions: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that may go on, as it is to be sent: what was judged, and nothing else."""

    method: str
    path: str
    """Decoded."""
    body: bytes


def rights(peer_id: str, entry: GroupEntry) -> Rights:
    """The rights of the workload in the CVM `peer_id` of the group `entry`."""
    own = [backend for _, backend in sorted(entry.backends.items()) if backend.owner == "workload"]
    prefixes = {prefix for backend in own for prefix in backend.permissions.key_prefixes}
    return Rights(
        peer_id=peer_id,
        services={service_id(backend, peer_id): backend.service for backend in own},
        ports=frozenset(backend.port for backend in own),
        prefixes=tuple(sorted(prefix for prefix in prefixes if not prefix.startswith(RESERVED_KEYS))),
        sessions=any(backend.permissions.session_write for backend in entry.backends.values()),
    )


def judge(rights: Rights, method: str, raw_path: str, query: Mapping[str, str], body: bytes) -> Call:
    """The call that is to be made for this request. RefusedError when it is none that a workload may make."""
    try:
        path = unquote(raw_path, errors="strict")
    except UnicodeDecodeError:
        raise RefusedError("the path is not UTF-8") from None
    # Consul would tidy such a path up, and then it is another one.
    if any(part in (".", "..") for part in path.split("/")) or "//" in path:
        raise RefusedError(f"the path {path!r:.200} has '//', '.' or '..' in it; expected a plain one")
    strange = sorted(query.keys() - QUERY)
    if strange:
        raise RefusedError(f"the query has {strange[0]!r:.80}; expected {', '.join(sorted(QUERY))}")
    for verb, prefix, check in _TABLE:
        rest = path.removeprefix(prefix)
        if method == verb and path.startswith(prefix) and (not rest or prefix.endswith("/")):
            return Call(method=method, path=path, body=check(rights, rest, body))
    raise RefusedError(
        f"{method} {path!r:.200} is not what a workload may ask here; it may register its service and checks, use its "
        "keys and sessions, and look at the health of services"
    )


_Check = Callable[[Rights, str, bytes], bytes]
"""(rights, rest of the path, body) → the body to send; RefusedError when it may not be."""


def _any(_: Rights, rest: str, body: bytes) -> bytes:
    if not rest or "/" in rest:
        raise RefusedError("expected one name at the end of the path")
    return body


def _alone(_: Rights, __: str, body: bytes) -> bytes:
    return body


def _key(rights: Rights, rest: str, body: bytes) -> bytes:
    if not rest.startswith(rights.prefixes):
        raise RefusedError(
            f"the key {rest!r:.200} is not the workload's; expected one that begins with "
            f"{' or '.join(map(repr, rights.prefixes)) or 'nothing: it has none'} (key_prefixes of the backend)"
        )
    return body


def _own_service(rights: Rights, rest: str, body: bytes) -> bytes:
    if rest not in rights.services:
        raise RefusedError(f"the service ID {rest!r:.200} is not the workload's; expected {_ids(rights)}")
    return body


def _register(rights: Rights, _: str, body: bytes) -> bytes:
    tree = _object(body, _SERVICE)
    own = rights.services.get(str(tree.get("id")))
    if own is None or tree.get("name") != own:
        raise RefusedError(
            f"ID {reprlib.repr(tree.get('id'))} with Name {reprlib.repr(tree.get('name'))} is not the "
            f"workload's service; expected {_ids(rights)}"
        )
    if tree.get("check") is not None:
        tree["check"] = _check(rights, tree["check"])
    if tree.get("checks") is not None:
        if not isinstance(tree["checks"], list):
            raise RefusedError("Checks is no list")
        tree["checks"] = [_check(rights, check) for check in tree["checks"]]
    return _bytes(tree)


def _check(rights: Rights, check: object, more: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The definition of a check, as it may go on."""
    tree = _fields(check, _CHECK | more)
    ports = sorted(rights.ports)
    tcp, http = tree.get("tcp"), tree.get("http")
    if tcp is not None and tcp not in [f"127.0.0.1:{port}" for port in ports]:
        raise RefusedError(f"the check dials {reprlib.repr(tcp)}; expected TCP at 127.0.0.1 and a port out of {ports}")
    if http is not None:
        starts = tuple(f"{scheme}://127.0.0.1:{port}" for scheme in ("http", "https") for port in ports)
        # What follows the port is a path or nothing: neither a further digit nor '@', which would make a host of it.
        if not isinstance(http, str) or not any(http == start or http.startswith(f"{start}/") for start in starts):
            raise RefusedError(
                f"the check asks {reprlib.repr(http)}; expected HTTP at 127.0.0.1 and a port out of {ports}"
            )
        # The server that is asked could send the agent anywhere.
        tree["disableredirects"] = True
    return tree


def _register_check(rights: Rights, _: str, body: bytes) -> bytes:
    tree = _check(rights, _parse(body), frozenset({"id", "serviceid"}))
    if str(tree.get("serviceid")) not in rights.services:
        raise RefusedError(
            f"ServiceID {reprlib.repr(tree.get('serviceid'))} is not the workload's service; expected {_ids(rights)}"
        )
    return _bytes(tree)


def _session(rights: Rights) -> None:
    if not rights.sessions:
        raise RefusedError("the workload has no sessions; session_write of its backend says so")


def _one_session(rights: Rights, rest: str, body: bytes) -> bytes:
    _session(rights)
    return _any(rights, rest, body)


def _own_node(rights: Rights, rest: str, body: bytes) -> bytes:
    if rest != rights.peer_id:
        raise RefusedError(f"the node {rest!r:.100} is another one; expected {rights.peer_id!r}")
    _session(rights)
    return body


def _new_session(rights: Rights, _: str, body: bytes) -> bytes:
    _session(rights)
    tree = _object(body, _SESSION) if body else {}
    if tree.get("node", rights.peer_id) != rights.peer_id:
        raise RefusedError(f"the session's Node is {reprlib.repr(tree['node'])}, expected {rights.peer_id!r} or none")
    return _bytes(tree) if body else body


def _transaction(rights: Rights, _: str, body: bytes) -> bytes:
    calls = _parse(body)
    if not isinstance(calls, list) or len(calls) > MAX_OPERATIONS:
        raise RefusedError(f"expected a list of at most {MAX_OPERATIONS} operations")
    made = []
    for call in calls:
        operation = _fields(_fields(call, frozenset({"kv"})).get("kv"), frozenset(_OPERATION))
        for name, value in operation.items():
            _typed(name, value)
        _key(rights, operation.get("key") or "", b"")
        made.append({"KV": operation})
    return _bytes(made)


def _typed(name: str, value: object) -> None:
    wanted = _OPERATION[name]
    # An escape that is half of a character is none for Go, which reads another one there.
    half = isinstance(value, str) and any("\ud800" <= each <= "\udfff" for each in value)
    if half or (value is not None and type(value) is not wanted):
        what = "text" if wanted is str else "a whole number"
        raise RefusedError(f"the operation's {name} is {reprlib.repr(value)}; expected {what}, or null")


def _ids(rights: Rights) -> str:
    return ", ".join(f"ID {own!r} with Name {name!r}" for own, name in rights.services.items()) or "none: it has none"


def _object(body: bytes, names: frozenset[str] | None = None) -> dict[str, Any]:
    return _fields(_parse(body), names)


def _fields(tree: object, names: frozenset[str] | None = None) -> dict[str, Any]:
    """The object by the names of its fields as Consul compares them: it cares for neither case nor '_'."""
    if not isinstance(tree, dict):
        raise RefusedError("the body has another shape than Consul's documents say; expected an object")
    found = {name.replace("_", "").lower(): value for name, value in tree.items()}
    if len(found) != len(tree):
        raise RefusedError("the body names a field twice")
    strange = sorted(found.keys() - names) if names is not None else []
    if strange:
        raise RefusedError(f"the body has the field {strange[0]!r:.80}; expected {', '.join(sorted(names or ()))}")
    return found


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError("the body is not JSON") from None


def _bytes(tree: object) -> bytes:
    return json.dumps(tree).encode()


_TABLE: tuple[tuple[str, str, _Check], ...] = (
    ("GET", "/v1/kv/", _key),
    ("PUT", "/v1/kv/", _key),
    ("DELETE", "/v1/kv/", _key),
    ("PUT", "/v1/txn", _transaction),
    ("GET", "/v1/health/service/", _any),
    ("GET", "/v1/health/checks/", _any),
    ("GET", "/v1/health/node/", _any),
    ("GET", "/v1/catalog/service/", _any),
    ("GET", "/v1/catalog/services", _alone),
    ("GET", "/v1/catalog/node/", _any),
    ("GET", "/v1/catalog/nodes", _alone),
    ("GET", "/v1/agent/services", _alone),
    ("GET", "/v1/agent/service/", _own_service),
    ("PUT", "/v1/agent/service/register", _register),
    ("PUT", "/v1/agent/service/deregister/", _own_service),
    ("PUT", "/v1/agent/check/register", _register_check),
    # Whose check it is, the agent knows: the token may write those of the workload's services only.
    ("PUT", "/v1/agent/check/deregister/", _any),
    ("PUT", "/v1/agent/check/update/", _any),
    ("PUT", "/v1/agent/check/pass/", _any),
    ("PUT", "/v1/agent/check/warn/", _any),
    ("PUT", "/v1/agent/check/fail/", _any),
    ("PUT", "/v1/session/create", _new_session),
    ("PUT", "/v1/session/renew/", _one_session),
    ("PUT", "/v1/session/destroy/", _one_session),
    ("GET", "/v1/session/info/", _one_session),
    ("GET", "/v1/session/node/", _own_node),
)
"""Method, beginning of the path (all of it, where it does not end in '/'), what it may carry."""
