"""Asks a coordinator for a bundle. IO: HTTP.

TLS proves nothing here and need not: nothing secret is sent, and the answer is believed for its quote alone. So it may
come through any proxy.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import aiohttp

SECONDS = 60.0
"""For the whole call: a coordinator answers within 20 s, or says that it cannot."""
WHOLE_SECONDS = 180.0
"""For a bundle with the whole history, however many pages that has: each page may be late, and all of them together
would keep whoever waits for hours. A history of MAX_BUNDLE comes within it at 100 KiB a second."""
CONNECT_SECONDS = 10.0
MAX_PAGES = 256
"""Of a history: more than MAX_BUNDLE has, with a coordinator's pages of 768 KiB."""
_SAID = 500
"""Characters of a refusal that are shown."""


class UnreachableError(Exception):
    """No bundle came: nobody answers, or the coordinator says why not."""


def url_of(text: str) -> str:
    """The base URL in `text`, where `host:port` means https. ValueError, as the end of a sentence."""
    url = text if "://" in text else f"https://{text}"
    parts = urlsplit(url)
    try:
        right = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right or parts.query or parts.fragment:
        raise ValueError(f"is {text!r:.200}, expected https://host:port")
    return url.rstrip("/")


async def fetch(url: str, nonce: bytes) -> bytes:
    """What the coordinator at `url` answers to `nonce`. UnreachableError."""
    import aiohttp

    async with _session() as session:
        try:
            return await _answer(session, "POST", f"{url}/v1/attest", {"nonce": nonce.hex()})
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise UnreachableError(f"{url} does not answer: {str(error) or type(error).__name__}") from error


async def fetch_whole(url: str, nonce: bytes, seconds: float = WHOLE_SECONDS) -> bytes:
    """The same with the whole history, so that it can be verified without a network later, within `seconds`.
    UnreachableError.
    """
    try:
        async with asyncio.timeout(seconds):
            return await _whole(url, nonce)
    except TimeoutError as error:
        raise UnreachableError(f"{url} has not sent the bundle and its history within {seconds:g} s") from error


async def _whole(url: str, nonce: bytes) -> bytes:
    from evidence.bundle import BundleError, decode, encode, lacks, whole

    data = await fetch(url, nonce)
    try:
        bundle = decode(data)
    except BundleError:
        # Said where it is verified.
        return data
    missing = lacks(bundle)
    return encode(whole(bundle, await fetch_history(url, missing))) if missing else data


async def fetch_history(url: str, until: int) -> tuple[str, ...]:
    """The envelopes of the manifests of the coordinator at `url` from the first to epoch `until`, as it says: they are
    believed for their signatures and digests alone. UnreachableError.
    """
    import aiohttp

    from evidence.bundle import MAX_BUNDLE

    found: list[str] = []
    after, room = 0, MAX_BUNDLE
    async with _session() as session:
        for _ in range(MAX_PAGES):
            if after >= until:
                break
            try:
                data = await _answer(session, "GET", f"{url}/v1/manifest/history?after={after}")
                page = [(int(each["epoch"]), str(each["envelope"])) for each in json.loads(data)["manifests"]]
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise UnreachableError(f"{url} does not answer: {str(error) or type(error).__name__}") from error
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise UnreachableError(f"{url} answers with no history: {error!r:.200}") from error
            room -= len(data)
            if not page or page[0][0] <= after or room < 0:
                # Nothing more, or no end: what is missing is said where it is verified.
                break
            found += [envelope for epoch, envelope in page if epoch <= until]
            after = page[-1][0]
    return tuple(found)


def _session() -> aiohttp.ClientSession:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=SECONDS, connect=CONNECT_SECONDS)
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(ssl=False))


async def _answer(session: aiohttp.ClientSession, method: str, url: str, body: object = None) -> bytes:
    from evidence.bundle import MAX_BUNDLE

    async with session.request(method, url, json=body, allow_redirects=False) as answer:
        data = bytearray()
        async for chunk in answer.content.iter_chunked(1 << 16):
            data += chunk
            if len(data) > MAX_BUNDLE:
                raise UnreachableError(f"{url} answers more than {MAX_BUNDLE} bytes")
    if answer.status != 200:
        raise UnreachableError(f"{url} gives no answer: HTTP {answer.status}, {_reason(bytes(data))}")
    return bytes(data)


def _reason(data: bytes) -> str:
    try:
        tree = json.loads(data)
        return f"{tree['code']!s:.40}: {tree['reason']!s:.{_SAID}}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"{data[:80]!r}"
