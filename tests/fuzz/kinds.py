"""Every kind of input that illama reads: what is damaged how, and which command reads it."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import mutate
from tests.fuzz.arena import Case, Kind
from tests.fuzz.mutate import HUGE, NASTY_TEXT
from tests.fuzz.seeds import PICTURES, Seeds
from tests.runs import sum_again, write_meta

Build = Callable[[Case, Random], None]


def kinds(seeds: Seeds) -> dict[str, Kind]:
    """All kinds by name."""
    makers: dict[str, tuple[Callable[[Seeds, Case, Random], None], int]] = {
        "recipe": (recipe, 10),
        "override": (override, 5),
        "training state": (training_state, 5),
        "run weights": (run_weights, 6),
        "meta.json": (run_meta, 6),
        "metrics.jsonl": (metrics, 6),
        "run files": (run_files, 8),
        "run links": (run_links, 2),
        "own weights": (own_weights, 10),
        "foreign weights": (foreign_weights, 12),
        "hub folder": (hub_folder, 8),
        "saved logits": (saved_logits, 8),
        "parquet bytes": (parquet_bytes, 8),
        "parquet tables": (parquet_tables, 12),
        "shards": (shards, 14),
        "shard lists": (shard_lists, 5),
        "pictures": (pictures, 16),
        "png chunks": (png, 6),
        "tiff tags": (tiff, 6),
        "list of files": (list_of_files, 10),
        "environment": (environment, 3),
        "names": (names, 6),
        "special files": (special_files, 6),
    }

    def bound(maker: Callable[[Seeds, Case, Random], None]) -> Build:
        return lambda case, random: maker(seeds, case, random)

    return {name: Kind(bound(maker), share) for name, (maker, share) in makers.items()}


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# recipes


def recipe(seeds: Seeds, case: Case, random: Random) -> None:
    import yaml

    text = random.choice(seeds.recipes)
    if random.random() < 0.5:
        tree = mutate.damage_tree(yaml.safe_load(text), random)
        text = yaml.safe_dump(tree, allow_unicode=random.random() < 0.5) if random.random() < 0.7 else json.dumps(tree)
        content = text.encode(errors="surrogatepass")
    else:
        content = mutate.damage_text(text, random)
    if random.random() < 0.2:
        run = _copy_run(seeds, case)
        write(run / "recipe.yaml", content)
        case.words = random.choice((["runs", str(case.work)], ["eval", str(run)], _train(seeds, run)))
        return
    file = write(case.inputs / "mine.yaml", content)
    case.words = ["train", str(file), "--print"]


def override(seeds: Seeds, case: Case, random: Random) -> None:
    from illama.recipes import load_recipe
    from illama.recipes.rules import flatten

    keys = sorted(flatten(load_recipe("cifar10_micro").to_dict()))
    data_only = random.random() < 0.3
    chosen = [key for key in keys if not data_only or key.startswith("data.")]
    values = (
        *HUGE,
        *NASTY_TEXT,
        "[" * mutate.DEEP,
        "{a: 1}",
        "[1, 2]",
        "null",
        "0x10",
        "1_0",
        "2026-13-45",
        "!!binary x",
    )
    words = []
    for _ in range(random.choice((1, 1, 2, 3))):
        key = random.choice(chosen) if random.random() < 0.9 else random.choice(NASTY_TEXT)
        words.append(f"{key}={random.choice(values)}"[:20_000].replace("\0", "\u2400"))
    case.words = ["data", "check", str(seeds.pictures), *words] if data_only else ["train", "cifar10_micro", *words]
    if not data_only:
        case.words += ["--print"]


# runs


def _copy_run(seeds: Seeds, case: Case) -> Path:
    return Path(shutil.copytree(seeds.run, case.work / "run", symlinks=True))


def _train(seeds: Seeds, run: Path) -> list[str]:
    return [*seeds.train_words, "--out", str(run)]


def _use_run(seeds: Seeds, run: Path, random: Random) -> list[str]:
    picture = str(seeds.pictures / "ant/0.png")
    uses = (["runs", str(run.parent)], ["eval", str(run)], ["predict", str(run), picture], _train(seeds, run))
    return random.choices(uses, (5, 2, 3, 2))[0]


def training_state(seeds: Seeds, case: Case, random: Random) -> None:
    run = _copy_run(seeds, case)
    last = run / "checkpoints/last"
    if random.random() < 0.8:
        content = mutate.pickled(mutate.damage_state(seeds.state, random), random)
    else:
        content = mutate.damage_pickle(seeds.content("run/checkpoints/last/training_state.pt"), random)
    write(last / "training_state.pt", content)
    if random.random() < 0.95:
        sum_again(last)
    case.words = _train(seeds, run)


def run_weights(seeds: Seeds, case: Case, random: Random) -> None:
    run = _copy_run(seeds, case)
    last = run / "checkpoints/last"
    name = random.choice(("model.safetensors", "model.safetensors", "ema.safetensors"))
    write(last / name, mutate.damage_safetensors(seeds.content(f"run/checkpoints/last/{name}"), random))
    if random.random() < 0.95:
        sum_again(last)
    case.words = _use_run(seeds, run, random)


def run_meta(seeds: Seeds, case: Case, random: Random) -> None:
    run = _copy_run(seeds, case)
    content = seeds.content("run/checkpoints/last/meta.json")
    for tag in random.choice((("last",), ("last", "previous"), ("best",))):
        folder = run / "checkpoints" / tag
        if not folder.is_dir():
            continue
        tree = mutate.damage_tree(json.loads(content), random)
        if isinstance(tree, dict) and random.random() < 0.7:
            write_meta(folder, tree)
        else:
            write(folder / "meta.json", mutate.damage_json(content, random))
    case.words = _use_run(seeds, run, random)


def metrics(seeds: Seeds, case: Case, random: Random) -> None:
    run = _copy_run(seeds, case)
    lines = seeds.content("run/metrics.jsonl").splitlines()
    for _ in range(random.choice((1, 1, 3))):
        place = random.randrange(len(lines))
        lines[place] = mutate.damage_json(lines[place], random)
    content = b"\n".join(lines) + b"\n"
    write(run / "metrics.jsonl", content if random.random() < 0.9 else mutate.damage(content, random))
    case.words = _use_run(seeds, run, random)


RUN_FILES = ("origin.json", "classes.json", "environment.json", "held_out.csv")


def run_files(seeds: Seeds, case: Case, random: Random) -> None:
    run = _copy_run(seeds, case)
    name = random.choice(RUN_FILES)
    content = seeds.content(f"run/{name}")
    write(run / name, mutate.damage_json(content, random) if name.endswith("json") else _damaged_csv(content, random))
    case.words = _use_run(seeds, run, random)


def run_links(seeds: Seeds, case: Case, random: Random) -> None:
    """Names of a run's folder that lead to files of others."""
    run = _copy_run(seeds, case)
    file = write(case.victim / "theirs" / "file", b"theirs\n")
    others = [".lock", ".recipe.yaml.partial", ".curves.png.partial", "curves.png", "predictions.png", "tensorboard"]
    others += ["checkpoints/.last.new", "checkpoints/.last.old", ".metrics.jsonl.partial", "checkpoints/best"]
    present = [str(path.relative_to(run)) for path in sorted(run.rglob("*"))]
    place = run / random.choice((*others, *others, *present))
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    elif place.exists():
        place.unlink()
    target = random.choice((file, file.parent, case.victim / "kept.txt", case.victim / "nothing"))
    if random.random() < 0.15:
        os.mkfifo(place)
    else:
        place.symlink_to(target)
    case.words = _use_run(seeds, run, random)


