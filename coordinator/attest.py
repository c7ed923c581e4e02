"""Answers `POST /v1/attest`: collects the nonces of a moment, takes one quote for all of them, and answers each.

Anyone may ask, and quotes are made one at a time, by hardware that other CVMs of the same host need too. So few wait,
none for long, and after each quote the hardware is left alone for as long as it took.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from admission.protocol import Code
from coordinator.contents import Contents
from coordinator.refusal import RefusalError
from evidence.bundle import AttestationRequest, BundleError, common_part, parse_nonce, with_path
from evidence.collateral import CollateralSource
from evidence.errors import EvidenceError
from evidence.merkle import Step, tree
from evidence.statement import report_data
from runtime.guest import GuestError, GuestQuote
from runtime.log import BY_STRANGERS

log = logging.getLogger(__name__)

BATCH_SECONDS = 0.05
"""How long nonces are collected for one quote: no person notices it, and it is as long as the fastest quotes take."""
MAX_OPEN = 64
"""Askers that wait or are being answered; each may hold a copy of the bundle, some 300 kB for 1,000 CVMs."""
WAIT_SECONDS = 20.0
"""An asker is told to come again after so long: quotes take well below a second, and this much when many are made."""
MAX_REST_SECONDS = 2.0
"""The longest pause after a quote."""


@dataclass(slots=True, eq=False)
class _Asker:
    nonce: bytes
    answer: asyncio.Future[tuple[bytes, tuple[Step, ...]]]
    """What all of one quote are answered, and the path of this one."""


class Attester:
    """`run` makes the quotes; `asked` answers one request."""

    def __init__(
        self,
        *,
        quote: Callable[[bytes], Awaitable[GuestQuote]],
        collateral: CollateralSource,
        contents: Callable[[], Contents],
        not_ready: Callable[[], str | None],
        confirm: Callable[[], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        """`contents` gives what is stated now; `not_ready` why nothing is, or None; `confirm` has the records confirm
        what is in force, RefusalError. `clock` gives Unix seconds.
        """
        self._confirm = confirm
        self._quote = quote
        self._collateral = collateral
        self._contents = contents
        self._not_ready = not_ready
        self._clock = clock
        self._open = 0
        self._waiting: list[_Asker] = []
        self._arrived = asyncio.Event()

    @contextlib.asynccontextmanager
    async def asked(self, request: AttestationRequest) -> AsyncIterator[bytes]:
        """The bundle for `request`, JSON; the asker counts as open until the block is left. RefusalError."""
        try:
            nonce = parse_nonce(request.nonce)
        except BundleError as error:
            raise RefusalError(Code.BAD_REQUEST, str(error)) from error
        self._check_ready()
        if self._open >= MAX_OPEN:
            raise RefusalError(Code.BUSY, f"{MAX_OPEN} others are being answered; try again in a few seconds")
        self._open += 1
        try:
            yield with_path(*await self._answered(nonce))
        finally:
            self._open -= 1

    async def _answered(self, nonce: bytes) -> tuple[bytes, bytes, tuple[Step, ...]]:
        """What all of one quote are answered, `nonce` again, and its path."""
        asker = _Asker(nonce, asyncio.get_running_loop().create_future())
        self._waiting.append(asker)
        self._arrived.set()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                common, path = await asker.answer
        except TimeoutError:
            raise RefusalError(Code.NOT_READY, f"no quote was made within {WAIT_SECONDS:g} s; try again") from None
        finally:
            if asker in self._waiting:
                self._waiting.remove(asker)
        return common, nonce, path

    async def run(self) -> None:
        """Makes quotes until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            await asyncio.sleep(BATCH_SECONDS)
            batch, self._waiting = self._waiting, []
            self._arrived.clear()
            began = loop.time()
            if batch:
                await self._serve(batch)
            await asyncio.sleep(min(loop.time() - began, MAX_REST_SECONDS))

    async def _serve(self, batch: list[_Asker]) -> None:
        try:
            common, paths = await self._answer(tuple(asker.nonce for asker in batch))
        except RefusalError as refusal:
            self._refuse(batch, refusal)
        except Exception:
            # Whatever it is, only these askers have it; the next ones are served.
            log.exception("attestation failed", extra=BY_STRANGERS)
            self._refuse(batch, RefusalError(Code.VERIFIER_FAILED, "the coordinator failed; its log says why"))
        else:
            for asker, path in zip(batch, paths, strict=True):
                if not asker.answer.done():
                    asker.answer.set_result((common, path))

    @staticmethod
    def _refuse(batch: list[_Asker], refusal: RefusalError) -> None:
        for asker in batch:
            if not asker.answer.done():
                asker.answer.set_exception(RefusalError(refusal.code, refusal.reason))

    async def _answer(self, nonces: tuple[bytes, ...]) -> tuple[bytes, tuple[tuple[Step, ...], ...]]:
        self._check_ready()
        await self._confirm()
        # What is in force may be another manifest by now, and not to be enforced here.
        self._check_ready()
        contents = self._contents()
        root, paths = tree(nonces)
        try:
            made = await self._quote(report_data(contents.statement, root))
            collateral = await self._collateral.collateral(made.quote, self._clock())
        except (GuestError, EvidenceError) as error:
            log.warning("attestation not possible", extra={**BY_STRANGERS, "reason": str(error)})
            raise RefusalError(Code.VERIFIER_FAILED, f"no quote, or no collateral for it: {error!s:.200}") from error
        bundle = contents.bundle(
            quote=made.quote,
            event_log=made.event_log,
            vm_config=made.vm_config,
            collateral={name: str(part) for name, part in json.loads(collateral.to_json()).items()},
        )
        return common_part(bundle), paths

    def _check_ready(self) -> None:
        if (reason := self._not_ready()) is not None:
            raise RefusalError(Code.NOT_READY, reason)
