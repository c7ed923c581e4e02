"""What the tests of the kernel's tables share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import network_namespace


@pytest.fixture
def namespace() -> Iterator[str]:
    """A fresh network namespace."""
    with network_namespace() as name:
        yield name
