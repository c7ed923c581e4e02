"""Verifying from outside: what is proven, and each way in which it is not.

Long because it is a list: each lie in a bundle is a case of its own, on one honest coordinator.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from coordinator import authority
from coordinator.contents import Own, contents
from coordinator.keys import ca_builder, derive, derived_key
from evidence.bundle import Bundle, BundleError, decode
from evidence.documents import digest
from evidence.outside import CLOCK_SKEW, Cause, Seen, Trusted, UnprovenError, Verified, verify
from evidence.statement import Member
from lab.tee import DevTee
from runtime.secret import Secret
from tests.coordinator.world import API_COMPOSE, OWNER, OWNERS, cvm, make_manifest, make_reference
from tests.evidence.bundles import DOCUMENTS, HOLDERS, NONCE, NOW, Coordinator, check, envelopes
from tests.topology.support import after, opened
from topology.owners import Owners, key_of
from topology.references import TcbPolicy
from topology.revocation import Revocation

HONEST = Coordinator()
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(32))
HOUR = 3600.0


def refusal(bundle: Bundle, trusted: Trusted | None = None, **how: Any) -> UnprovenError:
    """The error with which `bundle` is refused."""
    with pytest.raises(UnprovenError) as caught:
        check(bundle, trusted or HONEST.trusted, **how)
    return caught.value


def test_an_honest_coordinator_is_verified() -> None:
    """And everything that follows from it is known: manifest, history, members, authorities."""
    found = check(HONEST.bundle(), HONEST.trusted)
    assert found.head.digest == HONEST.trusted.digest
    assert [each.manifest.epoch for each in found.history] == [1, 2, 3]
    assert [member.peer_id for member in found.members] == sorted(holder.peer_id for holder in HOLDERS)
    assert found.evidence.development_root
    assert x509.load_der_x509_certificate(found.root_ca) == authority.root(HONEST.keys)
    assert found.seen == Seen(epoch=3, digest=found.head.digest, root_sha256=found.statement.root_sha256)


def test_one_quote_answers_many() -> None:
    """Each of three askers verifies with its own nonce, and none with another's."""
    nonces = [bytes([number]) * 32 for number in range(3)]
    bundles = [decode(data) for data in HONEST.answer(*nonces)]
    assert len({bundle.quote for bundle in bundles}) == 1
    for nonce, bundle in zip(nonces, bundles, strict=True):
        assert check(bundle, HONEST.trusted, nonce=nonce).statement.peer_id == "coordinator-0"
    assert refusal(bundles[0], nonce=nonces[1]).cause is Cause.NONCE
    assert refusal(replace(bundles[0], nonce=nonces[1].hex()), nonce=nonces[1]).cause is Cause.NONCE


def test_an_answer_of_before_is_none() -> None:
    """Whoever relays an older bundle has not the nonce."""
    assert refusal(HONEST.bundle(bytes(32))).cause is Cause.NONCE


def test_another_root_of_trust() -> None:
    """Without the development root no development evidence counts, nor that of another lab."""
    assert refusal(HONEST.bundle(), replace(HONEST.trusted, development_root=None)).cause is Cause.EVIDENCE
    other = replace(HONEST, tee=DevTee(b"another lab")).bundle()
    assert refusal(other).cause is Cause.EVIDENCE


def test_evidence_of_another_app() -> None:
    """A genuine CVM of the mesh that is no coordinator, whatever it states."""
    api = replace(HONEST, who=cvm(API_COMPOSE, "api-0")).bundle()
    assert refusal(api).cause is Cause.FOREIGN
    stolen = HONEST.bundle(quote=api.quote, event_log=api.event_log, vm_config=api.vm_config)
    assert refusal(stolen).cause in (Cause.NONCE, Cause.EVIDENCE)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"tcb": TcbPolicy(allowed_statuses=("SWHardeningNeeded",))}, Cause.FOREIGN),
        ({"tcb": TcbPolicy(min_evaluation_data_number=99)}, Cause.CLOCK),
        ({"devices": ("ab" * 16,)}, Cause.FOREIGN),
    ],
    ids=["status", "old data", "machine"],
)
def test_a_platform_that_the_manifest_does_not_allow(change: dict[str, Any], cause: Cause) -> None:
    """Genuine evidence of the right app; with data that is too old it cannot be judged."""
    chain = (opened(replace(make_manifest(), references=(make_reference(**change),)), OWNER),)
    other = replace(HONEST, chain=chain)
    assert refusal(other.bundle(), other.trusted).cause is cause


