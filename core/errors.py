"""What goes wrong in a way that whoever runs the command can put right."""


class UserError(Exception):
    """The text says in one line, for people, what is wrong; `exit_code` is the command's."""

    exit_code = 1
