"""`RefusalError`: how every part of the coordinator says no, with the admission API's code. Pure."""

from __future__ import annotations

from admission.protocol import Code


class RefusalError(Exception):
    """A request that is answered with `code` and `reason`; nothing was admitted or changed."""

    def __init__(self, code: Code, reason: str, **more: object) -> None:
        """`more` is what the answer has beside the two."""
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason
        self.more = more
