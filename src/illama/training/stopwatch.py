"""Time spent training, and the share of it spent waiting for data."""

from __future__ import annotations

import time


class Stopwatch:
    """Training time, without the pauses for evaluation and saving."""

    def __init__(self) -> None:
        self._images, self._waited, self._training = 0, 0.0, 0.0
        self._unsaved = 0.0
        self._since = time.perf_counter()

    def count(self, images: int, waited: float) -> None:
        """Note a step's images and the seconds it waited for data."""
        self._images += images
        self._waited += waited

    def pause(self) -> None:
        """Stop counting towards images/s."""
        now = time.perf_counter()
        self._training += now - self._since
        self._unsaved += now - self._since
        self._since = now

    def go_on(self) -> None:
        """Count again after a pause; the pause belongs to the run's time but not to images/s."""
        now = time.perf_counter()
        self._unsaved += now - self._since
        self._since = now

    def rates(self) -> tuple[float, float]:
        """(images per second, share of the time spent waiting for data) since the last call."""
        self.pause()
        seconds = max(self._training, 1e-9)
        rates = self._images / seconds, self._waited / seconds
        self._images, self._waited, self._training = 0, 0.0, 0.0
        return rates

    def taken(self) -> float:
        """Seconds since the last call, pauses included."""
        now = time.perf_counter()
        taken, self._unsaved = self._unsaved + now - self._since, 0.0
        self._since = now
        return taken
