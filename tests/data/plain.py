"""What an image folder means, in the plainest words: what `illama.data.sources.folder` is compared with."""

from __future__ import annotations

from collections.abc import Collection

ROLES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "test": "test"}
TOOLS = ("@eaDir", "__MACOSX", "lost+found")
Seen = set[tuple[str, str]]  # (file, class)


def plain(files: Collection[str]) -> dict[str, Seen | None] | None:
    """Pictures and classes of each split ("" without splits); None for a split, or a folder, that is refused.

    Args:
        files: Paths below the folder; pictures end in .png, in any case.
    """
    pictures = [f for f in files if visible(f) and f.lower().endswith(".png")]
    tops = {f.split("/")[0] for f in pictures if "/" in f}
    splits = {top for top in tops if top.lower() in ROLES}
    trains = {split for split in splits if ROLES[split.lower()] == "train"}
    nested = {f.split("/")[0] for f in pictures if f.count("/") > 1} & splits
    if not pictures:
        return None
    if tops - splits and not nested & trains:  # class folders beside folders that are named like splits
        if nested or splits - trains:
            return None
        splits = set()
    elif splits:  # those without a picture are splits as well
        splits |= {f.split("/")[0] for f in files if "/" in f and f.split("/")[0].lower() in ROLES}
    if not splits and any(split_below(pictures, top) for top in tops):
        return None
    return {split: _of_split(pictures, files, split and f"{split}/") for split in splits or {""}}


def _of_split(pictures: list[str], files: Collection[str], prefix: str) -> Seen | None:
    """The first folder below a split is the class, and every picture below it belongs to it."""
    inside = [f for f in pictures if f.startswith(prefix)]
    if prefix and {f.removeprefix(prefix).split("/")[0] for f in inside} == {prefix[:-1]}:  # train/train/...
        prefix *= 2
    deeper = [f.removeprefix(prefix) for f in files if f.startswith(prefix) and f.count("/") > prefix.count("/")]
    folders = {f.split("/")[0] for f in deeper if visible(f.split("/")[0])}
    classes = {f: f.removeprefix(prefix).split("/")[0] for f in inside}
    loose = any(f.count("/") == prefix.count("/") for f in inside)
    return None if loose or not inside or folders != set(classes.values()) else set(classes.items())


def split_below(pictures: Collection[str], top: str) -> bool:
    """Whether a folder holds nothing but splits, of one for training and others."""
    inner = {f.split("/")[1].lower() for f in pictures if f.startswith(f"{top}/") and f.count("/") > 1}
    roles = {ROLES.get(name) for name in inner}
    return "train" in roles and len(roles) > 1 and None not in roles


def visible(path: str) -> bool:
    """Whether no part of a path is hidden or a tool's."""
    return not any(part.startswith(".") or part in TOOLS for part in path.split("/"))
