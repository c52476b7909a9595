"""The command line: python -m ar_fast COMMAND."""

import click

from . import compare, demo


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Fast autoregressive density models."""


main.add_command(demo.main, "demo")
main.add_command(compare.main, "compare")
