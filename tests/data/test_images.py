"""Images are read as a person sees them; what cannot be read is named with the reason."""

from __future__ import annotations

import io
import json
import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from illama.data.decode.images import PILLOW_IN_OUR_HANDS, BrokenImage, as_seen, read_head, read_image
from illama.data.decode.lazy_image import open_picture
from illama.errors import UserError


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _quarters() -> Image.Image:
    """32 x 16: red, green / blue, grey. Flat 8 x 16 blocks survive JPEG."""
    image = Image.new("RGB", (32, 16))
    for k, colour in enumerate([(200, 10, 10), (10, 200, 10), (10, 10, 200), (90, 90, 90)]):
        image.paste(colour, (16 * (k % 2), 8 * (k // 2), 16 * (k % 2) + 16, 8 * (k // 2) + 8))
    return image


def _near(image: Image.Image, at: tuple[int, int], colour: tuple[int, ...], slack: int = 6) -> None:
    assert np.abs(np.subtract(image.getpixel(at), colour)).max() <= slack, image.getpixel(at)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone(orientation: int) -> None:
    seen = _quarters()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how a camera stores it: FLIP_LR, 180, FLIP_TB, ...
    stored = seen.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else seen
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_image(_encoded(stored, "PNG", exif=exif))
    assert read.size == seen.size
    assert np.array_equal(np.asarray(read), np.asarray(seen))


def test_orientation_in_xmp_is_undone() -> None:
    """As cameras and editors write it into PNG files."""
    packet = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    packet += '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    chunk = PngImagePlugin.PngInfo()
    chunk.add_itxt("XML:com.adobe.xmp", packet)
    seen = _quarters()
    stored = seen.transpose(Image.Transpose.ROTATE_90)
    assert read_image(_encoded(stored, "PNG", pnginfo=chunk)).tobytes() == seen.tobytes()


def test_unreadable_exif_is_ignored() -> None:
    read = read_image(_encoded(_quarters(), "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xffgarbage"))
    assert np.array_equal(np.asarray(read), np.asarray(_quarters()))


def test_cmyk_keeps_its_colours() -> None:
    read = read_image(_encoded(_quarters().convert("CMYK"), "JPEG", quality=95))
    assert read.mode == "RGB"
    _near(read, (4, 4), (200, 10, 10), slack=12)
    _near(read, (28, 12), (90, 90, 90), slack=12)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 255, 0))
    image.paste((40, 40, 40, 255), (0, 0, 4, 8))
    read = read_image(_encoded(image.convert(mode), "PNG"))
    assert read.mode == "RGB"
    assert read.getpixel((6, 2)) == (255, 255, 255)
    _near(read, (1, 1), (40, 40, 40), slack=0 if mode != "P" else 12)


def test_half_transparent_mixes_with_white() -> None:
    read = read_image(_encoded(Image.new("RGBA", (2, 2), (0, 100, 200, 128)), "PNG"))
    _near(read, (0, 0), (127, 177, 227), slack=1)


def test_transparent_colour_of_an_opaque_mode_is_white() -> None:
    image = _quarters()
    read = read_image(_encoded(image, "PNG", transparency=(10, 200, 10)))
    assert read.getpixel((20, 2)) == (255, 255, 255)
    assert read.getpixel((2, 2)) == (200, 10, 10)


def test_16_bits_are_scaled() -> None:
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    for form in ("PNG", "TIFF"):
        read = read_image(_encoded(Image.fromarray(levels), form))
        assert np.asarray(read)[0, :, 0].tolist() == [0, 1, 128, 255], form
        assert np.asarray(read).shape == (1, 4, 3)


@pytest.mark.parametrize(("values", "seen"), [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 20.0, 255.0], [0, 20, 255])])
def test_float_grey_uses_its_own_range(values: list[float], seen: list[int]) -> None:
    read = read_image(_encoded(Image.fromarray(np.array([values], np.float32)), "TIFF"))
    assert np.asarray(read)[0, :, 0].tolist() == seen


def test_grey_is_repeated_or_kept() -> None:
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    content = _encoded(grey, "PNG")
    rgb = np.asarray(read_image(content, 3))
    assert all(np.array_equal(rgb[..., c], np.asarray(grey)) for c in range(3))
    assert np.array_equal(np.asarray(read_image(content, 1)), np.asarray(grey))


