"""The commands for administrators, by their names."""

import rich_click as click

from api.cli.batches import batch
from api.cli.businesses import business
from api.cli.keys import key
from api.cli.ledger import head, migrate, verify
from api.cli.members import member
from api.cli.resolve import resolve
from api.cli.users import user

COMMANDS: dict[str, click.Command] = {
    "migrate": migrate,
    "business": business,
    "key": key,
    "user": user,
    "batch": batch,
    "member": member,
    "verify": verify,
    "resolve": resolve,
    "head": head,
}
