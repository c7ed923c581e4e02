"""A coordinator's memory of manifests: what lies on its disk and in Consul's KV, and that both have the same.

The disk outlives Consul's records, and the records outlive a disk. What is in force stands in the KV before it is
enforced, and goes to the disk and into the KV's history right after: whatever is missing in one of them because a
coordinator was killed is found in another at the next start.
"""

from __future__ import annotations

import asyncio
import base64
import logging

from admission.protocol import MANIFESTS_PREFIX, ManifestHead, ManifestHistory
from coordinator.disk import Disk
from coordinator.history import History, Mesh, arrange, extend, is_name, name_of, wanted
from coordinator.proposal import MAX_STORED, shown
from runtime.consul import ConsulClient, reading
from topology.envelope import Signed

log = logging.getLogger(__name__)

PAGE = 768 << 10
"""Bytes of envelopes in one answer, unless one alone has more: an answer stays below MAX_BODY."""


class Chronicle:
    """The manifests of `mesh`, on `disk` and behind `client`."""

    def __init__(self, disk: Disk, client: ConsulClient, mesh: Mesh) -> None:
        self._disk, self._client, self._mesh = disk, client, mesh
        self.history = History()
        self._replaced: set[str] = set()
        """Names under which the KV may have signatures that prove nothing."""
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
        notes += [
            f"{each.name} of the history is not signed by those that had to, and cannot be verified from outside until "
            "it is set once more, as they signed it (./mesh set)"
            for each in self.history.chain
            if each.digest in self.history.unproven
        ]
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
        unproven = {name_of(each) for each in self.history.chain if each.digest in self.history.unproven}
        for name in await self._listed():
            if is_name(name) and (name not in found or name in unproven):
                _, entries = await self._client.get(f"/v1/kv/{MANIFESTS_PREFIX}{name}")
                with reading(f"the manifest {name}"):
                    if entries:
                        found[name] = base64.b64decode(entries[0]["Value"] or "").decode("ascii", "replace")
        self._take(found)

    def lacked(self, envelope: str) -> Signed | None:
        """The manifest in `envelope` where the history lacks it (`history.wanted`), whoever brings it."""
        if len(envelope) > MAX_STORED:
            return None
        return wanted(self.history, envelope, self._mesh)

    async def fill(self, found: Signed) -> bool:
        """Keeps `found`, which was `lacked`; whether the history has it now."""
        self._take(await asyncio.to_thread(self._disk.manifests) | {name_of(found): found.envelope})
        return found in self.history.chain

    def _take(self, found: dict[str, str]) -> None:
        """Puts what was found in order, with what came while it was looked for. Under one name may be one manifest with
        other signatures: those that prove it count.
        """
        kept = found | {name_of(each): each.envelope for each in self.history.chain}
        history = arrange(kept, self._mesh)
        unproven = {name_of(each) for each in history.chain if each.digest in history.unproven} & found.keys()
        better = {name: found[name] for name in unproven if wanted(history, found[name], self._mesh) is not None}
        self._replaced |= better.keys()
        self._say(arrange(kept | better, self._mesh) if better else history)

    async def spread(self) -> None:
        """Puts the whole history where it is missing, into the KV and on the disk. ConsulError."""
        listed = await self._listed()
        for signed in self.history.chain:
            name = name_of(signed)
            if name not in listed:
                # Several coordinators do so; all would write the same.
                path = f"/v1/kv/{MANIFESTS_PREFIX}{name}"
                await self._client.put(path, signed.envelope.encode(), params={"cas": "0"})
            elif name in self._replaced:
                await self._client.put(f"/v1/kv/{MANIFESTS_PREFIX}{name}", signed.envelope.encode())
            self._replaced.discard(name)
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
        with reading("the list of manifests"):
            return frozenset(key.removeprefix(MANIFESTS_PREFIX) for key in keys or ())

    def _say(self, found: History) -> None:
        for reason in found.ignored:
            if reason not in self.history.ignored:
                log.warning("a kept manifest does not count", extra={"reason": reason})
        self.history = found
