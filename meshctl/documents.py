"""The app-compose texts that an owner hands to the coordinators, and that `./mesh verify` writes. IO: files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from meshctl.errors import UserError

if TYPE_CHECKING:
    from topology.manifest import Manifest

FOLDER = "app-compose"
"""Beside a manifest: the texts that it names, one file each."""
SUFFIX = ".json"
ROOM = 900 << 10
"""Bytes of one request: a coordinator reads 1 MiB, and the envelope goes along each time."""


def beside(manifest: Path) -> Path | None:
    """The folder of texts beside the file of a manifest; None where there is none."""
    folder = manifest.parent / FOLDER
    return folder if folder.is_dir() else None


def read(folder: Path, manifest: Manifest) -> tuple[dict[str, str], list[str]]:
    """The texts in `folder` of compose hashes that `manifest` names, by hash; and the names of the other files there.
    UserError.
    """
    from evidence.documents import MAX_DOCUMENT, digest, named

    wanted = named(manifest)
    found: dict[str, str] = {}
    others: list[str] = []
    try:
        for path in sorted(folder.iterdir()):
            with path.open("rb") as file:
                data = file.read(MAX_DOCUMENT + 1)
            text = data.decode("utf-8", "replace")
            if len(data) <= MAX_DOCUMENT and digest(text) in wanted:
                found[digest(text)] = text
            else:
                others.append(path.name)
    except OSError as error:
        raise UserError(
            f"{folder}, the app-compose texts, cannot be read: {error.strerror}", "--documents FOLDER"
        ) from error
    return found, others


def keep(folder: Path, documents: Mapping[str, str], manifest: Manifest) -> None:
    """Writes those of `documents` that `manifest` names into `folder`, and takes out those that it no longer names.
    What is not called by its own hash is a person's, and stays. UserError.
    """
    from evidence.documents import digest, named

    wanted = named(manifest)
    try:
        folder.mkdir(exist_ok=True)
        for name, text in documents.items():
            if name in wanted:
                (folder / f"{name}{SUFFIX}").write_bytes(text.encode())
        for path in folder.glob(f"*{SUFFIX}"):
            if path.stem not in wanted and path.stem == digest(path.read_text(encoding="utf-8", errors="replace")):
                path.unlink()
    except OSError as error:
        raise UserError(f"{folder}, the app-compose texts, cannot be written: {error.strerror}", "make room") from error


def parts(documents: Mapping[str, str], room: int) -> list[dict[str, str]]:
    """`documents` in parts that take `room` bytes of JSON at most each, or hold one that takes more."""
    made: list[dict[str, str]] = []
    left = 0
    for name, text in documents.items():
        size = len(json.dumps({name: text}))
        if size > left:
            made.append({})
            left = room
        made[-1][name] = text
        left -= size
    return made


def missing(documents: Mapping[str, str], manifest: Manifest) -> dict[str, str]:
    """The compose hashes of `manifest` without a text, each with its group."""
    from evidence.documents import named

    return {name: group for name, group in named(manifest).items() if name not in documents}
