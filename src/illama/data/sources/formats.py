"""Which files are pictures: one list for training, evaluation, prediction, checks and shards.

The ending of a name makes a file a picture; its content decides the format. Every file is of one of four kinds
(`kind_of_file`), so that whoever walks a folder can count what is not read.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from enum import Enum
from functools import cache

from PIL import Image, features

# Formats that are read, by Pillow's names, and the endings that go with them. Nothing that starts another program (EPS)
# or cannot be told by its content (TGA) is among them.
ENDINGS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "QOI": (".qoi",),
    "HEIF": (".heic", ".heif", ".hif"),
}
# Other names that Pillow gives to the same files: several pictures in a JPEG file.
_ALIASES = {"MPO": "JPEG"}
# Builds of Pillow may lack these.
_FEATURES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
# Pictures that are not read, by ending, and what to do with them.
_FOREIGN = ".jxl .tga .psd .xcf .svg .svgz .eps .ico .exr .hdr .dds .dcm .fits .fit .icns .pcx .sgi .wmf .emf .jxr .wdp"
_RAW = ".dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .pef .srw .3fr"
_UNREAD = {
    **dict.fromkeys(_FOREIGN.split(), "convert them to JPEG or PNG"),
    **dict.fromkeys(_RAW.split(), "develop them to JPEG (rawpy, darktable)"),
}
# Files that stand beside pictures; they are not opened to see what they hold. A trailing ~ or _original is a backup.
_OTHER = """
    .txt .csv .tsv .json .jsonl .xml .yaml .yml .md .rst .html .htm .log .pdf .doc .docx .xls .xlsx .ini .db .sqlite
    .cfg .toml .lst .names .zip .tar .gz .tgz .bz2 .xz .7z .rar .parquet .arrow .h5 .hdf5 .mat .npy .npz .pkl .pt .pth
    .bin .onnx .safetensors .py .ipynb .sh .js .css .mp4 .avi .mov .mkv .webm .wav .mp3 .ogg .flac .m4a .xmp .aae .thm
    .bak .orig .old .tmp .part .partial .swp .sha256 .md5 .sum .lock .lnk
"""
_OTHER_ENDINGS = frozenset(_OTHER.split())
LFS_POINTER = b"version https://git-lfs"  # what a file of Git LFS begins with until it is fetched
_BACKUPS = ("~", "_original")
_HEIF_MODULE = "pillow_heif"


class FileKind(Enum):
    """What a file's name says of it."""

    PICTURE = "a picture that can be read"
    UNREAD = "a picture that cannot be read here"
    OTHER = "no picture"
    UNKNOWN = "known by its content only"


def ending_of(name: str) -> str:
    """The last dot of a file's name and what follows, in lower case; "" without one. A leading dot begins no ending."""
    stem, dot, ending = name.rpartition(".")
    return f".{ending.lower()}" if dot and stem.strip(".") else ""


def kind_of_file(name: str) -> FileKind:
    """What the last part of a path is, by its ending."""
    ending = ending_of(name)
    if ending in picture_endings():
        return FileKind.PICTURE
    if ending in _UNREAD or any(ending in endings for endings in ENDINGS.values()):
        return FileKind.UNREAD
    return FileKind.OTHER if ending in _OTHER_ENDINGS or name.endswith(_BACKUPS) else FileKind.UNKNOWN


@cache
def picture_endings() -> frozenset[str]:
    """The endings of the pictures that can be read here, in lower case."""
    return frozenset(ending for name in readable_formats() for ending in ENDINGS.get(name, ()))


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that can be read here, for `PIL.Image.open(formats=...)`."""
    lacking = {name for name, feature in _FEATURES.items() if not features.check(feature)}
    lacking |= set() if _register_heif() else {"HEIF"}
    return tuple(name for name in ENDINGS if name not in lacking)


def remedy(ending: str) -> str:
    """What to do with pictures of an ending that is not read here."""
    if ending in ENDINGS["HEIF"]:
        return 'pip install "illama[heif]"'
    return _UNREAD.get(ending, "install a Pillow that can read them, or convert them to JPEG or PNG")


def fits(form: str, ending: str) -> bool:
    """Whether a file of the format that Pillow names may have this ending; endings of no format fit all."""
    own = ENDINGS.get(_ALIASES.get(form, form), ())
    return ending in own or not any(ending in endings for endings in ENDINGS.values())


def looks_like_picture(head: bytes) -> bool:
    """Whether a file that begins with these bytes (32 will do) holds a picture of a format with a mark of its own."""
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"qoif", b"\xff\x4f\xff\x51")):
        return True
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ")):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    if head[4:8] == b"ftyp":
        return head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1")
    return head[:2] == b"BM" and head[14:18] in (b"\x0c\0\0\0", b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0")


def pointer_hint(path: str | os.PathLike[str]) -> str:
    """What to add to a complaint about a file that Git LFS has not fetched; "" for any other."""
    try:
        with open(path, "rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except (OSError, ValueError):
        return ""
    return " (it is Git LFS's pointer to the file; fetch it with git lfs pull)" if is_pointer else ""


def _register_heif() -> bool:
    """Teach Pillow to read HEIF files where the package for it is installed."""
    if importlib.util.find_spec(_HEIF_MODULE) is None:
        return False
    importlib.import_module(_HEIF_MODULE).register_heif_opener(thumbnails=False)
    return "HEIF" in Image.OPEN
