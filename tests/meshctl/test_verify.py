"""`./mesh verify` against a coordinator on loopback: what it writes, and each way in which it fails."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from meshctl import __main__ as program
from meshctl import verify as module
from meshctl.verify import REMEDIES, Exit
from tests.coordinator.world import API_COMPOSE, OWNER_KEY, TEE, cvm
from tests.evidence.bundles import Coordinator
from tests.meshctl.test_attestation import serving
from tests.support import ROOT
from tests.topology.support import after, opened
from topology.envelope import Signed
from topology.manifest import encode
from topology.owners import key_of, name_of

STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(32))


@dataclass(kw_only=True)
class Person:
    """Somebody at a keyboard, with a manifest, and a coordinator that answers."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    coordinator: Coordinator = field(default_factory=lambda: Coordinator(now=time.time()))
    relayed: bytes | None = None
    """What a relay answers instead."""
    said: str = ""

    def __post_init__(self) -> None:
        self.root = self.folder / "root.der"
        self.root.write_bytes(TEE.root_der)
        self.manifest = self.give(self.coordinator.chain[-1])
        self.out = self.folder / "verify"

    def give(self, signed: Signed) -> Path:
        """The file of that manifest, as a person reads it."""
        path = self.folder / f"manifest-{signed.digest[:8]}.json"
        path.write_text(json.dumps(json.loads(encode(signed.manifest)), indent=2))
        return path

    async def answer(self, request: web.Request) -> web.Response:
        """The coordinator's."""
        nonce = bytes.fromhex((await request.json())["nonce"])
        return web.Response(body=self.relayed or self.coordinator.answer(nonce)[0])

    async def verify(self, *more: str, manifest: Path | None = None, root: bool = True) -> int:
        """The exit code of `./mesh verify`, with the usual options and `more`."""
        fixed = ["--manifest", str(manifest or self.manifest), "--out", str(self.out)]
        fixed += ["--insecure-root", str(self.root)] if root else []
        async with serving(self.answer) as url:
            return await self.run("-c", url, *fixed, *more)

    async def run(self, *arguments: str) -> int:
        """The exit code of `./mesh verify` with these arguments; `said` is what it printed."""
        code = await asyncio.to_thread(program.run, ["verify", *arguments])
        printed = self.capsys.readouterr()
        self.said = printed.out + printed.err
        return code

    async def fails(self, wanted: Exit, *more: str, manifest: Path | None = None, root: bool = True) -> None:
        """Expects this failure, and that nothing was written or remembered for it."""
        before = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        code = await self.verify(*more, manifest=manifest, root=root)
        assert (code, f"({wanted.name.lower()})" in self.said) == (wanted, True), self.said
        assert {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()} == before


