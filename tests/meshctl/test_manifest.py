"""`./mesh sign` and `manifest`: the files they read and write, what they refuse. The whole way: test_phala.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshctl import manifest_keys
from meshctl.cli import cli
from meshctl.errors import UserError
from tests.meshctl.test_manifest_facts import FILES, outputs
from tests.support import ROOT
from tests.terraform.deployed import PRE_LAUNCH_HASH
from topology import manifest
from topology.owners import OWNER_KEY_PLACEHOLDER, text_of
from topology.render import owners_of


class Owner:
    """Somebody with a copy of the starter, a key, and what Terraform printed."""

    def __init__(self, folder: Path) -> None:
        self.cluster = Path(shutil.copytree(ROOT / "clusters" / "starter", folder / "starter"))
        self.key = folder / "owner.pem"
        self.printed = folder / "outputs.json"
        self.run("keygen", str(self.cluster), "--key", str(self.key))
        public = owners_of((self.cluster / "compose" / "api.yaml").read_text())
        assert public is not None
        self.measured: dict[str, dict[str, Any]] = {
            name: {"docker_compose_file": text.replace(OWNER_KEY_PLACEHOLDER, text_of(public))}
            for name, text in FILES.items()
        }
        self.printed.write_text(json.dumps(outputs(**self.measured)))

    def run(self, *arguments: str) -> Result:
        """A command of ./mesh."""
        return CliRunner().invoke(cli, arguments)

    @property
    def draft(self) -> Path:
        """What `generate` writes, and people edit."""
        return self.cluster / "manifest.json"

    def generate(self, *more: str) -> Result:
        """`generate` with the answers that it asks for."""
        fixed = ("--outputs", str(self.printed), "--accept-pre-launch", PRE_LAUNCH_HASH)
        images = () if "--os-images" in more else ("--take-reported-images",)
        provider = () if "--key-provider" in more else ("--take-reported-provider",)
        return self.run("generate", str(self.cluster), *fixed, *images, *provider, *more)

    def gives(self, app: str, *names: str) -> None:
        """Terraform has deployed `app` with the variables `names`, too, and prints so."""
        given = sorted({*json.loads(self.printed.read_text())["apps"][app]["environment"], *names})
        changed = {**self.measured[app], "allowed_envs": given}
        tree = outputs(**{**self.measured, app: changed})
        tree["apps"][app]["environment"] = given
        self.printed.write_text(json.dumps(tree))

    def edit(self, **changes: Any) -> None:
        """Somebody edits the draft."""
        self.draft.write_text(json.dumps(json.loads(self.draft.read_text()) | changes, indent=2, sort_keys=True) + "\n")

    def sign(self, *more: str) -> Result:
        """`sign`."""
        return self.run("sign", str(self.cluster), *(more or ("--key", str(self.key))))


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    """An owner."""
    return Owner(tmp_path)


def refused(result: Result, *words: str) -> None:
    """Asserts that the command ended with a message that has all `words`."""
    assert isinstance(result.exception, UserError), result.output
    assert all(word in str(result.exception) for word in words), str(result.exception)


def test_generate_sign_show(owner: Owner) -> None:
    """The draft is readable JSON; the signed file is one line that the compose files' key verifies; epochs grow."""
    generated = owner.generate()
    assert generated.exit_code == 0, generated.exception
    assert "look at: " in generated.output
    draft = (owner.cluster / "manifest.json").read_text()
    assert manifest.decode(draft.encode()).epoch == 1
    assert owner.sign().exit_code == 0
    signed = (owner.cluster / "manifest.signed").read_text()
    assert signed.count("\n") == 1
    shown = owner.run("manifest", "show", str(owner.cluster))
    assert "manifest of starter, epoch 1" in shown.output
    assert "route worker:9090 → worker/worker" in shown.output
    assert "    worker may be called by api, worker\n" in shown.output
    owner.edit(leaf_hours=9)
    assert owner.generate().exit_code == 0
    assert owner.sign().exit_code == 0
    assert "epoch 2" in owner.run("manifest", "show", str(owner.cluster)).output


def test_variables_are_shown_to_whoever_signs_them(owner: Owner) -> None:
    """With their values: the manifest is public, and a password among them would be as well."""
    file = owner.cluster / "cluster.tf"
    file.write_text(file.read_text().replace("compose_env = {}", 'compose_env = { MODE = "fast" }', 1))
    assert "    variable MODE is 'fast', for everybody to read\n" in owner.generate().output
    assert owner.sign().exit_code == 0
    assert "variable MODE is 'fast'" in owner.run("manifest", "show", str(owner.cluster)).output


def test_what_cannot_be_read_is_named(owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing outputs, no Terraform, no draft, nothing signed yet."""
    missing = str(tmp_path / "none.json")
    refused(owner.run("generate", str(owner.cluster), "--outputs", missing, "--take-reported-images"), missing)
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(owner.run("generate", str(owner.cluster), "--take-reported-images"), "terraform is not on PATH")
    refused(owner.sign(), "manifest.json", "./mesh generate")
    refused(owner.run("manifest", "show", str(owner.cluster)), "has no manifest.signed yet")


def test_only_the_key_of_the_compose_files_signs(owner: Owner, tmp_path: Path) -> None:
    """A manifest that no CVM would believe is not signed."""
    owner.generate()
    other = tmp_path / "other.pem"
    manifest_keys.create(other)
    refused(owner.sign("--key", str(other)), "a signature of none of the owners in the compose files")


def test_an_older_or_foreign_draft_is_not_signed(owner: Owner) -> None:
    """Coordinators never take a smaller epoch, so it is refused here, where someone can act."""
    owner.generate()
    first = (owner.cluster / "manifest.json").read_text()
    owner.sign()
    owner.edit(leaf_hours=9)
    owner.generate()
    owner.sign()
    (owner.cluster / "manifest.json").write_text(first)
    refused(owner.sign(), "epoch 1 (", "is older than epoch 2 (")
    (owner.cluster / "manifest.json").write_text(first.replace('"cluster": "starter"', '"cluster": "other"'))
    refused(owner.sign(), "is of cluster 'other'")
    (owner.cluster / "manifest.json").write_text("{}")
    refused(owner.sign(), "is no manifest")


def test_a_signed_file_that_was_changed_is_refused(owner: Owner) -> None:
    """Whoever can write the folder cannot make a manifest."""
    owner.generate()
    owner.sign()
    path = owner.cluster / "manifest.signed"
    path.write_text("A" + path.read_text()[1:])
    refused(owner.run("manifest", "show", str(owner.cluster)), "signed by 0 of the owner keys")


def test_the_script_of_an_app_is_shown(owner: Owner) -> None:
    """What the platform runs before the mesh can be read."""
    shown = owner.run("manifest", "script", str(owner.cluster), "api", "--outputs", str(owner.printed))
    assert "pulling images" in shown.output
