"""Certificates, keys and tokens from files: what is refused, and that what is renewed counts."""

import asyncio
import hashlib
import re
import time
from contextlib import asynccontextmanager, suppress

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from flaghoist.errors import Misconfigured
from sidecar.renewal import keep_renewed
from sidecar.report import BoundedReport
from sidecar.secret_file import SECRET_BYTES_MAX, read_public, refuse_readable
from sidecar.tls import ServerTls, TlsFiles, load
from sidecar.tokens import TOKEN_CHARS_MAX, TOKENS_MAX, Tokens, parse
from tests.certificates import HOUR, Authority, key_pem, replace

WITHIN_S = 10.0
LOOK_S = 0.01
TOKEN = "correct-horse-battery-staple"
OTHER = "another-horse-battery-staple"


@pytest.fixture(scope="module")
def ca():
    return Authority("ca")


@pytest.fixture
def files(ca, tmp_path):
    cert, key = ca.issue("server").write(tmp_path, "server")
    client_ca = tmp_path / "ca.crt"
    client_ca.write_bytes(ca.cert)
    return TlsFiles(cert, key, client_ca)


def refused(files):
    with pytest.raises(Misconfigured) as caught:
        load(files, time.time())
    assert caught.value.hint
    return str(caught.value)


def test_good_files_are_loaded(ca, files):
    material = load(files, time.time())
    assert (material.chain, material.client_ca) == (files.cert.read_bytes(), ca.cert)


@pytest.mark.parametrize("name", ["cert", "key", "client_ca"])
def test_missing_file_is_named_with_its_option(files, name):
    path = getattr(files, name)
    path.unlink()
    assert f"--tls-{name.replace('_', '-')} {path}: cannot be read: No such file" in refused(files)


@pytest.mark.parametrize("name", ["cert", "key", "client_ca"])
@pytest.mark.parametrize("content", [b"", b"\xff\x00 no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n"], ids=range(3))
def test_file_that_is_no_pem_of_its_kind_is_refused(files, name, content):
    path = getattr(files, name)
    path.write_bytes(content)
    assert str(path) in refused(files)


def test_key_of_another_certificate_is_refused(ca, files):
    replace(files.key, ca.issue("other").key)
    assert "key values mismatch" in refused(files)


def test_encrypted_key_is_refused_and_nobody_is_asked_for_a_passphrase(files):
    replace(files.key, key_pem(ec.generate_private_key(ec.SECP256R1()), b"a passphrase"))
    assert "the key is encrypted" in refused(files)


@pytest.mark.parametrize("age", [2 * HOUR, -HOUR], ids=["expired", "not yet"])
def test_certificate_that_does_not_hold_now_is_refused(ca, files, age):
    ca.issue("server", age=age, lasts=HOUR).write(files.cert.parent, "server")
    assert re.search(r"holds from \d{4}-.*Z to \d{4}-.*Z, and now is", refused(files))


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o602, 0o610, 0o777])
def test_key_that_others_may_read_is_refused_with_the_command_to_run(files, mode):
    files.key.chmod(mode)
    with pytest.raises(Misconfigured, match=f"got {mode:04o}") as caught:
        load(files, time.time())
    assert caught.value.hint == f"run: chmod 600 {files.key}"


@pytest.mark.parametrize(
    ("mode", "owner", "user", "good"),
    [
        (0o600, 1000, 1000, True),
        (0o400, 1000, 1000, True),
        (0o640, 1000, 1000, False),
        (0o440, 0, 65532, True),
        (0o640, 0, 65532, True),
        (0o660, 0, 65532, False),
        (0o444, 0, 65532, False),
        (0o640, 0, 0, False),
        (0o640, 1001, 1000, False),
    ],
)
def test_only_roots_file_may_be_lent_to_a_group(tmp_path, mode, owner, user, good):
    try:
        refuse_readable(tmp_path, "--tls-key", 0o100000 | mode, owner, user)
    except Misconfigured:
        assert not good
    else:
        assert good


