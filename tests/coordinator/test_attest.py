"""Quotes for whoever asks: one for many, few at a time, and none of it ends anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable

import pytest
import pytest_asyncio

from admission.protocol import Code
from coordinator import attest as module
from coordinator.attest import Attester
from coordinator.refusal import RefusalError
from evidence.bundle import AttestationRequest, Bundle, decode
from evidence.collateral import FixedCollateral
from evidence.outside import verify
from lab.agent_tls import event_items
from runtime.guest import GuestError, GuestQuote
from runtime.tasks import TaskScope
from tests.evidence.bundles import NOW, Coordinator
from tests.support import eventually

HONEST = Coordinator()


class Hardware:
    """A guest agent whose quotes come when they are let."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.may = asyncio.Event()
        self.may.set()
        self.fails: Exception | None = None
        self.not_ready: str | None = None
        self.unsure: RefusalError | None = None
        self.found_out: str | None = None
        """Why nothing is enforced, which the records tell."""
        self.attester = Attester(
            quote=self.quote,
            collateral=FixedCollateral(HONEST.tee.collateral_json(NOW)),
            contents=HONEST.contents,
            not_ready=lambda: self.not_ready,
            confirm=self.confirm,
            clock=lambda: NOW,
        )

    async def confirm(self) -> None:
        """The records' word on what is in force."""
        if self.unsure is not None:
            raise self.unsure
        self.not_ready = self.found_out

    async def quote(self, report_data: bytes) -> GuestQuote:
        """A real quote of the simulated TEE."""
        self.asked.append(report_data)
        await self.may.wait()
        if self.fails is not None:
            raise self.fails
        return GuestQuote(
            quote=HONEST.tee.quote(HONEST.who.measurements, report_data),
            event_log=json.dumps(event_items(HONEST.who.boot_events, stripped=True)),
            vm_config=HONEST.who.vm_config,
        )

    async def ask(self, number: int) -> Bundle:
        """The answer to one asker."""
        async with self.attester.asked(AttestationRequest(nonce=nonce(number).hex())) as data:
            return decode(data)

    async def refusal(self, number: int = 0) -> RefusalError:
        """How one asker is refused."""
        with pytest.raises(RefusalError) as caught:
            await self.ask(number)
        return caught.value


def nonce(number: int) -> bytes:
    """One of many."""
    return number.to_bytes(32, "big")


@pytest_asyncio.fixture
async def hardware() -> AsyncIterator[Hardware]:
    """One whose attester runs."""
    made = Hardware()
    async with TaskScope() as scope:
        task = scope.start("attest", made.attester.run())
        yield made
        task.cancel()


async def gather(*asking: Awaitable[Bundle]) -> list[Bundle]:
    """All of them at once."""
    return list(await asyncio.gather(*asking))


async def test_one_quote_for_all_who_ask_at_once(hardware: Hardware) -> None:
    """Each answer verifies with the nonce of its own."""
    bundles = await gather(*(hardware.ask(number) for number in range(20)))
    assert len(hardware.asked) == 1
    for number, bundle in enumerate(bundles):
        found = await verify(bundle, HONEST.trusted, nonce=nonce(number), seen=None, now=NOW)
        assert found.statement == HONEST.contents().statement


