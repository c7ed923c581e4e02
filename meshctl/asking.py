"""One question to a coordinator, asked only once its evidence holds by a manifest; from here, or out of a lab.

A lab's network is its own: there the question is asked from inside a coordinator's container (`python -m
meshctl.asking`, a JSON object in and one out), whose environment says which simulated TEE is to be believed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from meshctl.errors import UserError

if TYPE_CHECKING:
    from meshctl.runs import Run

SECONDS = 90.0
"""For a question out of a lab: evidence, a write through Raft, and a busy machine fit in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, of whom, and by which manifest that one is judged."""

    url: str
    """The coordinator's."""
    references: str
    """Envelope of the manifest whose coordinators' app, compose hashes, OS images and TCB must be shown."""
    method: str
    path: str
    body: dict[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a coordinator whose evidence holds has answered."""

    tree: dict[str, Any]
    code: str = ""
    """Its error code; empty when it did what was asked."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Who vouches for quotes."""

    pccs_url: str
    dev_root: bytes | None = field(default=None, repr=False)
    """DER of a simulated TEE's root. Insecure."""


def ask(question: Question, trust: Trust) -> Answer:
    """Asks from this machine. UserError when the coordinator cannot be reached or is not what it must be."""
    from admission.client import CoordinatorError

    try:
        return asyncio.run(_ask(question, trust))
    except CoordinatorError as error:
        raise UserError(
            str(error), "is it the right URL, and does the manifest name what runs there?", exit_code=1
        ) from error


def ask_in_lab(run: Run, coordinator: str, question: Question) -> Answer:
    """Asks from inside the container of `coordinator` in the lab `run`. UserError."""
    from meshctl.lab_commands import exec_argv
    from meshctl.runs import CHECKOUT

    argv = exec_argv(run, coordinator, None, (sys.executable, "-m", "meshctl.asking"))
    try:
        done = subprocess.run(
            argv,
            input=json.dumps(asdict(question)),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )
        tree = json.loads(done.stdout)
        if "error" in tree:
            raise UserError(tree["error"], tree["remedy"], exit_code=1)
        return Answer(**tree)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{coordinator} did not answer within {SECONDS:g} s", "./mesh status", exit_code=1) from error
    except (ValueError, TypeError, KeyError) as error:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise UserError(f"{coordinator} could not be asked: {said}", "./mesh status", exit_code=1) from error


async def _ask(question: Question, trust: Trust) -> Answer:
    from admission.client import Attested, RefusedError
    from admission.trust import by, coordinator_check, nothing
    from topology.envelope import open_envelope

    judge = by(open_envelope(question.references, None))
    coordinator = Attested(question.url, coordinator_check(judge, nothing, trust.pccs_url, trust.dev_root, time.time))
    try:
        return Answer(tree=dict(await coordinator.call(question.method, question.path, question.body)))
    except RefusedError as error:
        return Answer(tree=dict(error.answer), code=error.code.name, reason=error.reason)
    finally:
        await coordinator.close()


def main(text: str, environ: Mapping[str, str]) -> str:
    """The answer to the question `text`, both JSON; whom to believe is said by the container's environment."""
    from coordinator.config import DEFAULT_PCCS

    root = environ.get("MESH_INSECURE_DEV_ROOT", "")
    trust = Trust(
        pccs_url=environ.get("MESH_PCCS_URL", DEFAULT_PCCS), dev_root=base64.b64decode(root) if root else None
    )
    try:
        return json.dumps(asdict(ask(Question(**json.loads(text)), trust)))
    except UserError as error:
        return json.dumps({"error": error.message, "remedy": error.remedy})


if __name__ == "__main__":
    print(main(sys.stdin.read(), os.environ))
