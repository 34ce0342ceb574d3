"""Write the Python code of every .proto file under this folder, beside it.

Run by `make proto`. The generated files are checked in, so that neither an installation nor a reader needs protoc;
tests/unit/test_generated_code.py holds them equal to what this script makes.
"""

import argparse
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTO_ROOT = Path(__file__).resolve().parent


def proto_files() -> list[Path]:
    """Return every .proto file under proto/, relative to it, in a fixed order."""
    return sorted(path.relative_to(PROTO_ROOT) for path in PROTO_ROOT.rglob("*.proto"))


def generate(out: Path) -> None:
    """Write messages, their type stubs and service stubs under `out`, in the folders of the .proto files.

    Raises:
        SystemExit: protoc refused a file; its message is on stderr.
    """
    well_known = files("grpc_tools") / "_proto"
    arguments = [
        "protoc",
        f"--proto_path={PROTO_ROOT}",
        f"--proto_path={well_known}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
        *(path.as_posix() for path in proto_files()),
    ]
    status = protoc.main(arguments)
    if status != 0:
        raise SystemExit(status)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PROTO_ROOT, help="folder to write to (default: proto/)")
    generate(parser.parse_args().out)
    sys.exit(0)
