"""Reading the Procfile: the name and the shell command of each process."""

import re

from core.errors import UserError

_LINE = re.compile(r"(?P<name>[A-Za-z0-9_-]+):\s*(?P<command>\S.*)")


class ProcfileError(UserError):
    """A line of the Procfile is neither `name: command` nor a comment."""


def parse_procfile(text: str) -> dict[str, str]:
    """Return the command of each process by its name, in the order of the lines.

    Raises:
        ProcfileError: a line is neither `name: command` nor a comment, or names a process again.

    """
    commands: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        match = _LINE.fullmatch(content)
        if match is None or match["name"] in commands:
            problem = f"Procfile, line {number}: expected `name: command`, each name once"
            raise ProcfileError(problem)
        commands[match["name"]] = match["command"]
    return commands
