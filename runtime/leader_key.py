"""What a workload says in the flags of its leader key. Pure.

Who holds the key leads; whether it serves already is another question, for a promotion comes between. A second place
to say it (a tag) would be a second thing to write, and to wait for: so the holder writes its own key once more, with a
flag. Another holder takes the key without flags, so that what was said goes with the one who said it. Consul keeps the
64 bits for the application and Patroni leaves them at 0.
"""

from __future__ import annotations

SERVES = 0x6D657368
"""The holder takes requests of its role. ASCII for "mesh", so that nobody else's flags are taken for it."""


def flags(*, serves: bool) -> int:
    """The key's flags for what its holder says."""
    return SERVES if serves else 0


def serves(found: object) -> bool:
    """What flags say, as Consul answers with them; anybody else's say nothing."""
    return found == SERVES
