"""The deployment files say what holds: valid by their schemas, consistent with the code, and run without containers.

No container engine is needed: the Dockerfile's own build steps make an environment, and the commands, variables and
probes of the files run in it as local processes. Only paths, ports and brokers are replaced.
"""

import asyncio
import json
import os
import queue
import re
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import CreateAclsRequest
from ruamel.yaml import YAML

from flaghoist import __version__
from flaghoist.log.base import Stream, read_to_end
from flaghoist.log.location import KafkaLocation, open_log, parse
from sidecar.cli import read_config
from sidecar.config import ENV_PREFIX, OPTIONS
from sidecar.listeners import Face
from tests.e2e.world import metric
from tests.kafka.broker import Broker, free_ports, pinned_version
from tests.scenarios.operators import PASSPHRASE, Ended, Team, write_flags
from tests.sidecar_process import SidecarProcess, running_sidecar

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
KUBERNETES = COMPOSE / "kubernetes"
GUIDE = ROOT / "docs" / "deploy.md"
# The oldest Kubernetes with native sidecars on by default, and the newest that the validator knows.
KUBERNETES_VERSIONS = ("1.29", kubernetes_validate.latest_version())
WITHIN_S = 60.0


def documents(path: Path) -> list[Any]:
    return [document for document in YAML(typ="safe").load_all(path.read_text(encoding="utf-8")) if document]


def compose() -> Any:
    return documents(COMPOSE / "compose.yaml")[0]


def deployment() -> Any:
    return documents(KUBERNETES / "deployment.yaml")[0]


def pod() -> Any:
    return deployment()["spec"]["template"]["spec"]


def native_sidecar() -> Any:
    (container,) = pod()["initContainers"]
    return container


def variables(container: Any) -> dict[str, str]:
    return {entry["name"]: entry["value"] if "value" in entry else downward(entry) for entry in container["env"]}


def downward(entry: Any) -> str:
    """What the kubelet puts into a variable: a name as Deployments give them to their pods, or one of their labels."""
    path = entry["valueFrom"]["fieldRef"]["fieldPath"]
    if path == "metadata.name":
        return f"{deployment()['metadata']['name']}-5c8f6d7b9-x2x4z"
    label = re.fullmatch(r"metadata\.labels\['([^']+)'\]", path)
    assert label, path
    return str(deployment()["spec"]["template"]["metadata"]["labels"][label[1]])


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert duration
    assert match, duration
    return int(match[1] or 0) * 60 + int(match[2] or 0)


def probe_answer_s() -> float:
    found = re.search(r"^ANSWER_S = ([\d.]+)$", (COMPOSE / "probe.py").read_text(), re.MULTILINE)
    assert found
    return float(found[1])


# --- schemas ---


def compose_faults(path: Path) -> str:
    command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", path]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


def test_compose_file_follows_the_compose_specification():
    assert compose_faults(COMPOSE / "compose.yaml") == ""


def test_a_misspelled_field_of_the_compose_file_is_noticed(tmp_path):
    broken = tmp_path / "compose.yaml"
    broken.write_text((COMPOSE / "compose.yaml").read_text().replace("stop_grace_period: 15s", "stop_grace_perod: 15s"))
    assert "stop_grace_perod" in compose_faults(broken)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("file", ["deployment.yaml", "networkpolicy.yaml"])
def test_kubernetes_manifests_follow_the_api(file, version):
    for document in documents(KUBERNETES / file):
        kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelled_field_of_a_manifest_is_noticed():
    broken = deployment()
    broken["spec"]["template"]["spec"]["initContainers"][0]["readOnly"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="readOnly"):
        kubernetes_validate.validate(broken, KUBERNETES_VERSIONS[0], strict=True)


# --- what must agree ---


def test_the_broker_is_the_one_that_the_tests_run_against():
    assert compose()["services"]["kafka"]["image"] == f"apache/kafka:{pinned_version()}"


