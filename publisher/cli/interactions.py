"""`flaghoist flag interactions`: which flags and releases touch the same things."""

from collections.abc import Sequence
from typing import Final

import click

from flaghoist.release_plan import flag_text
from flaghoist.values import FlagKey, Source, StateId, Target
from publisher.cli.desk import Exit
from publisher.cli.reading import Reading, read
from publisher.cli.workspace import Workspace, operation
from publisher.releases.attributes import WHOLE_CONTEXT
from publisher.releases.interactions import Interaction, Party, Why, interactions

# A line of a terminal holds about this many names; `--json` has them all.
PARTIES_SHOWN: Final = 6


@click.command("interactions")
@click.argument("key", metavar="[KEY|RELEASE]", required=False)
@click.option("--why", "wanted", multiple=True, type=click.Choice([why.value for why in Why]),
              help="Only interactions of this sort; may be given several times.")  # fmt: skip
@operation(ledger=True)
def list_interactions(work: Workspace, key: str | None, wanted: tuple[str, ...]) -> Exit:
    """List flags and releases that touch the same things: look here before you change one of them.

    A release and its flags count as one. With KEY or RELEASE, only what concerns that flag or release.

    \b
    What joins them, the closest tie first:
      gates      one flag is gated by several releases
      requires   a release requires others
      salt       releases that choose the same users, by salt and bucket key
      evaluator  their rules refer to the same evaluator
      service    they touch the same service
      attribute  their rules read the same attribute of the context

    \b
    Examples:
      flaghoist flag interactions
      flaghoist flag interactions spring-checkout
      flaghoist flag interactions newCheckout --why service --why evaluator
    """
    reading = read(work)
    found = [tie for tie in interactions(reading.snapshot) if not wanted or tie.why in wanted]
    of_flag: Sequence[FlagKey] = ()
    if key is not None:
        release, flags = _meant(reading, key)
        found = [tie for tie in found if tie.touches(release=release, flags=flags)]
        releases = reading.snapshot.releases
        of_flag = sorted(name for name in releases if name != release and set(flags) & set(releases[name].plan.flags))
    work.desk.result([_fields(tie) for tie in found])
    if found:
        work.desk.table(("why", "what", "who"), [(tie.why, _thing(tie), _who(tie.parties)) for tie in found])
    elif not work.desk.as_json:
        work.desk.say("no interaction" + (f" of {key}" if key is not None else ""))
    if of_flag:
        work.desk.next_step(f"`flaghoist flag interactions {of_flag[0]}` for the release that it is a flag of")
    return Exit.OK


def _meant(reading: Reading, key: str) -> tuple[FlagKey | None, Sequence[tuple[Source, FlagKey]]]:
    """Return the release of a name, and the flag of a key; one name may be both.

    Raises:
        UnknownFlag: it is neither.
    """
    release = FlagKey(key) if "#" not in key and FlagKey(key) in reading.snapshot.releases else None
    if release is not None and not reading.snapshot.has(StateId(Target.FLAG, Source(""), release)):
        return release, ()
    flag = reading.find_flag(key)
    return release, [(flag.source, flag.key)]


def _fields(tie: Interaction) -> dict[str, object]:
    return {
        "why": tie.why,
        "what": tie.on,
        "parties": [
            {"release": party.release, "flags": [flag_text(*flag) for flag in party.flags]} for party in tie.parties
        ],
    }


def _thing(tie: Interaction) -> str:
    return "the whole context" if tie.why is Why.ATTRIBUTE and tie.on == WHOLE_CONTEXT else tie.on


def _who(parties: Sequence[Party]) -> str:
    shown = ", ".join(_short(party) for party in parties[:PARTIES_SHOWN])
    left = len(parties) - PARTIES_SHOWN
    return shown if left <= 0 else f"{shown} and {left} more"


def _short(party: Party) -> str:
    if party.release is None or len(party.flags) <= 2:
        return str(party)
    return f"release {party.release} ({len(party.flags)} of its flags)"
