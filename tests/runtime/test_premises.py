"""Rights and programs that must be there before anything starts."""

from __future__ import annotations

from pathlib import Path

from runtime import premises


def status(folder: Path, capabilities: int) -> Path:
    """A /proc/self/status with these effective capabilities."""
    path = folder / "status"
    path.write_text(f"Name:\tx\nCapEff:\t{capabilities:016x}\n")
    return path


def test_a_machine_with_everything_has_no_problem(tmp_path: Path) -> None:
    """With NET_ADMIN and programs that can be run nothing is said."""
    assert premises.problems({"MESH_CONSUL": Path("/bin/sh")}, status(tmp_path, 1 << 12)) == []


def test_every_missing_thing_is_named_with_its_remedy(tmp_path: Path) -> None:
    """A missing capability and each program that cannot be run are told together."""
    plain = tmp_path / "plain"
    plain.touch()
    found = premises.problems({"MESH_CONSUL": plain, "MESH_ENVOY": tmp_path}, status(tmp_path, 0xFFF))
    assert [problem.variable for problem in found] == ["NET_ADMIN", "MESH_CONSUL", "MESH_ENVOY"]
    assert "cap_add" in str(found[0])
    assert repr(str(plain)) in str(found[1])