def test_a_coordinator_that_the_manifest_does_not_have() -> None:
    """Its app runs more instances than the manifest lists."""
    assert refusal(replace(HONEST, peer_id="coordinator-9").bundle()).cause is Cause.FOREIGN


@pytest.mark.parametrize("kind", ["peer_id", "instance_id", "compose_hash", "device"])
def test_a_coordinator_that_the_manifest_revokes(kind: str) -> None:
    """Whichever of the four kinds names it: its slot, its instance, what it measures, its machine."""
    evidence = check(HONEST.bundle(), HONEST.trusted).evidence
    value = "coordinator-0" if kind == "peer_id" else getattr(evidence, kind)
    revoked = (Revocation(**{kind: value}),)
    other = replace(HONEST, chain=(opened(replace(make_manifest(), revoked=revoked), OWNER),))
    found = refusal(other.bundle(), other.trusted)
    assert found.cause is Cause.FOREIGN
    assert f"the manifest revokes {kind} {value}" in found.reason


@pytest.mark.parametrize("change", [{"cluster": "other"}, {"app_id": "00" * 20}], ids=["cluster", "app"])
def test_a_coordinator_that_states_what_it_is_not(change: dict[str, str]) -> None:
    """Its quote covers the statement, and says otherwise itself, or the manifest does."""
    stated = HONEST.contents()
    wrong = replace(stated, statement=replace(stated.statement, **change))
    assert refusal(decode(HONEST.answer(NONCE, stated=wrong)[0])).cause is Cause.FOREIGN


def test_the_quote_of_another_coordinator() -> None:
    """Two coordinators of one app: the quote of one does not cover the statement of the other."""
    manifest = replace(HONEST.chain[0].manifest, coordinators=_two(HONEST))
    chain = (opened(manifest, OWNER),)
    first, second = (replace(HONEST, chain=chain, peer_id=f"coordinator-{n}") for n in range(2))
    assert check(second.bundle(), second.trusted).statement.peer_id == "coordinator-1"
    mixed = first.bundle(quote=second.bundle().quote)
    assert refusal(mixed, first.trusted).cause is Cause.NONCE


def _two(coordinator: Coordinator) -> Any:
    own = coordinator.chain[0].manifest.coordinators
    second = replace(own.peers[0], peer_id="coordinator-1", address="127.90.0.2")
    return replace(own, peers=(own.peers[0], second))


def test_a_manifest_that_is_not_the_readers() -> None:
    """Older or newer than what is enforced, or another one of the epoch."""
    two, four = HONEST.chain[:2], (*HONEST.chain, opened(after(HONEST.chain[-1]), OWNER))
    fork = (*two, opened(after(two[-1], leaf_hours=72), OWNER))
    for chain in (two, four, fork):
        reader = replace(HONEST, chain=chain).trusted
        error = refusal(HONEST.bundle(), reader)
        assert error.cause is Cause.DIGEST
        assert "epoch 3" in error.reason


def test_an_unknown_owner() -> None:
    """The whole history, or its end, is signed by somebody else; or the reader knows other first owners."""
    chain = (*HONEST.chain[:2], opened(HONEST.chain[2].manifest, STRANGER))
    assert refusal(replace(HONEST, chain=chain).bundle()).cause is Cause.OWNER
    chain = tuple(opened(each.manifest, STRANGER) for each in HONEST.chain)
    assert refusal(replace(HONEST, chain=chain).bundle()).cause is Cause.OWNER
    chain = tuple(opened(each.manifest) for each in HONEST.chain)
    assert refusal(replace(HONEST, chain=chain).bundle()).cause is Cause.OWNER
    assert check(HONEST.bundle(), replace(HONEST.trusted, owners=OWNERS)).head.digest == HONEST.trusted.digest
    others = Owners(keys=(key_of(STRANGER),))
    assert refusal(HONEST.bundle(), replace(HONEST.trusted, owners=others)).cause is Cause.OWNER


def test_owners_that_changed() -> None:
    """The second manifest names others, who sign the third."""
    first = opened(HONEST.chain[0].manifest, OWNER)
    second = opened(after(first, owners=Owners(keys=(key_of(STRANGER),))), OWNER)
    third = opened(after(second), STRANGER)
    found = replace(HONEST, chain=(first, second, third))
    assert check(found.bundle(), found.trusted).head.digest == third.digest
    unsigned = replace(HONEST, chain=(first, second, opened(after(second), OWNER)))
    assert refusal(unsigned.bundle(), unsigned.trusted).cause is Cause.OWNER


