"""Every mode and bit depth, from arrays made by hand: read as the stated rule says, or refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from illama.data.decode.images import BrokenImage, read_image

LEVELS = np.array([[0, 85, 170, 255]], np.uint8)


def seen(content: bytes, channels: int = 1) -> list[Any]:
    """What is read of a picture's first row: grey levels, or colours."""
    return np.asarray(read_image(content, channels))[0].tolist()


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(values: np.ndarray, depth: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file by hand: one row of samples of a depth in bits, colour type as PNG counts them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = values.reshape(-1)
    if depth < 8:
        bits = "".join(f"{value:0{depth}b}" for value in row.tolist())
        packed = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    else:
        packed = row.astype(">u2" if depth == 16 else "u1").tobytes()
    header = struct.pack(">IIBBBBB", values.shape[0], 1, depth, colour, 0, 0, 0)
    body = b"".join(chunk(*one) for one in chunks)
    ends = chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + ends


def tiff(values: np.ndarray, *, order: str = "<", photometric: int = 1, **tags: Any) -> bytes:
    """A TIFF file by hand: one row of grey samples of the array's type; tags by number as _340=(kind, value)."""
    kinds = {"u": 1, "i": 2, "f": 3}
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    entries = {
        256: (4, values.size), 257: (4, 1), 258: (3, 8 * values.dtype.itemsize), 259: (3, 1), 262: (3, photometric),
        273: (4, 8), 277: (3, 1), 278: (4, 1), 279: (4, len(data)), 339: (3, kinds[values.dtype.kind]),
    }  # fmt: skip
    entries |= {int(name[1:]): value for name, value in tags.items()}
    codes = {3: "H2x", 4: "I", 9: "i", 11: "f"}
    packed = [struct.pack(f"{order}HHI{codes[k]}", tag, k, 1, v) for tag, (k, v) in sorted(entries.items())]
    place = 8 + len(data)
    mark = b"II" if order == "<" else b"MM"
    directory = struct.pack(f"{order}H", len(packed)) + b"".join(packed) + struct.pack(f"{order}I", 0)
    return mark + struct.pack(f"{order}HI", 42, place) + data + directory


# 8 bits and less


@pytest.mark.parametrize(("depth", "levels"), [(1, [0, 255]), (2, [0, 85, 170, 255]), (4, [0, 17, 238, 255])])
def test_few_bits_of_grey(depth: int, levels: list[int]) -> None:
    samples = np.array(levels) * (2**depth - 1) // 255
    assert seen(png(samples, depth, 0)) == levels


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes(depth: int) -> None:
    content = png(np.array([1, 0]), depth, 3, (b"PLTE", bytes([10, 20, 30, 200, 100, 50])))
    assert seen(content, 3) == [[200, 100, 50], [10, 20, 30]]
    clear = png(np.array([1, 0]), depth, 3, (b"PLTE", bytes([10, 20, 30, 200, 100, 50])), (b"tRNS", b"\x00\xff"))
    assert seen(clear, 3) == [[200, 100, 50], [255, 255, 255]]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "PPM", "GIF", "QOI"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_plain_modes_of_formats_without_loss(form: str, mode: str) -> None:
    image = Image.fromarray(LEVELS if mode != "1" else np.array([[0, 255, 0, 255]], np.uint8)).convert(mode)
    if form == "QOI":
        image = image.convert("RGB")
    if form == "PPM" and mode == "P":
        pytest.skip("has no palettes")
    assert seen(encoded(image, form)) == np.asarray(image.convert("L"))[0].tolist()


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_alpha_is_on_white(form: str, options: dict[str, Any]) -> None:
    rgba = np.array([[[0, 100, 200, 255], [0, 100, 200, 0], [0, 0, 0, 128], [9, 9, 9, 0]]], np.uint8)
    found = np.array(seen(encoded(Image.fromarray(rgba), form, **options), 3))
    assert np.abs(found - [[0, 100, 200], [255, 255, 255], [127, 127, 127], [255, 255, 255]]).max() <= 1


def test_avif_and_jpeg_2000() -> None:
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    for form in ("AVIF", "JPEG2000"):
        assert (
            np.abs(
                np.array(seen(encoded(flat, form, quality=95 if form == "AVIF" else None), 3)) - [200, 100, 50]
            ).max()
            <= 3
        )
    clear = Image.new("RGBA", (16, 16), (200, 100, 50, 0))
    for form in ("AVIF", "JPEG2000"):
        assert seen(encoded(clear, form), 3)[0] == [255, 255, 255]


def test_cmyk_and_ycbcr() -> None:
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    for mode, form in (("CMYK", "TIFF"), ("CMYK", "JPEG"), ("YCbCr", "JPEG")):
        assert np.abs(np.array(seen(encoded(flat.convert(mode), form), 3))[3] - [200, 100, 50]).max() <= 6, (mode, form)


def test_lab_becomes_rgb() -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.new("RGB", (4, 4), (200, 100, 50)), to_lab)
    assert np.abs(np.array(seen(encoded(lab, "TIFF"), 3))[0] - [200, 100, 50]).max() <= 2


