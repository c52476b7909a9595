"""python -m ar_fast.demo, the same as python -m ar_fast demo."""

from .cli.demo import main

if __name__ == "__main__":
    main(prog_name="python -m ar_fast.demo")