@pytest.mark.parametrize(
    "cut",
    [
        lambda chain: chain[1:],
        lambda chain: chain[:-1],
        lambda chain: (chain[0], chain[2]),
        lambda chain: chain[::-1],
        lambda chain: (chain[0], *chain),
        lambda _: (),
    ],
    ids=["no beginning", "no end", "a gap", "backwards", "twice", "nothing"],
)
def test_a_truncated_history(cut: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
    """It has to be whole, from the first manifest to the one that is enforced."""
    assert refusal(HONEST.bundle(history=cut(envelopes(HONEST.chain)))).cause is Cause.CHAIN


def test_a_fork_in_the_history() -> None:
    """A manifest that the owners signed, and that the enforced one does not follow."""
    fork = opened(after(HONEST.chain[0], leaf_hours=71), OWNER)
    history = envelopes((HONEST.chain[0], fork, HONEST.chain[2]))
    assert refusal(HONEST.bundle(history=history)).cause is Cause.CHAIN


@pytest.mark.parametrize("off", [HOUR, -HOUR])
def test_a_clock_that_is_an_hour_off(off: float) -> None:
    """The coordinator's, or the reader's, ahead or behind."""
    bundle = replace(HONEST, now=NOW + off).bundle(collateral=HONEST.tee.collateral(NOW))
    error = refusal(bundle)
    assert error.cause is Cause.CLOCK
    assert "3600 s" in error.reason
    assert check(replace(HONEST, now=NOW + CLOCK_SKEW - 1).bundle(), HONEST.trusted).statement.issued_at > NOW


def test_collateral_out_of_its_time() -> None:
    """It cannot judge, which is not the coordinator's fault."""
    year = 365 * 24 * HOUR
    bundle = replace(HONEST, now=NOW).bundle()
    assert refusal(bundle, now=NOW + year, nonce=None).cause is Cause.CLOCK
    assert refusal(bundle, now=NOW - year, nonce=None).cause is Cause.CLOCK


def test_an_old_bundle_says_how_it_was() -> None:
    """Without a fresh nonce any age will do, and no future."""
    assert check(HONEST.bundle(), HONEST.trusted, nonce=None, now=NOW + HOUR).statement.issued_at == NOW
    assert refusal(HONEST.bundle(), nonce=None, now=NOW - HOUR).cause is Cause.CLOCK


def test_authorities_that_are_not_the_statements() -> None:
    """Another cluster's, another generation's, or mixed."""
    other = replace(HONEST, keys=derive(Secret("33" * 32), "tests")).bundle()
    older = replace(HONEST, chain=HONEST.chain[:2]).bundle()
    for names in (("root_ca",), ("mesh_ca",), ("mesh_ca_by_root",), ("root_ca", "mesh_ca", "mesh_ca_by_root")):
        for source in (other, older):
            changes = {name: getattr(source, name) for name in names}
            if changes != {name: getattr(HONEST.bundle(), name) for name in names}:
                assert refusal(HONEST.bundle(**changes)).cause is Cause.AUTHORITY
    for pem in ("", "x", HONEST.bundle().root_ca * 2, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        assert refusal(HONEST.bundle(root_ca=pem)).cause is Cause.AUTHORITY


def test_a_coordinator_that_states_certificates_of_another_kind() -> None:
    """Its quote covers them, and they still are no authority of that manifest, or not the root's."""
    stated, other = HONEST.contents(), replace(HONEST, chain=HONEST.chain[:2]).contents()
    swapped = replace(stated, mesh_ca=other.mesh_ca, mesh_ca_by_root=other.mesh_ca_by_root)
    statement = replace(stated.statement, mesh_ca_sha256=other.statement.mesh_ca_sha256)
    data = HONEST.answer(NONCE, stated=replace(swapped, statement=statement))[0]
    assert refusal(decode(data)).cause is Cause.AUTHORITY


def test_authorities_that_the_root_has_not_certified() -> None:
    """The same name, key and URI, signed by itself; and a root that is not its own."""
    honest = HONEST.bundle()
    alone = refusal(HONEST.bundle(mesh_ca_by_root=honest.mesh_ca))
    assert (alone.cause, "hang together" in alone.reason) == (Cause.AUTHORITY, True)
    stated = HONEST.contents()
    der = x509.load_pem_x509_certificate(honest.mesh_ca_by_root.encode()).public_bytes(Encoding.DER)
    statement = replace(stated.statement, root_sha256=hashlib.sha256(der).hexdigest())
    data = HONEST.answer(NONCE, stated=replace(stated, root_ca=honest.mesh_ca_by_root, statement=statement))[0]
    error = refusal(decode(data))
    assert (error.cause, "root CA does not hang" in error.reason) == (Cause.AUTHORITY, True)


def test_another_key_under_the_name_of_the_mesh_ca() -> None:
    """Certified by the root, for the same manifest: whoever pins the root would take what that key signs."""
    mesh = x509.load_pem_x509_certificate(HONEST.bundle().mesh_ca.encode())
    root_key, other = derived_key(HONEST.keys, "mesh-root"), ec.generate_private_key(ec.SECP256R1())
    names = mesh.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    root = authority.root(HONEST.keys).subject
    builder = ca_builder(mesh.subject, root, other.public_key(), root_key.public_key(), path_length=0)
    cross = builder.add_extension(names, critical=False).sign(root_key, hashes.SHA256())
    error = refusal(HONEST.bundle(mesh_ca_by_root=cross.public_bytes(Encoding.PEM).decode()))
    assert (error.cause, "another key" in error.reason) == (Cause.AUTHORITY, True)


def test_texts_that_are_not_those_of_the_manifest() -> None:
    """One character more; a text of another hash, which nobody measured. Fewer prove less, and are no lie."""
    name, text = next(iter(DOCUMENTS.items()))
    for wrong in ({name: f"{text} "}, DOCUMENTS | {digest("{}"): "{}"}, {name: "\ud800"}):
        assert refusal(HONEST.bundle(documents=wrong)).cause is Cause.DOCUMENTS
    assert check(HONEST.bundle(documents={name: text}), HONEST.trusted).documents == {name: text}


def test_members_that_are_not_the_statements() -> None:
    """One fewer, one more, one changed, another order."""
    members = HONEST.bundle().members
    more = Member(peer_id="x", group="api", compose_hash="", leaf_key_sha256="", evidence_sha256="")
    changed = (replace(members[0], evidence_sha256="00" * 32), *members[1:])
    for each in (members[1:], (*members, more), changed, members[::-1]):
        assert refusal(HONEST.bundle(members=each)).cause is Cause.MEMBERS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"peer_id": "ghost-0", "group": "nogroup"},
            "'ghost-0' is said to be admitted, and the manifest has no ghost-0",
        ),
        ({"peer_id": "client-0"}, "gives client-0 the group client"),
        ({"peer_id": "coordinator-0"}, "gives coordinator-0 the group coordinator"),
        ({"compose_hash": "ee" * 32}, "no longer allows api-1 the compose hash"),
        ({}, "'api-1' is said to be admitted, and it is listed twice"),
    ],
)
def test_members_that_the_manifest_does_not_have(changes: dict[str, str], words: str) -> None:
    """Though the quote covers them: a coordinator that admits whom it likes is caught by any reader."""
    first = next(holder for holder in HOLDERS if holder.peer_id == "api-1")
    wrong = (*(() if changes else (first,)), replace(first, **changes))  # type: ignore[arg-type]
    own = Own(peer_id=HONEST.peer_id, app_id=HONEST.who.app_id)
    stated = contents(own, HONEST.keys, HONEST.chain[-1], envelopes(HONEST.chain), DOCUMENTS, wrong, NOW)
    refused = refusal(decode(HONEST.answer(NONCE, stated=stated)[0]))
    assert refused.cause is Cause.MEMBERS
    assert words in refused.reason