# weights


def _use_weights(seeds: Seeds, case: Case, path: Path, random: Random) -> None:
    photo, target = str(seeds.pictures / "ant/0.png"), str(case.work / "out.safetensors")
    case.words = random.choices(
        (
            ["predict", str(path), photo, "--json", "-"],
            ["convert", str(path), target],
            ["eval", str(path), "--data", str(seeds.pictures), "--device", "cpu"],
            ["eval", str(path)],
            ["convert", str(path), target, "--img-size", "32", "--num-classes", "2"],
            ["train", *seeds.train_words[1:], "--print", "--init-from", str(path)],
            ["features", str(path), "--data", str(seeds.pictures), "--out", target],
        ),
        (6, 4, 2, 1, 2, 1, 1),
    )[0]


def own_weights(seeds: Seeds, case: Case, random: Random) -> None:
    file = write(case.inputs / "w.safetensors", mutate.damage_safetensors(seeds.content("model.safetensors"), random))
    _use_weights(seeds, case, file, random)


def foreign_weights(seeds: Seeds, case: Case, random: Random) -> None:
    name = random.choice(("timm.safetensors", "plain.pth", "nested.pth", "legacy.pth"))
    content = seeds.content(name)
    if name.endswith("safetensors"):
        content = mutate.damage_safetensors(content, random)
    elif random.random() < 0.5:
        import torch

        state = torch.load(io.BytesIO(content), weights_only=True)
        content = mutate.pickled(mutate.damage_state(state, random), random)
    else:
        content = mutate.damage_pickle(content, random)
    file = write(case.inputs / f"w{random.choice((Path(name).suffix,) * 9 + ('.bin',))}", content)
    _use_weights(seeds, case, file, random)


