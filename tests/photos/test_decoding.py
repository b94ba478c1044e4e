"""The decoder: whole photos are taken, damaged ones and such as cost too much are refused, each with what to do."""

import base64
import io
import os
import re
import struct
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from generated_photos import encode, scene
from PIL import Image

from carspotter.photos import decoding
from carspotter.photos.decoding import FORMATS, Limits, UnreadablePhoto, decode, inspect, is_plain
from carspotter.photos.headers import LIMITS, Refusal, read_header


def refusal(content, **options):
    with pytest.raises(UnreadablePhoto) as caught:
        decode(content, **options)
    return caught.value


def photo(seed=3, **options):
    return encode(scene(seed, (320, 240)), "JPEG", **{"quality": 85, **options})


END = b"\xff\xd9"
JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_rows": 1},
    "optimized, full colour": {"optimize": True, "subsampling": 0},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_damage_is_judged_on_pixels_and_not_on_the_end_marker(options):
    for seed in range(5):
        whole = photo(seed, **options)
        assert inspect(whole).width == 320
        assert inspect(whole[:-2]).width == 320, "only the end marker is missing"
        assert inspect(whole + bytes(500) + whole).width == 320, "a phone keeps a second picture behind the first"
        for share in (0.5, 0.9):
            cut = whole[: int(share * len(whole))]
            assert "cut off" in refusal(cut + END).reason
            assert "cut off" in refusal(cut).reason


