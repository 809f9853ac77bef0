"""One copy for everything that the host has made for a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from illama.data.loading.batch import constant, pack, to_device, unpack

TENSORS = [
    torch.tensor([True, False, True]),
    torch.arange(6).view(2, 3),
    torch.tensor(1.5),
    torch.empty(0, 4, dtype=torch.float64),
    torch.arange(7, dtype=torch.uint8),
    torch.randn(3, 1, 2),
    torch.randn(4, 5).T,
]


def test_what_is_packed_comes_back() -> None:
    for order in (TENSORS, TENSORS[::-1], [TENSORS[0]] * 3):
        packed = pack(order)
        assert packed.dtype == torch.uint8
        for sent, got in zip(order, unpack(packed, order), strict=True):
            assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
            assert torch.equal(got, sent)
            assert got.data_ptr() % got.itemsize == 0


def test_containers_keep_their_form_and_what_is_there_stays() -> None:
    there = torch.empty(3, device="meta")
    plain: dict[str, Any] = {"a": (TENSORS[1], None, 7), "b": [there, {"c": TENSORS[0]}], "d": "word"}
    moved = to_device(plain, torch.device("meta"))
    assert moved["b"][0] is there
    assert (moved["a"][1:], moved["d"]) == ((None, 7), "word")
    for sent, got in ((plain["a"][0], moved["a"][0]), (plain["b"][1]["c"], moved["b"][1]["c"])):
        assert (got.device.type, got.dtype, got.shape) == ("meta", sent.dtype, sent.shape)
    assert to_device(plain, torch.device("cpu")) is plain
    assert to_device([1, None], torch.device("meta")) == [1, None]


def test_constants_are_made_once() -> None:
    where = torch.float32, torch.device("cpu")
    assert constant((0.1, 0.2), *where) is constant((0.1, 0.2), *where)
    assert constant((0.1, 0.2), *where) is not constant((0.1, 0.3), *where)
    assert constant((1, 2), torch.uint8, torch.device("meta")).device.type == "meta"


@pytest.mark.gpu
def test_a_device_gets_the_values() -> None:
    for sent, got in zip(TENSORS, to_device(TENSORS, torch.device("cuda")), strict=True):
        assert torch.equal(got.cpu(), sent)
