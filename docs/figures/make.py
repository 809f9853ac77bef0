"""Draws every picture of docs/ and writes the numbers that docs/causality.md quotes.

    .venv/bin/python docs/figures/make.py              all of them, about a minute on one CPU core
    .venv/bin/python docs/figures/make.py collapse     one of them

Pictures that show numbers compute them with the package. The networks are small, the images are scikit-learn's digits;
with the same versions of torch and Python on the same processor the numbers come back exactly.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from architecture import draw_architecture
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from illama.analysis import exchange, image_gradient, jacobian_norms
from illama.models import ILlama, roadmap_config

HERE = Path(__file__).parent
NUMBERS = HERE / "numbers.json"
BLUE, ORANGE, GREEN, GREY, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#777777", "#CC79A7", "#56B4E9"
SIZE = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 3, "num_heads": 2}
STEPS, BATCH, LR = 300, 128, 3e-3
MODES = ("post_softmax", "pre_softmax")


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All 1797 images as (n, 1, 8, 8) from -1 to 1, and their classes."""
    data = load_digits()
    return torch.from_numpy(data.images).float().div(8).sub(1).unsqueeze(1), torch.from_numpy(data.target)


def trained(row: str, mask_mode: str) -> tuple[ILlama, list[float]]:
    """A small network of one roadmap row, trained causally (softness 0) from seed 0, and its loss at every step."""
    torch.manual_seed(0)
    model = ILlama(roadmap_config(row, "tiny", mask_mode=mask_mode, **SIZE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.05)
    images, labels = digits()
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 20)
        chosen = torch.randint(0, len(images), (BATCH,))
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def twin(model: ILlama, mask_mode: str, softness: float) -> ILlama:
    """The same weights in double precision under another mask."""
    other = ILlama(roadmap_config("learned_position", "tiny", mask_mode=mask_mode, **SIZE)).double().eval()
    other.load_state_dict(model.state_dict())
    other.set_softness(softness)
    return other


def draw_masks(model: ILlama) -> dict[str, float]:
    """One attention map of the trained network, both modes, three values of softness; and the sums of its rows."""
    images = digits()[0][:64].double()
    figure = Figure(figsize=(11.5, 5.9), layout="constrained")
    grid = figure.subplots(2, 4, width_ratios=(1, 1, 1, 1.25))
    found: dict[str, float] = {}
    for axes, mode in zip(grid, MODES, strict=True):
        for ax, softness, color in zip(axes, (0.0, 0.5, 1.0), (BLUE, ORANGE, GREEN), strict=False):
            with torch.no_grad():
                weights = twin(model, mode, softness).get_attention(images, block=1, head=0)
            shown = ax.imshow(weights.mean(0), cmap="Blues", vmin=0, vmax=0.25, interpolation="nearest")
            ax.set_title(f"{mode}, softness {softness:g}", fontsize=10)
            ax.set_xticks([0, 15.9], ["first patch", "[cls]"], fontsize=8)
            ax.set_yticks([0, 16], ["first", "[cls]"], fontsize=8)
            sums = weights.sum(-1).mean(0)
            axes[3].plot(sums, color=color, marker="o", markersize=3, label=f"softness {softness:g}")
            found[f"{mode} softness {softness:g}: smallest mean row sum"] = float(sums.min())
        axes[3].set(ylim=(0, 1.08), ylabel="mean sum of the row", xlabel="token (row); the last is [cls]")
        axes[3].set_title(f"{mode}: row sums", fontsize=10)
        axes[3].legend(fontsize=8, loc="lower right", frameon=False)
    figure.colorbar(shown, ax=grid[:, :3], shrink=0.6, label="weight (mean of 64 images)", location="left")
    save(figure, "masks")
    return found


