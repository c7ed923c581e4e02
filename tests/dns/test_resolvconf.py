"""Reading resolv.conf."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dns.resolvconf import ResolvConf, parse


def test_everything_that_a_file_can_say() -> None:
    """All servers in order, once; the last search or domain line; the words of all options lines."""
    text = """# comment
; comment
nameserver 10.0.0.1
nameserver\t10.0.0.2 trailing words
nameserver 10.0.0.1
nameserver fe80::1%eth0
domain old.example
search corp.example  lab.example
options ndots:2 timeout:1
options edns0
sortlist 10.0.0.0
nameserver not-an-address
nameserver
"""
    assert parse(text) == ResolvConf(
        nameservers=("10.0.0.1", "10.0.0.2", "fe80::1%eth0"),
        search=("corp.example", "lab.example"),
        options=("ndots:2", "timeout:1", "edns0"),
    )


def test_a_later_domain_line_replaces_search() -> None:
    """resolv.conf(5): the two exclude each other, the last one counts."""
    assert parse("search a b\ndomain c\n").search == ("c",)


def test_an_empty_file_says_nothing() -> None:
    """No servers, no search, no options."""
    assert parse("") == ResolvConf()


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    """No text raises; every server is one that was written there."""
    assert all(server in text for server in parse(text).nameservers)


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ("", 10.0),
        ("timeout:1", 2.0),
        ("attempts:3", 15.0),
        ("timeout:30 attempts:5", 60.0),
        ("timeout:99 attempts:1", 30.0),
        ("timeout:0 attempts:0", 1.0),
        ("timeout:x attempts:", 10.0),
        ("timeout:" + "9" * 5000, 10.0),
        ("timeout:7 timeout:3", 6.0),
    ],
)
def test_patience_is_what_the_options_make_of_it(options: str, seconds: float) -> None:
    """Time times attempts, each within what stub resolvers take, nonsense left out."""
    assert parse(f"options ndots:1 {options}\n").patience == seconds
