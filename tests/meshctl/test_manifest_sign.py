"""`./mesh sign`: who has to sign, one after the other, also with keys that are elsewhere."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshctl import generate_sources, manifest_keys, runs
from meshctl.cli import cli
from tests.coordinator.world import OWNER
from tests.meshctl.test_manifest import Owner, owner, refused
from tests.meshctl.test_manifest_facts import outputs
from tests.meshctl.test_set_command import FIRST, Coordinator, lab
from tests.topology.support import after
from topology.envelope import message, open_envelope
from topology.manifest import decode, encode
from topology.owners import MAX_OWNERS, Owners, key_of, name_of, sign
from topology.render import with_owners

__all__ = ["lab", "owner"]


def openssl(*arguments: str) -> None:
    """Runs the real program."""
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Several(Owner):
    """Three owners, of whom two have to sign: one key is P-256, and one is openssl's own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.keys = (self.key, folder / "second.pem", folder / "third.pem")
        self.run("keygen", str(self.cluster), "--key", str(self.keys[1]), "--alg", "p256", "--no-write")
        openssl("genpkey", "-algorithm", "ed25519", "-out", str(self.keys[2]))
        self.keys[2].chmod(0o600)
        self.owners = Owners(keys=tuple(key_of(manifest_keys.load(key)) for key in self.keys), threshold=2)
        self.name(self.owners)

    def name(self, owners: Owners) -> None:
        """Writes `owners` into the compose files, and into what was deployed."""
        changes = {}
        for name, path in (("coordinator", "coordinator"), ("api", "api"), ("worker", "worker")):
            file = self.cluster / "compose" / f"{path}.yaml"
            file.write_text(with_owners(file.read_text(), owners))
            changes[name] = {"docker_compose_file": file.read_text()}
        self.printed.write_text(json.dumps(outputs(**changes)))

    @property
    def signed(self) -> Path:
        """What Terraform finds."""
        return self.cluster / "manifest.signed"


@pytest.fixture
def several(tmp_path: Path) -> Several:
    """Three owners."""
    return Several(tmp_path)


def test_what_was_not_generated_is_asked_for_before_a_key(several: Several) -> None:
    """A key that is made for it would change the compose files for nothing."""
    several.key.unlink()
    refused(several.sign(), "manifest.json is not there")


def test_each_owner_signs_in_turn(several: Several) -> None:
    """Until there are enough, nothing is there for Terraform to find; the same key twice is one."""
    assert several.generate().exit_code == 0
    for _ in range(2):
        first = several.sign("--key", str(several.keys[1]))
        assert "1 of 2 signatures" in first.output
        assert "not complete yet" in first.output
        assert not several.signed.exists()
    assert "has signed already" in first.output
    second = several.sign("--key", str(several.keys[0]))
    assert "2 of 2 signatures" in second.output
    assert not (several.cluster / "manifest.partial").exists()
    found = open_envelope(several.signed.read_text(), several.owners)
    assert found.manifest.owners == several.owners
    shown = several.run("manifest", "show", str(several.cluster)).output
    assert f"digest {found.digest}" in shown
    assert f"signed by {name_of(several.owners.keys[0])}, {name_of(several.owners.keys[1])}\n" in shown
    assert "what follows needs 2 of: " in shown
    assert "signed already" in several.sign("--key", str(several.keys[0])).output


def test_a_draft_that_was_changed_needs_all_signatures_anew(several: Several) -> None:
    """One of another draft does not count."""
    several.generate()
    several.sign("--key", str(several.keys[0]))
    draft = several.cluster / "manifest.json"
    draft.write_text(draft.read_text().replace('"leaf_hours": 8', '"leaf_hours": 9'))
    assert "1 of 2 signatures" in several.sign("--key", str(several.keys[1])).output


def test_signatures_are_made_with_openssl(several: Several, tmp_path: Path) -> None:
    """As `--prepare` prints it, for both kinds of key; one of other bytes, or of another key, is refused."""
    several.generate()
    bytes_, made = tmp_path / "to-sign", tmp_path / "to-sign.sig"
    told = several.sign("--prepare", str(bytes_)).output
    lines = [line.split()[1:] for line in told.splitlines() if line.startswith("  openssl ")]
    assert len(lines) == 2
    assert not several.signed.exists()
    for command, key in zip(lines, (several.keys[2], several.keys[1]), strict=True):
        openssl(*(str(key) if word == "owner.pem" else word for word in command))
        assert several.sign("--signature", str(made)).exit_code == 0
    assert open_envelope(several.signed.read_text(), several.owners).manifest.epoch == 1
    several.edit(leaf_hours=9)
    several.generate()
    refused(several.sign("--signature", str(made)), "a signature of none of")
    made.write_bytes(b"")
    refused(several.sign("--signature", str(made)), "is no signature")
    refused(several.sign("--signature", str(made), "--prepare", "x"), "exclude each other")


