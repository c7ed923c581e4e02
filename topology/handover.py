"""What a manifest says when a mesh moves to another coordinators' app, whose keys are others. Pure.

The owners sign the one manifest that names the new app and, in `coordinators.handover`, the app that has the mesh until
then. By it the former coordinators hand out what they keep, the new ones ask for it, and CVMs change over. Nothing that
anybody else says grants one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from topology.places import check_url

MAX_URLS = 16
"""Former coordinators that are named: no mesh has more, and each is asked in turn."""
UNTIL = (1, 253_402_300_799)
"""Least and greatest `until`: Unix seconds up to the end of the year 9999, which is the last that Python's calendar can
show to a person."""
_APP_ID = re.compile(r"[0-9a-f]{40}")


class HandoverError(ValueError):
    """A handover that cannot be carried out. The message is the end of a sentence that begins with `manifest`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Who has the mesh until the coordinators of this manifest have it."""

    from_app_id: str
    """The former coordinators' app."""
    until: int
    """Unix seconds: from then on nothing is handed out, and certificates of the former coordinators are not trusted."""
    urls: tuple[str, ...]
    """Where the former coordinators answer."""


def check(handover: Handover | None, app_id: str, urls: Iterable[str], epoch: int) -> None:
    """HandoverError unless `handover` can be carried out by the coordinators of the app `app_id`, which answer at
    `urls`, in a manifest of `epoch`. PlacesError for a URL that is none.
    """
    if handover is None:
        return
    entry = ".coordinators.handover"
    if not _APP_ID.fullmatch(handover.from_app_id):
        raise HandoverError(f"{entry}.from_app_id is {handover.from_app_id!r:.80}, expected 40 hex digits, lower case")
    if handover.from_app_id == app_id:
        raise HandoverError(f"{entry}.from_app_id is the app that the manifest names; expected the one before it")
    if not UNTIL[0] <= handover.until <= UNTIL[1]:
        raise HandoverError(f"{entry}.until is {handover.until}, expected Unix seconds")
    if not 1 <= len(handover.urls) <= MAX_URLS:
        raise HandoverError(f"{entry}.urls has {len(handover.urls)} entries, expected 1 to {MAX_URLS}")
    for n, url in enumerate(handover.urls):
        check_url(f"{entry}.urls[{n}]", url)
    if both := set(handover.urls) & set(urls):
        raise HandoverError(f"{entry}.urls has {min(both)!r:.200}, where a coordinator of the manifest itself answers")
    if epoch == 1:
        raise HandoverError(f"{entry} is in a first manifest, and nobody has a mesh before that; expected null")


def apps(app_id: str, handover: Handover | None) -> frozenset[str]:
    """The coordinators' apps that a manifest speaks of: which has the mesh now, and which had it before."""
    return frozenset({app_id} if handover is None else {app_id, handover.from_app_id})