def hub_folder(seeds: Seeds, case: Case, random: Random) -> None:
    name = random.choice(("timm", "hf"))
    folder = Path(shutil.copytree(seeds.root / name, case.inputs / "hub"))
    files = [file.name for file in sorted(folder.glob("*.json"))]
    hit = random.choice(files)
    write(folder / hit, mutate.damage_json(seeds.content(f"{name}/{hit}"), random))
    _use_weights(seeds, case, folder, random)


def saved_logits(seeds: Seeds, case: Case, random: Random) -> None:
    content = seeds.content("logits.safetensors")
    file = write(case.inputs / "logits.safetensors", mutate.damage_safetensors(content, random))
    good = write(case.inputs / "good.safetensors", content)
    case.words = random.choice(
        (
            ["analyze", "calibration", str(file), "--json", "-"],
            ["analyze", "classes", str(file), "--json", "-"],
            ["analyze", "compare", str(good), str(file), "--json", "-"],
        )
    )


# data sets


def _use_data(seeds: Seeds, case: Case, path: Path, random: Random) -> None:
    evaluated = ["eval", str(seeds.model), "--data", str(path), "--device", "cpu"]
    checked = ["data", "check", str(path), "--workers", "1"]
    planned = ["train", *seeds.train_words[1:-4], "--data", str(path), "--print"]
    case.words = random.choices((checked, [*checked, "--quick"], evaluated, planned), (4, 2, 3, 1))[0]


def parquet_bytes(seeds: Seeds, case: Case, random: Random) -> None:
    folder = Path(shutil.copytree(seeds.root / "parquet", case.inputs / "set"))
    file = random.choice(sorted(folder.iterdir()))
    content = bytearray(file.read_bytes())
    if random.random() < 0.6:  # the footer, which says where everything is
        length = int.from_bytes(content[-8:-4], "little")
        start = len(content) - 8 - length
        footer = mutate.damage(bytes(content[start:-8]), random)
        content[start:] = footer + struct.pack("<I", len(footer)) + b"PAR1"
    else:
        content = bytearray(mutate.damage(bytes(content), random))
    write(file, bytes(content))
    _use_data(seeds, case, random.choice((folder, folder, file)), random)


