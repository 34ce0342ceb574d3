"""The command `flaghoist-sidecar`: options in, exit code out."""

import argparse
import os
import socket
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from flaghoist import __version__
from flaghoist.environment import FILE_NAME, Environments, config_home, state_home
from flaghoist.errors import FlaghoistError, Misconfigured
from sidecar.config import OPTIONS, Config, read

EXIT_MISCONFIGURED: Final = 2
CONFIG_FILE: Final = "sidecar.toml"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a sidecar until it is told to stop. Exit codes: 0 drained, 2 misconfigured, 128 + n second signal n."""
    try:
        config = read_config(sys.argv[1:] if arguments is None else arguments, os.environ)
        sys.exit(_run(config))
    except FlaghoistError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        print(f"flaghoist-sidecar: error[{error.code}]: {error}{hint}", file=sys.stderr)  # noqa: T201 — the talk
        sys.exit(EXIT_MISCONFIGURED)


def read_config(arguments: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Return the configuration that the command line, the environment and the file make; reads files.

    Raises:
        Misconfigured: one message with every problem.
    """
    flags = vars(_parser().parse_args(arguments))
    given_file = flags.pop("config", None) or environ.get("FLAGHOIST_SIDECAR_CONFIG")
    file = Path(given_file) if given_file else config_home(environ) / CONFIG_FILE
    variables = {o.name: environ[o.variable] for o in OPTIONS if o.variable in environ}
    sources = [
        ("command line", {name: value for name, value in flags.items() if value is not None}),
        ("environment", variables),
        (str(file), _read_file(file, required=given_file is not None)),
    ]
    pins = config_home(environ) / FILE_NAME
    text = pins.read_text(encoding="utf-8") if pins.exists() else ""
    return read(sources, Environments.parse(text, where=str(pins)), state_home(environ), host=socket.gethostname())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flaghoist-sidecar",
        description="Follow a ledger of signed flag changes, verify every one, and answer flag evaluations.",
        epilog="Each option is also a variable (--drain-s: FLAGHOIST_DRAIN_S) and a key of the file (drain_s). "
        "An address is IP:PORT (port 0: any free one), plaintext:IP:PORT (no TLS there), or unix:/path.",
    )
    parser.add_argument("--version", action="version", version=f"flaghoist-sidecar {__version__}")
    parser.add_argument("--config", metavar="FILE", help=f"TOML file (default: {CONFIG_FILE} in the config directory)")
    for option in OPTIONS:
        default = f" [{option.default}]" if option.default else ""
        bare = {"nargs": "?", "const": "true"} if option.switch else {}
        parser.add_argument(option.flag, dest=option.name, metavar="VALUE", help=option.help + default, **bare)  # type: ignore[arg-type]
    return parser


def _read_file(path: Path, *, required: bool) -> Mapping[str, str]:
    if not required and not path.exists():
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Misconfigured(f"config {path}: {error}", hint="want TOML: option = value, one a line") from error
    return {name: _text(value) for name, value in document.items()}


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(_text(part) for part in value)
    return str(value)


def _run(config: Config) -> int:
    import asyncio

    # grpcio writes a line for each failed handshake, which anybody can cause without end. It reads this when imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from sidecar.report import configure
    from sidecar.service import run

    configure(config.log_level)
    try:
        import uvloop
    except ImportError:  # no wheel for this platform: the standard loop answers too, if slower
        runner = asyncio.run
    else:
        runner = uvloop.run
    try:
        runner(run(config))
    except BaseExceptionGroup as group:
        expected = group.subgroup(FlaghoistError)
        if expected is None:
            raise
        raise _first(expected) from None
    return 0


def _first(group: BaseExceptionGroup[FlaghoistError]) -> FlaghoistError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