def test_palette_is_never_taken_for_grey_levels() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 240, 230])
    assert read_image(_encoded(image, "PNG"), 3).getpixel((0, 0)) == (250, 240, 230)
    assert read_image(_encoded(image, "PNG"), 1).getpixel((0, 0)) == as_seen(
        Image.new("RGB", (1, 1), (250, 240, 230)), 1
    ).getpixel((0, 0))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (6, 6), c) for c in ("red", "lime", "blue")]
    for form in ("GIF", "WEBP"):
        options = {"lossless": True} if form == "WEBP" else {}
        read = read_image(_encoded(frames[0], form, save_all=True, append_images=frames[1:], **options))
        assert read.getpixel((3, 3)) == (255, 0, 0)


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    file = tmp_path / "été 猫 (1).jpg"
    file.write_bytes(_encoded(_quarters(), "PNG"))
    assert np.array_equal(np.asarray(read_image(file)), np.asarray(_quarters()))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    whole = _encoded(Image.effect_noise((64, 64), 50), "JPEG")
    cases = {"cut.jpg": whole[: len(whole) // 2], "empty.jpg": b"", "text.jpg": b"not an image at all\n"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BrokenImage) as caught:
            read_image(tmp_path / name)
        assert name in caught.value.where
        assert caught.value.why
        assert "\n" not in str(caught.value)
    with pytest.raises(BrokenImage, match="No such file"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(BrokenImage, match="row 7"):
        read_image(b"", where="row 7")


def test_every_cut_of_a_file_is_noticed() -> None:
    whole = _encoded(Image.effect_noise((40, 40), 50).convert("RGB"), "PNG")
    for length in range(0, len(whole) - 16, 97):  # the last bytes are the end mark, which holds no pixels
        with pytest.raises(BrokenImage):
            read_image(whole[:length])


def test_other_channel_counts_are_refused() -> None:
    with pytest.raises(UserError, match="in_chans is 4"):
        read_image(b"", 4)


def test_one_reader_that_ends_leaves_the_others_their_limit() -> None:
    with PILLOW_IN_OUR_HANDS:
        with PILLOW_IN_OUR_HANDS:
            pass
        assert Image.MAX_IMAGE_PIXELS is None
    assert Image.MAX_IMAGE_PIXELS is not None


def test_no_warning_leaks_and_the_filters_come_back() -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([0, 0, 0] * 256)
    content = _encoded(image, "PNG", transparency=bytes(range(256)))  # makes Pillow warn on conversion
    before = list(warnings.filters)
    problems: list[BaseException] = []

    def read_some() -> None:
        try:
            for _ in range(50):
                read_image(content)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=read_some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert warnings.filters == before


def test_messy_files_are_as_their_manifest_says(shared_data: Path) -> None:
    folder = shared_data / "messy"
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    assert len(files) == 18
    for entry in files:
        for in_chans, mode in ((3, "RGB"), (1, "L")):
            if not entry["readable"]:
                with pytest.raises(BrokenImage, match=entry["file"]):
                    read_image(folder / entry["file"], in_chans)
                continue
            read = read_image(folder / entry["file"], in_chans)
            assert (read.mode, list(read.size)) == (mode, entry["size"]), entry["file"]


def test_messy_pixels(shared_data: Path) -> None:
    folder = shared_data / "messy"
    corner = read_image(folder / "palette_transparent.png")
    assert corner.getpixel((0, 0)) == (255, 255, 255)
    assert 60 < np.asarray(read_image(folder / "gray16.png")).mean() < 200
    pool = np.asarray(read_image(folder / "cmyk.jpg").crop((235, 135, 315, 160))).mean((0, 1))
    assert pool[1] > pool[0] + 5  # dark green water; inverted it would be magenta
    assert pool[1] > pool[2] + 5
    # the same photographs lie there in another form, upright
    for turned, upright in (("exif_6.jpg", "été 猫 photo (1) é.jpg"), ("exif_8.jpg", "png_named.jpg")):
        first, second = (
            np.asarray(read_image(folder / name).resize((24, 18)), np.float32) for name in (turned, upright)
        )
        assert np.abs(first - second).mean() < 10


# what would cost minutes or all memory


def test_only_regular_files_of_a_sane_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(40 << 30)
    for name, why in (
        ("pipe", "it is no regular file"),
        ("zero", "it is no regular file"),
        ("folder", "Is a directory|no regular file"),
        ("sparse", "42,949,672,960 bytes are too many"),
    ):
        for read in (read_image, lambda file: read_head(file, 99)):
            with pytest.raises(BrokenImage, match=why):
                read(tmp_path / f"{name}.png")


def test_a_jpeg_file_of_endless_scans_is_refused() -> None:
    """The same scan again and again: each goes over all pixels."""
    whole = _encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG", progressive=True)
    assert read_image(whole).size == (64, 64)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    endless = whole[:-2] + scan * 200 + whole[-2:]
    for read in (read_image, lambda content: open_picture(content, 3).image()):
        with pytest.raises(BrokenImage, match="more scans than any camera or encoder writes"):
            read(endless)


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "I;16", "I;16 key", "I", "F", "F whole", "RGB key"])
def test_large_images_are_converted_in_bands(mode: str, in_chans: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest that is allowed, 1.5 MB of 16-bit zeros, took 5.4 GB as a whole; the result is the same."""
    numbers = np.random.default_rng(0)
    kind, _, more = mode.partition(" ")
    levels = numbers.integers(0, 256, (13, 5, 4), dtype=np.uint8)
    if kind in ("I;16", "I"):
        image = Image.fromarray((levels[..., 0].astype(np.uint16) * 201).astype(np.uint16 if kind != "I" else np.int32))
    elif kind == "F":
        image = Image.fromarray(levels[..., 0].astype(np.float32) / (1 if more else 255))
    else:
        image = Image.fromarray(levels, "RGBA").convert(kind)
    if more == "key":
        image.info["transparency"] = 402 if kind == "I;16" else tuple(int(level) for level in levels[3, 3, :3])
    if kind == "P":
        image.info["transparency"] = 3
    span = (0.0, 65535.0) if kind == "I" else None
    whole = as_seen(image, in_chans, span)
    monkeypatch.setattr("illama.data.decode.images._BAND_PIXELS", 12)
    assert as_seen(image, in_chans, span).tobytes() == whole.tobytes()
    assert whole.mode == ("L" if in_chans == 1 else "RGB")


@pytest.mark.parametrize("row", [0, 6, 12])
def test_a_value_out_of_range_is_found_in_any_band(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("illama.data.decode.images._BAND_PIXELS", 12)
    for value, said in ((float("nan"), "1 of its 65 values are not finite"), (1e9, "outside of the range")):
        values = np.full((13, 5), 0.5, dtype=np.float32)
        values[row, 2] = value
        with pytest.raises(BrokenImage, match=said):
            as_seen(Image.fromarray(values), 1)
