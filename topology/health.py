"""When Docker calls a container unhealthy, after which Compose starts nothing that waits for its health. Pure.

Sources: moby/moby daemon/health.go (`handleProbeResult`, the defaults) and docker/compose pkg/compose/convergence.go
(`isServiceHealthy`). A success makes a container healthy at once. Failures within `start_period` are not counted. After
`retries` counted ones in a row it is unhealthy, and `up` ends with "dependency failed to start"; dstack runs `up` once
a boot. On Docker Engine 25 and newer, checks within `start_period` are 5 s apart (`start_interval`), else `interval`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

START_PERIOD = 24 * 3600.0
"""Seconds. What a sidecar's `start_period` must be at least: a first deployment waits for its owner to sign a manifest,
and nothing starts the applications again in this boot once Compose gave up."""

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|us|m|s)")


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """How a container is checked. Seconds; the defaults are Docker's."""

    interval: float = 30.0
    retries: int = 3
    start_period: float = 0.0

    @property
    def gives_up_after(self) -> float:
        """Seconds from the container's start until it is unhealthy, when no check succeeds and none takes any time."""
        return self.start_period + self.retries * self.interval


def duration(text: object) -> float | None:
    """Seconds of a Compose duration such as `1h30m` or `2s`; None for what is none."""
    if not isinstance(text, str) or not re.fullmatch(f"(?:{_PART.pattern})+", text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