# 16 bits

WIDE = np.array([0, 257, 32896, 65535], np.uint16)


def test_16_bits_of_grey_go_from_0_to_65535() -> None:
    for content in (
        png(WIDE, 16, 0),
        tiff(WIDE),
        tiff(WIDE, order=">"),
        b"P5 4 1 65535\n" + WIDE.astype(">u2").tobytes(),
        encoded(Image.fromarray(WIDE[None]), "JPEG2000", irreversible=False),
    ):
        assert seen(content) == [0, 1, 128, 255]
    dark = png(np.array([0, 100, 255], np.uint16), 16, 0)
    assert seen(dark) == [0, 0, 1]  # the type decides: the values of one picture do not


def test_other_largest_values_of_pgm() -> None:
    assert seen(b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes()) == [0, 128, 255]
    assert seen(b"P5 3 1 100\n" + bytes([0, 50, 100])) == [0, 128, 255]
    assert seen(b"P2 3 1 15\n0 5 15\n") == [0, 85, 255]
    assert seen(b"P4 8 1\n" + bytes([0b10000001])) == [0, 255, 255, 255, 255, 255, 255, 0]


def test_12_bits_of_grey_go_to_4095() -> None:
    packed = int("".join(f"{value:012b}" for value in (0, 4095, 2048, 16)), 2).to_bytes(6, "big")
    content = tiff(np.frombuffer(packed, np.uint8), _256=(4, 4), _258=(3, 12))
    assert seen(content) == [0, 255, 128, 1]


def test_white_may_be_zero() -> None:
    assert seen(tiff(LEVELS[0], photometric=0)) == [255, 170, 85, 0]
    assert seen(tiff(WIDE, photometric=0)) == [255, 254, 127, 0]
    assert seen(tiff(np.array([0, 0.25, 1], np.float32), photometric=0)) == [255, 191, 0]


def test_a_stated_range_counts() -> None:
    values = np.array([100, 150, 200], np.uint16)
    assert seen(tiff(values, _340=(3, 100), _341=(3, 200))) == [0, 128, 255]
    assert seen(tiff(values, _280=(3, 0), _281=(3, 200))) == [128, 191, 255]
    floats = np.array([-1, 0, 3], np.float32)
    assert seen(tiff(floats, _340=(11, -1.0), _341=(11, 3.0))) == [0, 64, 255]
    whole = np.array([-5, 0, 5], np.int32)
    assert seen(tiff(whole, _340=(9, -5), _341=(9, 5))) == [0, 128, 255]
    assert seen(tiff(np.array([0, 1000], np.uint32), _281=(4, 1000))) == [0, 255]


def test_16_bits_of_colour_are_their_high_bytes() -> None:
    colours = np.array([[0x1234, 0xFF00, 0x00FF], [0xFFFF, 0, 0x8000]], np.uint16)
    assert seen(png(colours, 16, 2), 3) == [[0x12, 0xFF, 0], [0xFF, 0, 0x80]]
    alpha = np.array([[0x1234, 0xFFFF], [0x1234, 0]], np.uint16)
    assert seen(png(alpha, 16, 4)) == [0x12, 255]
    rgba = np.array([[0x1234, 0xFF00, 0, 0xFFFF], [1, 2, 3, 0]], np.uint16)
    assert seen(png(rgba, 16, 6), 3) == [[0x12, 0xFF, 0], [255, 255, 255]]


def test_a_transparent_value_of_grey_and_of_colour_is_white() -> None:
    assert seen(png(np.array([7, 8]), 8, 0, (b"tRNS", b"\0\x07"))) == [255, 8]
    assert seen(png(np.array([0x4E4E, 0x4E4F], np.uint16), 16, 0, (b"tRNS", b"\x4e\x4e"))) == [255, 78]
    colours = np.array([[1, 2, 3], [1, 2, 4]])
    assert seen(png(colours, 8, 2, (b"tRNS", bytes([0, 1, 0, 2, 0, 3]))), 3) == [[255] * 3, [1, 2, 4]]
    deep = np.array([[0x1234, 0x5678, 0x9ABC], [0x1334, 0x5678, 0x9ABC]], np.uint16)
    key = b"\x12\x34\x56\x78\x9a\xbc"
    assert seen(png(deep, 16, 2, (b"tRNS", key)), 3) == [[255] * 3, [0x13, 0x56, 0x9A]]


# what has no range


