"""Collateral: Intel's signed statements (TCB info, QE identity, revocation lists) that a quote is judged by, and where
they come from.

`HttpCollateral` asks a PCCS (Intel's caching service protocol, version 4). dcap_qvl's own fetcher is not used:
processes that called it can crash at exit, and it caches nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import reprlib
import ssl
import urllib.parse
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

import dcap_qvl

from .errors import EvidenceError
from .quote import certificates

if TYPE_CHECKING:
    import aiohttp

MAX_AGE = 3600.0
"""Seconds after which collateral is fetched again although it is still in date."""
RETRY_AFTER = 30.0
"""Seconds between attempts while a fetch fails and the last good collateral still serves."""
FAILURE_MEMORY = 1.0
"""Seconds that a failure without anything to fall back on is remembered, so that waiters do not each wait for the next
one."""
TIMEOUT = 10.0
"""Seconds for all four requests together."""
MAX_ANSWER = 1024 * 1024
"""Bytes of one answer's body. Real ones: TCB info about 8 kB, the longest revocation list about 200 kB."""
MAX_HEADER = 32 * 1024
"""Bytes of one response header: issuer chains travel URL-encoded in headers."""
MAX_PLATFORMS = 64
"""Kinds of platform (FMSPC and CA) kept; the least recently used goes."""
MAX_MACHINES = 4096
"""Machines whose kind is known, by the digest of their certificates; the oldest goes. A few hundred KiB."""
MAX_FETCHES = 4
"""Kinds fetched at the same time. A caller can make us ask for any kind by inventing a quote, so more wait."""


class CollateralSource(Protocol):
    """Where a verifier gets collateral from."""

    async def collateral(self, quote: bytes, now: float) -> dcap_qvl.QuoteCollateralV3:
        """Collateral for the platform that `quote` names, fit to be used at Unix time `now`; else EvidenceError."""
        ...


class FixedCollateral:
    """The same collateral for every quote, from `text` (JSON with dcap_qvl's keys); ValueError when it is not that."""

    def __init__(self, text: str) -> None:
        self._collateral = dcap_qvl.QuoteCollateralV3.from_json(text)

    async def collateral(self, quote: bytes, now: float) -> dcap_qvl.QuoteCollateralV3:  # noqa: ARG002 - the Protocol's names
        """The one collateral there is."""
        return self._collateral


@dataclass(slots=True)
class _Slot:
    """What is known of one kind of platform. Changed only while its lock is held."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    good: dcap_qvl.QuoteCollateralV3 | None = None
    fresh_until: float = 0.0
    expires: float = 0.0
    failed_until: float = 0.0
    failure: str = ""


class HttpCollateral:
    """Collateral from the PCCS at `pccs_url`, kept per kind of platform.

    Concurrent callers share one fetch. While the service fails, the last good collateral serves until it expires.
    """

    def __init__(self, pccs_url: str) -> None:
        self._url = pccs_url.rstrip("/")
        self._slots: OrderedDict[tuple[str, str], _Slot] = OrderedDict()
        self._kinds: OrderedDict[bytes, tuple[str, str]] = OrderedDict()
        self._fetches = asyncio.Semaphore(MAX_FETCHES)

    async def collateral(self, quote: bytes, now: float) -> dcap_qvl.QuoteCollateralV3:
        """See `CollateralSource`. EvidenceError QUOTE_INVALID: names no platform; VERIFIER_FAILED: the PCCS has nothing
        usable.
        """
        key = self._kind(quote)
        if key not in self._slots:
            self._make_room()
        slot = self._slots.setdefault(key, _Slot())
        self._slots.move_to_end(key)
        # While one caller asks for newer collateral, the others need not wait for it.
        enough = slot.expires if slot.lock.locked() else slot.fresh_until
        if slot.good is not None and now < enough:
            return slot.good
        async with slot.lock:
            return await self._refresh(key, slot, now)

    def _kind(self, quote: bytes) -> tuple[str, str]:
        """FMSPC and CA, as the certificates of the quote's machine say. Read once a machine: it takes longer than all
        else that is done for a quote here. EvidenceError.
        """
        name = hashlib.sha256(certificates(quote)).digest()
        if name not in self._kinds:
            try:
                parsed = dcap_qvl.parse_quote(quote)
                found = str(parsed.fmspc()).upper(), str(parsed.ca())
            except ValueError as error:
                raise EvidenceError("QUOTE_INVALID", f"the quote names no platform: {error}") from error
            self._kinds[name] = found
            if len(self._kinds) > MAX_MACHINES:
                self._kinds.popitem(last=False)
        return self._kinds[name]

    async def _refresh(self, key: tuple[str, str], slot: _Slot, now: float) -> dcap_qvl.QuoteCollateralV3:
        usable = slot.good if now < slot.expires else None
        if usable is not None and now < slot.fresh_until:
            return usable
        if now >= slot.failed_until:
            try:
                async with asyncio.timeout(TIMEOUT), self._fetches:
                    fetched, expires = await _fetch(self._url, *key)
                if now >= expires:
                    raise ValueError(f"the PCCS gave collateral that expired at Unix time {expires:.0f}")
            except Exception as error:  # noqa: BLE001 -- the boundary: whatever the PCCS says, only it has failed
                slot.failure = str(error) or type(error).__name__
                slot.failed_until = now + (RETRY_AFTER if usable is not None else FAILURE_MEMORY)
            else:
                slot.good, slot.expires = fetched, expires
                slot.fresh_until = min(now + MAX_AGE, expires)
                slot.failed_until = 0.0
                return fetched
        if usable is None:
            raise EvidenceError(
                "VERIFIER_FAILED", f"no collateral for platform {key[0]} from {self._url}: {slot.failure}"
            )
        return usable

    def _make_room(self) -> None:
        """Forgets one kind when there are many: one without collateral first, so that invented kinds push out no real
        one.
        """
        if len(self._slots) >= MAX_PLATFORMS:
            idle = (key for key, slot in self._slots.items() if slot.good is None and not slot.lock.locked())
            del self._slots[next(idle, next(iter(self._slots)))]


async def _fetch(url: str, fmspc: str, ca: str) -> tuple[dcap_qvl.QuoteCollateralV3, float]:
    """The collateral for a kind of platform, and the Unix time at which its first part expires."""
    import aiohttp

    sgx, tdx = f"{url}/sgx/certification/v4", f"{url}/tdx/certification/v4"
    try:
        async with aiohttp.ClientSession(connector=await _connector(url), max_field_size=MAX_HEADER) as session:
            # First the one that fails for a platform that does not exist.
            tcb, tcb_chain = await _get(
                session,
                f"{tdx}/tcb?fmspc={fmspc}&update=standard",
                "TCB-Info-Issuer-Chain",
                "SGX-TCB-Info-Issuer-Chain",
            )
            crl, crl_chain = await _get(session, f"{sgx}/pckcrl?ca={ca}&encoding=der", "SGX-PCK-CRL-Issuer-Chain")
            qe, qe_chain = await _get(
                session, f"{tdx}/qe/identity?update=standard", "SGX-Enclave-Identity-Issuer-Chain"
            )
            root_crl, _ = await _get(session, f"{sgx}/rootcacrl")
    except aiohttp.ClientError as error:
        raise OSError(str(error) or type(error).__name__) from error
    return _assemble(_der(crl), crl_chain, tcb, tcb_chain, qe, qe_chain, _der(root_crl))


async def _connector(url: str) -> aiohttp.TCPConnector:
    """Connections to `url`, whose certificate has to be one that the system's authorities stand for."""
    import aiohttp

    # Made here, once a fetch: a sidecar's aiohttp does without (`sidecar.modules`). In a thread, for it reads them all.
    context = await asyncio.to_thread(ssl.create_default_context) if url.startswith("https:") else True
    return aiohttp.TCPConnector(ssl=context)


