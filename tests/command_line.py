"""The command line in the process of a test."""

from pathlib import Path

import click.testing

from ar_fast.cli.__main__ import main


def invoke(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])


def run(*arguments: object) -> str:
    """What a command prints that succeeds."""
    result = invoke(*arguments)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


def refused(*arguments: object) -> str:
    """The one line of the error."""
    result = invoke(*arguments)
    assert isinstance(result.exception, SystemExit) and result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("main: "), result.stderr
    return result.stderr.strip()


def files(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}
