"""What all tests share: the real Kafka, started by the first test that asks for it."""

import os
import uuid
from collections.abc import Callable, Generator, Iterator

import pytest

from tests.kafka.broker import Broker, NoKafka, missing_tools

_SKIPPED = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="write golden files (vectors, transcripts) anew; review them as a diff"
    )


def _required() -> bool:
    return os.environ.get("REQUIRE_KAFKA", "") not in ("", "0")


@pytest.fixture(scope="session")
def _kafka_or_reason(request: pytest.FixtureRequest) -> Iterator[Broker | str]:
    reason = missing_tools()
    if reason is None:
        try:
            broker = Broker()
        except NoKafka as error:
            reason = str(error)
        else:
            with broker:
                yield broker
                broker.stop()
                if request.session.testsfailed:
                    print(f"\nbroker log: {broker.keep_logs()}")
            return
    yield reason


@pytest.fixture(scope="session")
def kafka_broker(_kafka_or_reason: Broker | str, request: pytest.FixtureRequest) -> Broker:
    """A real broker, one a session. Without Java or Maven the test is skipped, and fails under REQUIRE_KAFKA=1."""
    if isinstance(_kafka_or_reason, Broker):
        return _kafka_or_reason
    if _required():
        pytest.fail(f"REQUIRE_KAFKA is set, and there is no broker: {_kafka_or_reason}", pytrace=False)
    request.config.stash[_SKIPPED] = _kafka_or_reason
    pytest.skip(f"no Kafka: {_kafka_or_reason}")


@pytest.fixture
def kafka_url(kafka_broker: Broker) -> Callable[[], str]:
    """Names a ledger of its own, at the session's broker, at every call."""
    return lambda: kafka_broker.url(f"test-{uuid.uuid4().hex[:12]}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Say after everything else that tests against Kafka did not run: among the last lines it is not overlooked."""
    result = yield
    reason = session.config.stash.get(_SKIPPED, None)
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if reason is not None and terminal is not None:
        terminal.write_line(f"Tests against Kafka were SKIPPED: {reason}. REQUIRE_KAFKA=1 makes that a failure.")
    return result
