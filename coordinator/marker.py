"""Whose a coordinator's data folder is, and how far its Consul server got: the marker file beside the Raft data. Pure.

The folder outlives the CVM's boots, so it may be another's: mounted by mistake, or from before the app was deployed
anew. Raft data of another cluster, app or coordinator must never be served, and never be thrown away unasked.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass

from topology.trees import ManifestError, from_tree

MARKER_VERSION = 1
MARKER = "mesh.json"
"""Name of the marker in the data folder."""
RECORDS = "consul"
"""Name of the folder with the Consul server's data, beside the marker."""
NEW, STARTED, MEMBER = "new", "started", "member"
"""Stages. NEW: no server ever ran here, so there are certainly no records. STARTED: one ran, but was not yet seen in
the cluster's Raft configuration. MEMBER: it was; without its records it could make others forget what they wrote."""
_IGNORED = frozenset({"lost+found"})
"""What a fresh file system has in its root."""


class ForeignDataError(Exception):
    """The data folder is not ours to use. The text says what was found, what was expected and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whom a data folder belongs to."""

    cluster: str
    app_id: str
    """Of the coordinators' app, 40 hex digits."""
    peer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """What the marker file says, as JSON."""

    version: int
    cluster: str
    app_id: str
    peer_id: str
    server_id: str
    """UUID: the Raft ID of the server on this folder. Each folder has its own, so that Raft never takes a server that
    lost its log for the one that had it."""
    stage: str

    @property
    def owner(self) -> Owner:
        """Whose the folder is."""
        return Owner(cluster=self.cluster, app_id=self.app_id, peer_id=self.peer_id)


def first(owner: Owner, server_id: str) -> Marker:
    """The marker of a folder that was empty."""
    return Marker(version=MARKER_VERSION, server_id=server_id, stage=NEW, **dataclasses.asdict(owner))


def encode(marker: Marker) -> str:
    """The file's text."""
    return json.dumps(dataclasses.asdict(marker), indent=1, sort_keys=True) + "\n"


def once_emptied(alone: bool) -> str:
    """What a coordinator does once its data folder was emptied. `alone`: the manifest has no other coordinator."""
    if alone:
        return "the coordinator begins anew: all that Consul had acknowledged is lost, and CVMs that run attest again"
    return "the coordinator takes the records from its siblings, once one of them leads"


def judge(folder: str, names: Iterable[str], text: str | None, owner: Owner, alone: bool = False) -> Marker | None:
    """The marker of `folder` when it is `owner`'s; None when the folder is empty. ForeignDataError otherwise.

    `names`: what the folder holds. `text`: content of the marker file, None when there is none. `alone`: the manifest
    has no other coordinator.
    """
    if text is None:
        strangers = sorted(name for name in names if name not in _IGNORED and not name.startswith(f".{MARKER}."))
        if strangers:
            raise ForeignDataError(
                f"{folder} holds {', '.join(strangers)[:80]} but no {MARKER}: expected an empty folder, or one that a "
                f"coordinator made. Mount the coordinator's own volume there, or empty it if nobody needs what it holds"
            )
        return None
    try:
        marker: Marker = from_tree(Marker, json.loads(text), MARKER)
        if marker.version != MARKER_VERSION or marker.stage not in (NEW, STARTED, MEMBER):
            raise ManifestError(f"{MARKER}: version {marker.version}, stage {marker.stage!r:.20}")
    except (ManifestError, ValueError, RecursionError) as error:
        raise ForeignDataError(
            f"{folder}/{MARKER} cannot be read ({error!s:.120}): expected what a coordinator of this version wrote. "
            f"Restore the file; or empty the folder, and {once_emptied(alone)}"
        ) from error
    if marker.owner != owner:
        raise ForeignDataError(
            f"{folder} belongs to {_named(marker.owner)}, expected {_named(owner)}: nothing in it was changed. Mount "
            f"the right volume; or empty this one if nobody needs its records"
        )
    return marker


def _named(owner: Owner) -> str:
    return f"{owner.peer_id!r:.60} of cluster {owner.cluster!r:.60}, app {owner.app_id!r:.60}"