def test_owners_are_replaced_by_the_old_and_the_new_ones(owner: Owner, tmp_path: Path) -> None:
    """CVMs that run go by the manifest before, those that start by their compose file: both have to believe it."""
    owner.generate()
    owner.sign()
    new = tmp_path / "new.pem"
    manifest_keys.create(new, "p256")
    owners = Owners(keys=(key_of(manifest_keys.load(new)),))
    Several.name(owner, owners)  # type: ignore[arg-type]
    rendered = owner.generate()
    assert rendered.exit_code == 0, rendered.exception
    first = owner.sign("--key", str(new))
    assert "0 of 1 signatures by the owners that epoch 1" in first.output
    assert "1 of 1 signatures by the owners in the compose files" in first.output
    assert "signed epoch 2" in owner.sign().output
    owner.edit(leaf_hours=9)
    assert owner.generate().exit_code == 0
    assert "signed epoch 3" in owner.sign("--key", str(new)).output
    shown = owner.run("manifest", "show", str(owner.cluster)).output
    assert f"signed by {name_of(owners.keys[0])}\n" in shown


def test_owners_that_are_named_in_the_manifest_alone_sign_it_too(owner: Owner, tmp_path: Path) -> None:
    """Else a mistyped key would be in force, and nobody could ever set anything again."""
    owner.generate()
    owner.sign()
    new = tmp_path / "new.pem"
    manifest_keys.create(new, "p256")
    key = key_of(manifest_keys.load(new))
    owner.edit(owners={"keys": [{"alg": key.alg, "key": key.key}], "threshold": 1})
    assert owner.generate().exit_code == 0
    first = owner.sign()
    assert "1 of 1 signatures by the owners in the compose files" in first.output
    assert "0 of 1 signatures by the owners that epoch 2 itself names" in first.output
    assert "signed epoch" not in first.output
    assert "signed epoch 2" in owner.sign("--key", str(new)).output


def test_no_more_signatures_are_taken_than_an_envelope_holds(owner: Owner, tmp_path: Path) -> None:
    """Coordinators would refuse it: who began with too many is told, and keeps what is there."""
    private = [Ed25519PrivateKey.from_private_bytes(bytes([n + 1]) * 32) for n in range(MAX_OWNERS)]
    named = Owners(keys=tuple(map(key_of, private)), threshold=MAX_OWNERS)
    owner.generate()
    owner.sign()
    owner.edit(owners=asdict(named))
    assert owner.generate().exit_code == 0
    text = message(decode(owner.draft.read_bytes()))
    for n, key in enumerate(private):
        made = tmp_path / f"{n}.sig"
        made.write_bytes(sign(key, text))
        result = owner.sign("--signature", str(made))
        assert result.exit_code == 0, result.output
    partial = owner.cluster / "manifest.partial"
    before = partial.read_text()
    refused(owner.sign(), "has 16 signatures already, and no more fit")
    assert partial.read_text() == before


def test_a_manifest_of_another_history_is_not_signed(owner: Owner) -> None:
    """The reason is that of the coordinators."""
    owner.generate()
    owner.sign()
    owner.edit(leaf_hours=9)
    owner.generate()
    draft = owner.cluster / "manifest.json"
    tree = json.loads(draft.read_text())
    draft.write_text(json.dumps(tree | {"previous": "00" * 32}))
    refused(owner.sign(), "follows another manifest than epoch 1", "two were signed for one epoch")
    draft.write_text(json.dumps(tree | {"epoch": 3}))
    refused(owner.sign(), "those in between are needed first")
    (owner.cluster / "manifest.signed").unlink()
    refused(owner.sign(), "nothing is signed yet: expected epoch 1")


def test_a_labs_other_owners_sign_in_turn(lab: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a deployment: until then there is nothing to set, also where the lab's own key signs last."""
    folder, second, third = tmp_path / "mine", tmp_path / "second.pem", tmp_path / "third.pem"
    folder.mkdir()
    (folder / "cluster.tf").write_text("")
    (folder / "manifest.generated.json").write_text(json.dumps({"from": "lab"}))
    keys = (OWNER, *(manifest_keys.create(path) for path in (second, third)))
    several = Owners(keys=tuple(map(key_of, keys)), threshold=2)
    draft = after(FIRST, owners=several)
    (folder / "manifest.json").write_bytes(encode(draft))
    monkeypatch.setattr(generate_sources, "lab_of", lambda _folder, _name: runs.Run("mine", tmp_path))

    def signed(*options: str) -> Result:
        return CliRunner().invoke(cli, ["sign", str(folder), *options])

    refused(signed("--key", str(tmp_path / "none.pem")), "none.pem cannot be read")
    first = signed("--key", str(second))
    assert "0 of 1 signatures by the lab's own owner" in first.output, first.exception
    assert "1 of 2 signatures by the owners that epoch 2 itself names" in first.output
    assert (folder / "manifest.lab.partial").exists()
    assert not (folder / "manifest.lab.signed").exists()
    last = signed()
    assert "signed epoch 2" in last.output
    assert not (folder / "manifest.lab.partial").exists()
    made = open_envelope((folder / "manifest.lab.signed").read_text(), several)
    assert made.manifest == draft
    (folder / "manifest.json").write_bytes(encode(after(FIRST, leaf_hours=3)))
    refused(signed("--key", str(third)), "third.pem gives a signature of none of the lab's own owner")
    bytes_of = tmp_path / "bytes"
    assert "owners of epoch 2 sign" in signed("--prepare", str(bytes_of)).output
    (tmp_path / "made.sig").write_bytes(sign(OWNER, bytes_of.read_bytes()))
    assert "signed epoch 2" in signed("--signature", str(tmp_path / "made.sig")).output
