"""By which manifest a coordinator is judged: the one that it says is in force, where its owners stand behind that.

What a stranger shows grants nothing by itself. A first manifest is one that the owners in the measured compose file
signed, or to which the history leads from one that they signed. Whoever holds one takes no other than its successors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from admission.client import CoordinatorError, Greeting, RefusedError
from admission.protocol import ManifestHistory
from topology.allowed import coordinators
from topology.envelope import Signed, UnreadableError, digest_of, open_envelope
from topology.manifest import Manifest
from topology.owners import Owners
from topology.succession import Fault, SuccessionError, chain, follow, overtake, pass_over
from topology.trees import ManifestError, from_tree

HISTORY = "/v1/manifest/history"
HISTORY_SECONDS = 60.0
"""For the whole history of a coordinator that is not verified yet: a liar gives one manifest a page, each as late as an
answer may come, while others wait to be asked. A genuine one has some hundred manifests in a page of 768 KiB."""


Ask = Callable[[str], Awaitable[Mapping[str, Any]]]
"""Asks a coordinator for a public path; RefusedError, CoordinatorError. As `admission.client.Greeting.ask`."""


class Offers:
    """What coordinators offer to one who has `owners` in its measured compose file; None skips signatures."""

    def __init__(
        self, owners: Owners | None, held: Callable[[], Signed | None], misfit: Callable[[Manifest], str | None]
    ) -> None:
        """`held` is the newest manifest that was taken, None before the first. `misfit` says why a first one is not
        about who asks, None when it is.
        """
        self._owners, self._held, self._misfit = owners, held, misfit
        self.elsewhere: tuple[str, ...] = ()
        """URLs of coordinators to which the owners have handed the mesh over, as a manifest says that a coordinator
        showed. A former one shows it, and is nobody's coordinator by it: so it is a place to ask at, and not taken."""

    async def judge(self, greeting: Greeting) -> Signed:
        """The manifest by which the coordinator of `greeting` is verified: a newer one than is held, or the one that is
        held. CoordinatorError for a coordinator that is not to be used, and where there is none.
        """
        found = await self._judged(greeting)
        if found.manifest.coordinators.handover is not None:
            self.elsewhere = tuple(peer.url for peer in coordinators(found.manifest))
        return found

    async def _judged(self, greeting: Greeting) -> Signed:
        held = self._held()
        if not greeting.envelope:
            if held is None:
                raise CoordinatorError(f"{greeting.url}: {greeting.reason or 'it has no manifest'}")
            return held
        if held is not None:
            return await self._newer(held, greeting)
        found = await self._first(greeting)
        if (reason := self._misfit(found.manifest)) is not None:
            raise CoordinatorError(f"{greeting.url} has a manifest that is not for this CVM: {reason}")
        return found

    async def _newer(self, held: Signed, greeting: Greeting) -> Signed:
        if greeting.envelope == held.envelope:
            return held
        try:
            return overtake(held, greeting.envelope, settled=True, signed=self._owners is not None) or held
        except SuccessionError as error:
            if error.fault.unread:
                # Too old to read it; the coordinator judges by it.
                return held
            if error.fault in (Fault.INVALID, Fault.GAP):
                # Owners may have changed since the one that is held; and what it does not follow directly may be a
                # fork, unless those in between lead there.
                return await self._led_to(held, greeting, error)
            raise CoordinatorError(f"{greeting.url}: enforces another manifest: {error}") from error

    async def _first(self, greeting: Greeting) -> Signed:
        try:
            return open_envelope(greeting.envelope, self._owners)
        except UnreadableError as error:
            raise CoordinatorError(f"{greeting.url} has a manifest that {error}") from error
        except ManifestError as error:
            return await self._led_to(None, greeting, error)

    async def _led_to(self, held: Signed | None, greeting: Greeting, refused: ManifestError) -> Signed:
        """The manifest of `greeting`, to which the coordinator's history leads from `held`, or from the first one.
        `refused` is why it cannot be taken without.
        """
        try:
            wanted = digest_of(greeting.envelope)
            if held is None and self._owners is None:
                raise refused
            async with asyncio.timeout(HISTORY_SECONDS):
                async for found in successors(greeting.ask, held, self._owners):
                    if found.digest == wanted:
                        return found
        except (ManifestError, RefusedError, CoordinatorError, TimeoutError) as error:
            raise CoordinatorError(f"{greeting.url} has a manifest that is refused: {refused}") from error
        raise CoordinatorError(f"{greeting.url} has a manifest that is refused: {refused}")


async def successors(ask: Ask, held: Signed | None, owners: Owners | None) -> AsyncIterator[Signed]:
    """What comes after `held`, or from the first one on, by the history of the coordinator that `ask` asks, oldest
    first: each follows the one before. Each page is judged before the next one is asked for.

    `owners` are those of the measured compose file; None skips signatures, and needs a `held`. ManifestError where one
    does not follow; RefusedError, CoordinatorError.
    """
    more = True
    while more:
        after = held.manifest.epoch if held is not None else 0
        page: ManifestHistory = from_tree(ManifestHistory, await ask(f"{HISTORY}?after={after}"), "history")
        for each in page.manifests:
            if held is None:
                assert owners is not None
                held = chain(owners, [each.envelope])[0]
            else:
                try:
                    held = follow(held, each.envelope, signed=owners is not None)
                except SuccessionError as error:
                    if not error.fault.unread:
                        raise
                    # A later one may do without what this program does not know.
                    held = pass_over(held, each.envelope)
                    continue
            yield held
        more = page.more and bool(page.manifests)
