"""`RefusalError`: how every part of the coordinator says no, with the admission API's code. Pure."""

from __future__ import annotations

from coordinator.protocol import Code


class RefusalError(Exception):
    """A request that is answered with `code` and `reason`; nothing was admitted."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason
