"""Asks a coordinator for a bundle. IO: HTTP.

TLS proves nothing here and need not: nothing secret is sent, and the answer is believed for its quote alone. So it may
come through any proxy.
"""

from __future__ import annotations

import json
from urllib.parse import urlsplit

SECONDS = 60.0
"""For the whole call: a coordinator answers within 20 s, or says that it cannot."""
CONNECT_SECONDS = 10.0
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

    from evidence.bundle import MAX_BUNDLE

    timeout = aiohttp.ClientTimeout(total=SECONDS, connect=CONNECT_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(ssl=False)) as session,
            session.post(f"{url}/v1/attest", json={"nonce": nonce.hex()}, allow_redirects=False) as answer,
        ):
            data = bytearray()
            async for chunk in answer.content.iter_chunked(1 << 16):
                data += chunk
                if len(data) > MAX_BUNDLE:
                    raise UnreachableError(f"{url} answers more than {MAX_BUNDLE} bytes")
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise UnreachableError(f"{url} does not answer: {str(error) or type(error).__name__}") from error
    if answer.status != 200:
        raise UnreachableError(f"{url} gives no attestation: HTTP {answer.status}, {_reason(bytes(data))}")
    return bytes(data)


def _reason(data: bytes) -> str:
    try:
        tree = json.loads(data)
        return f"{tree['code']!s:.40}: {tree['reason']!s:.{_SAID}}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"{data[:80]!r}"
