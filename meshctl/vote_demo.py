"""`./mesh demo emojivoto`: a public page of a mesh, verified from outside by clients that know nothing of the mesh.

Its cluster is a copy of clusters/emojivoto. The clients are this machine's curl and openssl, and the vote bot; what is
shown is what was run, and what it said.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from meshctl import generate, runs
from meshctl.console import Progress
from meshctl.errors import UserError
from meshctl.owner import Owner, command, copy_of, title
from meshctl.trust_report import WIDTH

if TYPE_CHECKING:
    from lab.nat import Nat

NAME = CLUSTER = "emojivoto"
GROUP = "web"
"""Also the name in its certificate that cluster.tf asks for."""
HERE = "127.0.0.1"
"""Where the lab's gateway is, and the address that the certificate gets."""
EMOJI = "http://127.137.0.1:8081"
"""As web reaches it (compose/web.yaml)."""
OLDER = "mesh-ca.older.pem"
"""The mesh CA of the manifest before, as a client has it that has pinned it."""
VOTES = 5
SECONDS = 30.0
"""For one program."""
LINES = 6
"""Of a program's output that are shown; the page has some hundred."""
REFUSED = 60
"""curl's exit code for a certificate that does not verify (curl(1), EXIT CODES)."""
_OPENSSL = ("verify error", "verification", "verify return code", "subject=", "issuer=", "depth=", "protocol")
"""Beginnings of the lines of `openssl s_client` that are about the certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a program did."""

    code: int
    out: str
    error: str


@dataclass(slots=True, kw_only=True)
class Walk(Owner):
    """The walk, step by step. UserError ends it."""

    port: int
    """Of the lab's gateway, which leads to the public listener."""

    @property
    def by_name(self) -> tuple[str, ...]:
        """curl's arguments for the name that the certificate has from the start."""
        return ("--resolve", f"{GROUP}:{self.port}:{HERE}", f"https://{GROUP}:{self.port}")

    def show(self) -> None:
        """The manifest, and where its files are."""
        title("The manifest: who may call whom, and what is public")
        command(f"generate {self.folder}")
        self.generate()
        self.envelopes.append(self.lab().head().envelope)

    def look(self) -> None:
        """Verified once, then asked by ordinary clients."""
        title("Verified from outside: what is enforced, and by which CA")
        self._verify()
        title("By the name in its certificate, and no CA but the mesh's")
        click.secho(f"$ cd {self.folder}", fg="cyan")
        page = self._curl("verify/mesh-ca.pem", *self.by_name)
        self.fact("curl, by name", "the page" if is_page(page) else "refused", is_page(page), "the page")
        self._openssl()
        title("By address, for which it has no certificate yet")
        said = self._curl("verify/mesh-ca.pem", f"https://{HERE}:{self.port}")
        refused = said.code == REFUSED
        self.fact("curl, by an address that is not in it", "refused" if refused else "answered", refused, "refused")

    def add_address(self) -> None:
        """The owner adds an address to the certificate; clients of before are told apart from those of after."""
        title("The owner adds the address to its certificate")
        click.secho(f"$ cp verify/mesh-ca.pem {OLDER}", fg="cyan")
        shutil.copy(self.folder / "verify" / "mesh-ca.pem", self.folder / OLDER)
        tree = json.loads(self.draft.read_text(encoding="utf-8"))
        sans = tree["groups"][GROUP]["backends"][GROUP]["public"]["sans"]
        sans.append(HERE)
        self.draft.write_text(generate.pretty(tree), encoding="utf-8")
        click.echo(f"edited {self.draft.name}: groups.{GROUP}.backends.{GROUP}.public.sans = {json.dumps(sans)}")
        command(f"generate {self.folder}")
        made = self.generate()
        peers = [peer.peer_id for group in made.groups.values() for peer in group.peers]
        spread = self.set(made, peers)
        self.time("new mesh CA in every CVM", spread.seconds, 2.0)
        title("Verified again: another manifest has another mesh CA")
        self._verify()
        title("The same request, by address")
        curl = self._curl_line("verify/mesh-ca.pem", f"https://{HERE}:{self.port}")
        self.until(lambda: is_page(_run(curl, self.folder)), "the new certificate is served")
        page = self._curl("verify/mesh-ca.pem", f"https://{HERE}:{self.port}")
        self.fact("curl, by the address", "the page" if is_page(page) else "refused", is_page(page), "the page")
        title("A client that has pinned the manifest before")
        said = self._curl(OLDER, *self.by_name)
        refused = said.code == REFUSED
        self.fact("curl, by the CA of the manifest before", "refused" if refused else "answered", refused, "refused")

    def vote(self) -> None:
        """The bot votes as a browser does, and the votes are there."""
        title("Votes, from outside")
        bot = [sys.executable, "-m", "workloads.votebot", f"https://{HERE}:{self.port}",
               "--cacert", "verify/mesh-ca.pem", "--votes", str(VOTES)]  # fmt: skip
        self._shown(bot, ("python", *bot[1:]))
        said = self._curl("verify/mesh-ca.pem", f"https://{HERE}:{self.port}/api/results")
        votes = votes_in(said.out)
        self.fact("votes that are counted", str(votes), votes == VOTES, str(VOTES))

    def inside(self) -> None:
        """web asks emoji and voting by mutual TLS; nobody else may."""
        title("Inside: web may ask emoji and voting, and nobody else may")
        listed = self._inside("web-0", f"{EMOJI}/find?shortcode=:taco:")
        self.fact("web-0 asks emoji", "answered" if listed else "refused", bool(listed), "answered")
        other = self._inside("emoji-0", "http://voting:8080/results")
        self.fact("emoji-0 asks voting", "answered" if other else "refused", not other, "refused")

    # -- what the steps are made of

    def _verify(self) -> None:
        out = self.folder / "verify"
        command(f"verify --out {out}")
        self.verify("--out", str(out))

    def _curl_line(self, ca: str, *arguments: str) -> list[str]:
        return ["curl", "-sS", "--cacert", ca, *arguments]

    def _curl(self, ca: str, *arguments: str) -> Said:
        return self._shown(self._curl_line(ca, *arguments))

    def _openssl(self) -> None:
        line = ["openssl", "s_client", "-CAfile", "verify/mesh-ca.pem", "-verify_return_error",
                "-verify_hostname", GROUP, "-connect", f"{HERE}:{self.port}"]  # fmt: skip
        said = self._shown(line, (*line, "< /dev/null"), of_interest=_OPENSSL)
        self.fact("openssl s_client", f"code {said.code}", said.code == 0, "code 0")

    def _shown(self, line: Sequence[str], told: Sequence[str] = (), of_interest: tuple[str, ...] = ()) -> Said:
        """Runs `line` in the folder, shows it as `told`, and of what it says the beginning, or what is of interest."""
        click.secho(wrapped(told or line), fg="cyan")
        said = _run(line, self.folder)
        for shown in excerpt(said.out + said.error, of_interest):
            click.echo(f"  {shown}")
        return said

    def _inside(self, peer: str, url: str) -> str:
        from meshctl.lab_commands import exec_argv

        fetch = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode().strip())"
        click.secho(f"$ in {peer}: GET {url}", fg="cyan")
        said = _run(exec_argv(self.run, peer, None, (sys.executable, "-S", "-c", fetch, url)), runs.CHECKOUT)
        for shown in excerpt(said.out or said.error.strip().rpartition("\n")[2], ()):
            click.echo(f"  {shown}")
        return said.out if said.code == 0 else ""


