"""Builds the readers of the ledger's topic, each once, again when a source or a pin changed.

`python -m tests.readers.build [LANGUAGE ...]` builds and prints the command that runs each.
"""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.clients.build import Language, Run, build_all

HERE: Final = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Reader(Language):
    """How the reader in one language is built; its name, `reader-go`, tells its build from that of a client."""

    @property
    def source(self) -> Path:
        return HERE / self.name.removeprefix("reader-")


def _build_go(home: Path, run: Run) -> None:
    run("go", "build", "-buildvcs=false", "-o", home / "reader", ".", cwd=HERE / "go")


def _build_java(home: Path, run: Run) -> None:
    libs, classes = home / "libs", home / "classes"
    for old in (libs, classes):
        shutil.rmtree(old, ignore_errors=True)
    run(
        *("mvn", "-q", "-B", "-f", HERE / "java" / "pom.xml", "dependency:copy-dependencies"),
        *("-DincludeScope=runtime", f"-DoutputDirectory={libs}"),
        cwd=home,
    )
    # The jars carry annotations whose classes they leave out, with a line of javac for each; nothing is serialized.
    run(
        *("javac", "-Xlint:all,-classfile,-serial", "-Werror", "-cp", f"{libs}/*", "-d", classes),
        *sorted((HERE / "java").glob("*.java")),
        cwd=home,
    )


def _run_java(home: Path) -> tuple[str, ...]:
    options = ("-Xmx256m", "-XX:+UseSerialGC")
    return ("java", *options, "-cp", f"{home / 'libs'}/*:{home / 'classes'}", "Reader")


READERS: Final[Mapping[str, Reader]] = {
    "go": Reader("reader-go", ("go",), (Path(__file__),), _build_go, lambda home: (str(home / "reader"),)),
    "java": Reader("reader-java", ("java", "javac", "mvn"), (Path(__file__),), _build_java, _run_java),
}


if __name__ == "__main__":
    sys.exit(build_all(sys.argv[1:], READERS))
