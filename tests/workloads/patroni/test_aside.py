"""What becomes of the data of a fork, on a real disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from workloads.patroni.aside import StaysError, fits, measure, set_aside


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory."""
    folder = tmp_path / "volume" / "data"
    (folder / "pg_wal").mkdir(parents=True)
    (folder / "pg_tblspc").mkdir()
    (folder / "PG_VERSION").write_text("15")
    return folder


def test_room_is_for_a_copy_and_half_as_much_again() -> None:
    """The log grows while the copy is made."""
    assert fits(100, 151)
    assert not fits(100, 150)


def test_tablespaces_elsewhere_are_named_and_stay(data: Path, tmp_path: Path) -> None:
    """A rename would leave a tablespace where the fresh copy puts its own: nothing moves, and the folder is named."""
    elsewhere = tmp_path / "fast-disk"
    elsewhere.mkdir()
    (elsewhere / "rows").write_text("only here")
    link = data / "pg_tblspc" / "16384"
    link.symlink_to(elsewhere)
    (data / "pg_tblspc" / "16385").mkdir()
    with pytest.raises(StaysError, match="fast-disk") as refused:
        set_aside(data)
    assert "16385" not in str(refused.value)
    assert (link / "rows").read_text() == "only here"
    assert not data.with_name("data.fork").exists()


def test_log_elsewhere_stays_with_its_data(data: Path, tmp_path: Path) -> None:
    """A `pg_wal` that is a link leads the kept data to their log still. A fresh copy has its log inside: it counts."""
    log = tmp_path / "log-disk"
    log.mkdir()
    (log / "000000010000000000000001").write_bytes(b"x" * 5000)
    (data / "pg_wal").rmdir()
    (data / "pg_wal").symlink_to(log)
    assert measure(data) > 5000
    kept = set_aside(data)
    assert (kept / "pg_wal" / "000000010000000000000001").stat().st_size == 5000
    assert not data.exists()


def test_log_elsewhere_needs_room_too(data: Path, tmp_path: Path) -> None:
    """What a link leads to is as large as the disk: the data stay."""
    log = tmp_path / "log-disk"
    log.mkdir()
    with (log / "segment").open("wb") as file:
        file.truncate(shutil.disk_usage(data).free)
    (data / "pg_wal").rmdir()
    (data / "pg_wal").symlink_to(log)
    with pytest.raises(StaysError, match="MiB are free"):
        set_aside(data)


def test_disk_that_refuses_is_a_reason(data: Path) -> None:
    """Whatever the disk says, the data stay, and the text is for a person."""
    shutil.rmtree(data)
    with pytest.raises(StaysError, match="No such file"):
        set_aside(data)


def test_name_that_is_taken_is_never_used(data: Path) -> None:
    """A rename onto an empty folder, or over a link, would succeed: each name is looked at first."""
    data.with_name("data.fork").mkdir()
    data.with_name("data.fork.2").symlink_to("nowhere")
    assert set_aside(data).name == "data.fork.3"
