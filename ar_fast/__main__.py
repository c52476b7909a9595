"""python -m ar_fast COMMAND."""

from .cli.__main__ import main

if __name__ == "__main__":
    main(prog_name="python -m ar_fast")
