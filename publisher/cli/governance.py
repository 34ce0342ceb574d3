"""The options that say who answers for a flag and how it should age."""

import functools
from collections.abc import Mapping

import click

from publisher.cli.desk import Exit
from publisher.cli.times import Span
from publisher.cli.workspace import Command

Governed = Mapping[str, object]


def governed(command: Command) -> Command:
    """Give a command the governance options, as one mapping of fields: None takes a field away."""

    @functools.wraps(command)
    def run(*args: object, **values: object) -> Exit | None:
        texts = {
            "owner": values.pop("owner"),
            "team": values.pop("team"),
            "category": values.pop("category"),
            "expires_at": values.pop("expires"),
            "ticket": values.pop("cleanup_ticket"),
            "safe_variant": values.pop("safe_variant"),
            "on_stale": values.pop("on_stale"),
        }
        fields: dict[str, object] = {name: text or None for name, text in texts.items() if text is not None}
        if fields.get("on_stale") == "rule":
            fields["on_stale"] = None
        max_stale_ms, services = values.pop("max_stale"), values.pop("services")
        if isinstance(max_stale_ms, int):
            fields["max_stale_s"] = max_stale_ms // 1000
        if isinstance(services, tuple) and services:
            fields["services"] = [service for service in services if service] or None
        return command(*args, governance=fields, **values)

    decorated: Command = run
    for option in reversed((
        click.option("--owner", metavar="PERSON", help="Who answers for it."),
        click.option("--team", metavar="TEAM", help="Whose it is."),
        click.option("--category", metavar="C", help="release, experiment, migration or operational."),
        click.option("--expires", metavar="DATE", help="When it should be gone: 2027-03-31."),
        click.option("--cleanup-ticket", metavar="TEXT", help="Where its removal is tracked."),
        click.option("--safe-variant", metavar="V", help="What `flaghoist kill` turns it to."),
        click.option("--on-stale", type=click.Choice(["safe_variant", "rule"]),
                     help="What is answered when the state is too old."),
        click.option("--max-stale", type=Span(), metavar="SPAN", help="How old that is: 5m, 2h."),
        click.option("--service", "services", multiple=True, metavar="NAME", help="A service that asks for it."),
    )):  # fmt: skip
        decorated = option(decorated)
    return decorated