@pytest.mark.parametrize("depth", [2, 4])
def test_a_transparent_value_of_few_bits_is_white(depth: int) -> None:
    samples = np.array([0, 1, 2, 3])
    clear = png(samples, depth, 0, (b"tRNS", struct.pack(">H", 1)))
    step = 255 // (2**depth - 1)
    assert seen(clear) == [0, 255, 2 * step, 3 * step]


def planes(depth: int) -> bytes:
    """A TIFF file by hand: one pixel of red 1/2, green 1/4, blue 1/8, each in a plane of its own."""
    size = depth // 8
    data = b"".join((2**depth >> (1 + n)).to_bytes(size, "little") for n in range(3))
    lists = struct.pack("<3H", *[depth] * 3) + struct.pack("<3I", *(8 + size * n for n in range(3)))
    lists += struct.pack("<3I", *[size] * 3)
    at = 8 + len(data)
    entries = [
        (256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 3, at), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, at + 6),
        (277, 3, 1, 3), (278, 4, 1, 1), (279, 4, 3, at + 18), (284, 3, 1, 2),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *one) for one in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", at + len(lists)) + data + lists + directory


def test_planes_of_colour_are_read_right_or_refused() -> None:
    assert seen(planes(8), 3) == [[128, 64, 32]]
    with pytest.raises(BrokenImage, match="colours of 16 bits in planes of their own"):
        read_image(planes(16))


def test_what_a_known_format_holds_besides_is_told_apart(capfd: pytest.CaptureFixture[str]) -> None:
    many = tiff(np.zeros(13, np.uint8), _277=(3, 13))
    with pytest.raises(BrokenImage, match="of a kind of its format that is not read; save it again as 8-bit RGB"):
        read_image(many)
    with pytest.raises(BrokenImage, match="git lfs pull"):
        read_image(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(BrokenImage, match="not an image of a known format"):
        read_image(b"<html>")
    assert capfd.readouterr() == ("", "")


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(BrokenImage, match="null byte"):
        read_image("a\0b.png")


def test_floats_go_from_0_to_1() -> None:
    assert seen(tiff(np.array([0, 0.5, 1], np.float32))) == [0, 128, 255]
    assert seen(tiff(np.array([0, 0.001, 0.002], np.float32))) == [0, 0, 1]
    assert seen(tiff(np.array([0, 20, 255], np.float32))) == [0, 20, 255]  # levels that happen to be floats
    assert seen(b"Pf\n2 1\n-1.0\n" + np.array([0.5, 1], "<f4").tobytes()) == [128, 255]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.array([0, np.nan], np.float32), "1 of its 2 values are not finite"),
        (np.array([np.inf, -np.inf, 1], np.float32), "2 of its 3 values are not finite"),
        (np.array([-0.2, 0.5], np.float32), "from -0.2 to 0.5, outside of the range of its type"),
        (np.array([0, 1.5], np.float32), "from 0 to 1.5, outside"),
        (np.array([0, 1e6], np.float32), r"from 0 to 1e\+06, outside"),
        (np.array([0, 7], np.int32), "whole numbers have no range"),
        (np.array([0, 7], np.uint32), "whole numbers have no range"),
        (np.array([0, -7], np.int16), "whole numbers have no range"),
        (np.array([0, -7], np.int8), "signed 8-bit values"),
    ],
)
def test_values_without_a_range_are_refused_by_name(values: np.ndarray, why: str) -> None:
    with pytest.raises(BrokenImage, match=rf"pet\.tif: .*{why}") as refused:
        read_image(tiff(values), where="pet.tif")
    assert "\n" not in str(refused.value)


def test_a_range_that_is_exceeded_is_refused() -> None:
    with pytest.raises(BrokenImage, match=r"from 0 to 201, outside of the range of its type \(0 to 200\)"):
        read_image(tiff(np.array([0, 201], np.uint16), _281=(3, 200)))


# what Pillow says in words of its own


def test_a_huge_picture_says_what_to_do() -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 10000, 8, 0, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    told = r"20,000 x 10,000 pixels are more than data.max_image_pixels=178956970; .*=200000000"
    with pytest.raises(BrokenImage, match=told):
        read_image(huge + png(np.zeros(1, np.uint8), 8, 0)[33:])


def test_a_long_text_says_what_to_do() -> None:
    text = b"comment\0\0" + zlib.compress(b"x" * (3 << 20))
    with pytest.raises(BrokenImage, match="a text in the PNG file is longer than Pillow reads"):
        read_image(png(np.zeros(1, np.uint8), 8, 0, (b"zTXt", text)))


def test_pictures_of_phones(tmp_path: Path) -> None:
    """HEIF is read where pillow-heif is installed (illama[heif])."""
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    pixels = np.full((40, 40, 3), 90, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.heic", quality=100)
    assert np.abs(np.asarray(read_image(str(tmp_path / "x.heic"), 3)).astype(int) - pixels).max() <= 3
