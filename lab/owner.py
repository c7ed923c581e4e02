"""The owner of a lab: keeps the key that signs for it, and gives each coordinator that waits for one its manifest.

What `./mesh set` does for a deployment, without the evidence: the lab made the CVM itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from admission.protocol import ADMISSION_PORT
from coordinator.waiting import PHASE
from lab.control import ask

log = logging.getLogger("lab.owner")

SOON_SECONDS = 0.05
"""Between two looks at a coordinator that has just booted."""
LATER_SECONDS = 2.0
"""And at one that has a manifest: its container may start anew before its disk has it."""
CALL_SECONDS = 10.0

MakeSocket = Callable[[], socket.socket]
"""A TCP socket in the network from which the coordinators are reached."""


def keep(folder: Path, owner: Ed25519PrivateKey, envelope: str) -> None:
    """Leaves the owner's key and the first manifest in the lab's `folder`, so that `./mesh set` can sign the next one.
    The key is worth nothing beyond this lab.
    """
    pem = owner.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    for name, text in (("owner.pem", pem), ("manifest.signed", envelope)):
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """A coordinator of the lab."""

    name: str
    status_socket: Path
    runs: Callable[[], bool]
    """Whether its machine does."""
    address: Callable[[], str]
    """Where its broker is reached with a socket of the owner's."""


async def give(coordinator: Coordinator, envelope: str, make_socket: MakeSocket) -> None:
    """Sets `envelope` on `coordinator` whenever it waits for one, for as long as its machine runs."""
    while coordinator.runs():
        document = await ask(coordinator.status_socket)
        if document is not None and document.get("phase") == PHASE and coordinator.runs():
            try:
                sock = make_socket()
                await asyncio.to_thread(post, sock, coordinator.address(), envelope)
                log.info("manifest set coordinator=%s", coordinator.name)
            except (OSError, HTTPException) as error:
                log.warning("manifest not set yet coordinator=%s reason=%r", coordinator.name, error)
        known = document is not None and document.get("manifest_epoch") is not None
        await asyncio.sleep(LATER_SECONDS if known else SOON_SECONDS)


def post(sock: socket.socket, address: str, envelope: str) -> None:
    """Sets `envelope` on the coordinator at `address`, over `sock`. OSError, HTTPException."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with sock:
        sock.settimeout(CALL_SECONDS)
        sock.connect((address, ADMISSION_PORT))
        with context.wrap_socket(sock) as tls:
            connection = HTTPSConnection(address, context=context)
            connection.sock = tls
            connection.request("POST", "/v1/manifest", json.dumps({"envelope": envelope}))
            with connection.getresponse() as answer:
                if answer.status != 200:
                    raise HTTPException(f"{answer.status}: {answer.read(1000)!r}")