def test_what_is_missing_is_measured():
    whole = photo()
    reason = refusal(whole[: len(whole) // 2] + END).reason
    share = int(reason.split("%")[0].split()[-1])
    grey = np.asarray(decode(whole[: len(whole) // 2] + END, verify=False)[0]) == 128
    assert abs(share / 100 - grey.all(axis=2).mean()) < 0.1


def test_a_remainder_that_is_shifted_is_refused():
    refused = 0
    for seed in range(10):
        whole = photo(seed)
        middle = len(whole) // 2
        with pytest.raises(UnreadablePhoto, match=r"shifted.*again"):
            inspect(whole[:middle] + whole[middle + 400 :])
        try:
            inspect(whole[:middle] + bytes(400) + whole[middle + 400 :])
        except UnreadablePhoto:
            refused += 1
    assert refused >= 5, "a zeroed sector leaves as many bytes as before: most are found, not all"


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_flat_pictures_are_whole(colour):
    for mode in ("RGB", "L"):
        assert inspect(encode(Image.new(mode, (200, 150), (colour,) * 3 if mode == "RGB" else colour), "JPEG"))


def segments(count, marker=b"\xff\xe1", payload=b"Exif\0\0" + bytes(10)):
    whole = photo()
    return whole[:2] + count * (marker + struct.pack(">H", 2 + len(payload)) + payload) + whole[2:]


def empty_scans(count, side=1024):
    """A progressive JPEG with many scans that hold nothing but end-of-band runs, each a pass over all blocks."""
    whole = encode(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    start = whole.index(b"\xff\xda")
    end = start + 10
    while not (whole[end] == 0xFF and whole[end + 1] != 0):
        end += 1
    table = b"\xff\xc4" + struct.pack(">H", 21) + b"\x10" + bytes([0, 2] + [0] * 14) + bytes([0xE0, 0x00])
    run = int("00" + format(0, "014b"), 2).to_bytes(2, "big")
    scan = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0" + run
    return whole[:end] + table + scan * count + END


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks):
    whole = encode(scene(1, (64, 48)), "PNG")
    return whole[:33] + b"".join(chunks) + whole[33:]


def run_length_bitmap(side=3500):
    """A BMP whose runs hold one pixel each: Pillow decodes them in Python."""
    body = b"\x01\x07" * side * side + b"\0\x01"
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + head + bytes(1024) + body


BOMBS = {
    "thousands of Exif segments": (segments(5_000), "segments"),
    "thousands of comments": (segments(5_000, b"\xff\xfe", b""), "segments"),
    "padding": (photo()[:2] + b"\xff" * 1_000_000 + photo()[2:], "padding"),
    "empty scans": (empty_scans(980), "scans"),
    "more empty scans": (empty_scans(5_000), "segments"),
    "PNG chunks": (png(chunk(b"abCd", b"") * 30_000), "chunks"),
    "PNG of one-byte data chunks": (png(chunk(b"IDAT", b"\0") * 30_000), "chunks"),
    "WebP of 268 megapixels": (
        b"RIFF" + struct.pack("<I", 100) + b"WEBPVP8X" + struct.pack("<IB3x", 10, 0) + b"\xff\x3f\0" * 2 + bytes(99),
        "limit of",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_header_that_promises_too_much_work_is_refused_at_once(name):
    content, reason = BOMBS[name]
    started = time.process_time()
    error = refusal(content)
    assert error.kind == "large" and reason in error.reason
    assert is_plain(content), "answered without a child process"
    assert time.process_time() - started < 1


def test_metadata_does_not_cost_the_pixels():
    bare = encode(scene(1, (64, 48)), "PNG")
    profile = chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(5_000_000)))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 2_000_000))
    assert decode(png(profile, text))[0] == decode(bare)[0]
    assert decode(segments(100, b"\xff\xed", b"Photoshop 3.0\0" + bytes(60_000)))[0] == decode(photo())[0]


def test_a_jpeg_keeps_its_orientation_when_other_segments_are_dropped():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = photo(exif=exif)
    assert decode(turned[:2] + b"\xff\xe2\0\x08MPF\0\0\0" + turned[2:])[0].size == (240, 320)


@pytest.mark.parametrize(("tag", "kind", "value"), [(0x0100, 1, 5), (0x0128, 4, 70_000), (0x011A, 2, 0x323737)])
def test_an_odd_value_beside_the_orientation_does_not_cost_it(tag, kind, value):
    entries = sorted([(0x0112, 3, 1, 6), (tag, kind, 4 if kind == 2 else 1, value)])
    table = struct.pack("<H", 2) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    block = b"Exif\0\0II*\0" + struct.pack("<I", 8) + table
    assert decode(photo(exif=block))[0].size == (240, 320)


def test_cut_before_a_restart_marker_a_jpeg_is_cut_off():
    whole = photo(restart_marker_blocks=4)
    markers = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", whole)]
    assert len(markers) > 40
    for at in markers[5::8]:
        assert "cut off" in refusal(whole[:at] + END).reason
    assert inspect(whole).width == 320


def test_what_cannot_be_is_named():
    assert "PNG without its header" in refusal(png()[:8] + chunk(b"CgBI", bytes(4)) + png()[8:]).reason
    assert "SVG" in refusal(b" " * 2_000 + b"<svg/>").reason
    arithmetic = photo().replace(b"\xff\xc0", b"\xff\xc9", 1)
    assert "arithmetic" in refusal(arithmetic).reason


def test_as_many_pixels_are_decoded_as_the_setting_allows():
    large = encode(Image.new("L", (14_000, 14_000)), "PNG")  # Pillow's own limit is 179 million
    with pytest.raises(UnreadablePhoto, match="CARSPOTTER_MEGAPIXELS=197"):
        decode(large)
    assert inspect(large, limits=Limits(pixels=197_000_000, seconds=60)).width == 14_000


def test_nothing_is_printed_about_damaged_metadata(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    (tmp_path / "a.jpg").write_bytes(photo(exif=exif.tobytes()[:-3]))
    code = f"from carspotter.photos.decoding import decode; print(decode({str(tmp_path / 'a.jpg')!r})[1])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "JPEG" in done.stdout and not done.stderr


def test_a_photo_that_takes_too_long_is_killed_and_others_are_answered_meanwhile():
    limits = Limits(seconds=0.3)
    bomb = run_length_bitmap()
    assert not is_plain(bomb)
    reasons = []

    def chew():
        reasons.append(refusal(bomb, limits=limits))

    threads = [threading.Thread(target=chew) for _ in range(4)]
    for thread in threads:
        thread.start()
    decode(photo(), at_least=112)  # plain photos wait for no child
    assert len(reasons) < 4
    for thread in threads:
        thread.join()
    assert {error.kind for error in reasons} == {"large"} and "too much work" in reasons[0].reason
    assert decode(encode(scene(1, (64, 48)), "GIF"))[1].format == "GIF", "a new child has taken its place"


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux limits a child's memory")
def test_memory_is_limited():
    deep = encode(Image.fromarray(np.zeros((3_000, 3_000), np.uint16)), "PNG")
    error = refusal(deep, limits=Limits(memory=2**24))
    assert error.kind == "large" and "memory" in error.reason
    assert decode(deep, square=2)[0].size == (2, 2)


def test_children_end_with_their_parent():
    code = """
import io
from PIL import Image
from carspotter.photos import decoding
stream = io.BytesIO()
Image.new("RGB", (8, 8)).save(stream, "GIF")
decoding.decode(stream.getvalue())
child = decoding._children.idle.get()
print(child.pid, flush=True)
os_exit = __import__("os")._exit
os_exit(9)  # as a kill: nothing is tidied up
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{finished.stdout.strip()}/statm") and time.monotonic() < deadline:
        with open(f"/proc/{finished.stdout.strip()}/stat") as state:
            if state.read().rpartition(")")[2].split()[0] == "Z":
                break
        time.sleep(0.01)
    assert time.monotonic() < deadline


def tiff(bits, sample_format, pixels, side, **more):
    """A little-endian grey TIFF of one strip; Pillow writes neither 12 bits nor a sample's range."""
    tags = {256: side, 257: side, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: side, 279: len(pixels)}
    tags |= {339: sample_format} | {int(tag.removeprefix("tag")): value for tag, value in more.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)


def twelve_bits():
    values = (RAMP * 4095).astype(np.uint16).reshape(-1, 2)
    packed = [values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255]
    return np.stack(packed, axis=1).astype(np.uint8).tobytes()


DEEP = {
    "12 bits": tiff(12, 1, twelve_bits(), 32),
    "16 bits": tiff(16, 1, (RAMP * 65535).astype("<u2").tobytes(), 32),
    "12 of 16 bits": tiff(16, 1, (RAMP * 4095).astype("<u2").tobytes(), 32, tag281=4095),
    "float to 1": tiff(32, 3, RAMP.astype("<f4").tobytes(), 32),
    "float to 255": tiff(32, 3, (RAMP * 255).astype("<f4").tobytes(), 32),
    "float to 3000": tiff(32, 3, (RAMP * 3000).astype("<f4").tobytes(), 32),
    "float around 0": tiff(32, 3, (RAMP * 10 - 5).astype("<f4").tobytes(), 32),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_tiffs_are_read_at_their_real_range(name):
    grey = np.asarray(decode(DEEP[name])[0])[..., 0]
    np.testing.assert_allclose(grey, RAMP * 255, atol=1.5)


def test_oversized_tiles_are_refused():
    whole = tiff(8, 1, bytes(32 * 32), 32, tag322=60_000, tag323=60_000)
    assert "tiles of 60000×60000" in refusal(whole).reason


def test_the_thumbnail_of_a_raw_file_is_no_photo():
    assert "only a thumbnail" in refusal(tiff(8, 1, bytes(32 * 32), 32, tag254=1)).reason


def test_every_format_that_is_written_here_is_read():
    for name, suffix in FORMATS.items():
        if name != "HEIF":
            content = encode(scene(2, (64, 48)), name)
            assert inspect(content).format == name and suffix.isalpha()


def test_a_48_megapixel_phone_photo_is_read_within_the_limit_that_can_be_set():
    whole = encode(Image.new("L", (8064, 6048), 90), "JPEG")
    assert is_plain(whole)
    assert decode(whole, at_least=112, square=224)[1].width == 8064
    error = refusal(whole, limits=Limits(pixels=25_000_000))
    assert error.kind == "large" and "CARSPOTTER_MEGAPIXELS=49" in error.reason


def test_heic_names_what_reads_it(monkeypatch):
    content = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(100)
    header = read_header(content, LIMITS)
    assert header.format == "HEIF" and not header.plain
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    with pytest.raises(Refusal, match=r"pip install 'carspotter\[heic\]'") as caught:
        decoding._decode_here(header, LIMITS)
    assert caught.value.kind == "library"


def test_heic_is_read_where_pillow_heif_is_installed():
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    pillow_heif.from_pillow(scene(2, (64, 48))).save(stream)
    image, facts = decode(stream.getvalue())
    assert facts.format == "HEIF" and image.size == (64, 48)


def test_avif_with_a_general_brand_is_told_from_heic():
    content = encode(scene(2, (64, 48)), "AVIF")
    assert inspect(content[:8] + b"mif1" + content[12:]).format == "AVIF"


def test_text_after_a_damaged_header_is_a_sentence():
    error = refusal(base64.b64decode("iVBORw0KGgo="))
    assert error.kind == "damaged" and "again" in error.reason
