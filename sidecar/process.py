"""From the environment to an exit code: configuration, logging, the event loop, the supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Mapping

from runtime import init, log, output, watchdog
from runtime.env import ConfigError
from sidecar import memory, modules
from sidecar.config import Config, parse

OPERATOR = 2
"""Exit code when the operator has to change something; a restart alone would not help."""
ANEW = 75
"""Exit code of a process that is to be started anew, as another peer: EX_TEMPFAIL of sysexits.h. Each restart policy of
Docker that starts a container again does so after it (`unless-stopped`, `always`, `on-failure`)."""


def run(environ: Mapping[str, str]) -> int:
    """Runs the sidecar until it is told to stop; the exit code."""
    memory.begin()
    try:
        config = parse(environ)
    except ConfigError as error:
        print(f"the sidecar's configuration has {len(error.problems)} problem(s):", file=sys.stderr)
        print(error, file=sys.stderr)
        return OPERATOR
    output.begin()
    log.configure(config.log_level)
    modules.lean_netlink()
    # gRPC's fork handlers cost time at each start of a child and complain; our children exec at once and need none.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    return asyncio.run(_supervise(config))


async def _supervise(config: Config) -> int:
    from sidecar.supervisor import StartError, Supervisor

    duties = init.install()
    code = 0
    try:
        with watchdog.watching():
            if await Supervisor(config, duties).serve():
                code = ANEW
    except* StartError as errors:
        for error in _leaves(errors):
            print(error, file=sys.stderr)
        code = OPERATOR
    except* Exception as errors:
        # The last boundary: logged whole, and the process ends.
        logging.getLogger(__name__).error("the sidecar failed", exc_info=errors)
        code = code or 1
    finally:
        duties.close()
    return code


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