def parquet_tables(seeds: Seeds, case: Case, random: Random) -> None:
    """Whole files with columns that nobody expects."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = case.inputs / "set"
    folder.mkdir()
    for number in range(random.choice((1, 2))):
        rows = random.choice((0, 1, 4))
        columns = {"image": _image_column(seeds, rows, random), "label": _label_column(rows, random)}
        if random.random() < 0.3:
            columns |= {random.choice(("split", "\x1b[31m", "x" * 500, "labels", "file")): _label_column(rows, random)}
        if random.random() < 0.1:
            columns.pop(random.choice(("image", "label")))
        about: bytes = json.dumps({"info": {"features": _features(random)}}).encode()
        if random.random() < 0.5:
            about = mutate.damage_json(about, random)
        table = pa.table(columns)
        if random.random() < 0.8:
            table = table.replace_schema_metadata({"huggingface": about})
        name = random.choice((f"train-{number:05}-of-00002.parquet", f"{('train', 'test')[number]}.parquet"))
        how = {"use_dictionary": random.random() < 0.5, "compression": random.choice(("snappy", "zstd", "none"))}
        try:
            pq.write_table(table, folder / name, row_group_size=max(1, rows // random.choice((1, 2))), **how)
        except pa.ArrowException:  # a type that Parquet does not have
            pq.write_table(pa.table({"label": [0, 1]}), folder / name)
    _use_data(seeds, case, folder if random.random() < 0.8 else sorted(folder.iterdir())[0], random)


def _features(random: Random) -> dict[str, Any]:
    names = random.choice((["ant", "bee"], ["ant"], [], None, {"0": "ant", "1": "bee"}, {"a": 1}, 3, "ab", [1, None]))
    return {
        "image": {"_type": random.choice(("Image", "Array3D", "Value")), "shape": random.choice((None, [2, 2], "x"))},
        "label": {"_type": "ClassLabel", "names": names},
    }


def _image_column(seeds: Seeds, rows: int, random: Random) -> Any:
    import pyarrow as pa

    good = seeds.content("pictures/ant/0.png")
    one: Any = random.choice(
        (
            *({"bytes": good, "path": None}, {"bytes": good, "path": None}, good, good),
            *({"bytes": None, "path": "x" * 300}, {"bytes": b"", "path": "a\0b"}, {"other": 1}, {"bytes": "text"}),
            *("../../victim/kept.txt", "x" * 300, "a\0b", "data:image/png;base64,AAAA", "http://x/y.png", ""),
            *([1, 2, 3, 4], [[1, 2], [3, 4]], [[[0, 1, 2]]], [[1], [2, 3]], [300, -1], 1.5, True, 7, [[0.5]], None),
        )
    )
    values = [one if random.random() < 0.9 else None for _ in range(rows)]
    column = pa.array(values) if rows else pa.array([], pa.binary())
    if isinstance(one, bytes) and random.random() < 0.3:
        column = column.cast(random.choice((pa.large_binary(), pa.binary_view())))
    if random.random() < 0.15:
        with_dictionary = getattr(column, "dictionary_encode", None)
        if not (pa.types.is_nested(column.type) or pa.types.is_binary_view(column.type)):
            column = with_dictionary() if with_dictionary else column
    return column


def _label_column(rows: int, random: Random) -> Any:
    import pyarrow as pa

    kinds: tuple[tuple[Any, tuple[Any, ...]], ...] = (
        (pa.int64(), (0, 1, 0, 1)),
        (pa.int64(), (0, -1, 300_000_000, 2**62)),
        (pa.uint64(), (0, 1, 2**64 - 1, 2**63)),
        (pa.int8(), (0, 1, -128, 127)),
        (pa.float64(), (0.0, 1.0, float("nan"), 1e300)),
        (pa.float16(), (0.0, 1.0, 0.0, 1.0)),
        (pa.bool_(), (True, False, True, False)),
        (pa.string(), ("ant", "bee", "\x1b[31m", "x" * 300)),
        (pa.large_string(), ("ant", "bee", "", "a\nb")),
        (pa.string_view(), ("ant", "bee", "ant", "bee")),
        (pa.binary(), (b"ant", b"\xff", b"\0", b"")),
        (pa.decimal128(5, 2), (1, 0, 1, 0)),
        (pa.timestamp("ns"), (0, 1, 2**62, -5)),
        (pa.date32(), (0, 1, 2, 3)),
        (pa.time64("ns"), (0, 1, 2, 3)),
        (pa.duration("s"), (0, 1, 2, 3)),
        (pa.null(), (None,) * 4),
        (pa.list_(pa.int64()), ([0], [1], [0, 1], [])),
        (pa.struct([("a", pa.int64())]), ({"a": 0}, {"a": 1}, {"a": 0}, None)),
        (pa.map_(pa.string(), pa.int64()), ([("a", 1)],) * 4),
        (pa.list_(pa.list_(pa.string())), ([["a"]],) * 4),
        (pa.binary(3), (b"abc", b"abd", b"abc", b"abd")),
    )
    kind, values = random.choice(kinds[:2] + kinds)
    values = values[:rows]
    if random.random() < 0.2:
        values = tuple(None if random.random() < 0.4 else value for value in values)
    column = pa.array(values, kind)
    if random.random() < 0.25 and (pa.types.is_integer(kind) or pa.types.is_string(kind)):
        column = column.dictionary_encode()
    return column


def shards(seeds: Seeds, case: Case, random: Random) -> None:
    folder = case.inputs / "set"
    for split in ("train", "val")[: random.choice((1, 2))]:
        write(folder / f"{split}-0000.tar", mutate.damage_tar(seeds.shard, random))
    _use_data(seeds, case, random.choice((folder, folder, folder / "train-0000.tar")), random)


def shard_lists(seeds: Seeds, case: Case, random: Random) -> None:
    folder = case.inputs / "set"
    info = {
        "splits": {
            "train": {"filenames": ["a-0.tar", "a-1.tar"], "shard_lengths": [4, 4]},
            "validation": {"filenames": ["b-0.tar"], "shard_lengths": [4]},
        }
    }
    for name in ("a-0.tar", "a-1.tar", "b-0.tar"):
        write(folder / name, _tar(seeds))
    classes = b"ant\nbee\n"
    which = random.randrange(3)
    content = json.dumps(info).encode()
    write(folder / "_info.json", mutate.damage_json(content, random) if which != 1 else content)
    write(folder / "classes.txt", mutate.damage_text(classes.decode(), random) if which else classes)
    _use_data(seeds, case, folder, random)
    if random.random() < 0.2:
        patterns = (
            "a-{0..1}.tar",
            "a-{0..99999999999}.tar",
            "{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}.tar",
            "{1..0}.tar",
        )
        pattern = random.choice((*patterns, "../../victim/{0..1}.tar", "x" * 300 + ".tar", "a\u202e.tar", "a-0.tar|7"))
        case.words = ["eval", str(seeds.model), "--data", str(folder), "--split", pattern, "--device", "cpu"]


def _tar(seeds: Seeds) -> bytes:
    import tarfile

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in seeds.shard:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def pictures(seeds: Seeds, case: Case, random: Random) -> None:
    endings = [ending for ending in PICTURES if (seeds.root / f"formats/photo.{ending}").exists()]
    many = random.choice((1, 1, 4))
    for number in range(many):
        ending = random.choice(endings)
        content = mutate.damage(seeds.content(f"formats/photo.{ending}"), random)
        write(case.inputs / f"set/{('ant', 'bee')[number % 2]}/{number}.{ending}", content)
    _use_pictures(seeds, case, random)


def _use_pictures(seeds: Seeds, case: Case, random: Random) -> None:
    folder = case.inputs / "set"
    first = next(path for path in sorted(folder.rglob("*")) if path.is_file())
    if random.random() < 0.5:
        case.words = [
            "predict",
            str(seeds.model),
            str(first),
            "--json",
            random.choice(("-", str(case.work / "p.json"))),
        ]
    elif random.random() < 0.7:
        case.words = ["data", "check", str(folder), "--workers", "1"]
    else:
        write(folder / "bee/good.png", seeds.content("pictures/bee/0.png"))
        write(folder / "ant/good.png", seeds.content("pictures/ant/0.png"))
        case.words = ["eval", str(seeds.model), "--data", str(folder), "--device", "cpu"]


def png(seeds: Seeds, case: Case, random: Random) -> None:
    names = [name for name in PICTURES if name.endswith("png")]
    content = seeds.content(f"formats/photo.{random.choice(names)}")
    write(case.inputs / "set/ant/0.png", mutate.damage_png(content, random))
    _use_pictures(seeds, case, random)


def tiff(seeds: Seeds, case: Case, random: Random) -> None:
    """Entries of a TIFF file's directory with other tags, types, counts and values."""
    names = [name for name in PICTURES if name.endswith("tif")]
    content = bytearray(seeds.content(f"formats/photo.{random.choice(names)}"))
    order = "<" if content[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, start)
    for _ in range(random.choice((1, 1, 2, 3))):
        place = start + 2 + 12 * random.randrange(count)
        tag, kind, many, value = struct.unpack_from(f"{order}HHII", content, place)
        how = random.randrange(4)
        tag = (
            random.choice((254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 322, 339, 330))
            if how == 0
            else tag
        )
        kind = random.randrange(0, 20) if how == 1 else kind
        many = random.choice((0, 1, 3, 1000, 2**31, 2**32 - 1)) if how == 2 else many
        value = (
            random.choice((0, 1, 2, 5, 7, 8, 16, 32, 32773, 34712, 65535, 2**31, 2**32 - 1, start))
            if how == 3
            else value
        )
        struct.pack_into(f"{order}HHII", content, place, tag, kind, many, value)
    write(case.inputs / "set/ant/0.tif", bytes(content))
    _use_pictures(seeds, case, random)


