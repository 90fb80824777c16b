"""Whether answers go on."""

from __future__ import annotations

from typing import Optional


class Pulse:
    """Hears now and then how many passes of the model there were, and how many answers are waited for.

    >>> pulse = Pulse(patience=60.0)
    >>> [pulse.beats(passes, waiting, now) for passes, waiting, now in [(7, 1, 0.0), (7, 1, 59.0), (7, 1, 61.0), (8, 1, 62.0), (8, 0, 999.0), (8, 1, 1000.0)]]
    [True, True, False, True, True, True]
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._passes: Optional[int] = None
        self._since = 0.0

    def beats(self, passes: int, waiting: int, now: float) -> bool:
        """False where somebody waits and no pass has ended for longer than `patience` seconds."""
        if passes != self._passes or not waiting:
            self._passes, self._since = passes, now
        return now - self._since <= self._patience
