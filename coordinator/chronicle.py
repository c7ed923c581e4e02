"""A coordinator's memory of manifests: what lies on its disk and in Consul's KV, and that both have the same.

The disk outlives Consul's records, and the records outlive a disk. What is in force stands in the KV before it is
enforced, and goes to the disk and into the KV's history right after: whatever is missing in one of them because a
coordinator was killed is found in another at the next start.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging

from admission.protocol import MANIFESTS_PREFIX, ManifestHead, ManifestHistory
from coordinator.disk import Disk
from coordinator.history import History, Mesh, arrange, extend, is_name, name_of
from coordinator.proposal import shown
from runtime.consul import ConsulClient
from topology.envelope import Signed, digest_of, open_envelope
from topology.manifest import ManifestError

log = logging.getLogger(__name__)

PAGE = 768 << 10
"""Bytes of envelopes in one answer, unless one alone has more: an answer stays below MAX_BODY."""


class Chronicle:
    """The manifests of `mesh`, on `disk` and behind `client`."""

    def __init__(self, disk: Disk, client: ConsulClient, mesh: Mesh) -> None:
        self._disk, self._client, self._mesh = disk, client, mesh
        self.history = History()
        self.load()

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of it."""
        notes = [f"kept manifest {reason}" for reason in self.history.ignored]
        if self.history.missing:
            notes.append(
                f"the history begins with {self.history.chain[0].name}, and cannot be verified from outside until the "
                "one before is set on a coordinator (./mesh set)"
            )
        return tuple(notes)

    def load(self) -> None:
        """Reads the disk."""
        self._say(arrange(self._disk.manifests(), self._mesh))

    def keep(self, signed: Signed) -> None:
        """Has what is in force put on the disk, which is no reason to wait: a disk may hang."""
        self.history = extend(self.history, signed, self._mesh)
        self._disk.keep_manifest(name_of(signed), signed.envelope)

    async def gather(self) -> None:
        """Takes what the KV has and the disk has not. ConsulError."""
        found = await asyncio.to_thread(self._disk.manifests)
        for name in await self._listed():
            if is_name(name) and name not in found:
                _, entries = await self._client.get(f"/v1/kv/{MANIFESTS_PREFIX}{name}")
                if entries:
                    found[name] = base64.b64decode(entries[0]["Value"] or "").decode("ascii", "replace")
        self._take(found)

    def lacked(self, envelope: str) -> Signed | None:
        """The manifest in `envelope` where it is the one that the history lacks at its beginning. The one after it
        names its digest, so it does not matter who brings it; any other is not read here, for nobody has signed it yet.
        """
        with contextlib.suppress(ManifestError):
            if digest_of(envelope) == self.history.missing:
                return open_envelope(envelope, None)
        return None

    async def fill(self, found: Signed) -> bool:
        """Keeps `found`, which was `lacked`; whether the history has it now."""
        self._take(await asyncio.to_thread(self._disk.manifests) | {name_of(found): found.envelope})
        return found in self.history.chain

    def _take(self, found: dict[str, str]) -> None:
        """Puts what was found in order, with what came while it was looked for."""
        self._say(arrange(found | {name_of(each): each.envelope for each in self.history.chain}, self._mesh))

    async def spread(self) -> None:
        """Puts the whole history where it is missing, into the KV and on the disk. ConsulError."""
        listed = await self._listed()
        for signed in self.history.chain:
            name = name_of(signed)
            if name not in listed:
                # Several coordinators do so; all would write the same.
                path = f"/v1/kv/{MANIFESTS_PREFIX}{name}"
                await self._client.put(path, signed.envelope.encode(), params={"cas": "0"})
            self._disk.keep_manifest(name, signed.envelope)

    def page(self, after: int) -> ManifestHistory:
        """The part of the chain that begins behind epoch `after`, as much as one answer holds."""
        found: list[ManifestHead] = []
        room = PAGE
        rest = [signed for signed in self.history.chain if signed.manifest.epoch > after]
        for signed in rest:
            room -= len(signed.envelope)
            if room < 0 and found:
                break
            found.append(shown(signed))
        return ManifestHistory(manifests=tuple(found), more=len(found) < len(rest))

    async def _listed(self) -> frozenset[str]:
        _, keys = await self._client.get(f"/v1/kv/{MANIFESTS_PREFIX}", params={"keys": ""})
        return frozenset(key.removeprefix(MANIFESTS_PREFIX) for key in keys or ())

    def _say(self, found: History) -> None:
        for reason in found.ignored:
            if reason not in self.history.ignored:
                log.warning("a kept manifest does not count", extra={"reason": reason})
        self.history = found
