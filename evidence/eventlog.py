"""dstack event logs: parse, replay the registers, and take the CVM's identity from the part that the OS wrote. Pure.

The log is only as good as its replay: `identity` is meaningful after `replay()[3]` was found equal to the verified
quote's RTMR3. Digest rules: dstack's runtime events (design note: V1 is SHA384(LE32(type) ":" name ":" payload); V2
hashes a canonical JSON text).
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from dataclasses import dataclass

from runtime.jsons import once

from .errors import EvidenceError

MAX_LOG = 2 * 1024 * 1024
"""Characters of JSON text. A real log has 20 to 60 kB; the admission API takes 1 MiB in all."""
MAX_EVENTS = 4096
RUNTIME_EVENT = 0x08000001
"""The type of every event that dstack itself extends, and of nothing else. It belongs to RTMR3 and RTMR3 to it."""
_REGISTERS = 4
_DIGEST = 48

APP_ID, COMPOSE_HASH, INSTANCE_ID, KEY_PROVIDER = "app-id", "compose-hash", "instance-id", "key-provider"
OS_IMAGE_HASH, SYSTEM_READY = "os-image-hash", "system-ready"
_TRUSTED_ONCE = frozenset({
    "system-preparing", APP_ID, COMPOSE_HASH, "gpu-policy-hash", "gpu-attestation", INSTANCE_ID, "boot-mr-done",
    "mr-kms", OS_IMAGE_HASH, KEY_PROVIDER, "storage-fs", SYSTEM_READY,
})  # fmt: skip
"""Names that the OS writes at most once. `init-script-hash` may repeat and decides nothing here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One measured event."""

    imr: int
    """Register, 0 to 3."""
    event_type: int
    digest: bytes
    """48 bytes. For RTMR3 always the recomputed one."""
    name: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the OS measured about the app before it let it run. Lower-case hex."""

    app_id: str
    """20 bytes."""
    instance_id: str
    """20 bytes, or empty where the app asked for none."""
    compose_hash: str
    """SHA-256 of the raw app-compose.json."""
    os_image_hash: str | None
    """None where the OS does not log it (key providers other than KMS)."""
    key_provider_name: str
    key_provider_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """A whole log, in order."""

    events: tuple[Event, ...]

    def replay(self) -> tuple[bytes, bytes, bytes, bytes]:
        """The four registers that these events give, 48 bytes each."""
        registers = [bytes(_DIGEST)] * _REGISTERS
        for event in self.events:
            registers[event.imr] = hashlib.sha384(registers[event.imr] + event.digest).digest()
        return registers[0], registers[1], registers[2], registers[3]

    def identity(self, *, allow_application_events: bool = False) -> Identity:
        """The identity from the events up to `system-ready`; EvidenceError ADMISSION_REJECTED when they are not
        unambiguous.

        After `system-ready` any program in the CVM may extend RTMR3 (OS before 0.6). By default a CVM where one did is
        refused; with `allow_application_events` such events are ignored, still refusing those that use a name of the
        OS.
        """
        runtime = [event for event in self.events if event.imr == 3]
        names = [event.name for event in runtime]
        if SYSTEM_READY not in names:
            raise _refused(f"the event log has no {SYSTEM_READY!r}: the CVM was not done booting, ask again later")
        boundary = names.index(SYSTEM_READY)
        if not allow_application_events and len(names) > boundary + 1:
            raise _refused(f"the event log has {names[boundary + 1]!r} after {SYSTEM_READY!r}, expected nothing there")
        twice = sorted(name for name in _TRUSTED_ONCE if names.count(name) > 1)
        late = sorted(_TRUSTED_ONCE & set(names[boundary + 1 :]))
        if twice or late:
            raise _refused(
                f"the event log has {(twice or late)[0]!r} twice or after {SYSTEM_READY!r}, expected it once before"
            )
        return _identity({event.name: event.payload for event in runtime[:boundary]})


def parse(text: str) -> EventLog:
    """The log in `text` (JSON as the guest agent gives it). Empty RTMR3 digests are recomputed, wrong ones refused.

    Entries of an event that are not known here are ignored: no digest covers them, so nothing follows from them, and
    the next OS may have more. An entry that is there twice is refused.

    EvidenceError QUOTE_INVALID names the event that does not fit.
    """
    if len(text) > MAX_LOG:
        raise _bad(f"{len(text)} characters, more than {MAX_LOG}")
    try:
        items = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise _bad(f"not JSON: {error}") from error
    if not isinstance(items, list):
        raise _bad(f"a {type(items).__name__}, expected a list of events")
    if len(items) > MAX_EVENTS:
        raise _bad(f"{len(items)} events, more than {MAX_EVENTS}")
    return EventLog(events=tuple(_event(item, f"event {index}") for index, item in enumerate(items)))


