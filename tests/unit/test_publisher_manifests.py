"""The publisher's manifests and its compose service: valid by their schemas, consistent with the code."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from flaghoist import __version__
from flaghoist.log.location import KafkaLocation, parse
from publisher.cli import main
from publisher.cli.publisher import publisher

COMPOSE = Path(__file__).parents[2] / "compose"
KUBERNETES = COMPOSE / "kubernetes" / "publisher"
VERSIONS = ("1.29", kubernetes_validate.latest_version())


def document(path: Path) -> Any:
    (found,) = [each for each in YAML(typ="safe").load_all(path.read_text(encoding="utf-8")) if each]
    return found


def kustomization() -> Any:
    return document(KUBERNETES / "kustomization.yaml")


def pod() -> Any:
    return document(KUBERNETES / "deployment.yaml")["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", ["deployment.yaml", "disruption.yaml", "networkpolicy.yaml"])
def test_manifests_follow_the_api(file: str, version: str) -> None:
    kubernetes_validate.validate(document(KUBERNETES / file), version, strict=True)


def test_kustomization_names_what_is_there_and_this_version() -> None:
    assert {path.name for path in KUBERNETES.glob("*.yaml")} == {*kustomization()["resources"], "kustomization.yaml"}
    assert {image["name"]: image["newTag"] for image in kustomization()["images"]} == {"flaghoist": __version__}
    generated = {each["name"] for kind in ("configMapGenerator", "secretGenerator") for each in kustomization()[kind]}
    used = {volume.get("configMap", {}).get("name") for volume in pod()["volumes"]}
    used |= {volume.get("secret", {}).get("secretName") for volume in pod()["volumes"]}
    assert generated == used - {None}


def test_command_and_variables_are_such_as_there_are() -> None:
    (container,) = pod()["containers"]
    program, command, *options = container["command"]
    assert (program, command) == ("flaghoist", "publisher")
    known = {name for parameter in publisher.params for name in parameter.opts}
    assert {word for word in options if word.startswith("--")} <= known
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert isinstance(parse(given["FLAGHOIST_LEDGER"]), KafkaLocation)
    assert set(given) == {
        "FLAGHOIST_LEDGER",
        "FLAGHOIST_HEARTBEAT_KEY",
        "FLAGHOIST_PASSPHRASE_FILE",
        "FLAGHOIST_HOME",
    }
    assert CliRunner().invoke(publisher, ["--help"]).exit_code == 0


def test_every_file_that_the_publisher_is_told_of_comes_from_a_volume() -> None:
    (container,), (keys,) = pod()["containers"], pod()["initContainers"]
    mounted = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    generated = {each["name"]: [Path(f).name for f in each["files"]] for each in kustomization()["secretGenerator"]}
    copied = generated["flaghoist-publisher-keys"]
    told = [word for word in container["command"] if word.startswith("/")]
    told += [entry["value"] for entry in container["env"] if entry["value"].startswith("/run/")]
    for path in map(Path, told):
        assert str(path.parent) in mounted, path
        if mounted[str(path.parent)] == "keys":
            assert path.name in copied
    assert "umask 077" in keys["command"][-1], "a key that others may read is refused"
    assert {each["mountPath"] for each in keys["volumeMounts"]} == {"/etc/flaghoist/keys", "/run/flaghoist/keys"}


def test_publishers_never_share_a_journal() -> None:
    (container,) = pod()["containers"]
    home = next(entry["value"] for entry in container["env"] if entry["name"] == "FLAGHOIST_HOME")
    volume = next(each["name"] for each in container["volumeMounts"] if each["mountPath"] == home)
    assert "emptyDir" in next(each for each in pod()["volumes"] if each["name"] == volume)


def test_compose_runs_the_publisher_in_the_home_of_whoever_ran_init() -> None:
    services = document(COMPOSE / "compose.yaml")["services"]
    service = services["publisher"]
    assert [*service["entrypoint"], *service["command"]] == ["flaghoist", "publisher"]
    assert service["environment"]["FLAGHOIST_HOME"] == services["ada"]["environment"]["FLAGHOIST_HOME"]
    assert service["environment"]["FLAGHOIST_PASSPHRASE_FILE"] == f"/run/secrets/{service['secrets'][0]}"


def test_the_command_of_the_manifest_is_understood(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (container,) = pod()["containers"]
    # The files are not here: that, and no option, is what it has to say.
    code = main(
        [*container["command"][1:], "--ledger", f"sqlite:///{tmp_path}/none.db"], {"FLAGHOIST_HOME": str(tmp_path)}
    )
    assert code == 2
    assert "/etc/flaghoist/root/production.root: cannot be read" in capsys.readouterr().err
