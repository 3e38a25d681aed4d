"""Commands and Python in processes of their own, away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

OFFLINE = {"HF_HUB_OFFLINE": "1"}


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=Path(sys.executable).parent,
    )


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", code, **environment)


def hsae(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(Path(sys.executable).with_name("hsae"), *arguments, **environment)
