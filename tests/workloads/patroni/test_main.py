"""The program of the database's container: when it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from workloads.patroni import __main__ as program
from workloads.patroni import versions
from workloads.patroni.supervisor import find_postgres


async def _ends(code: int) -> int:
    return code


async def test_a_member_ends_with_its_own_exit_code(tmp_path: Path) -> None:
    """A stop is no move, whether there is an identity or not."""
    assert await program.live(_ends(0), "db-0", tmp_path / "none") == 0
    assert await program.live(_ends(2), "db-0", tmp_path / "none") == 2


async def test_a_member_whose_cvm_is_another_peer_stops_in_order_and_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own name and half a file change nothing; another peer's name ends it, after its own clean-up."""
    monkeypatch.setattr(program, "IDENTITY_SECONDS", 0.01)
    identity, begun, cleaned = tmp_path / "identity.json", asyncio.Event(), asyncio.Event()

    async def member() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()
        return 0

    async def other_peer() -> None:
        await begun.wait()
        for text in ("{", "[]", '{"peer_id": "db-2"}'):
            identity.write_text(text)
            await asyncio.sleep(0.03)
        assert not cleaned.is_set()
        identity.write_text('{"peer_id": "db-0"}')

    async with asyncio.timeout(10):
        code, _ = await asyncio.gather(program.live(member(), "db-2", identity), other_peer())
    assert code == program.ANEW
    assert cleaned.is_set()


def test_missing_identity_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the sidecar's files there is one line and exit code 2."""
    monkeypatch.setattr(program, "IDENTITY", tmp_path / "identity.json")
    assert program.main() == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "identity.json" in said


def test_postgres_is_found_through_links(tmp_path: Path) -> None:
    """The folder is that of the program itself, where its siblings are."""
    real, path = tmp_path / "real", tmp_path / "bin"
    real.mkdir()
    path.mkdir()
    (real / "postgres").touch(mode=0o755)
    (path / "postgres").symlink_to(real / "postgres")
    assert find_postgres(str(path)) == real
    with pytest.raises(FileNotFoundError, match="PostgreSQL 15"):
        find_postgres(str(tmp_path))


def test_patroni_that_was_not_tried_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says which version there is and which were tried, before anything is started."""
    monkeypatch.setattr(versions, "TRIED", ("3.9",))
    assert program.main() == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "3.9.x" in said