def runtime_digest(name: str, payload: bytes) -> bytes:
    """What a runtime event of version 1 extends RTMR3 with."""
    return hashlib.sha384(RUNTIME_EVENT.to_bytes(4, "little") + b":" + name.encode() + b":" + payload).digest()


def _event(item: object, where: str) -> Event:
    if not isinstance(item, dict):
        raise _bad(f"{where} is {reprlib.repr(item)}, expected an object")
    imr, kind = item.get("imr"), item.get("event_type")
    # `type(...) is int`: JSON's true is an int to isinstance.
    if type(imr) is not int or not 0 <= imr < _REGISTERS:
        raise _bad(f"{where}: imr {reprlib.repr(imr)}, expected 0 to 3")
    if type(kind) is not int or not 0 <= kind < 1 << 32:
        raise _bad(f"{where}: event_type {reprlib.repr(kind)}, expected a 32-bit number")
    if (imr == 3) != (kind == RUNTIME_EVENT):
        raise _bad(
            f"{where}: type {kind:#x} in register {imr}; RTMR3 holds runtime events ({RUNTIME_EVENT:#x}) and only them"
        )
    name = item.get("event")
    if not isinstance(name, str) or not name.isprintable():
        raise _bad(f"{where}: event {reprlib.repr(name)}, expected printable text")
    payload = _hex(item.get("event_payload"), f"{where}: event_payload")
    digest = _hex(item.get("digest"), f"{where}: digest")
    if imr == 3:
        digest = _checked(item, where, name, payload, digest)
    elif len(digest) > _DIGEST or not digest:
        raise _bad(f"{where}: digest of {len(digest)} bytes, expected {_DIGEST}")
    # Firmware logs may carry shorter digests; the TDX module extends them padded with zeros.
    return Event(imr=imr, event_type=kind, digest=digest.ljust(_DIGEST, b"\0"), name=name, payload=payload)


def _checked(item: dict[str, object], where: str, name: str, payload: bytes, stated: bytes) -> bytes:
    """The recomputed digest of a runtime event, after it was held against the stated one (if any)."""
    version = item.get("version", 1)
    if version == 1 and item.get("preimage") in (None, ""):
        digest = runtime_digest(name, payload)
    elif version == 2:
        canonical = {"name": name, "payload": payload.hex(), "type": RUNTIME_EVENT}
        preimage = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if _hex(item.get("preimage"), f"{where}: preimage") != preimage:
            raise _bad(f"{where}: the preimage is not the canonical form of event and event_payload")
        digest = hashlib.sha384(preimage).digest()
    else:
        raise _bad(f"{where}: version {reprlib.repr(version)}, expected 1 (without preimage) or 2")
    if stated and stated != digest:
        raise _bad(
            f"{where}: digest {stated.hex():.16}… is not that of {name!r:.40} and its payload ({digest.hex():.16}…)"
        )
    return digest


def _identity(payloads: dict[str, bytes]) -> Identity:
    def sized(name: str, *sizes: int) -> str:
        if name not in payloads:
            raise _refused(f"the event log has no {name!r} before {SYSTEM_READY!r}")
        if len(payloads[name]) not in sizes:
            raise _refused(f"event {name!r} has {len(payloads[name])} bytes, expected {' or '.join(map(str, sizes))}")
        return payloads[name].hex()

    provider = _key_provider(payloads.get(KEY_PROVIDER))
    return Identity(
        app_id=sized(APP_ID, 20),
        instance_id=sized(INSTANCE_ID, 20, 0),
        compose_hash=sized(COMPOSE_HASH, 32),
        os_image_hash=sized(OS_IMAGE_HASH, 32) if OS_IMAGE_HASH in payloads else None,
        key_provider_name=provider[0],
        key_provider_id=provider[1],
    )


def _key_provider(payload: bytes | None) -> tuple[str, str]:
    if payload is None:
        raise _refused(f"the event log has no {KEY_PROVIDER!r} before {SYSTEM_READY!r}")
    try:
        tree = json.loads(payload, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise _refused(f"event {KEY_PROVIDER!r} is not JSON: {error}") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("name"), str) or not isinstance(tree.get("id"), str):
        raise _refused(
            f"event {KEY_PROVIDER!r} is {reprlib.repr(payload)}, expected an object with the texts name and id"
        )
    return tree["name"], tree["id"].lower()


def _hex(value: object, what: str) -> bytes:
    # bytes.fromhex skips blanks; isalnum keeps one text per value.
    if not isinstance(value, str) or not (value == "" or value.isalnum()):
        raise _bad(f"{what} {reprlib.repr(value)}, expected hex")
    try:
        return bytes.fromhex(value)
    except ValueError as error:
        raise _bad(f"{what} {reprlib.repr(value)}, expected hex") from error


def _bad(what: str) -> EvidenceError:
    return EvidenceError("QUOTE_INVALID", f"the event log cannot be used: {what}")


def _refused(reason: str) -> EvidenceError:
    return EvidenceError("ADMISSION_REJECTED", reason)