def test_file_without_end_is_not_read_whole(tmp_path):
    path = tmp_path / "big"
    path.write_bytes(bytes(SECRET_BYTES_MAX + 1))
    with pytest.raises(Misconfigured, match="at most"):
        read_public(path, "--tls-cert")


# Tokens.


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (TOKEN, 1),
        (f"# the shop's\n{TOKEN}\n\n  {OTHER}  \r\n", 2),
        ("\n".join(f"{TOKEN}-{n}" for n in range(TOKENS_MAX)), TOKENS_MAX),
        ("x" * TOKEN_CHARS_MAX, 1),
        ("AZaz09._~+/-aaaaa==", 1),
    ],
    ids=range(5),
)
def test_tokens_stand_one_a_line(tmp_path, text, count):
    assert len(parse(text.encode(), tmp_path)) == count


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "want 1 .. 64 tokens, got 0"),
        ("# nothing\n\n", "got 0"),
        (f"{TOKEN}\nshort-secret", "line 2: want 16 .. 4096 characters, got 12"),
        ("x" * (TOKEN_CHARS_MAX + 1), "got 4097"),
        ("two words are no token", "line 1: want letters"),
        ("correct-hörse-battery-staple", "line 1: want letters"),
        ("correct=horse=battery", "line 1: want letters"),
        ("\n".join(f"{TOKEN}-{n}" for n in range(TOKENS_MAX + 1)), "got 65"),
    ],
    ids=range(8),
)
def test_bad_token_file_is_refused_by_line_and_never_quoted(tmp_path, text, problem):
    with pytest.raises(Misconfigured, match=re.escape(problem)) as caught:
        parse(text.encode(), tmp_path)
    for word in ("horse", "secret", "words"):
        assert word not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ([f"Bearer {TOKEN}"], True),
        ([f"bearer  {TOKEN} "], True),
        ([f"BEARER {OTHER}".encode()], True),
        ([], False),
        ([""], False),
        (["Bearer "], False),
        ([TOKEN], False),
        ([f"Basic {TOKEN}"], False),
        ([f"Bearer {TOKEN}x"], False),
        ([f"Bearer {TOKEN[:-1]}"], False),
        ([f"Bearer {TOKEN.upper()}"], False),
        ([f"Bearer {TOKEN}", f"Bearer {TOKEN}"], False),
        ([f"Bearer {TOKEN}, Bearer {OTHER}"], False),
        (["Bearer " + 10_000 * "x"], False),
        ([b"Bearer \xff\xfe"], False),
        (["Bearer \udcff"], False),
    ],
    ids=range(16),
)
def test_one_field_with_one_known_token_is_allowed(tmp_path, fields, allowed):
    path = tmp_path / "tokens"
    replace(path, f"{TOKEN}\n{OTHER}\n".encode())
    assert Tokens(path).allow(fields) is allowed


def test_token_file_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "tokens"
    replace(path, TOKEN.encode(), mode=0o644)
    path.chmod(0o644)
    with pytest.raises(Misconfigured, match=f"--token-file {path}: others may read"):
        Tokens(path)


def test_memory_holds_no_token_only_its_digest(tmp_path):
    path = tmp_path / "tokens"
    replace(path, TOKEN.encode())
    held = repr(vars(Tokens(path)))
    assert TOKEN not in held
    assert repr(hashlib.sha256(TOKEN.encode()).digest()) in held


# Renewal.


@asynccontextmanager
async def renewing(renewable):
    with capture_logs() as logs:
        task = asyncio.create_task(
            keep_renewed(renewable, BoundedReport(structlog.get_logger(), time.monotonic), look_s=LOOK_S)
        )
        try:
            yield logs
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until(holds):
    async with asyncio.timeout(WITHIN_S):
        while not holds():
            await asyncio.sleep(LOOK_S)


