"""Explicit egress: what a listen address, a remote and pinned certificates may be, and what fits the mesh."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from tests.topology.certificates import certificate, private_key
from tests.topology.support import group, only, problems, write
from topology.addresses import MESH_POOL, PLATFORM_PORTS, VIP_POOL
from topology.cluster import Cluster, load
from topology.egress import (
    MAX_ENTRIES,
    MAX_ROOTS_BYTES,
    EgressEntry,
    EgressError,
    Fault,
    Place,
    Surroundings,
    Target,
    faults,
    listen_of,
    remote_of,
    roots_of,
    server_name,
)

AROUND = Surroundings(
    group="web",
    targets={
        "emoji": Target(port=8080, callers=("web",), open=True),
        "secret": Target(port=8080, callers=("emoji",), open=False),
    },
    own_ports=frozenset({8080}),
    vip_pool=VIP_POOL,
    mesh_pool=MESH_POOL,
)
TO_ROUTE = EgressEntry(name="emoji", listen="127.137.0.1:8081", remote="emoji:8080")
TO_BANK = EgressEntry(name="bank", listen="127.137.0.1:8443", remote="bank.example.com:443", tls="web")


def found(*entries: EgressEntry) -> list[Fault]:
    """What is wrong with `entries`."""
    return list(faults(entries, AROUND))


def refused(entry: EgressEntry, field: str, *words: str, **changes: Any) -> None:
    """Asserts that `entry` with `changes` has one fault, in `field`, with all `words`."""
    these = found(dataclasses.replace(entry, **changes))
    assert [each.field for each in these] == [field], these
    for word in words:
        assert word in these[0].message


def test_what_fits_is_taken() -> None:
    """To a route, to a name, to an IPv4 and an IPv6 address; several on one address; 127.0.0.1 beside the backends."""
    pinned = roots_of(certificate())
    assert (
        found(
            TO_ROUTE,
            TO_BANK,
            dataclasses.replace(TO_BANK, name="v4", listen="127.0.0.1:8443", remote="203.0.113.9:443"),
            dataclasses.replace(TO_BANK, name="v6", listen="127.0.0.1:8444", remote="[2001:db8::1]:443"),
            dataclasses.replace(TO_BANK, name="own", listen="127.9.0.1:8080", sni="b.example", ca=pinned),
        )
        == []
    )


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1", ":80", "127.0.0.1:", "10.0.0.1:80", "127.0.0.0:80", "127.255.255.255:80", "[::1]:80"]
)
def test_what_is_no_listen_address(text: str) -> None:
    """Anything but an address of loopback with a port: there is nothing to guess."""
    with pytest.raises(EgressError, match=r"expected ip:port with an address of 127|expected a port"):
        listen_of(text)


def test_remotes_are_read() -> None:
    """Names, and addresses of both families."""
    assert remote_of("emoji-svc:8080") == Place("emoji-svc", 8080)
    assert remote_of("203.0.113.9:443") == Place("203.0.113.9", 443)
    assert remote_of("[2001:db8::1]:443") == Place("2001:db8::1", 443)


@pytest.mark.parametrize(
    "text",
    [
        "emoji",
        "emoji:",
        "emoji:+80",
        "emoji:80 ",
        "emoji:٣",
        "2001:db8::1:443",
        "[2001:db8::1%eth0]:443",
        "[fe80::1]:443",
        "[::ffff:1.2.3.4]:443",
        "[2001:DB8::1]:443",
        "[2001:db8::1:443",
        "[]:443",
        "1.2.3:443",
        "010.1.2.3:443",
        "256.1.1.1:443",
        "Bank.example.com:443",
        "*.example.com:443",
        "https://bank.example.com:443",
        "a" * 64 + ":1",
    ],
)
def test_what_is_no_remote(text: str) -> None:
    """A remote has one way to be written."""
    with pytest.raises(EgressError, match=r"expected|neither|write"):
        remote_of(text)


def test_names_and_listen_addresses_are_there_once() -> None:
    """The second of two is refused."""
    again = dataclasses.replace(TO_BANK, name="emoji")
    assert [(it.index, it.field) for it in found(TO_ROUTE, again)] == [(1, "name")]
    same = dataclasses.replace(TO_BANK, listen=TO_ROUTE.listen)
    assert [(it.index, it.field) for it in found(TO_ROUTE, same, same)] == [(1, "listen"), (2, "name"), (2, "listen")]
    refused(TO_ROUTE, "name", "is 'Emoji'", name="Emoji")


@pytest.mark.parametrize("port", sorted(PLATFORM_PORTS))
def test_the_platforms_ports_are_taken(port: int) -> None:
    """Whoever has one may have it on every address."""
    refused(TO_ROUTE, "listen", PLATFORM_PORTS[port], listen=f"127.137.0.1:{port}")


def test_addresses_of_the_mesh_are_taken() -> None:
    """VIPs are the routes'; so are the addresses of DNS and of the ingress, in the same pool."""
    for host in ("127.10.0.53", "127.10.0.54", "127.10.7.7"):
        refused(TO_ROUTE, "listen", "pool of the routes' VIPs", listen=f"{host}:8081")
    elsewhere = dataclasses.replace(AROUND, vip_pool="127.20.0.0/16")
    at_dns = dataclasses.replace(TO_ROUTE, listen="127.10.0.53:53")
    [fault] = faults([at_dns], elsewhere)
    assert (fault.field, "where the mesh answers for names" in fault.message) == ("listen", True)


