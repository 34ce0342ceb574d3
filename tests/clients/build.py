"""Builds the client programs, each once into .cache/clients/<language>, again when a source or a pin changed.

`python -m tests.clients.build [LANGUAGE ...]` builds and prints the command that runs each.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kafka.broker import locked

HERE: Final = Path(__file__).resolve().parent
REPO: Final = HERE.parents[1]
CACHE: Final = REPO / ".cache" / "clients"
PROTO: Final = REPO / "proto"
EVALUATION: Final = "flagd/evaluation/v2/evaluation.proto"

# From cold on two cores Rust takes a minute, the others a quarter of that; a busy machine may take several times it.
BUILD_S: Final = 900.0
PROGRESS_S: Final = 10.0

Say = Callable[[str], None]


class BuildFailed(Exception):
    """A client could not be built; the text ends with what the tool said last."""


@dataclass(frozen=True)
class Language:
    """How one language's client is built and run.

    Attributes:
        tools: programs that must be found on PATH.
        sources: files besides those in the language's own directory that the build reads.
        build: takes the build directory and the runner of commands; leaves the program there.
        command: what runs the program that stands in a build directory.
    """

    name: str
    tools: tuple[str, ...]
    sources: tuple[Path, ...]
    build: Callable[[Path, "Run"], None]
    command: Callable[[Path], tuple[str, ...]]

    @property
    def source(self) -> Path:
        return HERE / self.name

    def missing(self) -> str | None:
        """Return which tools this machine lacks, or None."""
        missing = [tool for tool in self.tools if shutil.which(tool) is None]
        return f"the {self.name} client needs {' and '.join(missing)}" if missing else None


class Run:
    """Runs the commands of one build: their output goes to a log, their progress to `say`."""

    def __init__(self, language: str, log: Path, say: Say) -> None:
        self._language, self._log, self._say = language, log, say
        self._started = time.monotonic()

    def __call__(self, *command: str | Path, cwd: Path, **environ: str) -> None:
        """Run one command to its end.

        Raises:
            BuildFailed: it ended otherwise than with 0, or takes longer than BUILD_S.
        """
        with self._log.open("ab") as log:
            log.write(f"$ {' '.join(map(str, command))}\n".encode())
            log.flush()
            process = subprocess.Popen(
                list(map(str, command)),
                cwd=cwd,
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            raise BuildFailed(
                f"{self._language}: {command[0]} ended with {process.returncode}; {self._log}:\n{self.tail(20)}"
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def tail(self, lines: int) -> str:
        """Return the last lines of the log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def _wait(self, process: "subprocess.Popen[bytes]") -> None:
        while True:
            try:
                process.wait(PROGRESS_S)
            except subprocess.TimeoutExpired:
                if self.seconds > BUILD_S:
                    raise BuildFailed(f"{self._language}: not built within {BUILD_S:g} s; {self._log}") from None
                self._say(f"  {self._language}, {self.seconds:.0f} s: {self.tail(1).strip()[:100]}")
            else:
                return


def built(language: Language, say: Say) -> tuple[str, ...]:
    """Return the command that runs a language's client, built now if that has not been done.

    Args:
        say: takes lines that tell a waiting person what goes on; nothing is said when nothing is built.

    Raises:
        BuildFailed: a tool is missing, or failed.
    """
    if missing := language.missing():
        raise BuildFailed(missing)
    home = CACHE / language.name
    home.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / f"{language.name}.lock"):
        stamp, digest = home / "built", _digest(language)
        if not stamp.exists() or stamp.read_text() != digest:
            stamp.unlink(missing_ok=True)
            log = home / "build.log"
            log.unlink(missing_ok=True)
            say(f"building the {language.name} client …")
            run = Run(language.name, log, say)
            language.build(home, run)
            stamp.write_text(digest)
            say(f"built the {language.name} client in {run.seconds:.0f} s")
    return language.command(home)


