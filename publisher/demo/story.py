"""The demo's story, step by step; it goes on only while each step really holds."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import click

from flaghoist.ledger import Ledger
from flaghoist.log.base import Stream, read_to_end
from flaghoist.log.location import open_log
from flaghoist.root import Root
from publisher.cli.desk import Desk, Exit
from publisher.demo.attack import edited_entry, forged_entry
from publisher.demo.stage import SERVICES, Client, Sidecar, Stage, StepFailed, clients

RELEASE = "checkout-v2"
FLAGS = {service: f"{service}.{RELEASE}" for service in SERVICES}
USERS = [f"user-{number}" for number in range(200)]
LEAD = "1s"


@click.command()
@click.option(
    "--keep", metavar="DIR", type=click.Path(path_type=Path), help="Play in DIR and leave it there to look at."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def demo(desk: Desk, keep: Path | None, as_json: bool) -> Exit:
    """Show the whole story in half a minute, on a ledger of its own.

    Two people, a flag file, a release of three services: made inert, ramped to half of the users, the same ones
    everywhere, refused without approval, activated at one moment as live gRPC clients see; forged records that change
    nothing; all of it taken back by one emergency key, which people ratify; and an audit. Exits with 0 only if each
    step really held.
    """
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise click.UsageError(f"--keep {keep}: want an empty directory")
    directory = keep.resolve() if keep else Path(tempfile.mkdtemp(prefix="flaghoist-demo-"))
    stage = Stage(directory, desk)
    started_s = time.monotonic()
    try:
        figures = asyncio.run(_play(stage))
    except (StepFailed, ExceptionGroup) as failure:
        desk.fail("demo_failed", _reason(failure), "run it with --keep DIR and look into DIR")
        return Exit.BUG
    finally:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    took_s = time.monotonic() - started_s
    desk.result({**figures, "took_s": round(took_s, 1)}, f"\nEvery step held. It took {took_s:.0f} s.")
    desk.next_step("README.md, `flaghoist --help`, and a ledger of your own: `flaghoist init --solo --person YOU`")
    return Exit.OK


def _reason(failure: Exception) -> str:
    """Return why a step failed; anything but a StepFailed is a bug and goes on as it is."""
    if isinstance(failure, ExceptionGroup):
        failed, rest = failure.split(StepFailed)
        if rest is not None or failed is None:
            raise failure
        return "; ".join(_reason(part) for part in failed.exceptions)
    return str(failure)


async def _play(stage: Stage) -> dict[str, Any]:
    await _set_up(stage)
    await _create(stage)
    stage.step("A sidecar starts, with nothing but the pinned root to trust; the three services connect to it.")
    async with stage.sidecar() as sidecar, clients(sidecar.address, FLAGS) as watching:
        for client in watching:
            await client.until(False)
        stage.fact(f"{', '.join(c.service for c in watching)} see {RELEASE} = off, by gRPC")
        await _ramp(stage, watching)
        spread_ms, flip_ms = await _activate(stage, watching)
        await _attack(stage, sidecar, watching)
        revert_ms = await _revert(stage, watching)
    audit = await _audit(stage)
    return {"flip_ms": flip_ms, "spread_ms": spread_ms, "revert_ms": revert_ms, "audit": audit}


async def _set_up(stage: Stage) -> None:
    stage.step("Two people make keys, and a ledger is made whose changes need the other's approval.")
    for name in ("ada", "grace"):
        await stage.run("key", "new", name, "--person", f"{name}@example.org")
    await stage.run("key", "new", "grace-emergency", "--person", "grace@example.org")
    members = [a for name in ("ada", "grace") for a in ("--member", str(stage.home / "keys" / f"{name}.pub"))]
    # Two people on one machine, for half a minute: a team takes three, and a publisher that beats.
    alone = ("--root-threshold", "1", "--no-heartbeats")
    emergency = ("--emergency", str(stage.home / "keys" / "grace-emergency.pub"))
    await stage.run("init", "--log-id", "demo", "--ledger", stage.ledger, *members, *emergency, *alone, "--yes")

    stage.step("Ada imports a flagd file; Grace approves exactly these bytes; it is published.")
    file = stage.directory / "shop.flagd.json"
    file.write_bytes(resources.files("publisher.demo").joinpath("shop.flagd.json").read_bytes())
    await stage.run("import", str(file), "--team", "shop", "--key", "ada", "--yes")
    proposal = await _pending(stage)
    await stage.run("approve", proposal, "--key", "grace", "--yes")
    await stage.run("publish", proposal, "--yes")
    flags = await stage.run("flag", "list")
    stage.claim(len(flags) > 0, f"{len(flags)} flags are in the ledger")


async def _create(stage: Stage) -> None:
    stage.step("A feature spans three services: Ada makes a release of three flags with one gate. It is shut.")
    services = [word for service in SERVICES for word in ("--service", service)]
    plan = ("--pattern", "{service}.{release}", *services, "--title", "the rebuilt checkout")
    stages = ("--stage", "50%:1h", "--stage", "100%")
    await stage.run("release", "create", RELEASE, *plan, *stages, "--owner", "ada@example.org", "--key", "ada", "--yes")
    await _approve_and_publish(stage)


async def _ramp(stage: Stage, watching: Sequence[Client]) -> None:
    stage.step("Ada opens it to half of the users. Alone she cannot: without Grace, and by her own approval, no.")
    await stage.run("release", "ramp", RELEASE, "50%", "--key", "ada", "--yes")
    proposal = await _pending(stage)
    await stage.run("publish", proposal, "--yes", refused="not_approved")
    await stage.run("approve", proposal, "--key", "ada", "--yes", refused="same_person")
    stage.claim(all(client.value is False for client in watching), "every client still sees off")

    stage.step("Grace approves; it is published; the same half of the users has it in every service.")
    ramped = await _approve_and_publish(stage)
    for client in watching:
        await client.until_seq(ramped["seq"])
    chosen = [{user for user in USERS if await client.value_for(user)} for client in watching]
    stage.claim(
        all(users == chosen[0] for users in chosen) and 0 < len(chosen[0]) < len(USERS),
        f"of {len(USERS)} users the same {len(chosen[0])} in all three services",
    )


async def _activate(stage: Stage, watching: Sequence[Client]) -> tuple[float, float]:
    stage.step(f"Launch: everybody, everywhere, at one moment, {LEAD} after it is published.")
    await stage.run("release", "activate", RELEASE, "--in", LEAD, "--key", "ada", "--yes")
    activated = await _approve_and_publish(stage)
    seen_ms = await _seen(stage, activated, watching, value=True)
    first_s, last_s = (bound(client.seen_at_s for client in watching) for bound in (min, max))
    spread_ms = round((last_s - first_s) * 1000, 1)
    moment_ms = activated["published_at"] + float(LEAD.removesuffix("s")) * 1000
    stage.claim(first_s * 1000 >= moment_ms, f"none before the moment; the last {spread_ms} ms after the first")
    return spread_ms, round(seen_ms - (moment_ms - activated["published_at"]), 1)


async def _attack(stage: Stage, sidecar: Sidecar, watching: Sequence[Client]) -> None:
    stage.step("Someone with write access to the log, but without keys, adds records of their own.")
    root = Root.from_bytes((stage.home / "roots" / "demo.root").read_bytes())
    async with open_log(stage.ledger)(Stream.LEDGER) as log:
        honest = [record.value async for record in read_to_end(log)]
        records = {
            "a next entry signed by a stranger": await forged_entry(log, Ledger(root), now_ms=int(time.time() * 1000)),
            "the launch with another share than was approved": edited_entry(honest[-1]),
            "the import, replayed byte for byte": honest[1],
            "plain junk": b"\x00not a record",
        }
        for name, record in records.items():
            await log.append(record)
            stage.desk.print(f"  appended to the log: {name}")
    before = watching[0].seq
    await sidecar.until_event("record.dropped", 3)
    stage.fact("the sidecar has read them: three dropped with the reason, the replay ignored")
    for client in watching:
        await client.ask()
    unmoved = all(client.value is True and client.seq == before for client in watching)
    stage.claim(unmoved, f"every client still sees on, at seq {before}")
    verified = await stage.run("audit", "verify")
    stage.claim(verified["seq"] == before, f"the audit counts what they are worth: {verified['records']}")


async def _revert(stage: Stage, watching: Sequence[Client]) -> float:
    stage.step("Errors rise. Grace has an emergency key: alone, and at once, she takes the whole release back.")
    told = ("--emergency", "--reason", "errors rise", "--key", "grace-emergency")
    await stage.run("release", "revert", RELEASE, *told, "--yes")
    (entry,) = await stage.run("audit", "log", "--limit", "1")
    revert_ms = await _seen(stage, entry, watching, value=False)

    stage.step("It stays so whatever happens; Ada stands behind it afterwards.")
    emergency = str(entry["proposal"])
    await stage.run("approve", emergency, "--key", "grace", "--yes", refused="same_person")
    await stage.run("approve", emergency, "--key", "ada", "--yes")
    ratified = await stage.run("publish", emergency, "--yes")
    stage.claim(ratified["approvers"] == ["ada@example.org"], f"seq {ratified['seq']}: ratified by ada@example.org")
    return revert_ms


async def _approve_and_publish(stage: Stage) -> Any:
    """Let Grace approve the newest proposal, publish it, and return what publish said."""
    proposal = await _pending(stage)
    await stage.run("approve", proposal, "--key", "grace", "--yes")
    return await stage.run("publish", proposal, "--yes")


async def _seen(stage: Stage, published: Any, watching: Sequence[Client], *, value: bool) -> float:
    """Wait until every client sees what an entry says, and return how long after it was made the last one did."""
    for client in watching:
        await client.until(value)
    last = max(watching, key=lambda client: client.seen_at_s)
    took_ms = last.seen_at_s * 1000 - float(published["published_at"])
    stage.claim(
        all(client.seq == published["seq"] for client in watching),
        f"all three see {RELEASE} = {'on' if value else 'off'} at seq {published['seq']}, "
        f"the last {took_ms:.0f} ms after the entry was made",
    )
    return round(took_ms, 1)


async def _audit(stage: Stage) -> Any:
    stage.step("The audit: who asked, who approved, what changed, verified from the first entry.")
    log = await stage.run("audit", "log", "--reverse")
    for entry in log:
        stage.desk.print(f"    seq {entry['seq']}  {_people(entry)}: {entry['title']}")
    changes = [entry for entry in log if entry["kind"] == "change"]
    stage.claim(
        all(entry["approvers"] and entry["requester"] not in entry["approvers"] for entry in changes),
        f"{len(changes)} changes, each approved by somebody other than who asked",
    )
    killed = [entry["seq"] for entry in log if entry["kind"] == "emergency"]
    ratified = [entry["ratifies"] for entry in log if entry["kind"] == "ratification"]
    stage.claim(killed == ratified, f"{len(killed)} emergency, and people stand behind it")
    verified = await stage.run("audit", "verify")
    stage.claim(verified["seq"] == len(log), f"{verified['seq']} entries verified, head {verified['entry_hash'][:16]}…")
    return verified


def _people(entry: Mapping[str, Any]) -> str:
    approvers = ", ".join(entry["approvers"])
    match entry["kind"]:
        case "root":
            return f"signed by {', '.join(entry['root_signers'])}"
        case "emergency":
            return f"{entry['requester']} alone, in an emergency"
        case "ratification":
            return f"{approvers} approved"
        case _:
            return f"{entry['requester']} asked, {approvers} approved"


async def _pending(stage: Stage) -> str:
    """Return the id of the newest waiting proposal."""
    waiting = await stage.run("pending")
    return str(waiting[-1]["id"])
