"""The machine under the figures, and how busy others kept it: half of what a figure means."""

import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = ("grpcio", "pygrpc-native", "uvloop", "aiokafka", "pynacl", "protobuf", "openfeature-flagd-core")


def describe() -> dict[str, Any]:
    """Return what the figures were measured on: processor, cores, memory, system, versions, commit, date, load."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def sentence(facts: dict[str, Any], *, load_after: float) -> str:
    """Return the facts as one paragraph of docs/performance.md."""
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    return (
        f"{facts['date']}, commit {facts['commit']}: {facts['cores']} cores ({facts['processor']}, "
        f"{facts['memory_gib']} GiB), {facts['system']}, Python {facts['python']}, {packages}. "
        f"Load average {facts['load_average']} before, {load_after:.2f} after."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    done = subprocess.run(
        [git, "describe", "--always", "--dirty", "--abbrev=10"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
