"""What a CVM may be, whichever app it runs: key provider, OS image, TCB, machine. Pure.

A manifest lists such references, and evidence is good when one of them holds completely. So an owner lets a second KMS,
the next OS image or one host with an older TCB in, each with what belongs to it, and no CVM by half of one and half of
another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MEASURED = "measured"
"""Name of the reference that `generate` and labs make of what runs."""
_LATEST = 253_402_300_799
"""Unix seconds: the end of the year 9999, the last moment that can be written as a date."""
STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)
"""TCB statuses that can be good enough: Intel's without `Revoked`, which never is. The last two are of a TD that was
launched before its host updated the TDX module."""
_ADVISORY = re.compile(r"INTEL-SA-[0-9]{5}")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_DEVICE = re.compile(r"[0-9a-f]{32}")


class ReferencesError(ValueError):
    """The list is not what it must be. The message is the end of a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyProvider:
    """Where a CVM's keys must come from: the payload of the `key-provider` event (dstack.md 2.2)."""

    name: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OsImage:
    """One allowed OS image: its hash and its measurements (hex). RTMR0 varies with the CVM's shape: list each."""

    os_image_hash: str
    mrtd: str
    rtmr0: str
    rtmr1: str
    rtmr2: str
    development: bool = False
    """A development image (root login). Refused unless the reference says `allow_development_images`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbPolicy:
    """Which TCB states are good enough."""

    allowed_statuses: tuple[str, ...] = ("UpToDate",)
    rejected_advisories: tuple[str, ...] = ()
    min_evaluation_data_number: int = 0
    allow_development_images: bool = False
    grace_until: int = 0
    """Unix seconds. Until then a platform that is out of date counts as what it is once it was updated: for the weeks
    after Intel published a new TCB, in which hosts update. 0: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One set of values that belong together."""

    name: str
    """For people: refusals, differences and `generate` call it so."""
    key_provider: KeyProvider
    os_images: tuple[OsImage, ...]
    tcb: TcbPolicy
    devices: tuple[str, ...] = ()
    """Machines, by the platform ID (PPID) in Intel's certificate of each: 32 hex digits. Empty: any machine."""


def check(references: Iterable[Reference]) -> None:
    """ReferencesError unless there is one, and each has a name of its own and can hold."""
    names: set[str] = set()
    for n, each in enumerate(references):
        if not _NAME.fullmatch(each.name):
            raise ReferencesError(f"[{n}].name is {each.name!r:.80}, expected a-z, 0-9 and '-', first a letter")
        if each.name in names:
            raise ReferencesError(f"[{n}].name is {each.name!r}, as that of another one; expected each once")
        names.add(each.name)
        _check_images(n, each.os_images)
        for device in each.devices:
            if not _DEVICE.fullmatch(device):
                raise ReferencesError(f"[{n}].devices has {device!r:.80}, expected 32 hex digits in lower case")
        try:
            check_tcb(each.tcb)
        except ReferencesError as error:
            raise ReferencesError(f"[{n}].tcb{error}") from error
    if not names:
        raise ReferencesError(" is empty, so no CVM could be admitted; expected at least one")


def check_tcb(tcb: TcbPolicy) -> None:
    """ReferencesError unless each entry is a word that Intel says: a mistyped one would allow, or reject, nothing."""
    for n, status in enumerate(tcb.allowed_statuses):
        if status not in STATUSES:
            raise ReferencesError(f".allowed_statuses[{n}] is {status!r:.80}, expected one of {', '.join(STATUSES)}")
    for n, advisory in enumerate(tcb.rejected_advisories):
        if not _ADVISORY.fullmatch(advisory):
            raise ReferencesError(
                f".rejected_advisories[{n}] is {advisory!r:.80}, expected INTEL-SA- and 5 digits, as INTEL-SA-00615"
            )
    if not 0 <= tcb.grace_until <= _LATEST:
        raise ReferencesError(
            f".grace_until is {tcb.grace_until}, expected Unix seconds (10 digits), or 0 for no grace"
        )


def _check_images(n: int, images: Iterable[OsImage]) -> None:
    seen: set[tuple[str, ...]] = set()
    for image in images:
        measured = (image.os_image_hash, image.mrtd, image.rtmr0, image.rtmr1, image.rtmr2)
        own = tuple(item.lower() for item in measured)
        if own in seen:
            raise ReferencesError(
                f"[{n}].os_images has {image.os_image_hash or '(no hash)':.64} twice with the same measurements"
            )
        seen.add(own)
    if not seen:
        raise ReferencesError(f"[{n}].os_images is empty, so it never holds; expected at least one OS image")