def test_every_image_has_a_tag_and_ours_is_this_version():
    (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
    ours = {image["name"]: image["newTag"] for image in kustomization["images"]}
    assert ours == {"flaghoist": __version__}
    services = compose()["services"].values()
    images = {service["image"] for service in services} | {pod()["containers"][0]["image"]}
    assert {f"flaghoist:{__version__}", f"flaghoist-example:{__version__}"} < images
    bases = {
        line for file in COMPOSE.rglob("Dockerfile") for line in file.read_text().splitlines() if "PYTHON=" in line
    }
    bases = {line.removeprefix("ARG PYTHON=") for line in bases if line.startswith("ARG")}
    assert len(bases) == 1, "both images start from one base"
    for image in images | bases:
        assert re.search(r":\d+\.\d+\.\d+", image), image


def test_the_kustomization_names_what_is_there():
    (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
    assert {path.name for path in KUBERNETES.glob("*.yaml")} == {*kustomization["resources"], "kustomization.yaml"}
    generated = {entry["name"] for kind in ("configMapGenerator", "secretGenerator") for entry in kustomization[kind]}
    used = {volume.get("configMap", {}).get("name") for volume in pod()["volumes"]}
    used |= {volume.get("secret", {}).get("secretName") for volume in pod()["volumes"]}
    assert generated == used - {None}


@pytest.mark.parametrize("origin", ["compose", "kubernetes"])
def test_sidecars_are_given_options_that_there_are(origin):
    given = compose()["services"]["sidecar"]["environment"] if origin == "compose" else variables(native_sidecar())
    options = {option.variable: option for option in OPTIONS}
    assert {name for name in given if name.startswith(ENV_PREFIX)} <= set(options)
    for name, value in given.items():
        options[name].parse(value)
    assert isinstance(parse(given["FLAGHOIST_LEDGER"]), KafkaLocation)


def test_sidecars_say_who_they_are_by_the_pods_name_and_the_service_beside_them():
    service = compose()["services"]["sidecar"]["environment"]
    config = read_config([], {**variables(native_sidecar()), "FLAGHOIST_HOME": "/nonexistent"})
    assert config.acks
    assert (config.instance, config.service) == ("checkout-5c8f6d7b9-x2x4z", pod()["containers"][0]["name"])
    config = read_config([], {**service, "FLAGHOIST_HOME": "/nonexistent"})
    beside = [name for name, each in compose()["services"].items() if each.get("network_mode") == "service:sidecar"]
    assert (config.instance, config.service.split("+")) == ("compose", beside)


def test_the_guides_listeners_for_metrics_are_allowed_and_leave_the_rest_on_loopback():
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        given = variables({"env": YAML(typ="safe").load(textwrap.dedent(block))}) | variables(native_sidecar())
        listen = read_config([], {**given, "FLAGHOIST_HOME": "/nonexistent"}).listen
        for face, listeners in listen.items():
            assert all(each.loopback and not each.tls for each in listeners) == (face is not Face.MANAGEMENT)


def test_services_reach_the_broker_at_an_address_that_it_advertises():
    kafka = compose()["services"]["kafka"]["environment"]
    ledger = parse(compose()["services"]["sidecar"]["environment"]["FLAGHOIST_LEDGER"])
    named = dict(each.split("://") for each in kafka["KAFKA_ADVERTISED_LISTENERS"].split(","))
    bound = dict(each.split("://") for each in kafka["KAFKA_LISTENERS"].split(","))
    assert ledger.bootstrap == [named["PLAINTEXT"]]
    assert set(bound) - set(named) == {kafka["KAFKA_CONTROLLER_LISTENER_NAMES"]}
    for name, address in named.items():
        assert bound[name].rpartition(":")[2] == address.rpartition(":")[2]
    assert set(bound) == {pair.split(":")[0] for pair in kafka["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")}


def test_files_that_the_sidecar_is_told_of_are_mounted_read_only():
    mounts = {mount["name"]: mount for mount in native_sidecar()["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod()["volumes"]}
    given = variables(native_sidecar())
    ledger = parse(given["FLAGHOIST_LEDGER"])
    for file in (Path(given["FLAGHOIST_ROOT"]), ledger.cafile, ledger.credentials):
        (mount,) = [mount for mount in mounts.values() if Path(mount["mountPath"]) == file.parent]
        assert mount["readOnly"]
    root = compose()["services"]["sidecar"]["configs"]
    assert [entry["target"] for entry in root] == [compose()["services"]["sidecar"]["environment"]["FLAGHOIST_ROOT"]]


def test_only_state_and_temporary_files_can_be_written():
    service, container = compose()["services"]["sidecar"], native_sidecar()
    assert service["read_only"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert service["tmpfs"] == ["/tmp"]
    assert [volume.split(":")[1] for volume in service["volumes"]] == [service["environment"]["FLAGHOIST_STATE_DIR"]]
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {variables(container)["FLAGHOIST_STATE_DIR"], "/tmp"}
    (state,) = [volume for volume in pod()["volumes"] if volume["name"] == "flaghoist-state"]
    assert "medium" not in state["emptyDir"], "memory is cleared when a node restarts"


def test_no_container_of_ours_is_root_or_has_a_capability():
    for name, service in compose()["services"].items():
        if name != "kafka":
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
    security = native_sidecar()["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not security["allowPrivilegeEscalation"]
    assert security["runAsNonRoot"]
    user = f"{security['runAsUser']}:{security['runAsGroup']}"
    for file in COMPOSE.rglob("Dockerfile"):
        assert [line.split()[1] for line in file.read_text().splitlines() if line.startswith("USER")] == [user]
    assert pod()["securityContext"]["fsGroup"] == security["runAsUser"]


def test_nothing_is_published_to_other_machines():
    ports = [port for service in compose()["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_a_sidecar_is_given_the_time_to_drain():
    service = compose()["services"]["sidecar"]
    assert seconds(service["stop_grace_period"]) > float(service["environment"]["FLAGHOIST_DRAIN_S"])
    assert pod()["terminationGracePeriodSeconds"] > 2 * float(variables(native_sidecar())["FLAGHOIST_DRAIN_S"])


def test_probes_are_waited_for_longer_than_they_wait():
    container = native_sidecar()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["timeoutSeconds"] > probe_answer_s()
    assert seconds(compose()["services"]["sidecar"]["healthcheck"]["timeout"]) > probe_answer_s()


def test_the_sidecar_is_native_and_its_services_wait_for_it():
    assert native_sidecar()["restartPolicy"] == "Always"
    for name in ("checkout", "payment"):
        service = compose()["services"][name]
        assert service["network_mode"] == "service:sidecar"
        assert service["depends_on"]["sidecar"] == {"condition": "service_healthy", "restart": True}


def test_the_network_policy_lets_the_pods_reach_the_brokers_port():
    (policy,) = documents(KUBERNETES / "networkpolicy.yaml")
    labels = deployment()["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["spec"]["policyTypes"] == ["Egress"]
    ((_, port),) = parse(variables(native_sidecar())["FLAGHOIST_LEDGER"]).brokers
    brokers, dns = policy["spec"]["egress"]
    assert brokers["ports"] == [{"protocol": "TCP", "port": port}]
    assert {each["port"] for each in dns["ports"]} == {53}


# --- the image, made here by the Dockerfile's own steps ---


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def stages(dockerfile: Path) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions(dockerfile):
        if word == "FROM":
            found.append([])
        elif found:
            found[-1].append((word, rest))
    return found


def sent_to_builder(path: Path) -> bool:
    """Say whether the .dockerignore lets a file through: it takes everything out, and these names in again."""
    lines = (COMPOSE / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    relative = path.relative_to(ROOT)
    let_in = any(parent.match(rule[1:]) for rule in rules if rule[0] == "!" for parent in (relative, *relative.parents))
    return let_in and "__pycache__" not in relative.parts


@dataclass(frozen=True)
class Image:
    """What the Dockerfile makes: the environment that it installs, and the variables that it sets."""

    opt: Path
    environ: Mapping[str, str]

    def files(self) -> dict[str, tuple[int, int]]:
        found = ((path, path.lstat()) for path in self.opt.rglob("*") if not path.is_dir())
        return {str(path): (status.st_size, status.st_mtime_ns) for path, status in found}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    place = tmp_path_factory.mktemp("image")
    # /build is made by what `make setup` has run already, here and now: the development lock.
    paths = {"/opt/flaghoist": str(place / "opt"), "/wheels": str(place / "wheels"), "/build": sys.prefix}
    source = place / "src"
    source.mkdir()
    build, final = stages(COMPOSE / "Dockerfile")
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": os.environ.get("HOME", "/")}
    environ |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
    for word, rest in build:
        if word == "COPY":
            copy(rest.split(), source, paths)
        elif word == "RUN" and "python -m venv /build" not in rest:
            step = replaced(rest, paths)
            ended = subprocess.run(
                step, shell=True, cwd=source, env=environ, capture_output=True, text=True, check=False
            )
            if ended.returncode and "requirements/" in step and os.environ.get("CI") != "true":
                pytest.skip(f"pip could not install the lock: {ended.stderr[-300:]}")
            assert ended.returncode == 0, f"{step}: {ended.stderr}"
    variables = dict(pair.split("=", 1) for word, rest in final if word == "ENV" for pair in rest.split())
    variables["PATH"] = replaced(variables["PATH"], paths).replace("$PATH", "/usr/bin:/bin")
    return Image(place / "opt", variables)


def copy(words: Sequence[str], directory: Path, paths: Mapping[str, str]) -> None:
    *sources, target = words
    for source in sources:
        files = [ROOT / source] if (ROOT / source).is_file() else [p for p in (ROOT / source).rglob("*") if p.is_file()]
        for file in filter(sent_to_builder, files):
            to = Path(replaced(target, paths))
            to = to if to.is_absolute() else directory / file.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)


def replaced(text: str, paths: Mapping[str, str]) -> str:
    longest_first = sorted(paths, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), lambda found: paths[found[0]], text)


@dataclass(frozen=True)
class Engine:
    """Runs a container's command as a local process: its variables and the image's, and none of ours."""

    image: Image
    paths: Mapping[str, str]
    listen: Mapping[str, str]
    tmp: Path

    def command(self, words: Sequence[str]) -> list[str]:
        found = [replaced(str(word), self.paths) for word in words]
        return [shutil.which(found[0], path=self.image.environ["PATH"]) or found[0], *found[1:]]

    def environ(self, given: Mapping[str, str]) -> dict[str, str]:
        host, port = self.listen["FLAGHOIST_LISTEN"].split(":")
        port_of_clients = {"FLAGD_HOST": host, "FLAGD_PORT": port} if "FLAGD_PORT" in given else {}
        merged = {**self.image.environ, **given, **self.listen, **port_of_clients}
        return {name: replaced(str(value), self.paths) for name, value in merged.items()} | {"TMPDIR": str(self.tmp)}

    @contextmanager
    def sidecar(self, words: Sequence[str], given: Mapping[str, str]) -> Iterator[SidecarProcess]:
        process = subprocess.Popen(
            self.command(words), env=self.environ(given), stderr=subprocess.PIPE, text=True, cwd=self.tmp
        )
        running = SidecarProcess(process)
        try:
            yield running
        finally:
            running.stop()

    def run(self, words: Sequence[str], given: Mapping[str, str], to: Path | None = None) -> Ended:
        """Run a command to its end; `to` takes its output in place of the answer, as a redirection does."""
        ended = subprocess.run(
            self.command(words), env=self.environ(given), capture_output=True, timeout=WITHIN_S, check=False
        )
        if to is not None:
            to.write_bytes(ended.stdout)
        return Ended(ended.returncode, "" if to else ended.stdout.decode(), ended.stderr.decode())

    def until(self, words: Sequence[str], given: Mapping[str, str], code: int, deadline_s: float = WITHIN_S) -> None:
        """Run a probe again and again, as an engine does, until it ends with `code`."""
        deadline = time.monotonic() + deadline_s
        while (ended := self.run(words, given)).code != code:
            assert time.monotonic() < deadline, ended


@pytest.fixture
def engine(image: Image, tmp_path: Path) -> Engine:
    places = {}
    for path in ("/var/lib/flaghoist", "/home/flaghoist"):
        places[path] = str(tmp_path / path.strip("/").replace("/", "-"))
        Path(places[path]).mkdir()
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    faces = [option.variable for option in OPTIONS if option.variable.endswith("LISTEN")]
    listen = {face: f"127.0.0.1:{port}" for face, port in zip(faces, free_ports(len(faces)), strict=True)}
    return Engine(image, {"/opt/flaghoist": str(image.opt), **places}, listen, tmp)


@pytest.mark.parametrize("command", ["flaghoist", "flaghoist-sidecar"])
def test_the_image_has_both_commands_from_the_runtime_lock_alone(engine, command):
    assert engine.run([command, "--version"], {}).out.split()[-1] == __version__
    assert engine.run([command, "--help"], {}).code == 0


def test_the_image_can_install_nothing_and_holds_no_test(image):
    site = {path.name.split("-")[0] for path in image.opt.glob("lib/python*/site-packages/*")}
    assert site.isdisjoint({"pip", "setuptools", "pytest", "_pytest", "hatchling", "tests"})
    assert list(image.opt.rglob("entry.avsc"))


def test_the_builder_is_sent_neither_history_nor_tests_nor_roots():
    for unwanted in (".git/config", ".venv/bin/python", "tests/forge.py", "compose/flaghoist.root", "docs/deploy.md"):
        assert not sent_to_builder(ROOT / unwanted)
    assert sent_to_builder(ROOT / "proto/flaghoist/avro/entry.avsc")


# --- Kubernetes: the native sidecar and its probes ---


def probe(name: str) -> list[str]:
    words: list[str] = native_sidecar()[name]["exec"]["command"]
    return words


def closed_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])


def in_a_pod(engine: Engine, ledger: str, root: Path) -> tuple[Engine, dict[str, str]]:
    given = variables(native_sidecar())
    paths = {given["FLAGHOIST_LEDGER"]: ledger, given["FLAGHOIST_ROOT"]: str(root), **engine.paths}
    return replace(engine, paths=paths), given


def entries(ledger: str) -> list[bytes]:
    async def read() -> list[bytes]:
        async with open_log(ledger)(Stream.LEDGER) as log:
            return [record.value async for record in read_to_end(log)]

    return asyncio.run(read())


def until_kept(state: Path, records: Sequence[bytes]) -> None:
    """Wait until the state volume holds these records: what is served may be so a moment before it is kept."""
    deadline = time.monotonic() + WITHIN_S
    while not any(all(record in file.read_bytes() for record in records) for file in state.glob("*.entries")):
        assert time.monotonic() < deadline, "nothing was kept"
        time.sleep(0.02)  # between two looks at a condition, with a deadline


def test_pods_sidecar_passes_its_probes_and_drains_in_time(engine, tmp_path):
    team = Team.begun(tmp_path / "team")
    team.imported(write_flags(tmp_path / "flags.json"))
    pod_engine, given = in_a_pod(engine, team.ledger, team.ada.home / "roots" / "staging.root")
    before = engine.image.files()
    with pod_engine.sidecar(native_sidecar()["command"], given) as sidecar:
        sidecar.until("ledger.reached", seq=2)
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            ended = pod_engine.run(probe(name), given)
            assert ended.code == 0, ended
        began = time.monotonic()
        assert sidecar.stop() == 0
        assert time.monotonic() - began < pod()["terminationGracePeriodSeconds"]
    assert engine.image.files() == before, "the root file system is read-only"
    assert [path.suffix for path in Path(engine.paths["/var/lib/flaghoist"]).iterdir()] == [".entries"]
    assert pod_engine.run(probe("livenessProbe"), given).code == 1, "nothing listens any more"


def test_pods_sidecar_without_its_first_snapshot_is_alive_and_not_ready(engine, tmp_path):
    team = Team.begun(tmp_path / "team")
    away = f"kafka://127.0.0.1:{closed_port()}/flags"
    pod_engine, given = in_a_pod(engine, away, team.ada.home / "roots" / "staging.root")
    with pod_engine.sidecar(native_sidecar()["command"], given) as sidecar:
        sidecar.until("ledger.lost")
        pod_engine.until(probe("livenessProbe"), given, 0)
        for name in ("startupProbe", "readinessProbe"):
            ended = pod_engine.run(probe(name), given)
            assert ended.code == 1
            assert "no verified snapshot is loaded yet" in ended.out


def test_pods_sidecar_starts_from_its_volume_when_the_node_comes_back_without_brokers(engine, tmp_path):
    team = Team.begun(tmp_path / "team")
    team.imported(write_flags(tmp_path / "flags.json"))
    root = team.ada.home / "roots" / "staging.root"
    pod_engine, given = in_a_pod(engine, team.ledger, root)
    with pod_engine.sidecar(native_sidecar()["command"], given) as sidecar:
        until_kept(Path(engine.paths["/var/lib/flaghoist"]), entries(team.ledger))
        sidecar.kill()
    pod_engine, given = in_a_pod(engine, f"kafka://127.0.0.1:{closed_port()}/flags", root)
    with pod_engine.sidecar(native_sidecar()["command"], given) as sidecar:
        assert sidecar.until("snapshot.loaded", seq=2)["origin"] == "disk"
        pod_engine.until(probe("startupProbe"), given, 0)


def test_a_probe_that_is_asked_nothing_known_says_so(engine):
    ended = engine.run(["python", "-I", "/opt/flaghoist/probe.py", "happy"], {})
    assert ended.code == 2
    assert "ready or alive" in ended.out


# --- Compose: the guide's own commands, on a broker with the file's own settings ---

# Where the broker's ports and data are is the test's affair.
_PLACES = {
    "listeners",
    "advertised.listeners",
    "listener.security.protocol.map",
    "controller.quorum.voters",
    "log.dirs",
}


def kafka_settings() -> dict[str, str]:
    given = compose()["services"]["kafka"]["environment"]
    named = {name.removeprefix("KAFKA_").lower(): str(value) for name, value in given.items() if "KAFKA_" in name}
    return {name: value for name, value in named.items() if name.replace("_", ".") not in _PLACES}


def guide_commands() -> list[str]:
    section = GUIDE.read_text(encoding="utf-8").split("## Try it with Compose")[1].split("\n## ")[0]
    return re.findall(r"^\$ docker compose (.*)$", section, re.MULTILINE)


class Shell:
    """Does what `docker compose` would do with the services of compose.yaml, one line of the guide at a time."""

    def __init__(self, engine: Engine, place: Path) -> None:
        self.engine = engine
        self.place = place
        self.stack = ExitStack()
        self.printed_id = ""
        self.sidecar: SidecarProcess | None = None
        self.services: dict[str, Lines] = {}
        self.logs: dict[str, Any] = {}
        self.passphrase = place / "passphrase"
        self.passphrase.write_text(PASSPHRASE)
        self.passphrase.chmod(0o600)

    def do(self, line: str) -> None:
        words = shlex.split(line)
        if words[:2] == ["run", "--rm"]:
            self._run(words[2:])
        elif words == ["up", "-d", "--wait"]:
            self._up()
        elif words[0] == "logs":
            self.logs = {name: lines.next() for name, lines in self.services.items()}
        else:
            assert words[0] in ("--profile", "down") or words[-1] == "kafka", f"not understood: {line}"

    def _run(self, words: list[str]) -> None:
        words = [word for word in words if word != "--no-TTY"]
        target = self.place / words.pop() if ">" in words else None
        words = [word for word in words if word != ">"]
        entrypoint = [words.pop(1), words.pop(0)][:1] if words[0] == "--entrypoint" else None
        service = compose()["services"][words.pop(0)]
        # What a person types at the prompts.
        given = {**service["environment"], "FLAGHOIST_PASSPHRASE_FILE": str(self.passphrase)}
        asked = [] if entrypoint or "verify" in words else ["--yes"]
        words = [self.printed_id if re.fullmatch(r"01[0-9A-Z]{4}", word) else word for word in words]
        ended = self.engine.run([*(entrypoint or service["entrypoint"]), *words, *asked], given, target)
        assert ended.code == 0, f"{words}: {ended}"
        if words[0] in ("import", "propose"):
            self.printed_id = ended.out.strip()

    def _up(self) -> None:
        service = compose()["services"]["sidecar"]
        assert (self.place / Path(compose()["configs"]["root"]["file"].split(":-")[1].rstrip("}")).name).exists()
        self.sidecar = self.stack.enter_context(self.engine.sidecar(service["entrypoint"], service["environment"]))
        self.healthy()
        for name in ("checkout", "payment"):
            self.services[name] = self.stack.enter_context(self._service(name))

    def healthy(self) -> None:
        service = compose()["services"]["sidecar"]
        cmd, *words = service["healthcheck"]["test"]
        assert cmd == "CMD"
        self.engine.until(words, service["environment"], 0, seconds(service["healthcheck"]["start_period"]))

    @contextmanager
    def _service(self, name: str) -> "Iterator[Lines]":
        # Its image has the OpenFeature SDK, as this test's own environment has.
        ((_, words),) = [step for step in stages(COMPOSE / "example" / "Dockerfile")[0] if step[0] == "CMD"]
        command = [sys.executable if word == "python" else word for word in json.loads(words)]
        command = [word.replace("/app", str(COMPOSE / "example")) for word in command]
        environ = self.engine.environ(compose()["services"][name]["environment"])
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
        try:
            yield Lines(process)
        finally:
            process.terminate()
            try:
                assert process.wait(WITHIN_S) == 0
            finally:
                process.kill()


class Lines:
    """The JSON lines of a process, read as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._heard: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def next(self) -> Any:
        return json.loads(self._heard.get(timeout=WITHIN_S))

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._heard.put(line)


@pytest.fixture(scope="module")
def compose_broker(kafka_broker: Broker) -> Iterator[Broker]:
    """A node with the settings of compose.yaml (and, like every broker here, ports and data of its own)."""
    with Broker(**kafka_settings()) as broker:
        yield broker


@pytest.mark.kafka
def test_the_guide_to_compose_brings_a_flip_to_two_services(engine, compose_broker, tmp_path):
    in_compose = {
        "kafka:9092": compose_broker.address,
        "/etc/flaghoist/flaghoist.root": str(tmp_path / "flaghoist.root"),
        "/etc/flaghoist/shop.flagd.json": str(ROOT / "publisher" / "demo" / "shop.flagd.json"),
        **engine.paths,
    }
    shell = Shell(replace(engine, paths=in_compose), tmp_path)
    before = engine.image.files()
    with shell.stack:
        for line in guide_commands():
            shell.do(line)
        assert shell.sidecar is not None
        for name, lines in shell.services.items():
            asked = {"service": name, "flag": "new-checkout", "error": None}
            assert shell.logs[name] == {**asked, "value": False}
            assert lines.next() == {**asked, "value": True}
        compose_broker.kill()
        shell.sidecar.until("ledger.lost")
        shell.healthy()
    assert shell.sidecar.process.returncode == 0
    assert engine.image.files() == before, "the root file system is read-only"


# --- the guide's table of ACLs, granted to a real broker ---

# Source: AclOperation, ResourceType and PatternType of Apache Kafka (clients/src/main/java/org/apache/kafka/common).
_OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Alter": 7, "Describe": 8, "ClusterAction": 9, "DescribeConfigs": 10}
_TOPIC, _CLUSTER, _LITERAL, _ALLOW = 2, 4, 3, 3


def granted() -> dict[str, list[list[str]]]:
    """Return for each principal of the guide its operations: on each topic, in order of Stream, and on the cluster."""
    section = GUIDE.read_text(encoding="utf-8").split("| principal |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0].split(" (")[0]: [re.findall(r"[A-Z]\w+", cell) for cell in row[1:]] for row in rows[1:]}


class Grants(CreateAclsRequest):
    """Several ACLs at once: the library's request has one, and the first alone would shut out whoever asks."""

    def __init__(self, grants: Sequence[tuple[int, str, str]]) -> None:
        self._grants = grants

    def build(self, request_struct_class: Any) -> Any:
        assert request_struct_class.API_VERSION == 1
        everyone = ("User:ANONYMOUS", "*")
        return request_struct_class(
            [(kind, name, _LITERAL, *everyone, _OPERATIONS[what], _ALLOW) for kind, name, what in self._grants]
        )


def grant(broker: Broker, topic: str, operations: Sequence[Sequence[str]]) -> None:
    """Let everyone do this much; what a resource has no grant for stays open (see the test's broker)."""
    topics = [topic, *(f"{topic}.{stream.value}" for stream in Stream if stream is not Stream.LEDGER)]
    resources = [*((_TOPIC, name) for name in topics), (_CLUSTER, "kafka-cluster")]
    grants = [
        (kind, name, what) for (kind, name), allowed in zip(resources, operations, strict=True) for what in allowed
    ]

    async def ask() -> None:
        client = AIOKafkaClient(bootstrap_servers=broker.address)
        await client.bootstrap()
        try:
            answer = await client.send(client.get_random_node(), Grants(grants))
            assert {found[0] for found in answer.creation_responses} == {0}, answer
        finally:
            await client.close()

    asyncio.run(ask())


def until_acknowledged(sidecar: SidecarProcess) -> None:
    deadline = time.monotonic() + WITHIN_S
    while metric(sidecar, "flaghoist_acks_written_total") < 1:
        assert time.monotonic() < deadline, sidecar.events
        time.sleep(0.02)  # between two looks at a condition, with a deadline


@pytest.mark.kafka
def test_the_grants_of_the_guide_are_enough_and_no_more(kafka_broker, tmp_path):
    table = granted()
    authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
    settings = {"authorizer_class_name": authorizer, "allow_everyone_if_no_acl_found": "true"}
    flags = write_flags(tmp_path / "flags.json")
    with Broker(**settings) as broker:
        team = Team.begun(tmp_path / "team", ledger=broker.url("flags"))
        proposal = team.ada.ok("import", flags, "--yes").out.strip()
        # This broker's one principal is also the node itself, and grants the rest: that much it must keep.
        grant(broker, "flags", [*table["sidecars"][:4], ["Alter", "ClusterAction"]])
        assert table["sidecars"] == [["Read"], [], ["Read"], ["Write"], []]
        assert table["auditors"] == [["Read"], [], [], [], []]
        with running_sidecar(team.ledger, team.ada.home / "roots" / "staging.root", tmp_path / "state") as sidecar:
            sidecar.until("ledger.reached", seq=1)
            until_acknowledged(sidecar)
            team.grace.ok("audit", "verify")

            grant(broker, "flags", [[], ["Read"], [], [], []])
            team.grace.refused("approve", proposal, "--yes", code=2)
            grant(broker, "flags", table["operators"])
            team.grace.ok("approve", proposal, "--yes")
            team.ada.refused("publish", proposal, "--yes", code=2)
            grant(broker, "flags", table["publisher"])
            team.ada.ok("publish", proposal, "--yes")
            sidecar.until("entry.applied", seq=2)

            assert team.ada.run("doctor").code == 2, "it may not see the topics' settings"
            grant(broker, "flags", table["administrator"])
            team.ada.ok("doctor")
