"""The generated protobuf code is what proto/generate.py makes, and says what flagd's own descriptors say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")

# Two copies of the same descriptors cannot load in one process: each is read in its own.
FACTS = """
import importlib, json, sys
from google.protobuf.descriptor_pb2 import FileDescriptorProto
found = FileDescriptorProto()
importlib.import_module(sys.argv[1]).DESCRIPTOR.CopyToProto(found)
def message(m):
    fields = sorted([f.number, f.name, f.type, f.label, f.type_name, f.proto3_optional, f.oneof_index] for f in m.field)
    return {"fields": fields, "nested": {n.name: message(n) for n in m.nested_type}, "map": m.options.map_entry}
print(json.dumps({
    "package": found.package,
    "messages": {m.name: message(m) for m in found.message_type},
    "services": {s.name: {m.name: [m.input_type, m.output_type, m.client_streaming, m.server_streaming]
                          for m in s.method} for s in found.service},
}, sort_keys=True))
"""


def generated_under(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.name.endswith(GENERATED)
    }


def facts(module: str) -> object:
    command = [sys.executable, "-c", FACTS, module]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROTO, timeout=60, check=True)
    return json.loads(done.stdout)


def test_generated_code_is_what_the_generator_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, PROTO / "generate.py", "--out", tmp_path], check=True, timeout=60)
    made = generated_under(tmp_path)
    assert made
    assert generated_under(PROTO) == made, "run `make proto` and commit what it writes"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_evaluation_service_has_flagds_names_numbers_and_types(version: str) -> None:
    ours = facts(f"flagd.evaluation.{version}.evaluation_pb2")
    flagds = facts(f"openfeature.schemas.protobuf.flagd.evaluation.{version}.evaluation_pb2")
    assert ours == flagds


def test_sync_service_has_flagds_names_numbers_and_types() -> None:
    ours = facts("flagd.sync.v1.sync_pb2")
    flagds = facts("openfeature.schemas.protobuf.flagd.sync.v1.sync_pb2")
    assert ours == flagds