def test_a_rollback() -> None:
    """What this machine has seen enforced stays in the history, under the same root."""
    seen = check(HONEST.bundle(), HONEST.trusted).seen
    older = replace(HONEST, chain=HONEST.chain[:2])
    assert check(older.bundle(), older.trusted).head.manifest.epoch == 2
    error = refusal(older.bundle(), older.trusted, seen=seen)
    assert (error.cause, "has seen epoch 3 enforced" in error.reason) == (Cause.ROLLBACK, True)
    newer = replace(HONEST, chain=(*HONEST.chain, opened(after(HONEST.chain[-1]), OWNER)))
    assert check(newer.bundle(), newer.trusted, seen=seen).seen.epoch == 4
    fork = opened(after(HONEST.chain[1], leaf_hours=70), OWNER)
    for chain in ((*HONEST.chain[:2], fork), (*HONEST.chain[:2], fork, opened(after(fork), OWNER))):
        forked = replace(HONEST, chain=chain)
        assert refusal(forked.bundle(), forked.trusted, seen=seen).cause is Cause.ROLLBACK
    reborn = replace(HONEST, keys=derive(Secret("33" * 32), "tests"))
    assert refusal(reborn.bundle(), seen=seen).cause is Cause.ROLLBACK


EDITS = 1_000
"""For each seed: bytes flipped anywhere, and pieces cut out, doubled or turned round."""
SEEDS = 10