def _digest(language: Language) -> str:
    digest = hashlib.sha256()
    files = [file for file in language.source.rglob("*") if file.is_file()]
    for file in sorted([*files, *language.sources, Path(__file__)]):
        digest.update(f"{file.relative_to(REPO)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _copy_source(language: str, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(HERE / language, target)


def _build_python(home: Path, run: Run) -> None:
    """Nothing: the provider is one of the project's own test dependencies."""


def _build_node(home: Path, run: Run) -> None:
    _copy_source("node", home / "app")
    run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=home / "app")


def _build_go(home: Path, run: Run) -> None:
    source, tools = home / "src", home / "tools"
    _copy_source("go", source)
    tools.mkdir(exist_ok=True)
    (source / "gen").mkdir()
    plugins = ("google.golang.org/protobuf/cmd/protoc-gen-go", "google.golang.org/grpc/cmd/protoc-gen-go-grpc")
    run("go", "build", "-buildvcs=false", "-o", f"{tools}/", *plugins, cwd=source)
    package = f"M{EVALUATION}=flaghoist-client/gen/{Path(EVALUATION).parent}"
    run(
        *(sys.executable, "-m", "grpc_tools.protoc", "-I", PROTO),
        *(f"--plugin={tool}={tools / tool}" for tool in ("protoc-gen-go", "protoc-gen-go-grpc")),
        *("--go_out=gen", f"--go_opt=paths=source_relative,{package}"),
        *("--go-grpc_out=gen", f"--go-grpc_opt=paths=source_relative,{package}"),
        EVALUATION,
        cwd=source,
    )
    run("go", "build", "-buildvcs=false", "-o", home / "client", ".", cwd=source)


def _build_java(home: Path, run: Run) -> None:
    libs = home / "libs"
    shutil.rmtree(libs, ignore_errors=True)
    pom = HERE / "java" / "pom.xml"
    run(
        *("mvn", "-q", "-B", "-f", pom, "dependency:copy-dependencies"),
        *("-DincludeScope=runtime", f"-DoutputDirectory={libs}"),
        cwd=home,
    )
    # -nowarn: the jars carry annotations whose classes they leave out, and javac has a line for each.
    run("javac", "-nowarn", "-cp", f"{libs}/*", "-d", home / "classes", HERE / "java" / "Client.java", cwd=home)


def _build_rust(home: Path, run: Run) -> None:
    # The provider's build calls protoc, which the project has as a Python package.
    protoc = home / "protoc"
    protoc.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m grpc_tools.protoc "$@"\n')
    protoc.chmod(0o755)
    run(
        *("cargo", "build", "--locked", "--manifest-path", HERE / "rust" / "Cargo.toml"),
        cwd=home,
        PROTOC=str(protoc),
        CARGO_TARGET_DIR=str(home / "target"),
    )


def _run_java(home: Path) -> tuple[str, ...]:
    options = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
    return ("java", *options, "-cp", f"{home / 'libs'}/*:{home / 'classes'}", "Client")


LANGUAGES: Final[Mapping[str, Language]] = {
    language.name: language
    for language in (
        Language("python", (), (), _build_python, lambda _: (sys.executable, str(HERE / "python" / "client.py"))),
        Language("node", ("node", "npm"), (), _build_node, lambda home: ("node", str(home / "app" / "client.mjs"))),
        Language("go", ("go",), (PROTO / EVALUATION,), _build_go, lambda home: (str(home / "client"),)),
        Language("java", ("java", "javac", "mvn"), (), _build_java, _run_java),
        Language(
            "rust", ("cargo",), (), _build_rust, lambda home: (str(home / "target" / "debug" / "flaghoist-client"),)
        ),
    )
}


def build_all(names: Sequence[str], programs: Mapping[str, Language]) -> int:
    """Build the named programs, or all, and print the command of each; the exit code."""
    if unknown := sorted(set(names) - set(programs)):
        print(f"none is called {', '.join(unknown)} (there are: {', '.join(programs)})", file=sys.stderr)
        return 2
    failed = 0
    for name in names or programs:
        try:
            command = built(programs[name], lambda line: print(line, file=sys.stderr, flush=True))
        except BuildFailed as error:
            print(error, file=sys.stderr)
            failed = 1
        else:
            print(f"{name}: {' '.join(command)}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(build_all(sys.argv[1:], LANGUAGES))
