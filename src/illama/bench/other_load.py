"""How busy other processes keep the CPU while something is measured (Linux)."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

OTHERS_LIMIT = 0.12  # cores; one busy neighbour makes two-thread timings 1.2 to 2.2 times longer
_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class LoadSample:
    """CPU seconds since boot at one moment: of the whole machine and of this process; and the wall clock."""

    machine_s: float
    own_s: float
    at_s: float


class OtherLoad:
    """Busy time of the machine (stolen by other virtual machines included) less that of this process and its children.

    Args:
        stat: Linux' /proc/stat.
    """

    def __init__(self, stat: Path = _STAT) -> None:
        self._stat = stat
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")

    @classmethod
    def here(cls) -> OtherLoad | None:
        """For this machine; None where the system does not tell."""
        return cls() if _STAT.is_file() else None

    def look(self) -> LoadSample:
        """Take note of now."""
        fields = [int(field) for field in self._stat.read_text().split("\n", 1)[0].split()[1:]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
        children = os.times()
        own = time.process_time() + children.children_user + children.children_system
        return LoadSample((user + nice + system + irq + softirq + steal) * self._tick_s, own, time.perf_counter())

    def since(self, before: LoadSample) -> float:
        """Cores that others kept busy since an earlier look: 0 none, 1 one whole core."""
        now = self.look()
        others = (now.machine_s - before.machine_s) - (now.own_s - before.own_s)
        return max(0.0, others / max(now.at_s - before.at_s, 1e-9))
