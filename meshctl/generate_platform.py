"""What of a manifest rests on the cloud's word alone, and whether a person has let it in. Pure.

The key provider can compute every key of the mesh, and the OS image runs everything in it. An app's report names both,
and nothing in the cluster's files does: so they are pinned by the person, or taken once, in so many words; and a change
of what was taken is a decision of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from topology.references import Reference

SHOWN = 24
"""Hex digits of a key provider's ID that people are shown: its end, for the beginning is the same for all of a kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What the person said."""

    key_provider: str | None = None
    """ID of the key provider that there has to be, hex. None: none is pinned."""
    take_provider: bool = False
    """The reported one is taken, where there was none before."""
    images_pinned: bool = False
    """The images are a list of the person's own."""
    change: bool = False
    """Another platform than the manifest before has is taken."""


NOTHING_SAID = Word()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is to be said of a platform."""

    problems: tuple[str, ...] = ()
    """Why it is not taken."""
    notes: tuple[str, ...] = ()
    """What a person should look at."""


def judge(reported: Reference, before: object, word: Word) -> Found:
    """Of `reported`, where `before` is the manifest of before as JSON has it (a draft that a person may have spoilt, or
    the one in force), anything else for none.
    """
    problems, notes = [], []
    provider = reported.key_provider
    known = tuple(_references(before))
    told = f"{provider.name} …{provider.id[-SHOWN:]}"
    if word.key_provider is not None and word.key_provider.lower() != provider.id.lower():
        pinned = word.key_provider[-SHOWN:]
        problems.append(f"the apps have their keys from {told}, and --key-provider says …{pinned}")
    elif word.key_provider is None and not known:
        if not word.take_provider:
            problems.append(
                f"the key provider {told} is the cloud's word, and can compute every key of the mesh: compare it with "
                "your KMS, then --key-provider ID; or take the cloud's word with --take-reported-provider"
            )
        notes.append(f"the key provider {told} is as the cloud reports it: compare it with that of your KMS")
    elif word.key_provider is None and (provider.name, provider.id) not in [_provider(each) for each in known]:
        former = ", ".join(f"{name} …{key[-SHOWN:]}" for name, key in map(_provider, known))
        _changed(f"key provider: {former} → {told}", word, problems, notes)
    images = [image for each in known for image in _images(each)]
    for image in () if word.images_pinned or not known else reported.os_images:
        measured = (image.mrtd, image.rtmr0, image.rtmr1, image.rtmr2)
        if measured not in images:
            what = f"OS image {image.os_image_hash or '(no hash)'} (MRTD {image.mrtd:.16}… RTMR1 {image.rtmr1:.16}…)"
            _changed(f"{what} is not in the manifest before", word, problems, notes)
    return Found(problems=tuple(problems), notes=tuple(notes))


def _changed(what: str, word: Word, problems: list[str], notes: list[str]) -> None:
    if word.change:
        notes.append(f"taken on the cloud's word: {what}")
    else:
        problems.append(
            f"{what}; that is the cloud's word: find out why, then --accept-platform-change (or pin it: --key-provider "
            "ID, --os-images FILE)"
        )


def _references(tree: object) -> Iterator[dict[str, Any]]:
    found = tree.get("references") if isinstance(tree, dict) else None
    for each in found if isinstance(found, list) else ():
        if isinstance(each, dict):
            yield each


def _provider(reference: dict[str, Any]) -> tuple[str, str]:
    found = reference.get("key_provider")
    return (str(found.get("name")), str(found.get("id"))) if isinstance(found, dict) else ("", "")


def _images(reference: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    found = reference.get("os_images")
    for image in found if isinstance(found, list) else ():
        if isinstance(image, dict):
            yield tuple(str(image.get(name)).lower() for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2"))
