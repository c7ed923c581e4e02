"""What was found about machines, so that it is found once: certificates, quoting enclave and TCB are the same in every
quote of a machine, and a verification of them costs nine times as much as the signature of the one quote. Pure.

A verdict holds for quotes that differ from the verified one in nothing but what the CVM says of itself
(`quote.machine`), under the very collateral, for `KEPT_SECONDS`. Each quote's own signature is verified each time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from . import quote as quotes

T = TypeVar("T")

KEPT_SECONDS = 300.0
"""For so long a verdict counts at most. Newer collateral, and the end of what it rests on, end it at once; a machine is
looked at as a whole again this often all the same, as far as clocks may differ (`coordinator.policy.CLOCK_SKEW`)."""
MAX_VERDICTS = 1024
"""Machines and OS images; the one that was not asked for longest goes. Some 10 MiB, nearly all of it collateral that is
kept anyway."""
_ECDSA = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class _Verdict(Generic[T]):
    found: T
    collateral: object
    verified_at: float
    ends_at: float
    key: ec.EllipticCurvePublicKey


class Verdicts(Generic[T]):
    """Verdicts of type `T`, by machine."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, _Verdict[T]] = OrderedDict()

    def find(self, raw: bytes, quote: quotes.Quote, collateral: object, now: float) -> T | None:
        """What was found about the machine of the quote `raw`, which was read as `quote`, where that counts at `now`
        and the quote's own signature holds. None: it has to be verified as a whole.
        """
        name = _name(raw, quote)
        known = self._kept.get(name)
        if known is None:
            return None
        if known.collateral is not collateral or not known.verified_at <= now < known.ends_at:
            del self._kept[name]
            return None
        self._kept.move_to_end(name)
        message, signature, _ = quotes.signature(raw, quote)
        der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
        try:
            known.key.verify(der, message, _ECDSA)
        except InvalidSignature:
            return None
        return known.found

    def keep(
        self, raw: bytes, quote: quotes.Quote, collateral: object, found: T, *, now: float, ends_at: float
    ) -> None:
        """Keeps what was found when the quote `raw` was verified as a whole, at `now`, with `collateral`. Something
        that it rests on ends at `ends_at`. Both are Unix seconds.
        """
        *_, key = quotes.signature(raw, quote)
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + key)
        self._kept[_name(raw, quote)] = _Verdict(found, collateral, now, min(ends_at, now + KEPT_SECONDS), public)
        if len(self._kept) > MAX_VERDICTS:
            self._kept.popitem(last=False)


def _name(raw: bytes, quote: quotes.Quote) -> bytes:
    return hashlib.sha256(quotes.machine(raw, quote)).digest()
