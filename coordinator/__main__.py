"""`python -m coordinator`: reads the environment, runs the coordinator, ends with 0, or 2 when the configuration is
wrong. `python -m coordinator recover` is an operator's word to the coordinator that runs (`coordinator.word`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from coordinator import config as configuration
from coordinator.config import Config
from runtime import init, log, premises
from runtime.env import ConfigError


def main() -> int:
    """The process. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="coordinator", description="A coordinator of the mesh.")
    recover = parser.add_subparsers(dest="action").add_parser(
        "recover", help="say that voters outside the manifest are gone, so that the one that runs here goes on alone"
    )
    recover.add_argument("--accept-loss", action="store_true", help="give up what only those voters have")
    recover.add_argument("--yes", action="store_true", help="do not ask again")
    chosen = parser.parse_args()
    return _serve() if chosen.action is None else _recover(chosen.accept_loss, chosen.yes)


def _serve() -> int:
    try:
        config = configuration.parse(os.environ)
        log.configure(config.log_level)
        missing = premises.problems({"MESH_CONSUL": config.consul})
        if missing:
            raise ConfigError(missing)
        asyncio.run(_run(config))
    except ConfigError as error:
        print(f"the coordinator cannot start:\n{error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"cannot run: {error}; is the port of MESH_LISTEN taken, or MESH_STATE_DIR not writable?", file=sys.stderr
        )
        return 2
    return 0


def _recover(accept_loss: bool, yes: bool) -> int:
    from coordinator import word
    from runtime.confirm import confirm

    state_dir = Path(os.environ.get("MESH_STATE_DIR") or configuration.STATE_DIR)
    done, lines = word.recover(state_dir, accept_loss, (lambda _: True) if yes else confirm)
    print("\n".join(lines))
    return 0 if done else 1


async def _run(config: Config) -> None:
    # Late: what serves is not needed to say what is wrong with the configuration.
    from coordinator.app import Coordinator
    from coordinator.link import make_link

    duties = init.install()
    try:
        await Coordinator(config, make_link).run(duties.drain)
    finally:
        duties.close()


if __name__ == "__main__":
    sys.exit(main())
