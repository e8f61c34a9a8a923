"""The commands for a business's members: who may sign in to its dashboard."""

from typing import Any

import rich_click as click
from sqlalchemy import Connection

from api.cli.options import admin_options, find_business, find_own_url, format_time, print_document
from core import admin_actions
from core.credentials import Mode
from core.database.connection import Database
from core.emails import normalise_email
from core.ids import IdKind, format_id
from core.parties import invitations, members
from core.parties.accounts import AccountError
from core.parties.audit import COMMAND_LINE
from core.parties.businesses import Business, get_business
from core.parties.invitations import Invitation
from core.parties.members import Member, Role

_DEFAULT_URL = "http://127.0.0.1:8000"


@click.group()
def member() -> None:
    """Invite, list and remove members, who may sign in to the dashboard."""


@member.command("invite")
@click.argument("business_ref", metavar="BUSINESS")
@click.argument("email")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    default=Role.ADMIN.value,
    show_default=True,
    help="A viewer reads; an admin also changes things.",
)
@click.option(
    "--url",
    envvar="PAYOUTS_URL",
    help=f"Server that the link names. Default: $PAYOUTS_URL, the address of `payouts up`, or {_DEFAULT_URL}.",
)
@admin_options
def member_invite(
    business_ref: str, email: str, role: str, url: str | None, *, database: Database, as_json: bool
) -> None:
    """Invite an e-mail to a business. Prints a link, once; it works once and for a week."""
    url = url or find_own_url() or _DEFAULT_URL
    if not url.startswith(("http://", "https://")):
        text = f"{url!r} is not a URL that starts with http:// or https://."
        raise click.BadParameter(text, param_hint="--url")
    with database.transaction() as connection:
        business = _find_live_business(connection, business_ref)
        token = admin_actions.invite_member(connection, COMMAND_LINE, business.id, email, Role(role))
        invitation = invitations.read_invitation(connection, token)
    assert invitation is not None  # noqa: S101 (it was made just now)
    link = f"{url.rstrip('/')}/dashboard/invitations/{token}"
    lines = [
        f"{invitation.email} is invited to {invitation.business_name} as {invitation.role}. Hand this link on:",
        f"  {link}",
        f"It is shown only now, works once, and until {format_time(invitation.expires_at)}.",
    ]
    print_document(_invitation_document(business, invitation) | {"link": link}, lines, as_json=as_json)


@member.command("list")
@click.argument("business_ref", metavar="BUSINESS")
@admin_options
def member_list(business_ref: str, *, database: Database, as_json: bool) -> None:
    """List a business's members and open invitations."""
    with database.transaction() as connection:
        business = _find_live_business(connection, business_ref)
        found = members.list_members(connection, business.id)
        invited = invitations.list_invitations(connection, business.id)
    lines = [f"{each.role:<6}  member since {format_time(each.created_at)}  {each.email}" for each in found]
    lines += [f"{each.role:<6}  invited until {format_time(each.expires_at)}  {each.email}" for each in invited]
    documents = [_member_document(business, each) for each in found]
    documents += [_invitation_document(business, each) for each in invited]
    print_document(documents, lines or ["There are no members yet."], as_json=as_json)


@member.command("remove")
@click.argument("business_ref", metavar="BUSINESS")
@click.argument("email")
@admin_options
def member_remove(business_ref: str, email: str, *, database: Database, as_json: bool) -> None:
    """Remove a member or cancel an invitation."""
    with database.transaction() as connection:
        business = _find_live_business(connection, business_ref)
        document, line = _remove(connection, business, normalise_email(email.strip()))
    print_document(document, [line], as_json=as_json)


def _remove(connection: Connection, business: Business, email: str | None) -> tuple[dict[str, Any], str]:
    for found in members.list_members(connection, business.id):
        if found.email == email:
            admin_actions.remove_member(connection, COMMAND_LINE, business.id, found.account_id)
            return _member_document(business, found), f"{found.email} is no member any more."
    for invitation in invitations.list_invitations(connection, business.id):
        if invitation.email == email:
            admin_actions.withdraw_invitation(connection, COMMAND_LINE, business.id, invitation.id)
            return _invitation_document(business, invitation), f"The invitation of {invitation.email} is ended."
    text = "There is no member with this e-mail, and none is invited."
    raise AccountError(text)


def _find_live_business(connection: Connection, reference: str) -> Business:
    found = find_business(connection, reference)
    return found if found.mode is Mode.LIVE else get_business(connection, found.twin_id)


def _member_document(business: Business, each: Member) -> dict[str, Any]:
    return {
        "business_id": format_id(IdKind.BUSINESS, business.id),
        "email": each.email,
        "role": each.role,
        "status": "member",
        "created_at": format_time(each.created_at),
        "expires_at": None,
    }


def _invitation_document(business: Business, each: Invitation) -> dict[str, Any]:
    return {
        "business_id": format_id(IdKind.BUSINESS, business.id),
        "email": each.email,
        "role": each.role,
        "status": "invited",
        "created_at": format_time(each.created_at),
        "expires_at": format_time(each.expires_at),
    }