def list_of_files(seeds: Seeds, case: Case, random: Random) -> None:
    shutil.copytree(seeds.pictures, case.inputs / "set")
    rows = [["file", "label", "split"]]
    rows += [[f"{name}/{i}.png", name, ("train", "val")[i % 2]] for i in range(4) for name in ("ant", "bee")]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    ending = random.choice(("csv", "csv", "csv", "tsv"))
    file = write(case.inputs / f"set/list.{ending}", _damaged_csv(text.getvalue().encode(), random))
    _use_data(seeds, case, file, random)


def _damaged_csv(content: bytes, random: Random) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode(errors="surrogateescape"))))
    if random.random() < 0.3 or not rows:
        return mutate.damage_text(content.decode(errors="surrogateescape"), random)
    for _ in range(random.choice((1, 1, 3))):
        row = random.choice(rows)
        if row and random.random() < 0.8:
            row[random.randrange(len(row))] = random.choice((*NASTY_TEXT, *HUGE, "[1, 2]", "x" * 200_000, "a\rb"))
        else:
            row.append(random.choice(NASTY_TEXT))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=random.choice(",,,;\t|"), lineterminator=random.choice(("\n", "\r\n", "\r")))
    try:
        writer.writerows(rows)
    except csv.Error:
        return mutate.damage(content, random)
    return random.choice((b"", b"", b"\xef\xbb\xbf", b"sep=;\n")) + text.getvalue().encode(errors="surrogateescape")


