"""Plain JPEG files come out as Pillow reads them, whole, in part and shrunk; all others are left to Pillow."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from illama.data.decode import jpeg
from illama.data.decode.images import BrokenImage, read_image
from illama.data.decode.jpeg import decode_plain, plain_jpeg
from illama.data.decode.lazy_image import Box, DecodedPicture, JpegPicture, open_picture

PHOTO = Image.fromarray(load_sample_image("flower.jpg")).crop((100, 20, 437, 271))  # odd sides

DECODERS = ["simplejpeg", "pillow"]


@pytest.fixture(params=DECODERS)
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of decoding a plain file."""
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    return str(request.param)


def _jpeg(image: Image.Image = PHOTO, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def _exif(orientation: int | None, order: str = "<") -> bytes:
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "maker"
    if orientation is not None:
        exif[0x0112] = orientation
    return exif.tobytes()


PLAIN = {
    "4:2:0": _jpeg(),
    "4:2:2": _jpeg(subsampling=1),
    "4:4:4": _jpeg(subsampling=0, quality=97),
    "progressive": _jpeg(progressive=True),
    "grey": _jpeg(PHOTO.convert("L")),
    "rgb": _jpeg(keep_rgb=True),
    "icc": _jpeg(icc_profile=b"not read" * 40),
    "exif": _jpeg(exif=_exif(None)),
    "upright": _jpeg(exif=_exif(1)),
    "upright, other order": _jpeg(exif=_exif(1, ">")),
    "restarts": _jpeg(restart_marker_blocks=3),
    "garbage behind": _jpeg() + b"\xff\xd8 more",
    "one pixel": _jpeg(PHOTO.crop((0, 0, 1, 1))),
}
OTHER = {
    "cmyk": _jpeg(PHOTO.convert("CMYK")),
    "png": b"\x89PNG\r\n\x1a\n",
    "nothing": b"",
    "header only": _jpeg()[:120],
    "xmp": _jpeg(xmp=b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'),
    **{f"turned {n}{order}": _jpeg(exif=_exif(n, order)) for n in range(2, 9) for order in "<>"},
}


@pytest.mark.parametrize("in_chans", [3, 1])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_equal_pillow(name: str, in_chans: int, decoder: str) -> None:
    content = PLAIN[name]
    header = plain_jpeg(content)
    assert header is not None
    seen = np.asarray(read_image(content, in_chans))
    pixels = decode_plain(content, header, in_chans)
    if in_chans == 1 and name != "grey":
        assert pixels is None
    else:
        assert pixels is not None
        assert np.array_equal(pixels.squeeze(-1) if in_chans == 1 else pixels, seen)
    assert (header.width, header.height) == read_image(content).size


@pytest.mark.parametrize("name", OTHER)
def test_other_files_are_left_to_pillow(name: str) -> None:
    assert plain_jpeg(OTHER[name]) is None


@pytest.mark.parametrize("name", [*PLAIN, *OTHER])
def test_a_picture_equals_the_image(name: str, decoder: str) -> None:
    content = {**PLAIN, **OTHER}[name]
    try:
        image = read_image(content)
    except BrokenImage as broken:
        with pytest.raises(BrokenImage, match=broken.why):
            open_picture(content, 3).image()
        return
    picture = open_picture(content, 3)
    assert picture.size == image.size
    assert isinstance(picture, JpegPicture) == (name in PLAIN)
    assert np.array_equal(np.asarray(picture.image()), np.asarray(image))
    width, height = image.size
    box = Box(width // 3, height // 5, -(-width // 2), -(-height // 2))
    region = picture.region(box, (10_000, 10_000))
    assert np.array_equal(region, np.asarray(image)[box.top : box.top + box.height, box.left : box.left + box.width])


@pytest.mark.parametrize("form", ["MPO", "cut", "bit"])
def test_damage_and_several_pictures(form: str, decoder: str) -> None:
    if form == "MPO":
        file = io.BytesIO()
        PHOTO.save(file, "MPO", save_all=True, append_images=[PHOTO.rotate(180)])
        assert plain_jpeg(file.getvalue()) is None
        return
    whole = _jpeg()
    content = whole[: 2 * len(whole) // 3] if form == "cut" else whole[:4000] + b"\xff\xd9" + whole[4002:]
    picture = open_picture(content, 3)  # the header is sound
    try:
        expected = np.asarray(read_image(content))
    except BrokenImage as broken:
        with pytest.raises(BrokenImage, match=broken.why.split("(")[0]):
            picture.region(Box(0, 0, 9, 9), (9, 9))
    else:
        assert np.array_equal(picture.region(Box(0, 0, *picture.size), picture.size[::-1]), expected)


def test_both_decoders_shrink_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    for name in ("4:2:0", "4:4:4", "progressive", "grey"):
        header = plain_jpeg(PLAIN[name])
        assert header is not None
        for shrink in (2, 4, 8):
            with monkeypatch.context() as patch:
                first = decode_plain(PLAIN[name], header, 3, shrink)
                assert first is not None
                first = first.copy()
                patch.setattr(jpeg, "_simplejpeg", lambda: None)
                second = decode_plain(PLAIN[name], header, 3, shrink)
            assert first.shape == (-(-251 // shrink), -(-337 // shrink), 3)
            assert second is not None
            assert np.array_equal(first, second)


def test_a_part_is_shrunk_no_further_than_asked(decoder: str) -> None:
    picture = open_picture(PLAIN["4:4:4"], 3)
    box = Box(40, 30, 200, 160)
    whole = picture.region(box, (160, 200)).copy()
    assert whole.shape == (160, 200, 3)
    for least, sides in (((81, 100), (160, 200)), ((80, 100), (80, 100)), ((40, 12), (40, 50)), ((20, 25), (20, 25))):
        part = picture.region(box, least)
        assert abs(part.shape[0] - sides[0]) <= 1
        assert abs(part.shape[1] - sides[1]) <= 1
        assert part.shape[0] >= least[0]
        assert part.shape[1] >= least[1]
        same = np.asarray(Image.fromarray(whole).resize(part.shape[1::-1], Image.Resampling.BOX), np.int32)
        assert np.abs(same - part).mean() < 6  # the same place of the same photograph


def test_more_pixels_than_the_limit_are_not_decoded() -> None:
    size = PHOTO.width * PHOTO.height
    open_picture(PLAIN["4:2:0"], 3, size)
    with pytest.raises(BrokenImage, match=rf"more than data.max_image_pixels={size - 1}; .*max_image_pixels={size}$"):
        open_picture(PLAIN["4:2:0"], 3, size - 1)


def test_another_library_behind_pillow_is_not_mixed_with_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("illama.data.decode.jpeg.features.check_feature", lambda name: False)
    jpeg._simplejpeg.cache_clear()
    assert jpeg._simplejpeg() is None
    jpeg._simplejpeg.cache_clear()


def test_decoded_grey_has_a_channel() -> None:
    region = DecodedPicture(PHOTO.convert("L")).region(Box(1, 2, 3, 4), (4, 3))
    assert region.shape == (4, 3, 1)


def test_real_photographs(shared_data: Path) -> None:
    files = sorted((shared_data / "imagenet_samples").rglob("*.JPEG"))
    plain = 0
    for file in files:
        content = file.read_bytes()
        picture = open_picture(content, 3)
        plain += isinstance(picture, JpegPicture)
        box = Box(0, 0, *picture.size)
        assert np.array_equal(picture.region(box, (box.height, box.width)), np.asarray(read_image(content))), file
    assert plain > 0.9 * len(files)


def test_messy_files(shared_data: Path) -> None:
    folder = shared_data / "messy"
    for entry in json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]:
        content = (folder / entry["file"]).read_bytes()
        if entry["readable"]:
            picture = open_picture(content, 3)
            box = Box(0, 0, *picture.size)
            assert np.array_equal(picture.region(box, (box.height, box.width)), np.asarray(read_image(content)))
        else:
            with pytest.raises(BrokenImage):
                open_picture(content, 3).region(Box(0, 0, 1, 1), (1, 1))
