"""Boundaries to what owners write and sign: manifests, envelopes, keys, the cluster's files, names and addresses."""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import shutil
import tempfile
from pathlib import Path

from tests.fuzz.harness import Harness, part, text
from tests.sidecar.world import OWNER, OWNERS, manifest
from tests.topology.support import group, opened, sealed, write
from topology import compose, egress, envelope, owners, public, servicemesh, succession
from topology.addresses import MESH_POOL, why_no_source, why_not
from topology.cluster import load
from topology.egress import EgressError
from topology.manifest import decode, decode_signed, encode
from topology.owners import OwnerError
from topology.problems import ClusterError
from topology.servicemesh import StringError
from topology.trees import ManifestError

MAX_PROBLEMS = 1 << 16
"""Characters. A cluster's reader tells all problems at once; an input of 2 KiB has some hundred lines."""
MAX_CHAIN = 16
"""Envelopes, as many as a coordinator takes at once (`coordinator.proposal`)."""
HEAD = opened(manifest(), OWNER)


def _envelope(data: bytes) -> None:
    word = text(data)
    envelope.claims(word)
    with contextlib.suppress(ManifestError):
        envelope.open_envelope(word, OWNERS)
    found = envelope.open_envelope(word, None)
    assert envelope.digest_of(word) == found.digest
    envelope.signatures(word)


def _manifest(data: bytes) -> None:
    """As a manifest that the owners signed, which is the only one that is read."""
    word = sealed(data, OWNER)
    envelope.claims(word)
    for settled in (False, True):
        try:
            succession.overtake(HEAD, word, settled=settled)
        except ManifestError:
            continue
    found, _ = decode_signed(data)
    assert encode(decode(encode(found))) == encode(found)
    decode(data)


def _chain(data: bytes) -> None:
    words = tuple(text(line) for line in data.split(b"\n")[:MAX_CHAIN])
    for chained in (succession.led, succession.chain):
        try:
            chained(OWNERS, words)
        except ManifestError:
            continue
    held = HEAD
    for word in words:
        held = succession.follow(held, word, signed=False)


def _owners(data: bytes) -> None:
    found = owners.parse(text(data))
    assert owners.parse(owners.text_of(found)) == found


def _strings(data: bytes) -> None:
    which, rest = part(data, ("egress", "ingress"))
    if which == "egress":
        servicemesh.egress(text(rest))
        return
    found = servicemesh.ingress(text(rest))
    for port in (0, 80, 65536):
        found.mode(port)


def _names(data: bytes) -> None:
    """None of them raises, for each says why a name is none."""
    name = text(data)
    again = public.normal(name)
    assert public.normal(again) == again
    for wildcard in (False, True):
        public.why_no_san(name, wildcard=wildcard)
    public.why_not_own(name, "ab" * 20, 443)
    public.covers(name, "web.example")
    public.covers("*.web.example", name)
    list(public.shared([("one", "x", name), ("two", "y", name)]))
    why_not(name, MESH_POOL)
    why_no_source(name)
    egress.is_address(name)


def _places(data: bytes) -> None:
    which, rest = part(data, ("listen", "remote", "roots"))
    {"listen": egress.listen_of, "remote": egress.remote_of, "roots": egress.roots_of}[which](text(rest))


@functools.cache
def _folder() -> Path:
    """One folder for all runs of this process. The fuzzer's ends without clean-up: `run.fuzz` removes it."""
    place = tempfile.mkdtemp(prefix="mesh-fuzz-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return write(Path(place), group("app"))


def _cluster(data: bytes) -> None:
    which, rest = part(data, ("cluster.tf", "variables.tf", "terraform.tfvars"))
    folder = write(_folder(), group("app"))
    (folder / "terraform.tfvars").write_text("")
    (folder / which).write_bytes(rest)
    load(folder)


def _compose(data: bytes) -> None:
    which, rest = part(data, ("app", "coordinator"))
    compose.parse(text(rest), Path("app.yaml"), digests=which == "app", signed={"A": "1"})


def _key(data: bytes) -> None:
    """The bytes of a key, so that the fuzzer has no base64 to guess."""
    kind, rest = part(data, ("p256", "ed25519"))
    owners.parse(f"{kind}:{base64.urlsafe_b64encode(rest).decode().rstrip('=')}")


HARNESSES: dict[str, Harness] = {
    "envelope": Harness(read=_envelope, foreseen=(ManifestError,)),
    "manifest": Harness(read=_manifest, foreseen=(ManifestError,), most=8192),
    "chain": Harness(read=_chain, foreseen=(ManifestError,)),
    "owners": Harness(read=_owners, foreseen=(OwnerError,), most=1024),
    "owner_key": Harness(read=_key, foreseen=(OwnerError,), most=128),
    "servicemesh": Harness(read=_strings, foreseen=(StringError,), most=1024),
    "names": Harness(read=_names, most=512),
    "places": Harness(read=_places, foreseen=(EgressError,), most=4096),
    "cluster": Harness(read=_cluster, foreseen=(ClusterError,), most=2048, slow=True, longest=MAX_PROBLEMS),
    "compose": Harness(read=_compose, foreseen=(ClusterError,), most=2048, slow=True, longest=MAX_PROBLEMS),
}
