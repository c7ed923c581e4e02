"""The strings of a service mesh by annotation: read strictly, each mistake with entry and position."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology import servicemesh
from topology.egress import MAX_ENTRIES, EgressEntry
from topology.servicemesh import MAX_TEXT, Ingress, PortRule, StringError

SEEDS = "emoji#127.137.0.1:8081#emoji-svc:8080##voting#127.137.0.2:8081#voting-svc:8080"
EMOJI = EgressEntry(name="emoji", listen="127.137.0.1:8081", remote="emoji-svc:8080")
VOTING = EgressEntry(name="voting", listen="127.137.0.2:8081", remote="voting-svc:8080")

BROKEN_EGRESS = {
    "": "is empty",
    "##": "entry 1 (character 1) is '', of 0 part(s)",
    "a": "entry 1 (character 1) is 'a', of 1 part(s), expected 3: name#ip:port#host:port",
    "a#127.0.0.2:81#b:80##": "entry 2 (character 22) is '', of 0 part(s)",
    "a#127.0.0.2:81#b:80####c#127.0.0.3:81#b:80": "entry 2 (character 22) is ''",
    "##a#127.0.0.2:81#b:80": "entry 1 (character 1) is ''",
    "a#127.0.0.2:81#b:80#c": "entry 1 (character 1) is 'a#127.0.0.2:81#b:80#c', of 4 part(s)",
    "a#127.0.0.2:81": "of 2 part(s)",
    "#127.0.0.2:81#b:80": "entry 1, character 1: the name is ''",
    "A#127.0.0.2:81#b:80": "entry 1, character 1: the name is 'A'",
    " a#127.0.0.2:81#b:80": "entry 1, character 1: the name is ' a'",
    "a#127.0.0.2:81#b:80 ": "entry 1, character 16: host:port is 'b:80 '",
    "a#127.0.0.2#b:80": "entry 1, character 3: ip:port is '127.0.0.2'",
    "a#127.0.0.2:0#b:80": "entry 1, character 3: ip:port is '127.0.0.2:0', expected a port",
    "a#127.0.0.2:081#b:80": "entry 1, character 3: ip:port is '127.0.0.2:081', expected a port",
    "a#127.0.0.2:65536#b:80": "character 3: ip:port is '127.0.0.2:65536', expected a port",
    "a#10.0.0.2:81#b:80": "character 3: ip:port is '10.0.0.2:81', expected ip:port with an address of 127.0.0.0/8",
    "a#localhost:81#b:80": "character 3: ip:port is 'localhost:81'",
    "a#[::1]:81#b:80": "character 3: ip:port is '[::1]:81'",
    "a#127.0.0.2:81#b": "character 16: host:port is 'b', expected host:port",
    "a#127.0.0.2:81#:80": "character 16: host:port is ':80'",
    "a#127.0.0.2:81#b:99999": "character 16: host:port is 'b:99999', expected a port",
    "a#127.0.0.2:81#2001:db8::1:80": "character 16: host:port is '2001:db8::1:80', expected an IPv6 address in",
    "a#127.0.0.2:81#b:80##a#127.0.0.3:81#c:80": "entry 2 (character 22) has the name 'a', as entry 1 (character 1) has",
    SEEDS.replace("voting-svc:8080", "voting svc:8080"): "entry 2, character 64: host:port is 'voting svc:8080'",
}
BROKEN_INGRESS = {
    "web": "entry 1 (character 1) is 'web', of 1 part(s), expected 3: name#port#true or false",
    "DISABLED": "of 1 part(s)",
    "web#8080#False": "entry 1, character 10: is 'False', expected true",
    "web#8080#": "entry 1, character 10: is ''",
    "web#http#false": "entry 1, character 5: the port is 'http', expected 1 to 65535",
    "web#0#false": "character 5: the port is '0'",
    "web#70000#false": "character 5: the port is '70000'",
    "web#8080#false##": "entry 2 (character 17) is ''",
    "web#8080#false##api#8080#true": "entry 2 (character 17) has port 8080, as entry 1 (character 1) has",
    "web#8080#false##web#8081#true": "entry 2 (character 17) has the name 'web'",
}


def test_the_seeds_egress_string_is_read() -> None:
    """Two entries, in their order, both to routes of the mesh."""
    assert servicemesh.egress(SEEDS) == (EMOJI, VOTING)


def test_the_seeds_ingress_strings_are_read() -> None:
    """Port 8080 asks no certificate of its clients, every other port does; `true` takes a port out of the proxy."""
    web = servicemesh.ingress("web#8080#false")
    assert web == Ingress(rules=(PortRule(name="web", port=8080, off=False),))
    assert (web.mode(8080), web.mode(8081)) == ("tls", "mtls")
    both = servicemesh.ingress("web#8080#false##metrics#9090#true")
    assert [both.mode(port) for port in (8080, 9090, 1)] == ["tls", "off", "mtls"]


def test_an_empty_ingress_string_demands_mutual_tls_everywhere() -> None:
    """There is no exception."""
    empty = servicemesh.ingress("")
    assert empty == Ingress(rules=())
    assert empty.mode(8080) == "mtls"


@pytest.mark.parametrize("text", sorted(BROKEN_EGRESS))
def test_a_broken_egress_string_is_refused_by_entry_and_position(text: str) -> None:
    """The message begins with where the mistake is."""
    with pytest.raises(StringError) as caught:
        servicemesh.egress(text)
    assert BROKEN_EGRESS[text] in str(caught.value)


@pytest.mark.parametrize("text", sorted(BROKEN_INGRESS))
def test_a_broken_ingress_string_is_refused_by_entry_and_position(text: str) -> None:
    """The message begins with where the mistake is."""
    with pytest.raises(StringError) as caught:
        servicemesh.ingress(text)
    assert BROKEN_INGRESS[text] in str(caught.value)


def test_a_string_is_bounded() -> None:
    """Neither its characters nor its entries are without end."""
    many = "##".join(f"a{n}#127.0.0.2:{n + 1}#b:80" for n in range(MAX_ENTRIES + 1))
    with pytest.raises(StringError, match=f"expected at most {MAX_ENTRIES} entries"):
        servicemesh.egress(many)
    assert len(servicemesh.egress(many.rpartition("##")[0])) == MAX_ENTRIES
    with pytest.raises(StringError, match=f"expected at most {MAX_TEXT}") as caught:
        servicemesh.ingress("#" * (MAX_TEXT + 1))
    assert len(str(caught.value)) < 200


names = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
ports = st.integers(1, 65535)
listens = st.builds("127.{}.{}.{}:{}".format, *(st.integers(1, 254) for _ in range(3)), ports)
remotes = st.builds("{}:{}".format, st.one_of(names, st.just("10.1.2.3"), st.just("[2001:db8::1]")), ports)
entry = st.builds(EgressEntry, name=names, listen=listens, remote=remotes)


@given(st.lists(entry, min_size=1, max_size=6, unique_by=lambda it: it.name))
def test_what_is_joined_is_read_back(entries: list[EgressEntry]) -> None:
    """Every list of well-formed entries comes back as it was."""
    text = "##".join(f"{it.name}#{it.listen}#{it.remote}" for it in entries)
    assert servicemesh.egress(text) == tuple(entries)
    for written, it in zip(servicemesh.entries(text), entries, strict=True):
        assert text[written.position - 1 :].startswith(it.name)


@given(st.one_of(st.text(max_size=40), st.text("ab1#:.0", max_size=40), st.from_regex(r"[a-z#:0-9.]{0,40}")))
def test_any_text_is_read_or_refused_by_position(text: str) -> None:
    """No text ends otherwise, and what is refused names an entry, or that the string is empty."""
    for read in (servicemesh.egress, servicemesh.ingress):
        said = "is empty"
        try:
            read(text)
        except StringError as error:
            said = str(error)
        assert re.match(r"entry [0-9]+( \(character|, character) [0-9]+|is empty", said), said
