"""Client of the dstack guest agent: HTTP over its unix socket, typed answers for OS 0.5.7 and 0.6.0.

Decoding is pure (`decode_*`); `GuestAgent` only moves bytes. The agent's Python SDK is not used: its 3 s timeout is
shorter than a quote under load, and it weighs 13 MiB. aiohttp is imported on the first call.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from runtime.secret import Secret

if TYPE_CHECKING:
    from aiohttp import ClientSession

TIMEOUT = 30.0
"""Seconds for one call. GetTlsKey takes a quote and a round trip to the KMS, and quotes are serialised in the guest."""
MAX_ANSWER = 16 << 20
"""Bytes. A real GetQuote answer is below 100 kB; the agent's own limit for requests is 10 MiB."""
REPORT_DATA_BYTES = 64


class GuestError(Exception):
    """The guest agent could not be asked, refused, or answered something else than its interface says."""

    def __init__(self, method: str, reason: str) -> None:
        super().__init__(f"guest agent, {method}: {reason}")
        self.method = method
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestInfo:
    """What the agent says about this CVM. Claims: only the quote proves them."""

    app_id: str
    """40 hex."""
    instance_id: str
    """40 hex; empty when the app runs without instance IDs."""
    compose_hash: str
    """64 hex."""
    app_name: str = ""
    device_id: str = ""
    os_image_hash: str = ""
    """64 hex, or empty where the agent knows none. On OS 0.5.7 the host's `vm_config` says it, on 0.6.0 the measured
    event (Dstack-TEE/dstack, dstack-attest/src/attestation.rs, `decode_app_info_ex`)."""
    key_provider: str = ""
    """Name out of `key_provider_info`: kms, local-sgx, tpm or none."""
    key_provider_id: str = ""
    """Hex out of `key_provider_info`."""
    vm_config: str = ""
    """JSON text, as the host gave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestQuote:
    """Answer of GetQuote."""

    quote: bytes
    event_log: str
    """JSON text."""
    vm_config: str
    """JSON text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsKey:
    """Answer of GetTlsKey: a fresh key and its chain."""

    key_pem: Secret
    """PKCS#8 PEM, P-256."""
    chain_pem: str
    """Leaf first."""


def decode_info(answer: Mapping[str, object]) -> GuestInfo:
    """GuestInfo out of the JSON object. GuestError when an identity is missing; other fields may be."""
    name, provider_id = _key_provider(_text(answer, "Info", "key_provider_info", default=""))
    return GuestInfo(
        app_id=_hex(answer, "Info", "app_id", 20).hex(),
        # An app that was made with no_instance_id has none.
        instance_id=_text(answer, "Info", "instance_id", default="").lower(),
        compose_hash=_hex(answer, "Info", "compose_hash", 32).hex(),
        app_name=_text(answer, "Info", "app_name", default=""),
        device_id=_text(answer, "Info", "device_id", default=""),
        os_image_hash=_hex(answer, "Info", "os_image_hash", 32).hex() if answer.get("os_image_hash") else "",
        key_provider=name,
        key_provider_id=provider_id,
        vm_config=_text(answer, "Info", "vm_config", default=""),
    )


def decode_quote(answer: Mapping[str, object]) -> GuestQuote:
    """GuestQuote out of the JSON object. 0.6.0 adds `attestation`, which is not needed."""
    return GuestQuote(
        quote=_hex(answer, "GetQuote", "quote", None),
        event_log=_text(answer, "GetQuote", "event_log"),
        vm_config=_text(answer, "GetQuote", "vm_config", default=""),
    )


def decode_key(answer: Mapping[str, object]) -> Secret:
    """The derived key of GetKey as 64 hex digits."""
    return Secret(_hex(answer, "GetKey", "key", 32).hex())


def decode_tls_key(answer: Mapping[str, object]) -> TlsKey:
    """TlsKey out of the JSON object."""
    chain = answer.get("certificate_chain")
    if not isinstance(chain, list) or not chain or not all(isinstance(item, str) for item in chain):
        raise GuestError("GetTlsKey", "certificate_chain must be a list of PEM texts with one entry at least")
    return TlsKey(
        key_pem=Secret(_text(answer, "GetTlsKey", "key")), chain_pem="\n".join(item.strip() for item in chain) + "\n"
    )


