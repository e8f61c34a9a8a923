"""What goes wrong in a way that whoever runs the command can put right."""


class UserError(Exception):
    """The text says in one line, for people, what is wrong: the docstring, where none is given.

    `exit_code` is the command's.
    """

    exit_code = 1

    def __init__(self, text: str | None = None) -> None:
        super().__init__(text or self.__doc__)