async def _get(session: aiohttp.ClientSession, url: str, *headers: str) -> tuple[bytes, str]:
    """Body and (decoded) the first of `headers` that is there."""
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise ValueError(f"{url} answers {response.status}, expected 200")
        body = bytearray()
        async for chunk in response.content.iter_chunked(64 * 1024):
            body += chunk
            if len(body) > MAX_ANSWER:
                raise ValueError(f"{url} answers more than {MAX_ANSWER} bytes")
        chain = next((response.headers[name] for name in headers if name in response.headers), None)
        if headers and chain is None:
            raise ValueError(f"{url} answers without header {headers[0]}")
        return bytes(body), urllib.parse.unquote(chain or "")


def _der(body: bytes) -> bytes:
    """A revocation list in DER: a PCCS gives the root's in hex, Intel's own service in binary."""
    return body if body.startswith(b"\x30") and not body.isalnum() else bytes.fromhex(body.decode("ascii"))


def _assemble(
    crl: bytes, crl_chain: str, tcb: bytes, tcb_chain: str, qe: bytes, qe_chain: str, root_crl: bytes
) -> tuple[dcap_qvl.QuoteCollateralV3, float]:
    tcb_text, tcb_signature = signed_part(tcb.decode(), "tcbInfo")
    qe_text, qe_signature = signed_part(qe.decode(), "enclaveIdentity")
    collateral = dcap_qvl.QuoteCollateralV3(
        pck_crl_issuer_chain=crl_chain,
        root_ca_crl=root_crl,
        pck_crl=crl,
        tcb_info_issuer_chain=tcb_chain,
        tcb_info=tcb_text,
        tcb_info_signature=tcb_signature,
        qe_identity_issuer_chain=qe_chain,
        qe_identity=qe_text,
        qe_identity_signature=qe_signature,
    )
    return collateral, min(_next_update(tcb_text), _next_update(qe_text), _crl_expiry(crl), _crl_expiry(root_crl))


def signed_part(text: str, name: str) -> tuple[str, bytes]:
    """The exact text of member `name` of the object in `text` (the bytes that were signed), and the `signature` beside
    it.

    ValueError when it is not there. Parsing and printing again would change the bytes, so the text is cut out.
    """
    whole = json.loads(text)
    if (
        not isinstance(whole, dict)
        or not isinstance(whole.get("signature"), str)
        or not isinstance(whole.get(name), dict)
    ):
        raise ValueError(f"expected an object with {name!r} and 'signature', not {text!r:.80}")
    mark = json.dumps(name)
    start = text.index("{", text.index(mark) + len(mark))
    value, end = json.JSONDecoder().raw_decode(text, start)
    if value != whole[name]:
        raise ValueError(f"member {name!r} occurs more than once")
    return text[start:end], bytes.fromhex(whole["signature"])


def _next_update(text: str) -> float:
    value = json.loads(text).get("nextUpdate")
    if not isinstance(value, str):
        raise ValueError(f"nextUpdate {reprlib.repr(value)}, expected a time")
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError(f"nextUpdate {reprlib.repr(value)}, expected a time zone")
    return moment.timestamp()


def _crl_expiry(der: bytes) -> float:
    from cryptography import x509

    moment = x509.load_der_x509_crl(der).next_update_utc
    if moment is None:
        raise ValueError("a revocation list without nextUpdate")
    return moment.timestamp()