# the place where a command runs


def environment(seeds: Seeds, case: Case, random: Random) -> None:
    """What launchers say through variables, and what nobody says."""
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR", "OMP_NUM_THREADS")
    values = (*HUGE, "", " ", "x", "1.0", "-3", "2 ", "0x2", "\u0663", "1_0", "\u202e", "a\nillama: error: forged")
    for name in random.sample(names, random.choice((1, 1, 2))):
        case.variables[name] = random.choice(values)
    if "WORLD_SIZE" not in case.variables and random.random() < 0.3:
        case.variables["WORLD_SIZE"] = "1"
    run = _copy_run(seeds, case)
    case.words = random.choice(
        (
            ["eval", str(seeds.model), "--data", str(seeds.pictures), "--device", "cpu"],
            ["train", "digits_micro", "--print"],
            ["predict", str(seeds.model), str(seeds.pictures / "ant/0.png")],
            ["runs", str(run.parent)],
            _train(seeds, run),
        )
    )


def names(seeds: Seeds, case: Case, random: Random) -> None:
    """Words of a command that are no names, and names that are no words."""
    odd = (
        *("x" * 256, "x/" * 3000, "\udcff\udcfe", "\u202egnp", "a\nillama: error: forged", "\x1b[31m", "", " ", "-"),
    )
    odd += ("--", "**/../**", "[", "[!", "~nobody1/x", "~", ".", "..", "{0..9}", "*?" * 40, "é" * 200, "\\", "a\tb")
    odd += ("**/*/**/*/**", "../" * 40 + "*", "http://x/\x1b.png", "x" * 90_000, "é" * 127 + ".png")
    word = random.choice(odd)
    if random.random() < 0.4 and word and len(os.fsencode(word)) < 255 and "/" not in word and word not in (".", ".."):
        write(case.inputs / word, seeds.content("pictures/ant/0.png"))
        word = str(case.inputs / word)
    elif random.random() < 0.6:
        word += random.choice((".png", ".csv", ".yaml", ".safetensors", ".pth", ".tar", ".parquet", "/x"))
    photo, model = str(seeds.pictures / "ant/0.png"), str(seeds.model)
    made = "odd" if ".." in word else word.removeprefix(f"{case.inputs}/").lstrip("/")  # below the working folder
    case.words = random.choice(
        (
            *(["predict", model, word], ["predict", word, photo], ["predict", model, photo, "--json", made]),
            *(["eval", word], ["eval", model, "--data", word], ["data", "check", word], ["runs", word]),
            *(["eval", model, "--data", str(seeds.pictures), "--split", word], ["convert", word, "out.safetensors"]),
            *(["train", word, "--print"], ["train", "cifar10_micro", "--data", word, "--print"]),
            *(["train", "digits_micro", word, "--print"], ["train", "digits_micro", "--init-from", word, "--print"]),
            *(["analyze", "calibration", word], ["analyze", "compare", word, word], ["data", "shard", word, "out"]),
            *(["predict", model, photo, "--device", word], ["predict", model, photo, "--csv", made], [word]),
            *(["convert", model, made], ["features", model, "--out", made, "--data", str(seeds.pictures)]),
            *(["eval", model, "--data", str(seeds.pictures), "--save-logits", made], ["verify", word], ["bench", word]),
        )
    )


