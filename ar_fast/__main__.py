"""ar-fast COMMAND, and python -m ar_fast COMMAND."""

import sys


def main(prog_name: str = "ar-fast") -> None:
    """The console script."""
    try:
        from .cli.__main__ import main as commands
    except ModuleNotFoundError as error:
        sys.exit(f'{prog_name}: needs {error.name}: pip install "ar_fast[cli]"')
    commands(prog_name=prog_name)


if __name__ == "__main__":
    main("python -m ar_fast")
