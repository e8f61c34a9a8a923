"""Can what is answered 500 in doubt be recorded, and is something in doubt?"""

from collections.abc import Iterator
from contextlib import closing

from api.cli.doctor.findings import Finding, Status
from core.in_doubt.files import StateFolderError
from core.settings.loader import Settings
from core.settings.variables import variable_name
from workers.in_doubt import open_records


def check_in_doubt(settings: Settings) -> Iterator[Finding]:
    """Write to the state folder of this machine, and count the installation's records."""
    with closing(open_records(settings)) as records:
        try:
            records.files.check()
            yield Finding("state folder", Status.OK, f"{settings.state_dir} can be written")
        except StateFolderError as error:
            text = f"{error}; what is answered 500 in doubt is lost where Redis loses it"
            fix = f"set {variable_name('state_dir')} to a folder that the API's account may write and that stays"
            yield Finding("state folder", Status.WARNING, text, fix)
        if count := len(records.read()):
            text = f"{count} calls or payout batches were answered in doubt and are not finished"
            yield Finding("in doubt", Status.WARNING, text, "run: payouts resolve")
        elif not records.problems:
            yield Finding("in doubt", Status.OK, "nothing is in doubt")
