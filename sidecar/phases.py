"""How far the start-up is, and why not further. Pure.

Phases overlap; the first one that is not done is the one that is shown. What was reached once stays reached:
coordinators or an agent that go away later do not make a mesh unready that still works on its last good state. Two
phases can be lost again: Envoy, because without it nothing works, and the admission of a CVM whose lease lapsed after
coordinators had refused it, or whose certificate has ended (`lost`).
"""

from __future__ import annotations

from dataclasses import dataclass

PHASES = ("identity", "names", "admission", "link", "consul", "registration", "envoy")
"""In the order in which they can finish."""
READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The answer to "are you ready?"."""

    phase: str
    """The first phase that is not done, or `ready`."""
    reasons: tuple[str, ...]
    """One line a phase that is not done; empty when ready."""

    @property
    def ready(self) -> bool:
        """Whether every phase is done."""
        return self.phase == READY


class Progress:
    """What each phase still waits for. Begins with everything to do."""

    def __init__(self) -> None:
        self._waiting: dict[str, str] = dict.fromkeys(PHASES, "has not begun")

    def wait(self, phase: str, reason: str) -> None:
        """`phase` is not done, because of `reason`. A phase that was done stays done, `envoy` apart."""
        if phase in self._waiting or phase == "envoy":
            self._waiting[phase] = reason
        elif phase not in PHASES:
            raise KeyError(f"{phase!r} is no phase; expected one of {PHASES}")

    def lost(self, phase: str, reason: str) -> None:
        """`phase` is no longer done, or still not done, because of `reason`."""
        if phase not in PHASES:
            raise KeyError(f"{phase!r} is no phase; expected one of {PHASES}")
        self._waiting[phase] = reason

    def done(self, phase: str) -> None:
        """`phase` is done."""
        if phase not in PHASES:
            raise KeyError(f"{phase!r} is no phase; expected one of {PHASES}")
        self._waiting.pop(phase, None)

    def report(self) -> Report:
        """Where things stand."""
        pending = [phase for phase in PHASES if phase in self._waiting]
        return Report(
            phase=pending[0] if pending else READY,
            reasons=tuple(f"{phase}: {self._waiting[phase]}" for phase in pending),
        )
