"""`python -m coordinator`: reads the environment, runs the coordinator, ends with 0, or 2 when the configuration is
wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from coordinator import config as configuration
from coordinator.config import Config
from runtime import heap, init, log, output, premises, watchdog
from runtime.env import ConfigError


def main() -> int:
    """The process. Returns its exit code."""
    argparse.ArgumentParser(prog="coordinator", description="A coordinator of the mesh.").parse_args()
    try:
        config = configuration.parse(os.environ)
        heap.give_back()
        output.begin()
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


async def _run(config: Config) -> None:
    # Late: what serves is not needed to say what is wrong with the configuration.
    from coordinator.app import Coordinator
    from coordinator.link import make_link

    duties = init.install()
    try:
        with watchdog.watching():
            await Coordinator(config, make_link).run(duties.drain)
    finally:
        duties.close()


if __name__ == "__main__":
    sys.exit(main())