def draw_leak(model: ILlama) -> dict[str, float]:
    """How later tokens reach earlier ones in a causal network: derivatives, and an exchange of what comes later."""
    images = digits()[0][:128].double()
    figure = Figure(figsize=(11.5, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.35), gridspec_kw={"wspace": 0.12})
    found: dict[str, float] = {}
    for ax, mode in ((left, MODES[0]), (middle, MODES[1])):
        norms_NN = jacobian_norms(twin(model, mode, 0.0), images[:8]).numpy()
        with np.errstate(divide="ignore"):
            logs = np.log10(norms_NN)
        logs[norms_NN == 0] = np.nan
        shown = ax.imshow(logs, cmap="viridis", vmin=-3, vmax=0.5, interpolation="nearest")
        ax.set_title(f"{mode}, softness 0", fontsize=10)
        ax.set(xlabel="token that changes", ylabel="token that answers", xticks=range(0, 17, 4), yticks=range(0, 17, 4))
        future = np.triu_indices_from(norms_NN, 1)
        past = np.tril_indices_from(norms_NN, -1)
        found[f"{mode}: derivative by later tokens, mean norm"] = float(norms_NN[future].mean())
        found[f"{mode}: derivative by earlier tokens, mean norm"] = float(norms_NN[past].mean())
        found[f"{mode}: pairs with a derivative of exactly 0, later tokens"] = int((norms_NN[future] == 0).sum())
    found["pairs of a token and a later one"] = len(future[0])
    figure.colorbar(shown, ax=middle, shrink=0.8, label="log10 of the derivative's norm (white: 0)")
    for mode, softness, color, label in (
        ("post_softmax", 1.0, GREY, "both modes, softness 1"),
        ("post_softmax", 0.0, ORANGE, "post_softmax, softness 0"),
        ("pre_softmax", 0.0, BLUE, "pre_softmax, softness 0"),
    ):
        changes = exchange(twin(model, mode, softness), images).numpy()
        right.plot(changes, color=color, marker="o", markersize=3, label=label)
        found[f"exchange, {label}: mean relative change"] = float(changes.mean())
        found[f"exchange, {label}: largest relative change"] = float(changes.max())
    right.set(xlabel="token t", ylabel="relative change of token t", ylim=(-0.03, None))
    right.set_title("patches after t taken from another image", fontsize=10)
    right.legend(fontsize=8, frameon=False)
    save(figure, "leak")
    return found


def draw_collapse() -> dict[str, float]:
    """The loss of a causal network whose class token stands first, and of its two cures."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    ax = figure.subplots()
    images = digits()[0][:8].double()
    found: dict[str, float] = {}
    for row, name, color in (
        ("llama_attention", "class token first, causal", ORANGE),
        ("modified_causal", "class token first, its row unmasked", GREEN),
        ("ps_cls", "class token last (PS [cls])", BLUE),
    ):
        for mode, dashes in (("pre_softmax", "-"), ("post_softmax", "--")):
            model, losses = trained(row, mode)
            smooth = np.convolve(losses, np.ones(15) / 15, mode="valid")
            ax.plot(np.arange(len(smooth)) + 15, smooth, color=color, linestyle=dashes, label=f"{name}, {mode}")
            found[f"{row} {mode}: mean loss of the last 20 steps"] = float(np.mean(losses[-20:]))
            torch.manual_seed(0)
            untrained = ILlama(roadmap_config(row, "tiny", mask_mode=mode, **SIZE))
            for state, network in (("untrained", untrained), ("trained", model)):
                found[f"{row} {mode}: gradient by the image, {state}"] = image_gradient(network.double(), images)
    ax.axhline(np.log(10), color=GREY, linewidth=0.8, linestyle=":", label="chance: ln 10")
    ax.set(xlabel="step", ylabel="training loss (mean of 15 steps)", ylim=(0, 2.6), xlim=(0, STEPS))
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save(figure, "collapse")
    return found


def save(figure: Figure, name: str) -> None:
    """Write one picture as SVG, the same bytes at every run."""
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None}, facecolor="white", dpi=150)


def main(wanted: list[str]) -> None:
    """Draw what is asked for: architecture, masks, leak, collapse; all of them without names."""
    matplotlib.rcParams.update({"svg.hashsalt": "illama", "font.size": 9})
    torch.set_num_threads(1)
    wanted = wanted or ["architecture", "masks", "leak", "collapse"]
    numbers = json.loads(NUMBERS.read_text()) if NUMBERS.is_file() else {}
    if "architecture" in wanted:
        save(draw_architecture(), "architecture")
    if "masks" in wanted or "leak" in wanted:
        model, _ = trained("learned_position", "post_softmax")
        numbers |= {"masks": draw_masks(model), "leak": draw_leak(model)}
    if "collapse" in wanted:
        numbers["collapse"] = draw_collapse()
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
