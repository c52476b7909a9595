"""The command line: ar-fast COMMAND, or python -m ar_fast COMMAND."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import click
import torch
from safetensors import SafetensorError

from . import app, compare, compressing, demo

# What a wrong input raises. Anything else is a defect of the program and keeps its traceback.
_INPUT_ERRORS = (ValueError, OSError, ImportError, SafetensorError, MemoryError, torch.OutOfMemoryError)


class Commands(click.Group):
    """A group whose errors are one line on standard error, with exit status 2 (1 for a broken pipe)."""

    def main(  # type: ignore[override]  # click has an overload for each standalone_mode
        self, args: Any = None, prog_name: str | None = None, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        name = prog_name or "ar-fast"
        try:
            status = super().main(args, name, standalone_mode=False, **extra)
        except click.exceptions.Abort as error:
            _complain(name, f"interrupted; {error.__context__}" if str(error.__context__ or "") else "interrupted")
            sys.exit(130)
        except click.ClickException as error:
            _complain(name, error.format_message())
            sys.exit(error.exit_code)
        except (*_INPUT_ERRORS, RuntimeError) as error:
            if os.environ.get("AR_FAST_TRACEBACK") or not _is_input_error(error):
                raise
            if getattr(error, "errno", None) == errno.EPIPE:
                # Who reads has gone; nothing more can be written.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(1)
            needed = str(error)
            if isinstance(error, ModuleNotFoundError):
                needed = f'needs {error.name}: pip install "ar_fast[cli]"'
            _complain(name, needed or type(error).__name__)
            sys.exit(2)
        sys.exit(status if isinstance(status, int) else 0)


def _is_input_error(error: Exception) -> bool:
    # On the CPU torch has no class of its own for it.
    return isinstance(error, _INPUT_ERRORS) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _complain(name: str, message: str) -> None:
    click.echo(f"{name}: {' '.join(message.split())}", err=True)


@click.group(cls=Commands, context_settings={"show_default": True})
def main() -> None:
    """Fast autoregressive density models: training, exact likelihoods, samples.

    AR_FAST_TRACEBACK=1 shows where an error came from.
    """


for _command in app.COMMANDS:
    main.add_command(_command)
main.add_command(demo.main, "demo")
main.add_command(compare.main, "compare")
main.add_command(compressing.compress)
main.add_command(compressing.decompress)