def test_only_routes_are_reached_by_the_mesh() -> None:
    """The route, its port, and the right to call it."""
    refused(TO_ROUTE, "remote", "no route", "emoji", 'tls = "web"', remote="emoij:8080")
    refused(TO_ROUTE, "remote", "has port 8080", "write emoji:8080", remote="emoji:8081")
    refused(TO_ROUTE, "remote", "'web' may not call", "are emoji", remote="secret:8080")
    refused(TO_ROUTE, "remote", "no route", remote="203.0.113.9:443")


def test_what_belongs_to_the_web_is_refused_for_a_route() -> None:
    """A route is judged by the mesh's certificates alone."""
    refused(TO_ROUTE, "sni", 'only for tls = "web"', sni="bank.example.com")
    refused(TO_ROUTE, "ca", 'only for tls = "web"', ca=roots_of(certificate()))
    refused(TO_ROUTE, "tls", "'plain'", '"mesh"', tls="plain")


@pytest.mark.parametrize(
    ("remote", "words"),
    [
        ("127.137.0.1:8443", "loop"),
        ("127.10.4.4:443", "loop"),
        ("[::1]:443", "loop"),
        ("[::]:443", "loop"),
        ("0.0.0.0:443", "loop"),
        ("localhost:443", "loop"),
        ("a.localhost:443", "loop"),
        ("100.96.3.4:8080", "mesh address"),
        ("224.0.0.1:443", "multicast"),
        ("emoji:8080", "name of the mesh"),
        ("emoji.mesh:8080", "name of the mesh"),
        ("mesh:443", "name of the mesh"),
        ("bank:0", "expected a port"),
    ],
)
def test_a_server_outside_is_outside(remote: str, words: str) -> None:
    """What leads back into this CVM or the mesh is no server outside."""
    refused(TO_BANK, "remote", words, remote=remote)


def test_loops_by_the_mesh_are_refused() -> None:
    """An egress that leads to one's own listen address, and one on which an ingress would arrive."""
    refused(TO_ROUTE, "remote", "a loop", remote=TO_ROUTE.listen)
    other = dataclasses.replace(TO_BANK, name="other", remote=TO_ROUTE.listen)
    assert [(it.index, it.field) for it in found(TO_ROUTE, other)] == [(1, "remote")]
    refused(TO_ROUTE, "listen", "in a loop", listen="127.0.0.1:8080")


def test_a_server_name_is_a_host_name() -> None:
    """It is what the certificate has to be for; without one the host is."""
    refused(TO_BANK, "sni", "expected a host name", sni="*.example.com")
    assert server_name(TO_BANK) == "bank.example.com"
    assert server_name(dataclasses.replace(TO_BANK, remote="[2001:db8::1]:443")) == "2001:db8::1"
    assert server_name(dataclasses.replace(TO_BANK, sni="b.example")) == "b.example"


