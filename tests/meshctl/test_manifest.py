"""`./mesh manifest`: the files it reads and writes, what it refuses. The whole way: tests/terraform/test_phala.py."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshctl import manifest_keys
from meshctl.cli import cli
from meshctl.errors import UserError
from tests.meshctl.test_manifest_facts import FILES, outputs
from tests.support import ROOT
from tests.terraform.deployed import PRE_LAUNCH_HASH, TEE
from topology import manifest
from topology.envelope import open_envelope
from topology.owners import Owners, key_of, name_of, text_of
from topology.render import OWNER_KEY_PLACEHOLDER, owners_of, with_owners


class Owner:
    """Somebody with a copy of the starter, a key, and what Terraform printed."""

    def __init__(self, folder: Path) -> None:
        self.cluster = Path(shutil.copytree(ROOT / "clusters" / "starter", folder / "starter"))
        self.key = folder / "owner.pem"
        self.printed = folder / "outputs.json"
        self.run("keygen", str(self.cluster), "--key", str(self.key))
        public = owners_of((self.cluster / "compose" / "api.yaml").read_text())
        assert public is not None
        changes = {
            name: {"docker_compose_file": text.replace(OWNER_KEY_PLACEHOLDER, text_of(public))}
            for name, text in FILES.items()
        }
        self.printed.write_text(json.dumps(outputs(**changes)))

    def run(self, *arguments: str) -> Result:
        """A command of ./mesh."""
        return CliRunner().invoke(cli, arguments)

    def render(self, *more: str) -> Result:
        """`manifest render` with the answers that it asks for."""
        fixed = ("--outputs", str(self.printed), "--accept-pre-launch", PRE_LAUNCH_HASH)
        return self.run("manifest", "render", str(self.cluster), *fixed, *(more or ("--take-reported-images",)))

    def sign(self, *more: str) -> Result:
        """`manifest sign`."""
        return self.run("manifest", "sign", str(self.cluster), *(more or ("--key", str(self.key))))


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    """An owner."""
    return Owner(tmp_path)


def refused(result: Result, *words: str) -> None:
    """Asserts that the command ended with a message that has all `words`."""
    assert isinstance(result.exception, UserError), result.output
    assert all(word in str(result.exception) for word in words), str(result.exception)


def test_render_sign_show(owner: Owner) -> None:
    """The draft is readable JSON; the signed file is one line that the compose files' key verifies; epochs grow."""
    rendered = owner.render()
    assert rendered.exit_code == 0, rendered.exception
    assert "look at: " in rendered.output
    draft = (owner.cluster / "manifest.json").read_text()
    assert manifest.decode(draft.encode()).epoch == 1
    assert owner.sign().exit_code == 0
    signed = (owner.cluster / "manifest.signed").read_text()
    assert signed.count("\n") == 1
    shown = owner.run("manifest", "show", str(owner.cluster))
    assert "manifest of starter, epoch 1" in shown.output
    assert "route worker:9090 → worker/worker" in shown.output
    assert owner.render().exit_code == 0
    assert owner.sign().exit_code == 0
    assert "epoch 2" in owner.run("manifest", "show", str(owner.cluster)).output


def test_the_images_that_may_run_must_be_said(owner: Owner) -> None:
    """Neither the cloud's word nor a list is taken unasked."""
    fixed = ("manifest", "render", str(owner.cluster), "--outputs", str(owner.printed))
    refused(owner.run(*fixed), "--os-images", "--take-reported-images")
    approved = owner.cluster / "images.json"
    image = TEE.os_image("0.6.0", False)
    approved.write_text(
        json.dumps([{name: getattr(image, name) for name in ("os_image_hash", "mrtd", "rtmr0", "rtmr1", "rtmr2")}])
    )
    assert owner.render("--os-images", str(approved)).exit_code == 0
    approved.write_text('[{"mrtd": "x"}]')
    refused(owner.render("--os-images", str(approved)), "is no list of OS images", "os_image_hash")
    approved.write_text("[]")
    refused(owner.render("--os-images", str(approved)), "approves no OS image")


