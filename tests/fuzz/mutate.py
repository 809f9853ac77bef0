"""Damage: to bytes, to text, to trees of values, and inside of containers, whose sums fit again afterwards."""

from __future__ import annotations

import copy
import io
import json
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch

_LETTERS = (b"\0", b"\xff", b"\x7f", b"\x80", b"\n", b'"', b"{", b"\x1b[31m", b"\xe2\x80\xae", b"%s", b"../")
_NUMBERS = (-1, 0, 1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
HUGE = ("-1", "0", "1", "300000000", "99999999999", "1e308", "1e999", "-0", "1e-300", "9" * 30, "9" * 400, "nan", "0.5")
DEEP = 3000
NASTY_TEXT = (
    *("", " ", "\0", "a\0b", "\x1b[31mred", "\u202egnp.exe", "a\nillama: error: forged", "x" * 300, "x" * 100_000),
    *("../../victim/kept.txt", "..", ".", "/", "-", "{0..99999999999}", "**/../**", "=1+1", "\udcff\udcfe", "%s{}"),
    *("nan", "inf", "1e5", "true", "illama_tiny.in1k", "hfds/none", "torch/cifar10", "~", "$HOME", "CON", "\\\\x\\y"),
)
NASTY: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 255, 1000, 2**31, 2**53, 2**63, 2**64, 10**30, 10**400, -(10**30)),
    *(0.5, -0.5, 1e-300, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), [], {}, [[]], [None], {"": None}),
    *NASTY_TEXT,
)


def damage(content: bytes, random: Random) -> bytes:
    """A few hits anywhere in some bytes."""
    found = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        found = random.choice(_HITS)(found, random)
    return bytes(found)


def _flip(content: bytearray, random: Random) -> bytearray:
    for _ in range(random.randint(1, 8)):
        if content:
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return content


def _cut(content: bytearray, random: Random) -> bytearray:
    return content[: random.randrange(len(content) + 1)]


def _remove(content: bytearray, random: Random) -> bytearray:
    start = random.randrange(len(content) + 1)
    del content[start : start + random.choice((1, 4, 64, 1024))]
    return content


def _insert(content: bytearray, random: Random) -> bytearray:
    start = random.randrange(len(content) + 1)
    content[start:start] = random.choice((random.choice(_LETTERS), random.randbytes(random.choice((1, 8, 512)))))
    return content


def _fill(content: bytearray, random: Random) -> bytearray:
    start = random.randrange(len(content) + 1)
    length = min(len(content) - start, random.choice((1, 8, 64, 4096)))
    content[start : start + length] = random.choice((b"\0", b"\xff", b" ", b"9")) * length
    return content


def _repeat(content: bytearray, random: Random) -> bytearray:
    start = random.randrange(len(content) + 1)
    part = content[start : start + random.choice((1, 16, 256))]
    content[start:start] = part * random.choice((1, 2, 100))
    return content


def _swap(content: bytearray, random: Random) -> bytearray:
    length = random.choice((4, 32, 512))
    a, b = (random.randrange(len(content) + 1) for _ in range(2))
    one, other = content[a : a + length], content[b : b + length]
    content[a : a + len(one)] = other
    content[b : b + len(other)] = one
    return content


def _number(content: bytearray, random: Random) -> bytearray:
    form = random.choice(("<b", "<h", ">h", "<i", ">i", "<q", ">q"))
    size = struct.calcsize(form)
    bits = random.choice(_NUMBERS) & ((1 << 8 * size) - 1)
    start = random.randrange(max(1, len(content) - size))
    content[start : start + size] = bits.to_bytes(size, "little" if form[0] == "<" else "big")
    return content


def _digits(content: bytearray, random: Random) -> bytearray:
    found = list(re.finditer(rb"\d+", bytes(content)))
    if found:
        start, end = random.choice(found).span()
        content[start:end] = random.choice(HUGE).encode()
    return content


_HITS: tuple[Callable[[bytearray, Random], bytearray], ...] = (
    *(_flip, _flip, _cut, _remove, _insert, _fill, _repeat, _swap, _number, _number, _digits),
)


def damage_text(text: str, random: Random) -> bytes:
    """Hits where a text has its joints: lines, numbers, words; sometimes anywhere."""
    for _ in range(random.choice((1, 1, 2, 3))):
        lines = text.split("\n")
        place = random.randrange(len(lines))
        how = random.randrange(8)
        if how == 0:
            del lines[place]
        elif how == 1:
            lines.insert(place, random.choice(lines))
        elif how == 2:
            lines[place] = (
                random.choice(("  ", "\t", "- ", "? ", "&a *a ", "!!python/object:os.system ")) + lines[place]
            )
        elif how == 3:
            lines[place] += random.choice(NASTY_TEXT)
        elif how == 4:
            lines[place] = random.choice(("[" * DEEP, "{a: " * DEEP, "[" * DEEP + "]" * DEEP, "[{" * 40, '"', "'", "|"))
        else:
            pattern = random.choice((r"-?\d[\d.e+-]*", r"(?<=[:,=] ?)[^\s,:]+", r"\w+"))
            found = list(re.finditer(pattern, lines[place])) if "?<=" not in pattern else []
            found = found or list(re.finditer(r"[^\s,:]+", lines[place]))
            if found:
                start, end = random.choice(found).span()
                lines[place] = lines[place][:start] + random.choice((*HUGE, *NASTY_TEXT)) + lines[place][end:]
        text = "\n".join(lines) or " "
    content = text.encode(errors="surrogateescape" if "\ud800" not in text else "replace")
    return damage(content, random) if random.random() < 0.2 else content


