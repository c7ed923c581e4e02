"""`./mesh plan`: what it reads, what it prints, and how it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshctl.cli import cli
from meshctl.errors import UserError
from tests.support import ROOT


def plan(*arguments: str) -> Result:
    """The command."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli, ["plan", *arguments])


def git(folder: Path, *arguments: str) -> None:
    """A git command that nobody's settings touch."""
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A copy of the starter in a git checkout of its own."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed: apt install git")
    folder = Path(shutil.copytree(ROOT / "clusters" / "starter", tmp_path / "repo" / "clusters" / "mine"))
    git(tmp_path / "repo", "init", "-q")
    git(tmp_path / "repo", "add", ".")
    git(tmp_path / "repo", "commit", "-qm", "first")
    return folder


def scale(cluster: Path, count: int) -> None:
    """Other replicas of the worker."""
    (cluster / "terraform.tfvars").write_text(f"worker_replicas = {count}\n")


def test_a_change_is_shown_against_the_last_commit(cluster: Path) -> None:
    """HEAD is what one compares with, unless told otherwise."""
    assert "mine" not in plan(str(cluster)).stdout
    assert "starter against HEAD: nothing changes" in plan(str(cluster)).output
    file = cluster / "cluster.tf"
    file.write_text(file.read_text().replace("var.worker_replicas", "3"))
    shown = plan(str(cluster)).output
    assert "worker-2" in shown
    assert "create: a CVM is made" in shown
    assert "(1: worker-2)" in shown
    assert "./mesh generate" in shown


def test_who_may_call_what_fits_into_80_columns(cluster: Path) -> None:
    """Also where nothing changes, and whatever the terminal's width is."""
    shown = plan(str(cluster)).stdout
    table = shown[shown.index("Who may call what") :].splitlines()
    assert max(map(len, table)) <= 80
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in table if line.startswith("│")]
    assert cells == [["api", "api, worker", "api, worker"], ["worker", "api, worker", "api, worker"]]


def test_a_revision_without_tfvars_takes_those_of_today(cluster: Path) -> None:
    """terraform.tfvars is in no repository: its values are today's on both sides, those that the revision knows."""
    scale(cluster, 4)
    with (cluster / "variables.tf").open("a") as file:
        file.write('variable "later" {\n  type    = string\n  default = "x"\n}\n')
    with (cluster / "terraform.tfvars").open("a") as file:
        file.write('later = "y"\n')
    assert "nothing changes" in plan(str(cluster), "--against", "HEAD").output


def test_images_by_tag_are_warned_of_as_terraform_refuses_them(cluster: Path) -> None:
    """After the plan, by file, line and entry; not where the cluster's policy takes tags, nor once they are pinned."""
    warned = plan(str(cluster))
    assert "nothing changes" in warned.output
    assert warned.exception is None
    assert f"{cluster}/compose/api.yaml:4: services.sidecar.image" in warned.stderr
    (cluster / "terraform.tfvars").write_text("attestation = { require_digests = false }\n")
    assert plan(str(cluster)).stderr == ""
    (cluster / "terraform.tfvars").unlink()
    for path in (cluster / "compose").iterdir():
        path.write_text(path.read_text().replace(":0.1.0", f":0.1.0@sha256:{'0a' * 32}"))
    assert plan(str(cluster)).stderr == ""


def test_a_folder_and_a_revision_are_compared_with(cluster: Path, tmp_path: Path) -> None:
    """A copy made before the change, and any revision."""
    copy = Path(shutil.copytree(cluster, tmp_path / "copy"))
    scale(cluster, 1)
    shown = plan(str(cluster), "--against", str(copy)).output
    assert "worker-1" in shown
    assert "delete: the CVM and its disk are deleted (1: worker-1)" in shown
    git(cluster, "commit", "-qm", "second", "--allow-empty")
    assert "against HEAD~1" in plan(str(cluster), "--against", "HEAD~1").output


def test_outside_of_git_everything_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is no git at all."""
    folder = Path(shutil.copytree(ROOT / "clusters" / "starter", tmp_path / "mine"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert "(5: api-0, api-1, coordinator-0, worker-0, worker-1)" in plan(str(folder)).output
    monkeypatch.setenv("PATH", str(tmp_path))
    shown = plan(str(folder)).output
    assert "against nothing" in shown
    assert "after" in shown
    assert "before" not in shown.split("create: ")[0]


def test_json_goes_to_a_file_or_to_standard_output(cluster: Path, tmp_path: Path) -> None:
    """The same document in both places."""
    copy = Path(shutil.copytree(cluster, tmp_path / "copy"))
    scale(cluster, 3)
    file = tmp_path / "plan.json"
    shown = plan(str(cluster), "--against", str(copy), "--json", str(file)).output
    assert "worker-2" in shown
    printed = plan(str(cluster), "--against", str(copy), "--json", "-").stdout
    assert json.loads(printed) == json.loads(file.read_text())
    assert json.loads(printed)["cvms"]["create"] == ["worker-2"]


@pytest.mark.parametrize(
    ("against", "words"),
    [
        ("nosuch", "no folder, no file, and no git revision"),
        ("no.json", "there is no such file"),
        ("--output=x", "no folder"),
    ],
)
def test_nothing_to_compare_with_is_refused(cluster: Path, against: str, words: str) -> None:
    """A revision is never taken for an option of git's."""
    found = plan(str(cluster), f"--against={against}")
    assert isinstance(found.exception, UserError)
    assert words in found.exception.message


def test_a_file_that_is_no_state_is_refused(cluster: Path) -> None:
    """The message names the file."""
    found = plan(str(cluster), "--against", str(cluster / "main.tf"))
    assert isinstance(found.exception, UserError)
    assert "main.tf: the state cannot be used" in found.exception.message


def test_a_broken_cluster_is_refused_with_every_problem(cluster: Path) -> None:
    """File, line and entry, as everywhere; also where the other side is the broken one."""
    good = (cluster / "cluster.tf").read_text()
    broken = good.replace("9090", "8090").replace("compose_env = {}", "kompose_env = {}", 1)
    (cluster / "cluster.tf").write_text(broken)
    found = plan(str(cluster))
    assert isinstance(found.exception, UserError)
    assert "mine has 2 problem(s)" in found.exception.message
    assert "workload_groups.worker.backends.worker.port" in found.exception.message
    git(cluster, "commit", "-qam", "broken")
    (cluster / "cluster.tf").write_text(good)
    found = plan(str(cluster))
    assert isinstance(found.exception, UserError)
    assert "mine at HEAD has 2 problem(s)" in found.exception.message
    assert "HEAD:./cluster.tf:" in found.exception.message
