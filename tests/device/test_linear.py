"""The one linear function equals F.linear, and steps aside where it must."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from illama import UserError
from illama.device import linear as module
from illama.device.linear import KINDS, Linear, keep_linear_kernels, linear, linear_kernel, linear_kernels, project_rows
from tests.attention.common import poisoned

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="needs oneDNN's linear operator"
)

# Leading axes, inputs, outputs: the smallest, then products on both sides of every threshold, wide and narrow.
SHAPES = [
    ((1,), 8, 8),
    ((2, 5), 32, 96),
    ((4, 500), 512, 512),  # few rows
    ((16, 100), 64, 192),
    ((2, 197), 192, 576),
    ((2, 197), 576, 192),
    ((2, 3, 197), 192, 512),  # four axes
    ((1100,), 128, 384),  # so many rows that the gradient of the weight is transposed
]

Products = list[tuple[int, ...]]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Products:
    """Makes oneDNN the kernel; the shapes of the left factors of all products it is asked for."""
    keep_linear_kernels("onednn")
    asked: Products = []
    original = module.onednn_product

    def counted(x: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
        asked.append(tuple(x.shape))
        return original(x, *others)

    monkeypatch.setattr(module, "onednn_product", counted)
    return asked


def draw(lead: tuple[int, ...], inputs: int, outputs: int, bias: bool = True) -> list[torch.Tensor | None]:
    x, weight = torch.randn(*lead, inputs), torch.randn(outputs, inputs) / inputs**0.5
    return [x, weight, torch.randn(outputs) if bias else None]


def outputs_and_gradients(function: Callable, tensors: list, d_out: torch.Tensor) -> list[torch.Tensor]:
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    out = function(*leaves)
    out.backward(d_out)
    return [out.detach(), *(t.grad for t in leaves if t is not None)]


def assert_equal_up_to_rounding(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for mine, other in zip(found, expected, strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
        assert (mine - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", ["onednn", "mkl"])
@pytest.mark.parametrize(("lead", "inputs", "outputs"), SHAPES)
def test_equals_torchs(monkeypatch, lead: tuple[int, ...], inputs: int, outputs: int, kernel: str, bias: bool) -> None:
    """Output and gradients, each run giving the same bits, from memory poisoned with NaN."""
    keep_linear_kernels(kernel)
    tensors, d_out = draw(lead, inputs, outputs, bias), torch.randn(*lead, outputs)
    expected = outputs_and_gradients(F.linear, tensors, d_out)
    with poisoned():
        found, again = (outputs_and_gradients(linear, tensors, d_out) for _ in range(2))
    assert_equal_up_to_rounding(found, expected)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    with torch.inference_mode():
        assert_equal_up_to_rounding([linear(*tensors)], expected[:1])


def test_large_products_go_to_onednn_and_small_ones_do_not(products: Products) -> None:
    outputs_and_gradients(linear, draw((4,), 8, 8), torch.randn(4, 8))
    with torch.no_grad():
        linear(*draw((2,), 3000, 3000))  # as many multiply-adds, in two rows
    assert products == []
    outputs_and_gradients(linear, draw((400,), 192, 576), torch.randn(400, 576))
    assert len(products) == 3, "forward, gradient of x, gradient of the weight"
    products.clear()
    with torch.no_grad():
        linear(*draw((400,), 192, 576))
    assert len(products) == 1


def test_memory_of_any_layout(products: Products) -> None:
    x, weight, bias = draw((3, 200), 192, 576)
    d_out = torch.randn(3, 200, 576)
    expected = outputs_and_gradients(F.linear, [x, weight, bias], d_out)
    strided_x = x.transpose(0, 1).contiguous().transpose(0, 1)
    strided_weight = weight.t().contiguous().t()
    apart = torch.stack([x, x], dim=-1)[..., 0]
    for given in ([strided_x, weight, bias], [x, strided_weight, bias], [apart, weight, bias]):
        assert_equal_up_to_rounding(outputs_and_gradients(linear, given, d_out), expected)
    zero_strides = torch.ones(()).expand(3, 200, 576)  # the cotangent of a sum
    summed = outputs_and_gradients(F.linear, [x, weight, bias], zero_strides)
    assert_equal_up_to_rounding(outputs_and_gradients(linear, [x, weight, bias], zero_strides), summed)
    transposed = d_out.transpose(0, 2).contiguous().transpose(0, 2)
    assert_equal_up_to_rounding(outputs_and_gradients(linear, [x, weight, bias], transposed), expected)
    assert products


@pytest.mark.parametrize("learned", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_gradients_of_some_arguments_alone(products: Products, learned: tuple[int, ...]) -> None:
    drawn, d_out = draw((400,), 192, 576), torch.randn(400, 576)

    def gradients(function: Callable) -> list[torch.Tensor | None]:
        leaves = [t.detach().requires_grad_(index in learned) for index, t in enumerate(drawn)]
        function(*leaves).backward(d_out)
        assert [leaf.grad is not None for leaf in leaves] == [index in learned for index in range(3)]
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    assert_equal_up_to_rounding(gradients(linear), gradients(F.linear))
    assert products


@pytest.mark.parametrize("bias", [True, False])
def test_second_derivative_equals_torchs(products: Products, bias: bool) -> None:
    drawn = draw((400,), 192, 576, bias)

    def second(function: Callable) -> list[torch.Tensor]:
        leaves = [None if t is None else t.detach().double().float().requires_grad_() for t in drawn]
        learned = [t for t in leaves if t is not None]
        loss = function(*leaves).sigmoid().square().sum()
        first = torch.autograd.grad(loss, learned, create_graph=True)
        return list(torch.autograd.grad(sum(t.square().sum() for t in first), learned))

    found, expected = second(linear), second(F.linear)
    assert products
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).norm() <= 1e-5 * other.norm()


class Scaled(torch.Tensor):
    """A weight that brings its own product, as quantized ones do."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function is F.linear:
            x, weight, bias = arguments
            return F.linear(x, 2 * weight.as_subclass(torch.Tensor), bias)
        return super().__torch_function__(function, types, arguments, options or {})


