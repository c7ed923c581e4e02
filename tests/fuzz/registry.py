"""All harnesses by name, which is also that of the folder of their inputs."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz import network, owners, partners, proofs
from tests.fuzz.harness import Harness

HARNESSES: dict[str, Harness] = {
    **owners.HARNESSES, **proofs.HARNESSES, **network.HARNESSES, **partners.HARNESSES,
}  # fmt: skip
CORPUS = Path(__file__).parent / "corpus"
GOOD = "good"
"""How the names of inputs begin that the boundary takes: without one, a harness might refuse everything."""


def inputs(name: str) -> dict[str, bytes]:
    """What harness `name` begins with, by file name."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / name).iterdir())}