def told(logs, event):
    return [line for line in logs if line["event"] == event]


def test_renewed_tokens_count_and_the_removed_one_does_not(tmp_path):
    async def scenario():
        path = tmp_path / "tokens"
        replace(path, TOKEN.encode())
        tokens = Tokens(path)
        async with renewing(tokens) as logs:
            replace(path, f"{OTHER}\n{TOKEN}".encode())
            await until(lambda: tokens.allow([f"Bearer {OTHER}"]))
            assert tokens.allow([f"Bearer {TOKEN}"])
            replace(path, OTHER.encode())
            await until(lambda: not tokens.allow([f"Bearer {TOKEN}"]))
            assert tokens.allow([f"Bearer {OTHER}"])
            await until(lambda: len(told(logs, "tokens.renewed")) == 2)
        assert "horse" not in repr(logs)

    asyncio.run(scenario())


def test_unusable_tokens_leave_the_old_ones_and_are_taken_once_they_are_mended(tmp_path):
    async def scenario():
        path = tmp_path / "tokens"
        replace(path, TOKEN.encode())
        tokens = Tokens(path)
        async with renewing(tokens) as logs:
            path.unlink()
            await until(lambda: told(logs, "tokens.renewal_refused"))
            assert tokens.allow([f"Bearer {TOKEN}"])
            replace(path, OTHER.encode(), mode=0o600)
            await until(lambda: tokens.allow([f"Bearer {OTHER}"]))
            assert not tokens.allow([f"Bearer {TOKEN}"])

    asyncio.run(scenario())


def test_file_that_stays_unusable_is_told_a_few_times_only(tmp_path):
    async def scenario():
        path = tmp_path / "tokens"
        replace(path, TOKEN.encode())
        tokens = Tokens(path)
        looks = []
        tokens.load = lambda: (looks.append(1), Tokens.load(tokens))
        async with renewing(tokens) as logs:
            path.write_bytes(b"")
            await until(lambda: len(looks) > 20)
        assert len(told(logs, "tokens.renewal_refused")) == 5

    asyncio.run(scenario())


def test_certificate_and_key_that_change_one_after_the_other_count_together(ca, files):
    async def scenario():
        tls = ServerTls(files, time.time)
        used = []

        async def use():
            used.append(tls.current)

        tls.tell(use)
        old, new = tls.current, ca.issue("renewed")
        async with renewing(tls) as logs:
            replace(files.cert, new.cert)
            await until(lambda: told(logs, "tls.renewal_refused"))
            assert tls.current is old
            replace(files.key, new.key)
            await until(lambda: used)
        assert (tls.current.chain, tls.current.key, used) == (new.cert, new.key, [tls.current])

    asyncio.run(scenario())


def test_expired_renewal_leaves_the_old_certificate(ca, files):
    async def scenario():
        tls = ServerTls(files, time.time)
        old = tls.current
        async with renewing(tls) as logs:
            ca.expired("server").write(files.cert.parent, "server")
            await until(lambda: told(logs, "tls.renewal_refused"))
        assert tls.current is old

    asyncio.run(scenario())


def test_exchanged_symlink_is_a_change(ca, tmp_path):
    """As Kubernetes exchanges a mounted secret: the file's own directory is reached by a symlink."""

    async def scenario():
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            ca.issue(name).write(tmp_path / name, "tls")
        data = tmp_path / "..data"
        data.symlink_to("first")
        for name in ("tls.crt", "tls.key"):
            (tmp_path / name).symlink_to(f"..data/{name}")
        tls = ServerTls(TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key"), time.time)
        async with renewing(tls):
            (tmp_path / "..new").symlink_to("second")
            (tmp_path / "..new").rename(data)
            second = (tmp_path / "second" / "tls.crt").read_bytes()
            await until(lambda: tls.current.chain == second)

    asyncio.run(scenario())