async def test_who_comes_a_moment_later_is_in_the_same_quote(
    hardware: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nonces are collected for a while after the first."""
    monkeypatch.setattr(module, "BATCH_SECONDS", 0.3)
    async with TaskScope() as scope:
        first = scope.start("first", hardware.ask(1))
        for _ in range(10):
            # The attester has been woken by then.
            await asyncio.sleep(0)
        second = scope.start("second", hardware.ask(2))
        assert (await first).quote == (await second).quote
    assert len(hardware.asked) == 1


async def test_no_quote_without_the_records_word(hardware: Hardware) -> None:
    """One that is cut off from the others states nothing; nor does one that learns then that it may not enforce."""
    hardware.unsure = RefusalError(Code.NOT_READY, "the records do not confirm")
    assert (await hardware.refusal()).reason == "the records do not confirm"
    hardware.unsure, hardware.found_out = None, "dropped"
    assert (await hardware.refusal()).reason == "dropped"
    assert hardware.asked == []


async def test_who_comes_while_a_quote_is_made_is_in_the_next(hardware: Hardware) -> None:
    """Nobody waits for more than the quote under way and their own."""
    hardware.may.clear()
    async with TaskScope() as scope:
        first = scope.start("first", hardware.ask(1))
        await eventually(lambda: len(hardware.asked) == 1, "a quote is asked for")
        later = [scope.start(f"later {number}", hardware.ask(number)) for number in (2, 3)]
        hardware.may.set()
        assert (await first).quote != (await later[0]).quote
        assert (await later[0]).quote == (await later[1]).quote
    assert len(hardware.asked) == 2


async def test_one_too_many_is_told_to_come_again(hardware: Hardware, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while somebody reads an answer slowly; and then there is room again."""
    monkeypatch.setattr(module, "MAX_OPEN", 1)
    async with hardware.attester.asked(AttestationRequest(nonce=nonce(1).hex())) as data:
        assert decode(data).nonce == nonce(1).hex()
        assert (await hardware.refusal(2)).code is Code.BUSY
    assert (await hardware.ask(3)).nonce == nonce(3).hex()


async def test_nobody_waits_without_end(hardware: Hardware, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest agent that hangs; and whoever gave up takes no part in the next quote."""
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    hardware.may.clear()
    error = await hardware.refusal()
    assert (error.code, "try again" in error.reason) == (Code.NOT_READY, True)
    assert (await hardware.refusal(2)).code is Code.NOT_READY
    monkeypatch.setattr(module, "WAIT_SECONDS", 60.0)
    hardware.may.set()
    bundle = await hardware.ask(1)
    assert (bundle.nonce, bundle.merkle_path) == (nonce(1).hex(), ())


@pytest.mark.parametrize("fails", [GuestError("GetQuote", "no quote"), RuntimeError("a bug")], ids=["agent", "bug"])
async def test_a_failure_is_told_and_the_next_is_served(hardware: Hardware, fails: Exception) -> None:
    """The agent's, or our own."""
    hardware.fails = fails
    error = await hardware.refusal()
    assert error.code is Code.VERIFIER_FAILED
    assert "bug" not in error.reason
    hardware.fails = None
    assert (await hardware.ask(1)).nonce == nonce(1).hex()


async def test_nothing_is_stated_while_nothing_is_enforced(hardware: Hardware) -> None:
    """Before it is ready, and when it ceases to be while somebody waits."""
    hardware.not_ready = "Consul has no leader"
    error = await hardware.refusal()
    assert (error.code, error.reason) == (Code.NOT_READY, "Consul has no leader")
    assert hardware.asked == []
    hardware.not_ready = None
    hardware.may.clear()
    async with TaskScope() as scope:
        first = scope.start("first", hardware.ask(1))
        await eventually(lambda: len(hardware.asked) == 1, "a quote is asked for")
        second = scope.start("second", hardware.refusal(2))
        await asyncio.sleep(0)
        hardware.not_ready = "rolled back"
        hardware.may.set()
        await first
        assert (await second).reason == "rolled back"


async def test_who_goes_away_takes_nobody_along(hardware: Hardware) -> None:
    """A connection that is closed while its quote is made."""
    hardware.may.clear()
    async with TaskScope() as scope:
        gone, stays = (scope.start(str(number), hardware.ask(number)) for number in (1, 2))
        await eventually(lambda: len(hardware.asked) == 1, "a quote is asked for")
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        hardware.may.set()
        assert (await stays).nonce == nonce(2).hex()
    assert (await hardware.ask(3)).nonce == nonce(3).hex()


@pytest.mark.parametrize("text", ["", "ab", "AB" * 32, "00" * 33])
async def test_a_nonce_that_is_none_costs_no_quote(hardware: Hardware, text: str) -> None:
    """It is refused at once."""
    with pytest.raises(RefusalError) as caught:
        async with hardware.attester.asked(AttestationRequest(nonce=text)):
            pass
    assert (caught.value.code, hardware.asked) == (Code.BAD_REQUEST, [])
