"""The command table, exit codes and error messages."""

from __future__ import annotations

import importlib
import types

import click
import pytest

from meshctl import __main__, cli
from meshctl.errors import UserError


def _command(monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None, result: int | None = None) -> None:
    """Puts a command `try` into the table that raises `error` or returns `result`."""

    @click.command()
    def attempt() -> int | None:
        if error:
            raise error
        return result

    module = types.SimpleNamespace(attempt=attempt)
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: module if name == "fake" else real(name))
    monkeypatch.setitem(cli.COMMANDS, "try", cli.Entry(module="fake", attribute="attempt", help="Tries."))


def test_no_arguments_show_help(capsys: pytest.CaptureFixture[str]) -> None:
    """`./mesh` alone prints help with every command and succeeds."""
    assert __main__.run([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)


def test_unknown_command_names_the_likely_one(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt command is an error with a guess, exit code 2."""
    assert __main__.run(["stauts"]) == 2
    assert "no such command 'stauts'; did you mean 'status'?" in capsys.readouterr().err
    assert __main__.run(["qqqqqq"]) == 2
    assert "see ./mesh --help" in capsys.readouterr().err


def test_user_error_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A UserError prints message and remedy on stderr, without a trace, and ends with 2."""
    _command(monkeypatch, error=UserError("port 80 is taken", "free it"))
    assert __main__.run(["try"]) == 2
    assert capsys.readouterr() == ("", "mesh: port 80 is taken\n  try: free it\n")


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (click.UsageError("bad"), 2)])
def test_errors_have_their_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    """An interrupt ends with 130, as in a shell; a wrong option with 2."""
    _command(monkeypatch, error=error)
    assert __main__.run(["try"]) == code


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (7, 7)])
def test_commands_return_their_exit_code(monkeypatch: pytest.MonkeyPatch, result: int | None, code: int) -> None:
    """What a command returns is the exit code, so that `exec` and `test` pass theirs through."""
    _command(monkeypatch, result=result)
    assert __main__.run(["try"]) == code


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other exception keeps its trace: it is a bug and not the operator's mistake."""
    _command(monkeypatch, error=RuntimeError("bug"))
    with pytest.raises(RuntimeError, match="bug"):
        __main__.run(["try"])


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_entry_leads_to_a_command(name: str) -> None:
    """Every entry of the table names an existing click command with help of its own."""
    entry = cli.COMMANDS[name]
    command = getattr(importlib.import_module(entry.module), entry.attribute)
    assert isinstance(command, click.Command)
    assert command.help
