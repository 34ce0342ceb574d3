"""OpenFeature's clients in five languages, as services use them, against a sidecar process over a real ledger."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.agreement import FLAGS, GATE, RELEASE, ROWS, Row
from tests.clients.build import LANGUAGES
from tests.clients.built_commands import Command
from tests.clients.driver import Answer, Client, running_client
from tests.clients.environment import Environment
from tests.forge import boolean_flag
from tests.kafka.broker import free_ports
from tests.sidecar_process import SidecarProcess

# Providers that can evaluate in their own process, from flagd.sync.v1.
IN_PROCESS = ("java", "node", "rust", "python")

CASES = [(language, "rpc") for language in LANGUAGES] + [(language, "in-process") for language in IN_PROCESS]

# Rust's provider opens no event stream: it asks at each call, or keeps an answer for a minute if it may cache.
WITHOUT_EVENTS = ("rust",)

# Which generation of `fractional` each in-process provider speaks; only the ledger's own gives equal buckets.
BUCKETING = {"java": "v1", "node": "v2", "python": "v3", "rust": "v3"}

# Restarting takes the sidecar a second or two, and a provider up to twice its longest pause to notice.
RECOVERS_S = 30.0
# A change is known within milliseconds; the longest pause of these clients between two tries is a second.
CATCHES_UP_S = 8.0
# Node's provider tries a call four times with pauses of 1, 1 and 1 s before it gives its caller the default.
DEFAULTS_WITHIN_S = 15.0


def case_id(case: tuple[str, str]) -> str:
    return "-".join(case)


# Providers that keep what they were answered for good; the others ask anew each time.
CACHING = [("python", "rpc"), ("java", "rpc"), ("node", "rpc")]

every_case = pytest.mark.parametrize("case", CASES, ids=case_id)
every_shared_client = pytest.mark.parametrize("client", CASES, ids=case_id, indirect=True)


def port_of(sidecar: SidecarProcess, mode: str) -> int:
    return sidecar.port_of({"rpc": "rpc", "in-process": "sync"}[mode])


def cache_of(language: str) -> str:
    return "disabled" if language in WITHOUT_EVENTS else "lru"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("environment"))
    environment.put(FLAGS, evaluators={RELEASE: GATE})
    return environment


@pytest.fixture(scope="module")
def sidecar(environment: Environment) -> Iterator[SidecarProcess]:
    with environment.sidecar() as sidecar:
        yield sidecar


@pytest.fixture(scope="module")
def client(
    request: pytest.FixtureRequest,
    sidecar: SidecarProcess,
    command: Command,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Client]:
    """One started and ready client a language and mode, shared by the module's tests."""
    language, mode = request.param
    directory = tmp_path_factory.mktemp(f"{language}-{mode}")
    with running_client(
        command(language), port_of(sidecar, mode), directory, mode=mode, cache=cache_of(language)
    ) as client:
        assert client.ready()
        yield client


@pytest.fixture
def language_and_mode(request: pytest.FixtureRequest) -> tuple[str, str]:
    language, mode = request.getfixturevalue("request").node.callspec.params["client"]
    return language, mode


def seen(row: Row, answer: Answer) -> tuple[object, ...]:
    return (row.kind, row.key, row.context, answer.value, answer.variant)


def wanted(row: Row) -> tuple[object, ...]:
    return (row.kind, row.key, row.context, row.value, row.variant)


def comparable(row: Row, language: str, mode: str) -> bool:
    """Whether a provider is known to answer a row as the sidecar does."""
    if mode == "rpc" or not row.bucketed:
        return True
    # Node hashes UTF-16 code units where all others hash UTF-8.
    return BUCKETING[language] == "v2" and row.ascii


@every_shared_client
def test_client_gets_the_agreed_values(client: Client, language_and_mode: tuple[str, str]) -> None:
    rows = [row for row in ROWS if comparable(row, *language_and_mode)]
    answers = [seen(row, client.evaluate(row.kind, row.key, row.default, row.context)) for row in rows]
    assert answers == [wanted(row) for row in rows]


