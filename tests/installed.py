"""Processes that tests start in the environment of this one."""

import os
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# requirements-libraries.txt has tools too.
PATH = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"


def attempt(*command: str | Path, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, "PATH": PATH, **environment}
    )