SPECIAL = ("fifo", "zero", "sparse", "folder", "link to nothing", "link to itself", "socket", "empty", "far link")


def special_files(seeds: Seeds, case: Case, random: Random) -> None:
    """What is no regular file, has no end, or is larger than any memory, in the place of any input."""
    place = random.choice(sorted(_INPUTS))
    prepare = _INPUTS[place]
    file, case.words = prepare(seeds, case)
    _make_special(file, random.choice(SPECIAL), case)


def _make_special(file: Path, what: str, case: Case) -> None:
    if file.exists() or file.is_symlink():
        file.unlink()
    file.parent.mkdir(parents=True, exist_ok=True)
    if what == "fifo":
        os.mkfifo(file)
    elif what == "zero":
        node = case.victim / "zero"  # a device of one's own, where the rights suffice, and else a pipe
        try:
            os.mknod(node, 0o020444, os.makedev(1, 5))
        except PermissionError:
            os.mkfifo(node)
        file.symlink_to(node)
    elif what == "sparse":
        with open(file, "wb") as opened:
            opened.truncate(40 << 30)
    elif what == "folder":
        file.mkdir()
    elif what == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as opened:
            here = os.open(file.parent, os.O_RDONLY)
            opened.bind(f"/proc/self/fd/{here}/{file.name}")
            os.close(here)
    elif what == "empty":
        file.touch()
    else:
        target = {"link to nothing": "nothing", "link to itself": file.name, "far link": "x" * 300}[what]
        try:
            file.symlink_to(target)
        except OSError:
            file.touch()