def test_what_cannot_be_read_is_named(owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing outputs, no Terraform, no draft, nothing signed yet."""
    missing = str(tmp_path / "none.json")
    refused(
        owner.run("manifest", "render", str(owner.cluster), "--outputs", missing, "--take-reported-images"), missing
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(owner.run("manifest", "render", str(owner.cluster), "--take-reported-images"), "terraform is not on PATH")
    refused(owner.sign(), "manifest.json", "manifest render")
    refused(owner.run("manifest", "show", str(owner.cluster)), "has no manifest.signed yet")


def test_only_the_key_of_the_compose_files_signs(owner: Owner, tmp_path: Path) -> None:
    """A manifest that no CVM would believe is not signed."""
    owner.render()
    other = tmp_path / "other.pem"
    manifest_keys.create(other)
    refused(owner.sign("--key", str(other)), "a signature of none of the owners in the compose files")


def test_an_older_or_foreign_draft_is_not_signed(owner: Owner) -> None:
    """Coordinators never take a smaller epoch, so it is refused here, where someone can act."""
    owner.render()
    first = (owner.cluster / "manifest.json").read_text()
    owner.sign()
    owner.render()
    owner.sign()
    (owner.cluster / "manifest.json").write_text(first)
    refused(owner.sign(), "epoch 1 (", "is older than epoch 2 (")
    (owner.cluster / "manifest.json").write_text(first.replace('"cluster": "starter"', '"cluster": "other"'))
    refused(owner.sign(), "is of cluster 'other'")
    (owner.cluster / "manifest.json").write_text("{}")
    refused(owner.sign(), "is no manifest")


def test_a_signed_file_that_was_changed_is_refused(owner: Owner) -> None:
    """Whoever can write the folder cannot make a manifest."""
    owner.render()
    owner.sign()
    path = owner.cluster / "manifest.signed"
    path.write_text("A" + path.read_text()[1:])
    refused(owner.run("manifest", "show", str(owner.cluster)), "signed by 0 of the owner keys")


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


def test_each_owner_signs_in_turn(several: Several) -> None:
    """Until there are enough, nothing is there for Terraform to find; the same key twice is one."""
    assert several.render().exit_code == 0
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
    several.render()
    several.sign("--key", str(several.keys[0]))
    draft = several.cluster / "manifest.json"
    draft.write_text(draft.read_text().replace('"vip_pool": "127.10.0.0/16"', '"vip_pool": "127.11.0.0/16"'))
    assert "1 of 2 signatures" in several.sign("--key", str(several.keys[1])).output


def test_signatures_are_made_with_openssl(several: Several, tmp_path: Path) -> None:
    """As `--prepare` prints it, for both kinds of key; one of other bytes, or of another key, is refused."""
    several.render()
    bytes_, made = tmp_path / "to-sign", tmp_path / "to-sign.sig"
    told = several.sign("--prepare", str(bytes_)).output
    lines = [line.split()[1:] for line in told.splitlines() if line.startswith("  openssl ")]
    assert len(lines) == 2
    assert not several.signed.exists()
    for command, key in zip(lines, (several.keys[2], several.keys[1]), strict=True):
        openssl(*(str(key) if word == "owner.pem" else word for word in command))
        assert several.sign("--signature", str(made)).exit_code == 0
    assert open_envelope(several.signed.read_text(), several.owners).manifest.epoch == 1
    several.render()
    refused(several.sign("--signature", str(made)), "a signature of none of")
    made.write_bytes(b"")
    refused(several.sign("--signature", str(made)), "is no signature")
    refused(several.sign("--signature", str(made), "--prepare", "x"), "exclude each other")


def test_owners_are_replaced_by_the_old_and_the_new_ones(owner: Owner, tmp_path: Path) -> None:
    """CVMs that run go by the manifest before, those that start by their compose file: both have to believe it."""
    owner.render()
    owner.sign()
    new = tmp_path / "new.pem"
    manifest_keys.create(new, "p256")
    owners = Owners(keys=(key_of(manifest_keys.load(new)),))
    Several.name(owner, owners)  # type: ignore[arg-type]
    rendered = owner.render()
    assert rendered.exit_code == 0, rendered.exception
    first = owner.sign("--key", str(new))
    assert "0 of 1 signatures by the owners that epoch 1" in first.output
    assert "1 of 1 signatures by the owners in the compose files" in first.output
    assert "signed epoch 2" in owner.sign().output
    assert owner.render().exit_code == 0
    assert "signed epoch 3" in owner.sign("--key", str(new)).output
    shown = owner.run("manifest", "show", str(owner.cluster)).output
    assert f"signed by {name_of(owners.keys[0])}\n" in shown


def test_a_manifest_of_another_history_is_not_signed(owner: Owner) -> None:
    """The reason is that of the coordinators."""
    owner.render()
    owner.sign()
    owner.render()
    draft = owner.cluster / "manifest.json"
    tree = json.loads(draft.read_text())
    draft.write_text(json.dumps(tree | {"previous": "00" * 32}))
    refused(owner.sign(), "follows another manifest than epoch 1", "two were signed for one epoch")
    draft.write_text(json.dumps(tree | {"epoch": 3}))
    refused(owner.sign(), "those in between are needed first")
    (owner.cluster / "manifest.signed").unlink()
    refused(owner.sign(), "nothing is signed yet: expected epoch 1")


def test_the_script_of_an_app_is_shown(owner: Owner) -> None:
    """What the platform runs before the mesh can be read."""
    shown = owner.run("manifest", "script", str(owner.cluster), "api", "--outputs", str(owner.printed))
    assert "pulling images" in shown.output
