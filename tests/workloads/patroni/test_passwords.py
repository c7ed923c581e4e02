"""The database's own passwords."""

from __future__ import annotations

from pathlib import Path

from lab.agent import GuestAgentServer
from lab.tee import DevTee, make_cvm
from runtime.guest import GuestAgent
from runtime.secret import Secret
from workloads.patroni.passwords import Passwords, derive, fetch

TEE = DevTee(b"password tests")


def test_passwords_differ_by_purpose_and_by_key() -> None:
    """No two are equal, and another key gives others; the same key gives the same."""
    one, other = derive(Secret("01" * 32)), derive(Secret("02" * 32))
    values = [getattr(p, name).reveal() for p in (one, other) for name in Passwords.__slots__]
    assert len(set(values)) == 8
    assert all(len(value) == 64 for value in values)
    assert derive(Secret("01" * 32)) == one


async def _asked(folder: Path, app: str, seed: bytes, cluster: str) -> Passwords:
    cvm = make_cvm(TEE, app_compose=f'{{"name":"{app}"}}', instance_seed=seed, os_version="0.6.0", app_id=None)
    server = GuestAgentServer(TEE, cvm)
    await server.start(folder / "dstack.sock")
    try:
        async with GuestAgent(folder / "dstack.sock") as guest:
            return await fetch(guest, cluster)
    finally:
        await server.stop()


async def test_replicas_of_one_app_derive_the_same(tmp_path: Path) -> None:
    """Two CVMs of one app agree without an exchange; another app, or another cluster, gets others."""
    own = await _asked(tmp_path, "postgres", b"1", "demo")
    assert await _asked(tmp_path, "postgres", b"2", "demo") == own
    assert await _asked(tmp_path, "webdemo", b"1", "demo") != own
    assert await _asked(tmp_path, "postgres", b"1", "other") != own
