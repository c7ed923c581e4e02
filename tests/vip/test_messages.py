"""Messages of nfnetlink and the kernel's answers, without a kernel."""

from __future__ import annotations

import struct

import pytest

from vip.messages import batch, elements, errors, from_interface, new_chain


def test_an_empty_transaction_is_not_sent() -> None:
    """It would be a call of the kernel for nothing."""
    assert batch() == (b"", 0)


def test_of_a_set_only_the_difference_is_said() -> None:
    """What is new in one message, before what goes in another."""
    added, removed = elements("ports", [b"\0\1", b"\0\2"], [b"\0\2", b"\0\3"])
    # A key as an attribute: 6 bytes, kind 1.
    assert (added.count(b"\6\0\1\0\0\3"), removed.count(b"\6\0\1\0\0\1")) == (1, 1)
    assert list(elements("ports", [b"\0\1"], [b"\0\1"])) == []


def test_a_name_is_compared_with_the_zeros_behind_it() -> None:
    """`mesh0` must not match `mesh01`."""
    assert b"mesh0" + bytes(11) in from_interface("mesh0")[1]


def test_a_hook_may_come_before_others() -> None:
    """Its priority is a signed number."""
    assert struct.pack("!i", -300) in new_chain("arrival", 0, -300)


def answer(*numbers: int) -> bytes:
    """What the kernel answers: one message a number."""
    return b"".join(struct.pack("=IHHIIi16x", 36, 2, 0, 0, 0, -number) for number in numbers)


def test_the_kernels_answers_are_read() -> None:
    """Acknowledgements and errors in order; messages of other kinds are none."""
    assert errors(answer(0, 0, 2)) == [0, 0, 2]
    assert errors(struct.pack("=IHHII4x", 20, 3, 0, 0, 0) + answer(1)) == [1]
    assert errors(b"") == []


@pytest.mark.parametrize(
    "data", [b"\0" * 19, struct.pack("=IHHIIi", 8, 2, 0, 0, 0, 0), struct.pack("=IHHIIi", 99, 2, 0, 0, 0, 0)]
)
def test_a_malformed_answer_is_refused(data: bytes) -> None:
    """Too short, or of a length that cannot be: never a loop without end."""
    with pytest.raises(ValueError, match="the kernel's answer"):
        errors(data)