@pytest.mark.parametrize("client", [(language, "in-process") for language in IN_PROCESS], ids=case_id, indirect=True)
def test_in_process_provider_buckets_otherwise_only_where_that_is_documented(
    client: Client, language_and_mode: tuple[str, str]
) -> None:
    rows = [row for row in ROWS if row.bucketed and not comparable(row, *language_and_mode)]
    answers = [seen(row, client.evaluate(row.kind, row.key, row.default, row.context)) for row in rows]
    # Should a provider's next version agree, this fails: then it belongs among the comparable ones.
    assert answers != [wanted(row) for row in rows]


def test_in_process_providers_bucket_as_a_ledger_of_their_own_generation(command: Command, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "environment", fractional="v3")
    environment.put(FLAGS, evaluators={RELEASE: GATE})
    answers = {}
    with environment.sidecar() as sidecar:
        cases = [
            ("python", "rpc"),
            *((language, "in-process") for language in IN_PROCESS if BUCKETING[language] == "v3"),
        ]
        for language, mode in cases:
            with running_client(
                command(language), port_of(sidecar, mode), tmp_path / case_id((language, mode)), mode=mode
            ) as client:
                assert client.ready()
                answers[language, mode] = [
                    seen(row, client.evaluate(row.kind, row.key, row.default, row.context)) for row in ROWS
                ]
    by_rpc = answers.pop(("python", "rpc"))
    assert answers == dict.fromkeys(answers, by_rpc)
    assert by_rpc != [wanted(row) for row in ROWS]  # the generations do differ on these rows


@every_shared_client
def test_client_says_why_it_got_its_value(client: Client) -> None:
    rule, default, static = (
        client.evaluate("boolean", "staff", False, {"email": "ada@example.org"}).reason,
        client.evaluate("boolean", "staff", False, {"email": "ada@example.com"}).reason,
        client.evaluate("boolean", "plain-boolean", False).reason,
    )
    # A caching provider says CACHED from the second time on; every kind of answer but a STATIC one is asked for anew.
    assert (rule, default, static in ("STATIC", "CACHED")) == ("TARGETING_MATCH", "DEFAULT", True)


@every_shared_client
def test_client_gets_its_default_and_an_error_code_for_what_cannot_be_answered(
    client: Client, language_and_mode: tuple[str, str]
) -> None:
    unknown = client.evaluate("string", "no-such-flag", "mine")
    mismatch = client.evaluate("integer", "greeting", 7)
    assert (unknown.value, unknown.variant, unknown.error_code) == ("mine", None, "FLAG_NOT_FOUND")
    # Rust's provider takes every INVALID_ARGUMENT for a bad context.
    code = "INVALID_CONTEXT" if language_and_mode == ("rust", "rpc") else "TYPE_MISMATCH"
    assert (mismatch.value, mismatch.variant, mismatch.error_code) == (7, None, code)


@every_shared_client
def test_client_sees_the_metadata_and_the_seq(client: Client, language_and_mode: tuple[str, str]) -> None:
    metadata = client.evaluate("boolean", "plain-boolean", False).metadata
    if language_and_mode == ("python", "rpc"):
        assert metadata == {}  # its provider hands none on
        return
    assert (metadata["team"], metadata["beta"], metadata["tier"]) == ("shop", True, 2)
    if language_and_mode[1] == "rpc":
        assert metadata["flaghoist.seq"] >= 2


@every_shared_client
def test_client_hears_of_a_change_and_serves_it(
    client: Client, language_and_mode: tuple[str, str], environment: Environment
) -> None:
    key = f"live-{case_id(language_and_mode)}"

    def variant() -> str | None:
        return client.evaluate("boolean", key, False).variant

    for default in ("off", "on", "off"):
        client.forget()
        environment.put({key: boolean_flag(default)})
        if language_and_mode[0] in WITHOUT_EVENTS:
            assert_soon(lambda default=default: variant() == default)  # type: ignore[misc]
        else:
            assert client.change_of(key)
            assert variant() == default
        # Asked again: a provider that caches has the answer now, and must drop it at the next change.
        assert variant() == default