def _in_run(name: str, *, use: str) -> Callable[[Seeds, Case], tuple[Path, list[str]]]:
    def prepare(seeds: Seeds, case: Case) -> tuple[Path, list[str]]:
        run = _copy_run(seeds, case)
        words = {"train": _train(seeds, run), "runs": ["runs", str(run.parent)], "eval": ["eval", str(run)]}
        return run / name, words[use]

    return prepare


def _weights_at(name: str, folder: str = "") -> Callable[[Seeds, Case], tuple[Path, list[str]]]:
    def prepare(seeds: Seeds, case: Case) -> tuple[Path, list[str]]:
        if folder:
            shutil.copytree(seeds.root / folder, case.inputs / "hub")
        given = case.inputs / "hub" if folder else case.inputs / name
        return case.inputs / ("hub" if folder else "") / name, [
            "predict",
            str(given),
            str(seeds.pictures / "ant/0.png"),
        ]

    return prepare


def _data_at(name: str, like: str = "", *more: str) -> Callable[[Seeds, Case], tuple[Path, list[str]]]:
    def prepare(seeds: Seeds, case: Case) -> tuple[Path, list[str]]:
        folder = case.inputs / "set"
        if like == "shards":
            write(folder / "train-0000.tar", _tar(seeds))
        elif like:
            shutil.copytree(seeds.root / like, folder)
        given = folder / name if not like or name.endswith(("csv", "tsv")) else folder
        return folder / name, ["data", "check", str(given), "--workers", "1", *more]

    return prepare


def _words(name: str, *words: str) -> Callable[[Seeds, Case], tuple[Path, list[str]]]:
    def prepare(seeds: Seeds, case: Case) -> tuple[Path, list[str]]:
        known = {"FILE": str(case.inputs / name), "MODEL": str(seeds.model), "PICTURES": str(seeds.pictures)}
        return case.inputs / name, [known.get(word, word) for word in words]

    return prepare


_INPUTS: dict[str, Callable[[Seeds, Case], tuple[Path, list[str]]]] = {
    "recipe": _words("mine.yaml", "train", "FILE", "--print"),
    "photo": _words("photo.png", "predict", "MODEL", "FILE"),
    "folder of photos": _words("set/photo.png", "predict", "MODEL", "FILE"),
    "logits": _words("l.safetensors", "analyze", "calibration", "FILE"),
    "start weights": _words("w.pth", "train", "digits_micro", "--init-from", "FILE", "--device", "cpu"),
    "safetensors": _weights_at("w.safetensors"),
    "pickle": _weights_at("w.pth"),
    "hub config": _weights_at("config.json", "hf"),
    "hub processor": _weights_at("preprocessor_config.json", "hf"),
    "hub weights": _weights_at("model.safetensors", "timm"),
    "csv": _data_at("list.csv", "pictures"),
    "tsv": _data_at("list.tsv", "pictures"),
    "parquet": _data_at("train.parquet"),
    "parquet beside others": _data_at("train-00000-of-00001.parquet", "parquet"),
    "tar": _data_at("train-0000.tar"),
    "tar beside others": _data_at("val-0000.tar", "shards"),
    "info": _data_at("_info.json", "shards"),
    "class names": _data_at("classes.txt", "shards"),
    "picture": _data_at("ant/9.png", "pictures"),
    "picture without ending": _data_at("ant/9", "pictures"),
    "quick": _data_at("ant/9.jpg", "pictures", "--quick"),
    **{
        f"run {name}, {use}": _in_run(name, use=use)
        for use in ("train", "runs", "eval")
        for name in (
            *("recipe.yaml", "environment.json", "classes.json", "origin.json", "held_out.csv", "metrics.jsonl"),
            *("checkpoints/last/meta.json", "checkpoints/last/model.safetensors", "checkpoints/last/training_state.pt"),
            "curves.png",
        )
    },
}