def test_certificates_are_kept_and_nothing_else() -> None:
    """Comments are dropped, and a private key beside them is refused: everybody reads a manifest."""
    one, two = certificate("one"), certificate("two")
    assert roots_of(f"# one\n{one}\n\nsubject=two\n{two}") == one + two
    with pytest.raises(EgressError, match="private key"):
        roots_of(one + private_key())
    with pytest.raises(EgressError, match="holds no certificate"):
        roots_of("")
    with pytest.raises(EgressError, match="at most"):
        roots_of(one * (MAX_ROOTS_BYTES // len(one) + 1))
    refused(TO_BANK, "ca", "more than certificates", ca=f"# one\n{one}")
    refused(TO_BANK, "ca", "holds no certificate", ca="x")


def test_damaged_certificates_are_refused_in_words() -> None:
    """Whatever bytes stand in the place of a certificate, nothing but EgressError comes of it."""
    chance, whole = random.Random(7), certificate()
    lines = whole.splitlines()
    for _ in range(300):
        row = chance.randrange(1, len(lines) - 1)
        column = chance.randrange(len(lines[row]))
        damaged = list(lines)
        damaged[row] = damaged[row][:column] + chance.choice("ABCxyz019+/=") + damaged[row][column + 1 :]
        said = ""
        try:
            roots_of("\n".join(damaged))
        except EgressError as error:
            said = str(error)
        assert len(said) < 400


def test_a_group_has_so_many() -> None:
    """One more is refused, and the others are not looked at."""
    many = [dataclasses.replace(TO_ROUTE, name=f"a{n}", listen=f"127.137.0.1:{n + 1}") for n in range(MAX_ENTRIES + 1)]
    assert found(*many[:-1]) == []
    assert [(it.index, it.field) for it in found(*many)] == [(MAX_ENTRIES, "")]


DIALS = """egress = [
        { name = "a", listen = "127.137.0.1:8081", remote = "%s" },
        { name = "b", listen = "127.137.0.1:8082", remote = "b-1:8080" },
      ]"""


def _cluster(folder: Path, *more: str, calls: str = "") -> Cluster:
    own = group("a", more=calls)
    other = group("b", routes='b = { backend = "b", members = true }')
    return load(write(folder, own, other, group("web", more=more[0] if more else DIALS % "a:8080"), group("zoo")))


def test_who_dials_a_route_may_call_it(tmp_path: Path) -> None:
    """As with `calls`: by a route's name and by that of one member, and nobody else may any more."""
    cluster = _cluster(tmp_path, calls="calls = []")
    callers = {it.name: cluster.callers(it, it.backends[0]) for it in cluster.groups}
    assert callers == {"a": ("web",), "b": ("web",), "web": (), "zoo": ()}


def test_an_egress_to_a_route_says_who_calls(tmp_path: Path) -> None:
    """A cluster that said nothing let everybody call; one egress to a route, and it says who may. One to the outside
    says nothing of the mesh."""
    outside = 'egress = [{ name = "x", listen = "127.137.0.1:8081", remote = "x.example:443", tls = "web" }]'
    assert _cluster(tmp_path / "mesh").says_who_calls
    assert not _cluster(tmp_path / "web", outside).says_who_calls


def test_a_mistake_is_named_by_file_line_and_entry(tmp_path: Path) -> None:
    """The line is that of the field."""
    one = DIALS.replace("b-1:8080", "b:8080") % "c:8080"
    write(tmp_path, group("a"), group("b"), group("web", more=one))
    (said,) = problems(tmp_path)
    lines = (tmp_path / "cluster.tf").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "c:8080" in text)
    assert said.startswith(f"{tmp_path}/cluster.tf:{line}: workload_groups.web.egress[0].remote: is 'c:8080', but")


def test_a_mistake_in_a_string_is_named_by_its_entry(tmp_path: Path) -> None:
    """Also one that only the cluster shows."""
    text = "a#127.137.0.1:8081#a:8080##c#127.137.0.2:8081#c:8080"
    write(tmp_path, group("a"), group("web", more=f'servicemesh_egress = "{text}"'))
    only(problems(tmp_path), "workload_groups.web.servicemesh_egress: entry 2 (character 28): remote is 'c:8080'")


def test_a_string_means_what_the_fields_mean(tmp_path: Path) -> None:
    """Both give one manifest."""
    text = "a#127.137.0.1:8081#a:8080##b#127.137.0.1:8082#b-1:8080"
    fields, string = _cluster(tmp_path / "x"), _cluster(tmp_path / "y", f'servicemesh_egress = "{text}"')
    assert fields.group("web").egress == string.group("web").egress
    assert len(fields.group("web").egress) == 2


def test_pinned_certificates_are_read_out_of_their_file(tmp_path: Path) -> None:
    """The manifest has the certificates, not the path."""
    outside = (
        'egress = [{ name = "x", listen = "127.137.0.1:81", remote = "x.example:443", tls = "web", '
        'ca = "${path.module}/ca.pem" }]'
    )
    tmp_path.joinpath("ca.pem").write_text(f"a comment\n{certificate()}")
    assert _cluster(tmp_path, outside).group("web").egress[0].ca == certificate()
