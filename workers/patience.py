"""How long a worker waits for rows that others hold, so that one business never keeps it from the others."""

import time
from collections.abc import Callable
from uuid import UUID

_REMEMBERED_S = 2.0
BRIEF_WAIT_S = 0.005
"""For rows that are known as held: enough where they have come free."""


class Patience:
    """Hands out the time that a worker may wait for a business's rows.

    A wait in vain is remembered for two seconds: meanwhile the worker does not wait for that business again, and waits
    less for others. So of two seconds it spends about `wait_s` on waits in vain, whatever is held, and however many
    copies of a message arrive.
    """

    def __init__(self, wait_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._wait_s = wait_s
        self._clock = clock
        self._held_since: dict[UUID, float] = {}

    def is_known_as_held(self, business_id: UUID) -> bool:
        """Tell whether a wait for this business's rows was in vain lately."""
        since = self._held_since.get(business_id)
        if since is None:
            return False
        if self._clock() - since < _REMEMBERED_S:
            return True
        self._held_since.pop(business_id, None)
        return False

    def left_s(self) -> float:
        """Return how long one task may wait, for all its businesses that are not known as held."""
        now = self._clock()
        self._held_since = {id_: since for id_, since in self._held_since.items() if now - since < _REMEMBERED_S}
        return self._wait_s / (1 + len(self._held_since))

    def wait_for(self, business_id: UUID) -> float:
        """Return how long to wait for the rows of one business."""
        return BRIEF_WAIT_S if self.is_known_as_held(business_id) else self.left_s()

    def note_vain_wait(self, business_id: UUID) -> bool:
        """Remember that a business's rows were not to be had; tell whether that was not remembered yet."""
        if self.is_known_as_held(business_id):
            return False
        self._held_since[business_id] = self._clock()
        return True

    def note_success(self, business_id: UUID) -> None:
        """Forget that a business's rows were held."""
        self._held_since.pop(business_id, None)
