"""Templates, and how values are written in them: everything is escaped, and a name that is missing is an error."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from api.dashboard.forms import new_form_id
from api.web.assets import Assets
from core.ids import IdKind, format_id
from core.money import format_decimal, format_dollars
from core.parties.audit import Action, Entry

_ACTIONS: dict[str, str] = {
    Action.BUSINESS_CREATED: "Created the business",
    Action.BUSINESS_DEPOSITED: "Added to the main balance",
    Action.BUSINESS_FUNDED: "Added to the payout balance",
    Action.BUSINESS_FUNDS_ADDED: "Moved to the payout balance",
    Action.PAYOUTS_ENABLED: "Enabled payouts",
    Action.PAYOUTS_DISABLED: "Disabled payouts",
    Action.KEYS_REQUIRED: "Required keys",
    Action.KEYS_NOT_REQUIRED: "Stopped requiring keys",
    Action.LOW_BALANCE_THRESHOLD_SET: "Set the low-balance warning",
    Action.SUMS_RECOUNTED: "Had the sums by day counted anew",
    Action.KEY_CREATED: "Created a key",
    Action.KEY_ROLLED: "Rolled a key",
    Action.KEY_REVOKED: "Revoked a key",
    Action.USER_ACTIVATED: "Activated a user",
    Action.USER_DEACTIVATED: "Deactivated a user",
    Action.BATCH_ACCEPTED: "Paid a batch",
    Action.BATCH_CANCELLED: "Cancelled a batch",
    Action.MEMBER_INVITED: "Invited a member",
    Action.INVITATION_WITHDRAWN: "Withdrew an invitation",
    Action.MEMBER_JOINED: "Joined",
    Action.MEMBER_ROLE_SET: "Set a member's role",
    Action.MEMBER_REMOVED: "Removed a member",
}
_TEMPLATES = Path(__file__).resolve().parent / "templates"


class Renderer:
    """Makes HTML of templates."""

    def __init__(self, assets: Assets) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.globals.update(asset=assets.url, new_form_id=new_form_id)
        self._environment.filters.update(
            dollars=format_dollars,
            decimal=format_decimal,
            count=lambda number: f"{number:,}",
            time=_write_time,
            day=lambda moment: f"{moment.day} {moment:%b %Y}",
            id=write_id,
            query=_write_query,
            action=_write_action,
            about=_write_about,
        )

    def render(self, template: str, values: Mapping[str, Any]) -> str:
        """Fill a template in."""
        return self._environment.get_template(template).render(values)


def write_id(value: UUID, kind: str) -> str:
    """Write an id as programs see it: of kind `user`, for instance, `usr_…`."""
    return format_id(IdKind[kind.upper()], value)


def _write_time(moment: datetime) -> str:
    return f"{moment.day} {moment:%b %Y, %H:%M:%S}"


def _write_query(values: Mapping[str, Any]) -> str:
    """Write a query of the values that are not empty, with its question mark."""
    given = {name: value for name, value in values.items() if value not in (None, "")}
    return "?" + urlencode(given) if given else ""


def _write_action(action: str) -> str:
    """Write what was done; what a later version calls something new is shown as it stands."""
    return _ACTIONS.get(action, action)


def _write_about(entry: Entry) -> str:
    """Write what an entry of the audit log is about, with what matters of its details."""
    details = entry.details
    parts = [str(details.get("email") or entry.subject)]
    if "last4" in details:
        name = f" “{details['name']}”" if details.get("name") else ""
        parts = [f"…{details['last4']}{name}"]
    if details.get("total") is not None:
        parts.append(f"rows: {details['total']:,}")
    if "threshold" in details:
        parts.append("none" if details["threshold"] is None else f"below {format_dollars(details['threshold'])}")
    if "amount" in details:
        parts.append(format_dollars(details["amount"]))
    if "given_back" in details:
        parts.append(f"{format_dollars(details['given_back'])} given back")
    if "role" in details:
        parts.append(f"as {details['role']}")
    if "grace_s" in details:
        parts.append(f"the old one ends after {_show_seconds(details['grace_s'])}" if details["grace_s"] else "at once")
    return ", ".join(part for part in parts if part)


def _show_seconds(seconds: int) -> str:
    """Write a time in its units: `1 h 30 min`."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    units = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{count} {unit}" for count, unit in units if count)
