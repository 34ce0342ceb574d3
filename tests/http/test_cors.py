"""Which web pages may read the answers."""

import pytest

from flaghoist.errors import Misconfigured
from sidecar.http_app import Cors
from tests.fronts.rig import switch
from tests.http.rig import BULK, Rig, runner

SHOP = "https://shop.example.org"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,if-none-match"}
run = runner({"f": switch("on")})


def allowed(headers: object) -> set[str]:
    return {name for name in headers if name.startswith("access-control")}  # type: ignore[attr-defined]


def test_without_the_setting_no_page_may_read() -> None:
    async def scenario(it: Rig) -> None:
        assert not allowed((await it.flag("f", headers={"Origin": SHOP})).headers)
        reply = await it.call(BULK, method="OPTIONS", headers={"Origin": SHOP, **ASKS})
        assert reply.status == 405
        assert not allowed(reply.headers)

    run(scenario)


def test_listed_origin_may_read_etag_and_seq_too() -> None:
    async def scenario(it: Rig) -> None:
        for reply in (
            await it.flags(headers={"Origin": SHOP}),
            await it.flag("nobody", headers={"Origin": SHOP}),
            await it.call(BULK, b"{", headers={"Origin": SHOP}),
            await it.call("/nowhere", headers={"Origin": SHOP}),
            await it.flags(headers={"Origin": SHOP, "If-None-Match": "*"}),
        ):
            assert reply.headers["access-control-allow-origin"] == SHOP
            assert reply.headers["access-control-expose-headers"] == "ETag, flaghoist-seq, flaghoist-pin-miss"
            assert reply.headers["vary"] == "Origin"
            assert "access-control-allow-credentials" not in reply.headers

    run(scenario, cors=["https://other.example.org:8443", SHOP])


@pytest.mark.parametrize("origin", ["https://evil.example.org", SHOP + ":444", "http://shop.example.org", "null", ""])
def test_other_origin_is_answered_and_may_not_read(origin: str) -> None:
    async def scenario(it: Rig) -> None:
        reply = await it.flags(headers={"Origin": origin})
        assert reply.status == 200
        assert not allowed(reply.headers)
        assert reply.headers["vary"] == "Origin"
        reply = await it.call(BULK, method="OPTIONS", headers={"Origin": origin, **ASKS})
        assert not allowed(reply.headers)

    run(scenario, cors=[SHOP])


@pytest.mark.parametrize("path", [BULK, f"{BULK}/f", "/flagd.evaluation.v1.Service/ResolveAll"])
def test_preflight_allows_what_it_asks_for(path: str) -> None:
    async def scenario(it: Rig) -> None:
        reply = await it.call(path, method="OPTIONS", headers={"Origin": SHOP, **ASKS})
        assert (reply.status, reply.body) == (204, b"")
        assert reply.headers["access-control-allow-origin"] == SHOP
        assert "POST" in reply.headers["access-control-allow-methods"]
        assert reply.headers["access-control-allow-headers"] == "content-type,if-none-match"
        assert int(reply.headers["access-control-max-age"]) > 0

    run(scenario, cors=[SHOP])


def test_star_allows_every_origin_and_answers_do_not_vary() -> None:
    async def scenario(it: Rig) -> None:
        reply = await it.flags(headers={"Origin": "https://any.example.org"})
        assert reply.headers["access-control-allow-origin"] == "*"
        assert "vary" not in reply.headers
        reply = await it.call(BULK, method="OPTIONS")  # no preflight: no question in it
        assert reply.status == 405

    run(scenario, cors=["*"])


@pytest.mark.parametrize(
    "origin", ["", "shop.example.org", "https://shop.example.org/", "HTTPS://shop.example.org", "https://a b", "**"]
)
def test_origin_that_no_browser_sends_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(Misconfigured, match="allowed origin: want scheme"):
        Cors([SHOP, origin])