@pytest.fixture
def person(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Person:
    """One whose configuration is in a folder of the test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Person(folder=tmp_path, capsys=capsys)


async def test_what_holds_is_written_and_remembered(person: Person) -> None:
    """By the manifest that one reads and by the signed one; and the bundle verifies again without a network."""
    assert await person.verify() == 0, person.said
    head = person.coordinator.chain[-1]
    assert f"enforces epoch 3, digest {head.digest}" in person.said
    assert "members  3: 2 of api, 1 of client" in person.said
    assert person.said.count("INSECURE") == 2
    assert (person.out / "mesh-ca.3.pem").exists()
    remembered = list((person.folder / "config").rglob("tests-*.json"))
    assert len(remembered) == 1
    signed = person.folder / "manifest.signed"
    signed.write_text(head.envelope + "\n")
    assert await person.verify("--owners", OWNER_KEY, manifest=signed) == 0, person.said
    offline = ("--offline", str(person.out / "bundle.json"), "--insecure-root", str(person.root))
    assert await person.run(*offline, "-m", str(person.manifest)) == 0, person.said
    assert "written" not in person.said
    again = person.folder / "again"
    assert await person.run(*offline, "--owners", OWNER_KEY, "--out", str(again)) == 0, person.said
    assert {path.name for path in again.iterdir()} == {path.name for path in person.out.iterdir()}


async def test_a_root_may_be_pem(person: Person) -> None:
    """As Intel gives its own."""
    person.root.write_bytes(x509.load_der_x509_certificate(TEE.root_der).public_bytes(Encoding.PEM))
    assert await person.verify() == 0, person.said


async def test_a_simulated_tee_is_not_believed_by_accident(person: Person) -> None:
    """Without the insecure option Intel's root counts."""
    await person.fails(Exit.EVIDENCE, root=False)


async def test_nobody_answers(person: Person) -> None:
    """Nor is there a bundle to verify again."""
    code = await person.run("-c", "http://127.0.0.1:1", "-m", str(person.manifest), "--out", str(person.out))
    assert (code, person.out.exists()) == (Exit.UNREACHABLE, False)


async def test_what_is_no_bundle(person: Person) -> None:
    """Whatever answers there."""
    person.relayed = b"<html>"
    await person.fails(Exit.FORM)


async def test_an_answer_to_another_question(person: Person) -> None:
    """A relay has one of before."""
    person.relayed = person.coordinator.answer(bytes(32))[0]
    await person.fails(Exit.NONCE)


async def test_another_app(person: Person) -> None:
    """A genuine CVM that is no coordinator."""
    person.coordinator = replace(person.coordinator, who=cvm(API_COMPOSE, "api-0"))
    await person.fails(Exit.FOREIGN)


async def test_a_clock_an_hour_off(person: Person) -> None:
    """The coordinator's."""
    person.coordinator = replace(person.coordinator, now=time.time() - 3600)
    await person.fails(Exit.CLOCK)


async def test_another_manifest(person: Person) -> None:
    """The person's is older than what is enforced."""
    await person.fails(Exit.DIGEST, manifest=person.give(person.coordinator.chain[1]))
    assert "epoch 3" in person.said
    assert "get the newer manifest" in person.said


async def test_a_newer_manifest_than_what_is_enforced(person: Person) -> None:
    """The person's own draft, which nobody has set."""
    draft = opened(after(person.coordinator.chain[-1]), STRANGER)
    await person.fails(Exit.DIGEST, manifest=person.give(draft))
    assert "get the newer manifest" not in person.said
    assert "sign and set yours" in person.said


async def test_another_kind_of_file_is_told(person: Person) -> None:
    """The cluster's file in the place of the manifest."""
    other = person.folder / "cluster.tf"
    other.write_text('cluster_name = "tests"\n')
    assert await person.verify(manifest=other) == 2
    assert "cluster.tf is not a manifest: expected JSON" in person.said


async def test_a_labs_bundle_verifies_after_the_lab(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what this machine verified it with, whatever lab runs then; a bundle of somebody else needs the options."""
    from meshctl import runs

    lab = person.folder / "lab"
    lab.mkdir()
    told = {"owners": OWNER_KEY, "development_root": TEE.root_der.hex()}
    bundle = str(person.out / "bundle.json")
    with monkeypatch.context() as running:
        running.setattr(runs, "find", lambda _: runs.Run("demo", lab))
        async with serving(person.answer) as url:
            (lab / module.IN_LAB).write_text(json.dumps({"url": url, **told}))
            assert await person.run("--out", str(person.out)) == 0, person.said
        strange = {"url": "https://127.0.0.1:1", "owners": name_of(key_of(STRANGER)), "development_root": "00"}
        (lab / module.IN_LAB).write_text(json.dumps(strange))
        assert await person.run("--offline", bundle) == 0, person.said
    assert await person.run("--offline", bundle) == 0, person.said
    assert "INSECURE" in person.said
    older = str(person.give(person.coordinator.chain[1]))
    assert await person.run("--offline", bundle, "-m", older) == Exit.DIGEST, person.said
    foreign = person.folder / "foreign.json"
    foreign.write_bytes(person.coordinator.answer(bytes(32))[0])
    assert await person.run("--offline", str(foreign)) == 2
    assert "which manifest has to be enforced?" in person.said
    assert "--insecure-root" in person.said
    assert await person.run("--offline", str(foreign), "-m", str(person.manifest)) == Exit.EVIDENCE, person.said


def test_few_bundles_of_labs_are_remembered(person: Person) -> None:
    """The newest ones; and a damaged memory is named."""
    from meshctl import verify_files
    from meshctl.errors import UserError

    anchors = verify_files.LabAnchors(owners=OWNER_KEY, development_root="00")
    for number in range(verify_files.MAX_LABS + 2):
        verify_files.write_lab(str(number).encode(), anchors)
    kept = list((person.folder / "config" / "cvm-mesh" / "labs").iterdir())
    assert len(kept) == verify_files.MAX_LABS
    newest = str(verify_files.MAX_LABS + 1).encode()
    assert verify_files.read_lab(newest) == anchors
    for path in kept:
        path.write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        verify_files.read_lab(newest)


async def test_an_unknown_owner(person: Person) -> None:
    """The person was told another key; with a manifest and without."""
    stranger = name_of(key_of(STRANGER))
    await person.fails(Exit.OWNER, "--owners", stranger)
    async with serving(person.answer) as url:
        assert await person.run("-c", url, "--owners", stranger, "--out", str(person.out)) == Exit.OWNER, person.said


async def test_changed_bundles(person: Person) -> None:
    """History, authority, members: what the coordinator answers is changed on its way."""
    honest = person.coordinator
    other = Coordinator(chain=honest.chain[:2], now=honest.now).bundle()
    changes = {
        Exit.CHAIN: {"history": []},
        Exit.AUTHORITY: {"root_ca": other.mesh_ca},
        Exit.MEMBERS: {"members": [asdict(member) for member in other.members][:1]},
    }
    for wanted, change in changes.items():

        async def relay(request: web.Request, change: dict[str, object] = change) -> web.Response:
            nonce = bytes.fromhex((await request.json())["nonce"])
            return web.json_response(json.loads(honest.answer(nonce)[0]) | change)

        async with serving(relay) as url:
            fixed = ("-m", str(person.manifest), "--insecure-root", str(person.root), "--out", str(person.out))
            assert await person.run("-c", url, *fixed) == wanted, person.said
    assert not person.out.exists()


async def test_a_rollback(person: Person) -> None:
    """This machine has seen epoch 3; whoever enforces epoch 2 is refused, also with the manifest of then."""
    assert await person.verify() == 0
    before = person.coordinator
    person.coordinator = replace(before, chain=before.chain[:2])
    older = person.give(before.chain[1])
    await person.fails(Exit.ROLLBACK, manifest=older)
    newest = opened(after(before.chain[-1]), STRANGER)
    person.coordinator = replace(before, chain=(*before.chain, newest))
    await person.fails(Exit.OWNER, manifest=person.give(newest))


async def test_an_old_bundle_is_judged_as_of_then(person: Person) -> None:
    """Its collateral has expired since; and what was seen later does not count."""
    then = time.time() - 90 * 86400
    old = Coordinator(chain=person.coordinator.chain[:2], now=then)
    bundle = person.folder / "old.json"
    bundle.write_bytes(old.answer(bytes(32))[0])
    assert await person.verify() == 0
    fixed = ("--offline", str(bundle), "-m", str(person.give(old.chain[-1])), "--insecure-root", str(person.root))
    assert await person.run(*fixed) == Exit.CLOCK, person.said
    assert await person.run(*fixed, "--at", str(then)) == 0, person.said


async def test_mistakes_are_told_before_anything_is_asked(person: Person) -> None:
    """Exit code 2, with a remedy."""
    manifest, root = str(person.manifest), str(person.root)
    (person.folder / "nothing").write_text("{}")
    full = person.folder / "full"
    full.mkdir()
    (full / "thesis.txt").touch()
    for arguments in (
        ("-c", "http://127.0.0.1:1"),
        ("-c", "ftp://x", "-m", manifest),
        ("-c", "http://127.0.0.1:1", "-m", manifest, "--at", "1"),
        ("-c", "http://127.0.0.1:1", "-m", manifest, "--offline", manifest),
        ("-c", "http://127.0.0.1:1", "-m", manifest, "--owners", "nobody"),
        ("-c", "http://127.0.0.1:1", "-m", manifest, "--insecure-root", manifest),
        ("-c", "http://127.0.0.1:1", "-m", manifest, "--out", str(full)),
        ("--offline", str(person.folder / "none"), "-m", manifest),
    ):
        assert await person.run(*arguments) == 2, (arguments, person.said)
        assert "try:" in person.said
    async with serving(person.answer) as url:
        for wrong in (person.folder / "nothing", person.folder / "none", person.root):
            arguments = ("-c", url, "-m", str(wrong), "--insecure-root", root)
            assert await person.run(*arguments) == 2, person.said


def test_each_failure_has_a_code_a_remedy_and_a_line_in_the_documents() -> None:
    """The table of docs/cli.md is that of the program, and every cause has a code."""
    from evidence.outside import Cause

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").split("## `verify`")[1].split("\n## ")[0]
    table = {int(code): name for code, name in re.findall(r"^\| (\d+) \| (\w+) \|", text, re.MULTILINE)}
    assert table == {int(code): code.name.lower() for code in Exit}
    assert set(REMEDIES) == set(Exit)
    assert {cause.name for cause in Cause} == {code.name for code in Exit} - {"UNREACHABLE", "FORM"}
    assert len(set(Exit)) == len(Exit.__members__)


def test_what_a_lab_says_of_itself_is_read_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is private, and a damaged file is told."""
    from meshctl import runs
    from meshctl.errors import UserError
    from meshctl.verify import Reader

    run = runs.Run("demo", tmp_path)
    monkeypatch.setattr(runs, "find", lambda _: run)
    empty = Reader(manifest=None, owners=None, development_root=None)
    (tmp_path / module.IN_LAB).write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        module._lab(None, empty)
    told = {"url": "https://127.0.0.1:1", "owners": OWNER_KEY, "development_root": TEE.root_der.hex()}
    (tmp_path / module.IN_LAB).write_text(json.dumps(told))
    url, reader, seen = module._lab(None, empty)
    assert (url, reader.development_root, seen) == (told["url"], TEE.root_der, tmp_path / "seen.json")
    assert reader.owners is not None
