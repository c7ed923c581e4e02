"""Where a route is public, and what a failure there means."""

from __future__ import annotations

import ssl

import pytest

from meshctl.connect_target import Target, listen_of, place_of, refusal, target_of
from meshctl.errors import UserError
from tests.meshctl.proofs import GATEWAY, public_manifest


@pytest.mark.parametrize(
    ("sans", "name", "to", "wanted"),
    [
        (("web", "10.1.2.3"), None, None, ("web", "web", 443)),
        (("https://web", "10.1.2.3"), None, None, ("10.1.2.3", "10.1.2.3", 443)),
        (("web", GATEWAY), None, None, (GATEWAY, GATEWAY, 443)),
        (("web", GATEWAY), "web", None, ("web", "web", 443)),
        (("web", GATEWAY), "WEB", ("127.0.0.1", 4), ("WEB", "127.0.0.1", 4)),
        (("*.example.com", "web"), None, None, ("web", "web", 443)),
        (("*.example.com",), "a.example.com", None, ("a.example.com", "a.example.com", 443)),
    ],
)
def test_a_public_route_has_a_name_and_a_place(
    sans: tuple[str, ...], name: str | None, to: tuple[str, int] | None, wanted: tuple[str, str, int]
) -> None:
    """The gateway's name first, which is where one dials; else one that a client can check; or what is asked for."""
    found = target_of(public_manifest(*sans, wildcard=True), "api", name, to)
    assert (found.name, found.host, found.port) == wanted


@pytest.mark.parametrize(
    ("sans", "route", "name", "said"),
    [
        (("web",), "apo", None, "has no route 'apo'"),
        (("web",), "private", None, "private is not public in the proven manifest, of epoch 1: public are api"),
        (("web", "*.example.com"), "api", "example.com", "no certificate for 'example.com': it has web, *.example.com"),
        (("*.example.com",), "api", "a.b.example.com", "no certificate for 'a.b.example.com'"),
        (("*.example.com",), "api", "ü.example.com", "no certificate for 'ü.example.com'"),
        (("*.example.com",), "api", ".example.com", "no certificate for '.example.com'"),
        (("*.example.com",), "api", None, "no name that could be checked by itself: *.example.com"),
        (("https://web",), "api", None, "no name that could be checked by itself: https://web"),
    ],
)
def test_what_cannot_be_verified_is_refused(sans: tuple[str, ...], route: str, name: str | None, said: str) -> None:
    """With what there is instead."""
    with pytest.raises(UserError) as caught:
        target_of(public_manifest(*sans, wildcard=True), route, name, None)
    assert said in caught.value.message
    assert caught.value.remedy


def test_in_a_lab_its_port_leads_there() -> None:
    """No name of the lab's is one of this machine's; where the lab has no port for the route, those it has are said."""
    manifest = public_manifest("web", GATEWAY)
    ports = {("api", 8080): 41, ("api", 443): 42, ("coordinator", 8787): 43}
    found = target_of(manifest, "api", None, None, ports)
    assert (found.name, found.host, found.port) == (GATEWAY, "127.0.0.1", 42)
    assert target_of(manifest, "api", None, ("127.0.0.1", 4), ports).port == 4
    del ports["api", 443]
    with pytest.raises(UserError, match="no port of this machine that leads to api, port 443: ") as caught:
        target_of(manifest, "api", None, None, ports)
    assert "127.0.0.1:41 leads to api, port 8080; 127.0.0.1:43 leads to coordinator, port 8787" in caught.value.message
    assert "--to HOST:PORT" in caught.value.remedy


def test_one_listens_on_loopback_only() -> None:
    """What comes there is in clear."""
    assert listen_of("127.0.0.1:0") == ("127.0.0.1", 0)
    assert listen_of("[::1]:8443") == ("::1", 8443)
    for text in ("0.0.0.0:1", "192.0.2.1:1", "localhost:1"):
        with pytest.raises(UserError, match="has to be an address of loopback"):
            listen_of(text)


@pytest.mark.parametrize("text", ["", "web", "web:", ":1", "web:x", "web:65536", "::1:1", "[::1]", "web:" + "9" * 5000])
def test_a_place_is_host_and_port(text: str) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(UserError, match="expected HOST:PORT"):
        place_of(text, "--to")
    assert place_of("web:65535", "--to") == ("web", 65535)


def test_a_failure_is_named() -> None:
    """What failed, and by what it was to be verified."""
    target = Target(route="web", name="web", host="::1", port=443)

    def unverified(code: int) -> ssl.SSLCertVerificationError:
        error = ssl.SSLCertVerificationError()
        error.verify_code, error.verify_message = code, "because"
        return error

    def told(error: BaseException, *, by_root: bool = False) -> str:
        return refusal(error, target, 7, by_root=by_root)

    assert told(unverified(62)) == "the certificate at [::1]:443 does not verify (because): it is not for web"
    assert "compare this machine's clock" in told(unverified(10))
    assert "the mesh CA of epoch 7 has not issued it: another manifest is in force" in told(unverified(20))
    assert "the mesh's root CA has not issued it: something else answers" in told(unverified(20), by_root=True)
    assert told(TimeoutError()) == "no answer from [::1]:443 in time"
    assert told(ConnectionRefusedError(111, "refused")).startswith("[::1]:443 cannot be reached: ")
    assert told(ssl.SSLError(1, "x")).startswith("[::1]:443 does not speak TLS as it should: ")