def _proven(found: Verified) -> Verified:
    """`found` with its manifests alone: base64 has several texts for the same bytes."""
    return replace(found, history=tuple(replace(each, envelope="") for each in found.history))


def _telling(data: bytes) -> Any:
    """What an answer says, without what says nothing: how JSON, hex, base64 and PEM spell it, `vm_config`, events of
    other registers than RTMR3, certificates that are known to who verifies (the root), the chain of the one list that
    is verified by the chain in the quote, and signatures beside those that count.
    """
    tree = json.loads(data)
    del tree["vm_config"]
    tree["event_log"] = [
        [event["event"], event["event_payload"].lower(), event["event_type"]]
        for event in json.loads(tree["event_log"]) if event["imr"] == 3
    ]  # fmt: skip
    quote = bytes.fromhex(tree["quote"])
    signed, _, chain = quote.partition(b"-----BEGIN")
    tree["quote"] = [signed.hex(), _certificates("-----BEGIN" + chain.decode("latin-1"), 2)]
    collateral = tree["collateral"]
    del collateral["pck_crl_issuer_chain"]
    for name, value in collateral.items():
        if name.endswith("_chain"):
            collateral[name] = _certificates(value, 1)
        elif name.endswith(("_signature", "_crl")):
            collateral[name] = value.lower()
    for name in ("root_ca", "mesh_ca", "mesh_ca_by_root"):
        tree[name] = _certificates(tree[name], 1)
    payloads = [envelope.partition(".")[0] for envelope in tree["history"]]
    tree["history"] = [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in payloads]
    return tree


def _certificates(pem: str, number: int) -> list[bytes]:
    """The first ones in it."""
    blocks = re.findall(r"BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE", pem, re.DOTALL)
    return [base64.b64decode("".join(block.split())) for block in blocks[:number]]


def _edited(data: bytes, chance: random.Random) -> bytes:
    place, length = chance.randrange(len(data)), chance.randrange(1, 40)
    kind = chance.randrange(10)
    if kind < 7:
        return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
    piece = data[place : place + length]
    return {
        7: data[:place] + data[place + length :],
        8: data[:place] + piece + data[place:],
        9: data[:place] + piece[::-1] + data[place + length :],
    }[kind]


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_ten_thousand_edits(seed: int) -> None:
    """Whatever is changed of a bundle and its chain, nothing else is proven: it is refused, or what is changed is known
    to say nothing (`_telling`).
    """
    chance, data = random.Random(seed), HONEST.answer(NONCE)[0]
    wanted = _proven(await verify(decode(data), HONEST.trusted, nonce=NONCE, seen=None, now=NOW))
    told, causes = _telling(data), set()
    for _ in range(EDITS):
        edited = _edited(data, chance)
        try:
            found = await verify(decode(edited), HONEST.trusted, nonce=NONCE, seen=None, now=NOW)
            assert _proven(found) == wanted
            assert _telling(edited) == told
        except BundleError:
            causes.add("form")
        except UnprovenError as error:
            causes.add(error.cause.value)
    assert {"form", "evidence", "owner", "authority"} <= causes


def test_edits_of_what_is_signed() -> None:
    """Statement, nonce, path and members have no byte that says nothing: one changed value is refused."""
    chance = random.Random(11)
    tree = json.loads(HONEST.answer(bytes(32), NONCE)[1])
    for name in ("nonce", "statement", "merkle_path", "members"):
        places = list(_leaves(tree[name], (name,)))
        for _ in range(100):
            path = chance.choice(places)
            changed = json.loads(json.dumps(tree))
            _change(changed, path, chance)
            with pytest.raises((BundleError, UnprovenError)):
                check(decode(json.dumps(changed).encode()), HONEST.trusted)


def _leaves(tree: Any, path: tuple[Any, ...]) -> Any:
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from _leaves(tree[key], (*path, key))
    else:
        yield path


def _change(tree: Any, path: tuple[Any, ...], chance: random.Random) -> None:
    for key in path[:-1]:
        tree = tree[key]
    value = tree[path[-1]]
    if isinstance(value, int):
        tree[path[-1]] = value + chance.choice((-1, 1))
    else:
        place = chance.randrange(len(value)) if value else 0
        old = value[place : place + 1]
        tree[path[-1]] = value[:place] + chance.choice([new for new in "0aghk" if new != old]) + value[place + 1 :]
