"""Rewrites the image references of compose files to digests. Pure; who knows the digests is the caller's matter."""

from __future__ import annotations

import re
from collections.abc import Mapping

_IMAGE_LINE = re.compile(
    r"""^(?P<head>\s*image:\s*)(?P<quote>["']?)(?P<reference>[^\s"'#]+)(?P=quote)(?P<tail>\s*(?:\#.*)?)$""",
    re.MULTILINE,
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class PinError(ValueError):
    """A reference that cannot be pinned. Says which, and why."""


def references(text: str) -> tuple[str, ...]:
    """The image references of a compose file, each once, as written."""
    return tuple(dict.fromkeys(match["reference"] for match in _IMAGE_LINE.finditer(text)))


def split(reference: str) -> tuple[str, str]:
    """(name with tag, digest or "") of a reference."""
    name, _, digest = reference.partition("@")
    return name, digest


def pinned(text: str, digests: Mapping[str, str]) -> str:
    """`text` with each image `name:tag` as `name:tag@sha256:…`; everything else stays byte for byte.

    `digests` is by name with tag; a name that it lacks stays as it is. PinError for a variable in a reference, or
    something that is no digest.
    """

    def replacement(match: re.Match[str]) -> str:
        reference = match["reference"]
        if "$" in reference:
            raise PinError(f"{reference!r} has a variable, which cannot be measured; write the reference itself")
        name, _ = split(reference)
        digest = digests.get(name)
        if digest is None:
            return match[0]
        if not _DIGEST.fullmatch(digest):
            raise PinError(f"{name!r}: {digest!r} is no digest; expected sha256: and 64 hex digits")
        quote = match["quote"]
        return f"{match['head']}{quote}{name}@{digest}{quote}{match['tail']}"

    return _IMAGE_LINE.sub(replacement, text)
