"""`illama bench`: how fast, beside what people use today, and what bounds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from illama.bench.options import AttentionBenchOptions, DataOptions, ModelOptions
from illama.cli.output import STDOUT, Json, check_targets, hand_over, write_result
from illama.console.text import as_json
from illama.system.files import is_stream

if TYPE_CHECKING:
    from illama.bench.options import EffortOptions
    from illama.bench.report import Report

    Keep = Callable[[Report], None]

bench_command = App(
    name="bench",
    help="Measure speed side by side with timm's ViT or your own network, in interleaved rounds, on this machine.",
)


@bench_command.command(name="model")
def model_command(
    options: Annotated[ModelOptions, Parameter(name="*")] = ModelOptions(),  # noqa: B008 - frozen
    *,
    json: Json = None,
) -> None:
    """Prediction: images/s, ms, memory and the two floors, beside timm's ViT of the same size."""
    from illama.bench.model import bench_networks

    _run(lambda keep: bench_networks(options, training=False, keep=keep), options, json)


@bench_command.command(name="train")
def train_command(
    options: Annotated[ModelOptions, Parameter(name="*")] = ModelOptions(),  # noqa: B008 - frozen
    *,
    json: Json = None,
) -> None:
    """A training step (forward, backward, AdamW), beside timm's ViT of the same size."""
    from illama.bench.model import bench_networks

    _run(lambda keep: bench_networks(options, training=True, keep=keep), options, json)


@bench_command.command(name="attention")
def attention_command(
    options: Annotated[AttentionBenchOptions, Parameter(name="*")] = AttentionBenchOptions(),  # noqa: B008 - frozen
    *,
    json: Json = None,
) -> None:
    """Attention alone: every backend that can serve, beside torch's fused attention."""
    from illama.bench.attention import bench_attention

    _run(lambda keep: bench_attention(options, keep=keep), options, json)


@bench_command.command(name="data")
def data_command(
    source: str,
    /,
    *overrides: str,
    options: Annotated[DataOptions, Parameter(name="*")] = DataOptions(),  # noqa: B008 - frozen
    json: Json = None,
) -> None:
    """Reading and augmenting images for training, beside timm's loader where the source is an image folder.

    Args:
        source: A folder of images, a parquet file, or a data set's name such as digits.
        overrides: Changes of the recipe such as augment.randaugment=null.
    """
    from illama.bench.data import bench_data

    _run(lambda keep: bench_data(source, overrides, options), options, json)


def _run(measure: Callable[[Keep], Report], options: EffortOptions, json: str | None) -> None:
    """Refuse results that cannot be written, measure, print the report and write what was asked for.

    Files are written after each group as well: an interrupted bench keeps what it has measured.
    """
    from illama.bench.report import check_folder, print_report, write_report

    check_targets(json=json)
    check_folder(options.out)
    file = None if json is None or json == STDOUT or is_stream(Path(json)) else json

    def keep(report: Report) -> None:
        if file is not None:
            write_result(file, as_json(report.to_dict()))
        if options.out is not None:
            write_report(report, options.out, chart=False)

    report = measure(keep)
    hand_over(json, report.to_dict, lambda: print_report(report))
    if options.out is not None:
        for path in write_report(report, options.out):
            if json != STDOUT:
                print(path)
