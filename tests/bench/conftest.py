"""A clock that obeys, and ceilings that need no measurement."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from illama.bench import attention, model, report
from illama.bench.machine import Ceilings
from illama.bench.networks import Network, Treatment, network_builders
from illama.bench.options import ModelOptions
from illama.models.config import ModelConfig

TOY = ModelConfig(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)
CEILINGS = Ceilings(
    {"float32": 1e9, "bf16": 2e9}, {"float32": "a guess", "bf16": "a guess"}, {1 << 20: 1e9, 1 << 28: 1e8}
)


def build_networks(treatment: Treatment, options: ModelOptions) -> list[Network]:
    """All networks of a group."""
    return [build() for build in network_builders(treatment, options).values()]


class FakeTimer:
    """Runs a call once for each request and says that it took as long as told.

    Attributes:
        asked: (call, number of calls) of every request, in order.
    """

    def __init__(self, seconds_of: Callable[[Callable[[], object]], float]) -> None:
        self.seconds_of = seconds_of
        self.asked: list[tuple[Callable[[], object], int]] = []

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        self.asked.append((run, calls))
        run()
        return calls * self.seconds_of(run)


@pytest.fixture
def known_ceilings(monkeypatch: pytest.MonkeyPatch) -> Ceilings:
    """Replaces the measurement of the machine; and nobody looks at other processes."""
    monkeypatch.setattr(report, "measure_ceilings", lambda device, precisions: CEILINGS)
    for module in (model, attention):
        monkeypatch.setattr(module.OtherLoad, "here", classmethod(lambda cls: None))
    return CEILINGS
