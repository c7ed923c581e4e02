"""Scripts that run in a network namespace of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support import ROOT

_ENTER = """
import sys
from pyroute2 import netns
netns.setns(sys.argv[1])
"""


def run(namespace: str, script: str) -> object:
    """Runs `script` in the namespace, in a process that may change namespaces and rights; gives the JSON it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _ENTER + script, namespace],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