def _by_autocast(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return linear(x, weight)


def _by_compiler(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    torch._dynamo.reset()
    return torch.compile(linear, backend="eager", fullgraph=True)(x, weight)


def _by_export(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    layer = Linear(192, 576, bias=False)
    layer.weight.data = weight
    program = torch.export.export(layer, (x,))
    assert {str(node.target) for node in program.graph.nodes if node.op == "call_function"} == {"aten.linear.default"}
    return program.module()(x)


def _by_tracing(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    traced = torch.jit.trace(lambda x, weight: linear(x, weight), (x, weight), check_trace=False)  # which runs eagerly
    assert "aten::linear" in str(traced.graph)
    return traced(x, weight)


def _by_vmap(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.func.vmap(linear, in_dims=(0, None))(x[None], weight)[0]


def _by_functional_gradient(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    out, pull_back = torch.func.vjp(lambda x: linear(x, weight), x)
    torch.testing.assert_close(pull_back(torch.ones_like(out))[0], weight.sum(0).expand(400, -1))
    return out


def _in_double(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return linear(x.double(), weight.double())


def _in_half(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return linear(x.bfloat16(), weight.bfloat16())


def _switched_off(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    torch._C._set_mkldnn_enabled(False)  # what torch.backends.mkldnn.flags does, without its warning about TF32
    try:
        return linear(x, weight)
    finally:
        torch._C._set_mkldnn_enabled(True)


@pytest.mark.parametrize(
    "way",
    [
        _by_autocast,
        _by_compiler,
        _by_export,
        _by_tracing,
        _by_vmap,
        _by_functional_gradient,
        _in_double,
        _in_half,
        _switched_off,
    ],
)
def test_steps_aside(products: Products, way: Callable) -> None:
    x, weight = torch.randn(400, 192), torch.randn(576, 192) / 192**0.5
    found, expected = way(x, weight), F.linear(x, weight)
    assert products == []
    half = found.dtype == torch.bfloat16
    assert (found.to(expected.dtype) - expected).norm() <= (1e-2 if half else 1e-6) * expected.norm()
    linear(x, weight)
    assert len(products) == 1, "the same product in plain eager mode is oneDNN's"


def test_a_weight_that_brings_its_own_product_uses_it(products: Products) -> None:
    x, weight = torch.randn(400, 192), torch.randn(576, 192)
    found = linear(x, weight.as_subclass(Scaled))
    torch.testing.assert_close(found.as_subclass(torch.Tensor), F.linear(x, 2 * weight), rtol=1e-5, atol=1e-4)
    assert products == []


def test_mixed_dtypes_are_torchs_error(products: Products) -> None:
    x, weight = torch.randn(400, 192), torch.randn(576, 192, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="same dtype"):
        linear(x, weight)


def test_the_layer_is_torchs_with_another_product(products: Products) -> None:
    layer, plain = Linear(192, 576), nn.Linear(192, 576)
    assert isinstance(layer, nn.Linear)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(400, 192)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-5)
    assert len(products) == 1


class Low(nn.Module):
    """A low-rank adapter around a linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Linear(layer.in_features, 2), nn.Linear(2, layer.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.up(self.down(x))


class Doubled(Linear):
    """An adapter by inheritance."""

    @classmethod
    def around(cls, layer: nn.Linear) -> Doubled:
        doubled = cls(layer.in_features, layer.out_features)
        doubled.load_state_dict(layer.state_dict())
        return doubled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class TestProjectRows:
    ROWS = (slice(0, 8), slice(8, 24), slice(5, 6))

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("rows", ROWS)
    def test_equals_a_part_of_all(self, rows: slice, bias: bool) -> None:
        layer, x, d_out = Linear(16, 24, bias=bias).double(), torch.randn(2, 3, 16).double(), torch.randn(2, 3, 24)
        gradients = []
        for project in (lambda: project_rows(layer, x, rows), lambda: layer(x)[..., rows]):
            layer.zero_grad()
            out = project()
            out.backward(d_out[..., rows].double())
            gradients.append([out.detach(), *(p.grad.clone() for p in layer.parameters())])
        for mine, other in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-14, atol=1e-14)

    @pytest.mark.parametrize("adapt", [Low, Doubled.around, lambda layer: nn.Sequential(layer, nn.Tanh())])
    def test_an_adapter_is_not_bypassed(self, adapt: Callable[[Linear], nn.Module]) -> None:
        plain, x = Linear(16, 24), torch.randn(2, 3, 16)
        layer = adapt(plain)
        assert not torch.allclose(layer(x), plain(x))
        for rows in self.ROWS:
            torch.testing.assert_close(project_rows(layer, x, rows), layer(x)[..., rows])

    @pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
    def test_hooks_run(self, kind: str) -> None:
        layer, x, ran = Linear(16, 24), torch.randn(2, 3, 16, requires_grad=True), []
        getattr(layer, f"register_{kind}_hook")(lambda *_: ran.append(1))
        project_rows(layer, x, slice(0, 8)).sum().backward()
        assert ran == [1]

    def test_a_parametrised_weight_is_read_through_its_parametrisation(self) -> None:
        layer, x = Linear(16, 24), torch.randn(2, 3, 16)
        nn.utils.parametrizations.weight_norm(layer)
        layer.parametrizations.weight.original0.data *= 3
        torch.testing.assert_close(project_rows(layer, x, slice(0, 8)), layer(x)[..., :8])


class TestChoice:
    @pytest.fixture(autouse=True)
    def measured_afresh(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("ILLAMA_LINEAR", raising=False)
        monkeypatch.setattr(module, "_chosen", {})

    @pytest.mark.parametrize(("gain", "kernel"), [(2.0, "onednn"), (1.05, "mkl"), (0.4, "mkl")])
    @pytest.mark.parametrize("named", [None, "auto"])
    def test_the_measurement_decides(self, monkeypatch, gain: float, kernel: str, named: str | None) -> None:
        if named is not None:
            monkeypatch.setenv("ILLAMA_LINEAR", named)
        calls = []
        monkeypatch.setattr(module, "_gain", lambda *pair: calls.append(pair) or gain)
        assert linear_kernel("forward", 197, 192 * 576) == linear_kernel("forward", 5, 64) == kernel
        assert len(calls) == (3 if kernel == "onednn" else 1), "once per process and kind, and what it says confirmed"
        assert linear_kernels() == {"forward, few rows, narrow": kernel}

    @pytest.mark.parametrize("gains", [(2.0, 1.1), (2.0, 1.2, 0.6)])
    def test_one_measurement_beside_other_work_does_not_decide(self, monkeypatch, gains: tuple[float, ...]) -> None:
        left = iter(gains)
        monkeypatch.setattr(module, "_gain", lambda *_: next(left))
        assert linear_kernel("forward", 197, 192 * 576) == "mkl"
        assert list(left) == []

    def test_each_kind_of_product_has_its_own_answer(self, monkeypatch) -> None:
        """By the shapes that are timed: oneDNN wins where the weight has more than 300,000 numbers, and forward."""
        timed = []

        def gain(mkl, onednn, rounds) -> float:
            timed.append(tuple(onednn().shape))
            return 2.0 if timed[-1] in ((197, 2304), (1024, 1536), (197, 576)) else 1.0

        monkeypatch.setattr(module, "_gain", gain)
        found = {
            (operation, rows, wide): linear_kernel(operation, rows, 400_000 if wide else 100_000)
            for operation in module.OPERATIONS
            for rows in (197, 5000)
            for wide in (False, True)
        }
        won = {key for key, name in found.items() if name == "onednn"}
        assert won == {("forward", 197, True), ("forward", 5000, True), ("forward", 197, False)}
        assert set(linear_kernels()) == set(KINDS.values())

    @pytest.mark.parametrize("operation", ["forward", "input gradient", "weight gradient"])
    def test_one_product_changes_its_library_alone(self, monkeypatch, operation: str) -> None:
        products = []
        onednn = module.onednn_product
        monkeypatch.setattr(module, "onednn_product", lambda *tensors: products.append(1) or onednn(*tensors))
        keep_linear_kernels({words: "onednn" if kind[0] == operation else "mkl" for kind, words in KINDS.items()})
        torch.manual_seed(0)
        layer, x = Linear(192, 576), torch.randn(600, 192, requires_grad=True)
        y = layer(x)
        forward = len(products)
        y.sum().backward()
        assert (forward, len(products)) == ((1, 1) if operation == "forward" else (0, 1))
        keep_linear_kernels("mkl")
        other = x.detach().clone().requires_grad_()
        weight = layer.weight.detach().clone().requires_grad_()
        expected = F.linear(other, weight, layer.bias)
        expected.sum().backward()
        for mine, theirs in ((y, expected), (x.grad, other.grad), (layer.weight.grad, weight.grad)):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)

    def test_a_model_tells_what_it_could_need(self, monkeypatch) -> None:
        monkeypatch.setattr(module, "_gain", lambda *_: 1.0)
        assert len(linear_kernels(torch.nn.Linear(64, 64))) == 6, "no wide ones"
        assert len(linear_kernels(torch.nn.Linear(768, 768))) == 12

    def test_the_gain_is_a_ratio_of_shortest_times(self, monkeypatch) -> None:
        """MKL takes 6 and then 2 seconds, oneDNN 1 and later 5: the shortest are 2 and 1."""
        now, mkl, onednn = [0.0], iter([6.0] + [2.0] * 100), iter([1.0] + [5.0] * 100)

        def taking(seconds) -> Callable[[], None]:
            return lambda: now.__setitem__(0, now[0] + next(seconds))

        monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
        assert module._gain(taking(mkl), taking(onednn), 9) == pytest.approx(2.0)

    def test_without_the_operator_mkl_serves(self, monkeypatch) -> None:
        class Without:
            pass

        monkeypatch.setattr(torch.ops, "mkldnn", Without())
        assert linear_kernel("forward", 197, 100_000) == "mkl"

    @pytest.mark.parametrize("kernel", ["onednn", "mkl"])
    def test_the_environment_overrules(self, monkeypatch, kernel: str) -> None:
        monkeypatch.setattr(module, "_gain", lambda *_: pytest.fail("nothing to measure"))
        monkeypatch.setenv("ILLAMA_LINEAR", kernel)
        assert linear_kernel("input gradient", 197, 100_000) == kernel
        assert linear_kernels() == {"input gradient, few rows, narrow": kernel}
        keep_linear_kernels("mkl" if kernel == "onednn" else "onednn")
        assert linear_kernels() == dict.fromkeys(KINDS.values(), kernel)

    def test_a_run_stays_with_the_kernel_it_began_with(self, monkeypatch) -> None:
        monkeypatch.setattr(module, "_gain", lambda *_: pytest.fail("nothing to measure"))
        for kernel in ("mkl", "onednn"):
            keep_linear_kernels(kernel)
            assert {linear_kernel(operation, 10, 10) for operation in module.OPERATIONS} == {kernel}
        keep_linear_kernels({"forward, few rows, wide": "onednn"})
        assert linear_kernels() == {"forward, few rows, wide": "onednn"}

    def test_an_unknown_name_is_refused(self, monkeypatch) -> None:
        monkeypatch.setenv("ILLAMA_LINEAR", "openblas")
        with pytest.raises(UserError, match=r"ILLAMA_LINEAR must be onednn, mkl or auto; got 'openblas'"):
            linear(torch.randn(400, 192), torch.randn(576, 192))

    def test_a_real_measurement_leaves_no_trace(self) -> None:
        """It runs in inference mode in the middle of a forward pass that keeps its gradients."""
        state = torch.get_rng_state()
        x, weight = torch.randn(400, 192, requires_grad=True), torch.randn(576, 192)
        drawn = torch.get_rng_state()
        out = linear(x, weight)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert not torch.equal(state, drawn)
        assert out.requires_grad
        out.sum().backward()
        torch.testing.assert_close(x.grad, weight.sum(0).expand(400, -1), rtol=1e-4, atol=1e-4)
