"""Commands in forks of this process, which has imported everything and has run nothing: a start takes a tenth of a
second, and a fork can be killed at any moment."""

import os

from ar_fast.cli.__main__ import main


def start(*arguments: str) -> int:
    child = os.fork()
    if child == 0:
        # What it prints is not looked at.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            main(list(arguments), prog_name="ar-fast")
        except SystemExit as status:
            os._exit(status.code or 0)
        except BaseException:
            os._exit(98)
    return child


def finish(*arguments: str) -> None:
    assert os.waitpid(start(*arguments), 0)[1] == 0, arguments
