"""Fixtures of the evidence tests."""

from __future__ import annotations

import pytest

from lab.tee import CvmIdentity, DevTee
from tests.evidence.world import boot


@pytest.fixture(scope="session")
def tee() -> DevTee:
    """The simulated TEE that the tests trust."""
    return DevTee(b"evidence tests")


@pytest.fixture(scope="session")
def cvm(tee: DevTee) -> CvmIdentity:
    """An honest CVM."""
    return boot(tee)
