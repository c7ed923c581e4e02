"""An operator's word that voters outside the manifest are gone: `python -m coordinator recover`. IO: files, the status
socket.

The word is a file in the private folder (`MESH_STATE_DIR`) with the mesh addresses that it gives up. It holds for ten
minutes, or until it is used, so that it never settles a loss that comes later.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from topology.manifest import ManifestError, from_tree

log = logging.getLogger(__name__)

FILE = "given-up.json"
HOLDS_SECONDS = 600.0
"""How long the word holds, by the file's age: the server looks every 0.5 s and goes on alone after 10 s."""
ASK_SECONDS = 5.0
"""For the status of the coordinator, on the same machine."""


def given_up(state_dir: Path) -> frozenset[str]:
    """Mesh addresses that an operator gave up; none without a word that holds."""
    path = state_dir / FILE
    try:
        if not 0.0 <= time.time() - path.stat().st_mtime <= HOLDS_SECONDS:
            return frozenset()
        addresses: tuple[str, ...] = from_tree(tuple[str, ...], json.loads(path.read_text(encoding="utf-8")), FILE)
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, ManifestError) as error:
        log.warning("the operator's word cannot be read", extra={"reason": str(error)})
        return frozenset()
    return frozenset(addresses)


def use_up(state_dir: Path) -> None:
    """Ends the word. OSError."""
    (state_dir / FILE).unlink(missing_ok=True)


def give(state_dir: Path, addresses: Iterable[str]) -> None:
    """Leaves the word for the coordinator. OSError."""
    partial = state_dir / f".{FILE}.new"
    partial.write_text(json.dumps(list(addresses)), encoding="utf-8")
    partial.replace(state_dir / FILE)


def recover(state_dir: Path, accept_loss: bool, confirm: Callable[[str], bool]) -> tuple[bool, list[str]]:
    """Gives up the voters for which the coordinator of `state_dir` waits: whether it is done, and what to say."""
    try:
        status = _status(state_dir / "status.sock")
        peer_id, reasons = status["peer_id"], "; ".join(status["reasons"]) or "none"
        outside: tuple[str, ...] = from_tree(tuple[str, ...], status["outside_voters"], "outside_voters")
    except (OSError, HTTPException, ValueError, KeyError, TypeError, ManifestError) as error:
        return False, [f"the coordinator does not say what it waits for, in {state_dir}: {error!r}"]
    if not outside:
        return False, [f"{peer_id} does not wait for a word; its reasons: {reasons}"]
    names = ", ".join(outside)
    lines = [
        f"{peer_id} has no leader; its cluster has voters that the manifest does not list: {names}",
        f"may be lost: every write that they acknowledged while {peer_id} had no contact with them",
        f"stop them for good first: if they run, they take {peer_id} back, and what it acknowledged alone is lost",
    ]
    if not accept_loss:
        return False, [*lines, "nothing was changed; to go on, repeat it with --accept-loss"]
    if not confirm("\n".join([*lines, f"Let {peer_id} go on alone?"])):
        return False, ["nothing was changed"]
    give(state_dir, outside)
    minutes = HOLDS_SECONDS / 60
    return True, [*lines, f"{peer_id} goes on alone in some 10 s; the word holds for {minutes:.0f} minutes"]


def _status(status_socket: Path) -> Any:
    """The status document of our own coordinator."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ASK_SECONDS)
        connection.connect(str(status_socket))
        http = HTTPConnection("coordinator")
        http.sock = connection
        http.request("GET", "/status")
        return json.loads(http.getresponse().read())