class GuestAgent:
    """Asks the guest agent at the unix socket `path`. Use as an async context manager, or `close()` it."""

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection. Safe to repeat; a later call opens a new one."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def info(self) -> GuestInfo:
        """Who this CVM is."""
        return decode_info(await self._call("Info", {}))

    async def quote(self, report_data: bytes) -> GuestQuote:
        """A TDX quote over `report_data` (1 to 64 bytes; the agent pads with zeros)."""
        if not 1 <= len(report_data) <= REPORT_DATA_BYTES:
            raise GuestError("GetQuote", f"report_data has {len(report_data)} bytes, expected 1 to {REPORT_DATA_BYTES}")
        return decode_quote(await self._call("GetQuote", {"report_data": report_data.hex()}))

    async def key(self, path: str, purpose: str = "") -> Secret:
        """A key derived from the app's root key: 32 bytes as hex, the same for every instance and revision of this app.

        `purpose` does not enter the key, only its signature chain.
        """
        return decode_key(await self._call("GetKey", {"path": path, "purpose": purpose, "algorithm": "secp256k1"}))

    async def tls_key(
        self, subject: str, alt_names: tuple[str, ...] = (), *, ra_tls: bool, server: bool, client: bool
    ) -> TlsKey:
        """A fresh TLS key with a certificate; `ra_tls` puts a quote over the key into it."""
        return decode_tls_key(
            await self._call(
                "GetTlsKey",
                {
                    "subject": subject,
                    "alt_names": list(alt_names),
                    "usage_ra_tls": ra_tls,
                    "usage_server_auth": server,
                    "usage_client_auth": client,
                },
            )
        )

    async def version(self) -> str:
        """The agent's version, such as 0.5.7."""
        return _text(await self._call("Version", {}), "Version", "version")

    async def _call(self, method: str, body: Mapping[str, object]) -> Mapping[str, object]:
        import aiohttp

        try:
            async with self._client().post(f"http://dstack/{method}", json=body) as response:
                text = await response.content.read(MAX_ANSWER + 1)
                while len(text) <= MAX_ANSWER and (more := await response.content.read(MAX_ANSWER)):
                    text += more
                status = response.status
        except TimeoutError as error:
            raise GuestError(method, f"no answer within {self._timeout:g} s on {self._path}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise GuestError(
                method,
                f"{self._path} does not answer ({error}); is the guest agent's socket mounted here?",
            ) from error
        if len(text) > MAX_ANSWER:
            raise GuestError(method, f"the answer exceeds {MAX_ANSWER} bytes")
        return _object(method, status, text)

    def _client(self) -> ClientSession:
        import aiohttp

        if self._session is None:
            # The agent closes idle connections after 10 s; ours go first, so that no request meets a closing one.
            connector = aiohttp.UnixConnector(path=str(self._path), keepalive_timeout=5.0)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=self._timeout)
            )
        return self._session


def _object(method: str, status: int, text: bytes) -> Mapping[str, object]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        # 404 and 422 are HTML pages, and a body over the agent's limit is refused in protobuf.
        raise GuestError(method, f"HTTP {status} with a body that is not JSON: {text[:80]!r}") from None
    if not isinstance(answer, dict):
        raise GuestError(method, f"HTTP {status} with {reprlib.repr(answer)}, expected a JSON object")
    if status != 200 or "error" in answer:
        raise GuestError(method, f"HTTP {status}: {_said(answer)}")
    return answer


def _said(answer: Mapping[str, object]) -> str:
    error = answer.get("error")
    return error[:300] if isinstance(error, str) else reprlib.repr(answer)


def _text(answer: Mapping[str, object], method: str, name: str, default: str | None = None) -> str:
    value = answer.get(name, default)
    if not isinstance(value, str):
        raise GuestError(method, f"{name} is {reprlib.repr(value)}, expected text")
    return value


def _hex(answer: Mapping[str, object], method: str, name: str, size: int | None) -> bytes:
    text = _text(answer, method, name)
    try:
        data = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise GuestError(method, f"{name} is not hexadecimal") from None
    if not data or (size is not None and len(data) != size):
        raise GuestError(method, f"{name} has {len(data)} bytes, expected {size or 'at least one'}")
    return data


def _key_provider(text: str) -> tuple[str, str]:
    try:
        tree = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise GuestError("Info", f"key_provider_info is {text!r:.80}, expected a JSON object with name and id")
    name, ident = tree.get("name") or "", tree.get("id") or ""
    if not isinstance(name, str) or not isinstance(ident, str):
        raise GuestError("Info", f"key_provider_info is {text!r:.80}, expected name and id to be text")
    return name, ident
