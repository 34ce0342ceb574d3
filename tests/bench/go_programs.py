"""Programs in Go that make load: their cost must not be Python's."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.bench.processes import ROOT

BIN: Final = ROOT / ".cache" / "bin"


class NoProgram(Exception):
    """This machine lacks a program and cannot install it; the text says why."""


def installed(name: str, module: str) -> Path:
    """Return the program; it is built once, by Go, into .cache/bin.

    Args:
        module: package and version, as `go install` takes them.

    Raises:
        NoProgram: Go is missing, or could not build it.
    """
    program = BIN / name
    BIN.mkdir(parents=True, exist_ok=True)
    with (BIN / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program.exists():
            return program
        go = shutil.which("go")
        if go is None:
            raise NoProgram(f"go not found (want Go to install {name})")
        done = subprocess.run(
            [go, "install", module],
            env=os.environ | {"GOBIN": str(BIN)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NoProgram(f"go could not install {name}: {done.stderr.strip()[-400:]}")
    return program