@every_case
def test_client_survives_a_restart_of_its_sidecar(case: tuple[str, str], command: Command, tmp_path: Path) -> None:
    language, mode = case
    environment = Environment(tmp_path / "environment")
    environment.put({"kept": rule_flag("off")})
    with ExitStack() as stack:
        with environment.sidecar() as sidecar:
            ports = {"rpc_port": sidecar.port_of("rpc"), "sync_port": sidecar.port_of("sync")}
            client = stack.enter_context(
                running_client(command(language), port_of(sidecar, mode), tmp_path, mode=mode, cache=cache_of(language))
            )
            assert client.ready()
            assert client.evaluate("boolean", "kept", True).variant == "off"
        environment.put({"kept": rule_flag("on")})
        with environment.sidecar(**ports):
            assert_soon(lambda: client.evaluate("boolean", "kept", False).variant == "on")


@pytest.mark.parametrize("case", CACHING, ids=case_id)
def test_client_that_caches_drops_what_changed_while_its_sidecar_restarted(
    case: tuple[str, str], command: Command, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "environment")
    environment.put({"kept": boolean_flag("off")})
    with ExitStack() as stack:
        with environment.sidecar() as sidecar:
            port = sidecar.port
            client = stack.enter_context(running_client(command(case[0]), port, tmp_path))
            assert client.ready()
            # A new stream names what may be cached, and so may empty the cache once more after the first answer.
            assert_soon(lambda: client.evaluate("boolean", "kept", True).reason == "CACHED")
        environment.put({"kept": boolean_flag("on")})
        with environment.sidecar(rpc_port=port):
            assert_soon(lambda: client.evaluate("boolean", "kept", False).variant == "on", within_s=CATCHES_UP_S)


@pytest.mark.parametrize("case", [case for case in CASES if case[0] not in WITHOUT_EVENTS], ids=case_id)
def test_client_hears_of_changes_after_a_restart_of_its_sidecar(
    case: tuple[str, str], command: Command, tmp_path: Path
) -> None:
    language, mode = case
    environment = Environment(tmp_path / "environment")
    environment.put({"live": rule_flag("off")})
    with ExitStack() as stack:
        with environment.sidecar() as sidecar:
            ports = {"rpc_port": sidecar.port_of("rpc"), "sync_port": sidecar.port_of("sync")}
            client = stack.enter_context(running_client(command(language), port_of(sidecar, mode), tmp_path, mode=mode))
            assert client.ready()
        assert client.lost(within_s=CATCHES_UP_S)
        with environment.sidecar(**ports):
            assert client.ready()
            client.forget()
            environment.put({"live": rule_flag("on")})
            assert client.change_of("live", within_s=CATCHES_UP_S)
            assert_soon(lambda: client.evaluate("boolean", "live", False).variant == "on", within_s=CATCHES_UP_S)


def rule_flag(default: str) -> dict[str, object]:
    """A boolean flag with a rule that never matches: providers do not cache its answer."""
    return boolean_flag(default, targeting={"if": [{"==": [{"var": "nobody"}, "here"]}, "on"]})


def assert_soon(holds: Callable[[], bool], *, within_s: float = RECOVERS_S) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)  # between two looks at a condition, with a deadline


@every_case
def test_client_gets_its_default_until_there_is_a_sidecar(
    case: tuple[str, str], command: Command, tmp_path: Path
) -> None:
    language, mode = case
    (port,) = free_ports(1)
    defaults = [("boolean", True), ("string", "mine"), ("integer", 7), ("float", 0.5), ("object", {"mine": True})]
    with running_client(
        command(language), port, tmp_path, mode=mode, deadline_ms=500, cache=cache_of(language)
    ) as client:
        for kind, default in defaults:
            started = time.monotonic()
            answer = client.evaluate(kind, "plain", default, {"targetingKey": "ada@example.org"})
            assert (answer.value, answer.variant, answer.reason) == (default, None, "ERROR")
            assert answer.error_code
            assert time.monotonic() - started < DEFAULTS_WITHIN_S
        environment = Environment(tmp_path / "environment")
        environment.put({"plain": boolean_flag("off")})
        with environment.sidecar(rpc_port=port if mode == "rpc" else 0, sync_port=0 if mode == "rpc" else port):
            assert_soon(lambda: client.evaluate("boolean", "plain", True).variant == "off")
            assert client.ready()
