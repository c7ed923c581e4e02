"""The mark of a pg_rewind that did not succeed, with a stand-in for the program; test_memory.py has the real one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workloads.patroni import marks
from workloads.patroni.rewinding import MeshRewind


@dataclass
class Postgres:
    """What Patroni's `Rewind` asks of its `Postgresql`."""

    data_dir: str
    ends: int | Exception | None
    """Exit code of pg_rewind; None: it was cancelled."""
    seen: list[bool]
    touches: bool = True
    major_version: int = 150000

    @property
    def config(self) -> Any:
        return SimpleNamespace(
            write_pgpass=lambda _: {}, format_dsn=lambda _: "", get=lambda _: None, config_dir=self.data_dir
        )

    @property
    def cancellable(self) -> Any:
        return SimpleNamespace(call=self._call)

    def get_guc_value(self, _: str) -> None:
        """No restore_command."""

    def pgcommand(self, name: str) -> str:
        return name

    def _call(self, _: list[str], env: Mapping[str, str], communicate: dict[str, bytes]) -> int | None:
        assert env["LANG"] == "C"
        communicate |= {"stdout": b"", "stderr": b""}
        if self.touches:
            # The kernel's clock for files has ticks of 4 ms (CONFIG_HZ=250), and no program starts faster.
            time.sleep(0.02)
            (Path(self.data_dir) / "base" / "1").write_text("the leader's")
        self.seen.append(marks.REWIND.is_set(Path(self.data_dir)))
        if isinstance(self.ends, Exception):
            raise self.ends
        return self.ends


@pytest.mark.parametrize(("ends", "spoilt"), [(0, False), (1, True), (None, True), (OSError("no program"), True)])
def test_rewind_without_success_is_marked(tmp_path: Path, ends: int | Exception | None, spoilt: bool) -> None:
    """The mark is there while it runs, whatever ends the process, and stays after a failure."""
    data = tmp_path / "data"
    (data / "base").mkdir(parents=True)
    postgres = Postgres(str(data), ends, [])
    rewind = MeshRewind(postgres)
    if isinstance(ends, Exception):
        with pytest.raises(OSError, match="no program"):
            rewind.pg_rewind({"password": "x"})
    else:
        assert rewind.pg_rewind({"password": "x"}) is (ends == 0)
    assert postgres.seen == [True]
    assert marks.REWIND.is_set(data) is rewind.failed is spoilt


def test_rewind_that_changed_nothing_costs_nothing(tmp_path: Path) -> None:
    """The leader could not be reached: the next attempt finds the data as they were."""
    data = tmp_path / "data"
    (data / "base").mkdir(parents=True)
    (data / "base" / "1").write_text("own")
    rewind = MeshRewind(Postgres(str(data), 1, [], touches=False))
    assert rewind.pg_rewind({"password": "x"}) is False
    assert not marks.REWIND.is_set(data)
    assert not rewind.failed
