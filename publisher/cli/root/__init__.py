"""`flaghoist root`: show, pin, propose, sign and publish roots, which say who may do what."""

import click

from publisher.cli.root.pin import pin_root
from publisher.cli.root.propose import propose_root
from publisher.cli.root.publish import publish_root
from publisher.cli.root.show import show_root
from publisher.cli.root.sign import sign_root


@click.group()
def root() -> None:
    """Show, pin, propose, sign and publish roots: who may do what.

    \b
    One person proposes the next version, as many sign it as the version in force and the new one ask for,
    and it is published like any change (docs/roots.md):
      flaghoist root propose --add-member linus.pub
      flaghoist root sign
      flaghoist root publish
    """


for command in (show_root, pin_root, propose_root, sign_root, publish_root):
    root.add_command(command)
