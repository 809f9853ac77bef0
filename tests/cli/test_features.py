"""`illama features` on a real, tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.conftest import Run


def test_features_are_written_and_read_by_other_tools(run: Run, digits_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.safetensors"
    code, said, err = run("features", digits_run, "--out", out, "--block", 0, "--tokens", "mean", "--device", "cpu")
    assert (code, err) == (0, "")
    found = load_file(out)
    assert found["values"].shape == (360, 64)
    assert found["values"].dtype == np.float32
    assert np.bincount(found["labels"]).sum() == 360
    assert found["positions"].tolist() == list(range(360))
    assert "360 images: mean of the patches after block 0 (layer 1), 64 numbers each" in said
    assert said.splitlines()[-1] == str(out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "f.npz"], "must end in .safetensors"),
        (["--out", "nowhere/f.safetensors"], "there is no folder nowhere"),
        (["--out", "f.safetensors", "--block", "7"], "block 7 does not exist; the model has blocks 0 to"),
        (["--out", "f.safetensors", "--data", "empty"], "is not a data set"),
        (["--out", "f.safetensors", "--tokens", "last"], "--tokens"),
    ],
)
def test_bad_input_is_one_line(
    run: Run, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    code, out, err = run("features", digits_run, "--device", "cpu", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*f.safetensors*"))
