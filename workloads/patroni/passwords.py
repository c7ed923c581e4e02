"""The passwords of the database's own roles, derived from the app's key: the same in every replica, stored nowhere.

One key per cluster comes from the guest agent (`GetKey`, the same for all CVMs of one app); each password is an HMAC of
it, so that none of them says anything about another.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from runtime.guest import GuestAgent
from runtime.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Passwords:
    """One for each purpose."""

    superuser: Secret
    replication: Secret
    rewind: Secret
    rest: Secret
    """Of Patroni's REST API: what changes anything there asks for it."""


def key_path(cluster: str) -> str:
    """The path to derive the key at."""
    return f"cvm-mesh/patroni/{cluster}"


def derive(key: Secret) -> Passwords:
    """The passwords that follow from `key` (hex digits). Pure."""

    def one(purpose: str) -> Secret:
        return Secret(hmac.digest(bytes.fromhex(key.reveal()), purpose.encode(), hashlib.sha256).hex())

    return Passwords(superuser=one("superuser"), replication=one("replication"), rewind=one("rewind"), rest=one("rest"))


async def fetch(guest: GuestAgent, cluster: str) -> Passwords:
    """The passwords of `cluster`. GuestError when the agent cannot be asked."""
    return derive(await guest.key(key_path(cluster), purpose="patroni"))