def places(tree: Any, below: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in nested dictionaries and lists, besides the whole."""
    pairs = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    found = []
    for key, value in pairs:
        found += [(*below, key), *places(value, (*below, key))]
    return found


def damage_tree(tree: Any, random: Random, nasty: Sequence[Any] = NASTY) -> Any:
    """A copy of nested values with a few of them replaced, removed, renamed or moved; now and then the whole."""
    tree = copy.deepcopy(tree)
    if random.random() < 0.03:
        return random.choice(nasty)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        paths = places(tree)
        if not paths:
            return tree
        *above, key = random.choice(paths)
        node = tree
        for step in above:
            node = node[step]
        how = random.randrange(10)
        if how == 0:
            del node[key]
        elif how == 1 and isinstance(node, dict):
            node[str(random.choice(NASTY_TEXT))] = node.pop(key)
        elif how == 2 and isinstance(node, dict):
            node[random.choice(("more", "", "__class__", "a.b"))] = random.choice(nasty)
        elif how == 2:
            node *= random.choice((2, 50))
        elif how == 3:
            *others, last = random.choice(paths)
            other = tree
            try:
                for step in others:
                    other = other[step]
                node[key] = copy.deepcopy(other[last])
            except (KeyError, IndexError, TypeError):
                node[key] = None
        elif how == 4:
            node[key] = [node[key]]
        elif how == 5 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
            node[key] = random.choice((node[key] + 1, -node[key], node[key] * 1000, node[key] // 2, 0.5))
        else:
            node[key] = copy.deepcopy(random.choice(nasty))
    return tree


def as_json(tree: Any, random: Random) -> bytes:
    """JSON, with what Python would not write by itself: deep nesting, half pairs, a byte order mark."""
    text = json.dumps(_speakable(tree), ensure_ascii=random.random() < 0.7)
    if random.random() < 0.05:
        at = text.find(":") + 1
        deep = random.choice(("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "[" * 200_000))
        text = f"{text[:at]}{deep}{text[at:]}" if random.random() < 0.5 else deep
    content = text.encode(errors="surrogatepass")
    if random.random() < 0.03:
        content = random.choice((b"\xef\xbb\xbf" + content, text.encode("utf-16", errors="surrogatepass"), b""))
    return content


def _speakable(tree: Any) -> Any:
    """Plain values as they are, and any other as text."""
    if isinstance(tree, dict):
        return {str(key): _speakable(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_speakable(value) for value in tree]
    return tree if tree is None or isinstance(tree, bool | int | float | str) else repr(tree)


def damage_json(content: bytes, random: Random) -> bytes:
    """A damaged tree in most cases, else damaged bytes."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):  # damaged before
        return damage(content, random)
    return damage(content, random) if random.random() < 0.25 else as_json(damage_tree(tree, random), random)


def damage_safetensors(content: bytes, random: Random) -> bytes:
    """Its header (types, shapes, places), the description in it, its values, or any bytes."""
    length = int.from_bytes(content[:8], "little")
    header, values = json.loads(content[8 : 8 + length]), content[8 + length :]
    how = random.random()
    about = header.get("__metadata__", {})
    described = [key for key, value in about.items() if value.startswith("{")]
    if how < 0.45 and described:
        key = random.choice(described)
        about[key] = as_json(damage_tree(json.loads(about[key]), random), random).decode(errors="replace")
    elif how < 0.75:
        nasty = (*NASTY, "F16", "F64", "I64", "BOOL", "F8_E4M3", "BF16", [2**40, 2**40], [0], [1, 0], [2**62, 4])
        header = damage_tree(header, random, nasty)
    elif how < 0.85:
        values = random.choice((damage(values, random), struct.pack("<f", float("nan")) * (len(values) // 4), b""))
    else:
        return damage(content, random)
    packed = as_json(header, random)
    stated = len(packed) if random.random() < 0.95 else random.choice((0, 1, len(packed) + 8, 2**40, 2**63))
    return stated.to_bytes(8, "little") + packed + values


_TENSORS: tuple[Callable[[], Any], ...] = (
    lambda: torch.zeros(()),
    lambda: torch.zeros(0),
    lambda: torch.zeros(3, 1, 2),
    lambda: torch.full((4,), float("nan")),
    lambda: torch.zeros(5, dtype=torch.int64),
    lambda: torch.zeros(4, dtype=torch.complex64),
    lambda: torch.zeros(1).expand(2**20, 2**20),
    lambda: torch.zeros(2, 2, device="meta"),
    lambda: torch.zeros(4, 4).to_sparse(),
    lambda: torch.tensor(1e9),
    lambda: torch.zeros(7, dtype=torch.bool),
)


def damage_state(state: Any, random: Random) -> Any:
    """Values and tensors in an unpickled tree, replaced by those of another kind."""
    if random.random() < 0.4:
        return damage_tree(state, random)
    return damage_tree(state, random, [random.choice(_TENSORS)()])


def pickled(value: Any, random: Random) -> bytes:
    """As torch.save writes it, in either format."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=random.random() < 0.85)
    return file.getvalue()


def damage_pickle(content: bytes, random: Random) -> bytes:
    """A zip of torch.save with another pickle, another storage or another name in it, whose sums are right."""
    if not content.startswith(b"PK"):
        return damage(content, random)
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        likely = [name for name in names if name.endswith("data.pkl")] or names
        hit = random.choice((random.choice(likely), random.choice(names)))
        for name in names:
            part = old.read(name)
            if name == hit:
                if random.random() < 0.05:
                    continue
                part = damage(part, random)
                name = name if random.random() < 0.95 else f"{name}{random.choice(('x', '/..', '0' * 300))}"
            new.writestr(name, part)
    return file.getvalue()


def damage_tar(members: Sequence[tuple[str, bytes]], random: Random) -> bytes:
    """Shards of odd members, or with a damaged header whose sum is right; sometimes packed."""
    members = list(members)
    for _ in range(random.choice((1, 1, 2, 4))):
        place = random.randrange(len(members))
        name, content = members[place]
        how = random.randrange(6)
        if how == 0:
            content = random.choice((*HUGE, *(text[:400] for text in NASTY_TEXT))).encode(errors="surrogateescape")
        elif how == 1:
            content = damage(content, random)
        elif how == 2:
            content = as_json(damage_tree({"label": 1, "more": [{"label": 2}]}, random), random)
            name = f"{name.partition('.')[0]}.json"
        elif how == 3:
            name = str(random.choice(NASTY_TEXT))[:400] + random.choice(("", ".jpg", ".cls", "/0.png"))
        elif how == 4:
            members.insert(place, random.choice(members))
        members[place] = name, content
    file = io.BytesIO()
    pack = random.choice(("", "", "", "", "", "", "", "gz", "bz2", "xz"))
    with tarfile.open(fileobj=file, mode=f"w:{pack}", format=random.choice((0, 1, 2)), errors="surrogateescape") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name.replace("\0", "") or "x")
            entry.size = len(content)
            if random.random() < 0.05:
                entry.type = random.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"S"))
                entry.linkname = random.choice((name, "../../victim/kept.txt", "x" * 90))
            if random.random() < 0.03:
                entry.pax_headers = {"GNU.sparse.major": "1", "size": random.choice(HUGE), "path": name}
            try:
                tar.addfile(entry, io.BytesIO(content))
            except ValueError:  # a name that this format cannot hold
                tar.addfile(tarfile.TarInfo(f"x{len(content)}"))
    packed = bytearray(file.getvalue())
    if random.random() < 0.5 and len(packed) > 512 and not pack:
        start = 512 * random.randrange(len(packed) // 512)
        header = damage(bytes(packed[start : start + 512]), random)[:512].ljust(512, b"\0")
        if random.random() < 0.4:
            size = struct.pack(">Q", random.choice((2**33, 2**40, 2**62))).rjust(12, b"\x80")
            header = header[:124] + size + header[136:]
        total = sum(header[:148]) + 8 * 32 + sum(header[156:])
        packed[start : start + 512] = header[:148] + f"{total:06o}\0 ".encode() + header[156:]
    return bytes(packed) if random.random() < 0.8 else damage(bytes(packed), random)


def damage_png(content: bytes, random: Random) -> bytes:
    """Chunks changed, added, left out or in another order, with sums that fit."""
    chunks, at = [], 8
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(random.choice((1, 1, 2, 3))):
        place = random.randrange(len(chunks))
        name, data = chunks[place]
        how = random.randrange(6)
        if how == 0:
            chunks.insert(place, random.choice(chunks))
        elif how == 1 and len(chunks) > 1:
            del chunks[place]
        elif how == 2:
            extra = random.choice((b"tEXt", b"iTXt", b"zTXt", b"iCCP", b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fcTL"))
            text = random.choice((b"", b"a\0\0" + zlib.compress(b"\0" * 10_000_000), random.randbytes(30)))
            chunks.insert(min(1, len(chunks)), (extra, text))
        elif how == 3 and name == b"IHDR":
            sizes = random.choice(_NUMBERS) & 0xFFFFFFFF, random.choice(_NUMBERS) & 0xFFFFFFFF
            chunks[place] = name, struct.pack(">II", *sizes) + bytes(random.choice((0, 1, 3, 8, 16)) for _ in range(5))
        else:
            chunks[place] = name, damage(data, random)
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return content[:8] + b"".join(packed)