def is_page(said: Said) -> bool:
    """Whether a program got the page to vote on. Pure."""
    from workloads.pages import TITLE

    return said.code == 0 and f"<title>{TITLE}</title>" in said.out


def votes_in(text: str) -> int:
    """The votes in the answer of `/api/results`; 0 for any other text. Pure."""
    try:
        tree = json.loads(text)
    except ValueError:
        return 0
    return sum(it for it in tree.values() if isinstance(it, int)) if isinstance(tree, dict) else 0


def wrapped(words: Sequence[str]) -> str:
    """A command as one types it, in lines that a terminal of WIDTH columns does not break. Pure."""
    quoted = [word if word == "< /dev/null" else shlex.quote(word) for word in words]
    lines, line = [], f"$ {quoted[0]}"
    for word in quoted[1:]:
        if len(line) + len(word) + 3 > WIDTH:
            lines.append(f"{line} \\")
            line = f"    {word}"
        else:
            line = f"{line} {word}"
    return "\n".join([*lines, line])


def excerpt(text: str, of_interest: tuple[str, ...]) -> list[str]:
    """The lines of `text` that begin with one of `of_interest`, of all where there are none: LINES at most, each of
    WIDTH columns with its margin. Pure.
    """
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if of_interest:
        lines = list(dict.fromkeys(line.strip() for line in lines if line.strip().lower().startswith(of_interest)))
    shown = [line if len(line) <= WIDTH - 2 else f"{line[: WIDTH - 3]}…" for line in lines[:LINES]]
    return shown + ([f"… ({len(lines) - LINES} lines more)"] if len(lines) > LINES else [])


def _run(line: Sequence[str], folder: Path) -> Said:
    env = {**os.environ, "PYTHONPATH": str(runs.CHECKOUT)}
    try:
        done = subprocess.run(
            list(line), cwd=folder, env=env, capture_output=True, text=True, errors="replace", timeout=SECONDS,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise UserError(f"there is no {line[0]} on this machine", f"install {line[0]}, then run it again") from error
    except subprocess.TimeoutExpired:
        return Said(code=-1, out="", error=f"{line[0]}: no end within {SECONDS:.0f} s")
    return Said(code=done.returncode, out=done.stdout, error=done.stderr)


def needed() -> None:
    """UserError where a client of the walk is missing: before a mesh is up for it."""
    lacking = [name for name in ("curl", "openssl") if shutil.which(name) is None]
    if lacking:
        raise UserError(f"there is no {' and no '.join(lacking)} on this machine", f"install {', '.join(lacking)}")


def demo(nat: Nat, name: str | None, progress: Progress) -> None:
    """The whole walk on a mesh of its own, which runs on. UserError, with exit code 1 when a client was wrong."""
    from meshctl.lab_commands import start_mesh

    needed()
    folder = copy_of(CLUSTER, runs.run_of(name or NAME))
    run, _document, entries = start_mesh(str(folder), {}, nat, name or NAME)
    url = next(entry.url for entry in entries if entry.group == GROUP)
    port = urlsplit(url).port
    assert port is not None, url
    walk = Walk(run=run, folder=folder, progress=progress, port=port)
    for step in (walk.show, walk.look, walk.add_address, walk.vote, walk.inside):
        step()
    click.echo(
        f"\na browser sees the page, too: give it this CA, then open https://{HERE}:{port}\n"
        f"    {folder}/verify/mesh-ca.pem\n"
        f"for programs that take no CA:  ./mesh connect {GROUP} --bundle {folder}/verify"
    )
    walk.finish()
