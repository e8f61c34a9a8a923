"""A reading under way: the limits on rows and time, and what is to be noted."""

from collections.abc import Callable

from api.batches.reader.mistakes import FileMistakeError, Mistake, Reason
from api.batches.reader.options import Options
from api.batches.reader.reading import Reading
from api.batches.reader.row_check import RowCheck

_CHECK_TIME_EVERY = 1_000


class Progress:
    """A reading, how it is to be done, and how far it is."""

    def __init__(self, reading: Reading, options: Options, check_time: Callable[[], None]) -> None:
        self.reading = reading
        self.options = options
        self.check_time = check_time

    @property
    def is_call(self) -> bool:
        """Whether an API call sent the file: it gets the first mistake of the file as a whole."""
        return self.options.file_format is not None

    def take_mistakes(self, check: RowCheck) -> None:
        """Let a check note its mistakes among those of the file, in their order."""
        check.mistakes = self.reading.mistakes

    def take_rows(self, check: RowCheck) -> None:
        """Take over what a check found, whether the reading came to its end or not."""
        reading = self.reading
        reading.rows, reading.lines, reading.count = check.rows, check.lines, check.count + reading.paid_before

    def refuse_line(self, check: RowCheck, reason: Reason, line: int, **details: object) -> None:
        """Note a line that is no row; a call is refused at once.

        Raises:
            FileMistakeError: a call sent it.

        """
        if self.is_call:
            raise FileMistakeError(reason, line, **details)
        self.reading.mistakes.append(Mistake(reason, details, line))
        check.wrong_rows += 1
        check.count += 1

    def goes_on(self, check: RowCheck) -> bool:
        """Tell whether another row is to be read.

        Raises:
            FileMistakeError: there are too many.

        """
        options = self.options
        if check.count % _CHECK_TIME_EVERY == 0:
            self.check_time()
        if options.rows_max is not None and check.count >= options.rows_max:
            raise FileMistakeError(Reason.TOO_MANY_ROWS, most=options.rows_max)
        return not (options.stops_early and self.is_only_counted(check))

    def is_only_counted(self, check: RowCheck) -> bool:
        """Tell whether so many rows are wrong that the others are not looked at."""
        most = self.options.wrong_rows_max
        return most is not None and check.wrong_rows >= most
