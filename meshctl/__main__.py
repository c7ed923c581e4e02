"""`python -m meshctl`: runs the command line and turns its errors into messages and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from meshctl.cli import cli
from meshctl.ending import Ended
from meshctl.errors import UserError, render

INTERRUPTED = 130
"""128 + SIGINT, as a shell reports it."""


def run(arguments: Sequence[str]) -> int:
    """The exit code of the command line with `arguments`. A command may return its exit code as an int."""
    try:
        if not arguments:
            arguments = ["--help"]
        result = cli.main(args=list(arguments), prog_name="./mesh", standalone_mode=False)
    except UserError as error:
        click.echo(render(error), err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Ended as error:
        return 128 + error.number
    except BrokenPipeError:
        # The reader went away (`./mesh logs | head`). Python would fail once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point: runs the process's arguments and exits."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
