"""What a phone makes of a scene: exposure, white balance, blur, noise, size, JPEG, orientation."""

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

SIZES = (  # width, height, how often; a third of them are also held upright
    (480, 360, 6),
    (640, 480, 16),
    (800, 600, 26),
    (960, 720, 14),
    (1024, 768, 10),
    (1280, 720, 9),
    (1280, 960, 6),
    (854, 480, 9),
    (1600, 1200, 4),
)
RENDERED = 960  # longest side that is rendered; larger photos are enlarged, as a phone's digital zoom does
ORIENTATIONS = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}


@dataclass(frozen=True)
class Phone:
    """One phone: gains for red, green, blue; blur in pixels at 800 wide; noise and `target` in grey levels."""

    gains: tuple[float, float, float]
    contrast: float
    colour: float
    blur: float
    noise: float
    quality: int
    size: tuple[int, int]
    target: float  # mean grey level that the exposure aims at
    vignette: float


def draw_phone(rng: np.random.Generator, shifted: bool) -> Phone:
    """Draw a phone; those of the shifted city are older: noisier, softer, paler, with a cast of blue and green."""
    weights = np.array([often for _, _, often in SIZES], float)
    width, height, _ = SIZES[rng.choice(len(SIZES), p=weights / weights.sum())]
    warmth = rng.normal(-0.07 if shifted else 0.015, 0.045)
    return Phone(
        (1 + warmth, 1 + rng.normal(0.04 if shifted else 0, 0.012), 1 - warmth),
        float(rng.uniform(0.8, 1.3) if shifted else rng.uniform(1.0, 1.6)),
        float(rng.uniform(0.5, 1.0) if shifted else rng.uniform(0.9, 1.4)),
        float(rng.gamma(2, 0.45 if shifted else 0.22)),
        float(rng.gamma(2.5, 3.2 if shifted else 1.5)),
        int(rng.integers(60, 76) if shifted else rng.integers(60, 93)),
        (width, height),
        float(rng.uniform(84, 150) if shifted else rng.uniform(102, 142)),
        float(rng.uniform(0, 0.45 if shifted else 0.3)),
    )


@cache
def _grain() -> np.ndarray:
    """Return grain with the faint colour blotches of a small sensor: (1400, 2000, 3) int8, deviation 32."""
    rng = np.random.default_rng(77)
    grain = rng.normal(0, 24, (1400, 2000, 1)) + rng.normal(0, 14, (1400, 2000, 3))
    blotches = Image.fromarray(rng.normal(128, 40, (350, 500, 3)).clip(0, 255).astype(np.uint8))
    blotches = np.asarray(blotches.resize((2000, 1400), Image.Resampling.BILINEAR), float)
    return np.clip(grain + (blotches - 128) * 0.4, -127, 127).astype(np.int8)


@cache
def _corners() -> Image.Image:
    axis = np.linspace(-1, 1, 96)
    return Image.fromarray((255 * np.clip((axis[:, None] ** 2 + axis[None, :] ** 2) / 2, 0, 1) ** 1.5).astype(np.uint8))


def fitted(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return `size`, made smaller where its longer side has more than `longest` pixels."""
    scale = min(1.0, longest / max(size))
    return round(size[0] * scale), round(size[1] * scale)


def develop(
    image: Image.Image, phone: Phone, rng: np.random.Generator, size: tuple[int, int], exposure: float, blur: float
) -> Image.Image:
    """Turn a scene into what the phone sees; `exposure` and extra `blur` (pixels at 800 wide) spoil it."""
    k = image.width / 800
    radius = phone.blur * k + blur * k
    if radius > 0.4:
        image = image.filter(ImageFilter.GaussianBlur(radius))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    small = np.asarray(image.convert("L").resize((32, 24), Image.Resampling.BOX, reducing_gap=2.0), float)
    # the meter looks at the middle and gives in only part of the way, as phones do
    metered = 0.6 * small[6:21, 6:26].mean() + 0.4 * small.mean()
    gain = float(np.clip((phone.target / max(metered, 8)) ** 0.75, 0.6, 2.2)) * exposure
    level = np.arange(256) / 255
    tables = []
    for channel in phone.gains:
        value = np.clip(level * gain * channel, 0, 4)
        value = value / (1 + np.clip(value - 0.78, 0, None) * 0.55)  # highlights roll off
        bent = value + (phone.contrast - 1) * 1.4 * (value - 0.5) * value * np.clip(1 - value, 0, 1) * 2
        tables += np.clip(bent * 255, 0, 255).astype(int).tolist()
    image = ImageEnhance.Color(image.point(tables)).enhance(phone.colour)
    if phone.vignette > 0.03:
        darker = [int(255 - v * phone.vignette) for v in range(256)]
        mask = _corners().resize(size, Image.Resampling.BILINEAR).point(darker)
        image = ImageChops.multiply(image, Image.merge("RGB", (mask, mask, mask)))
    noise = phone.noise * np.clip(gain, 0.8, 2)
    if noise > 0.7:
        grain = _grain()
        rows, columns, _ = grain.shape
        top, left = rng.integers(rows - size[1] + 1) if size[1] <= rows else 0, rng.integers(columns - size[0] + 1)
        piece = grain[top : top + size[1], left : left + size[0]]
        if size[1] > rows:
            piece = np.resize(grain, (size[1], size[0], 3))
        scaled = (piece * np.float32(noise / 32)).astype(np.int16)
        image = Image.fromarray(np.clip(np.asarray(image, np.int16) + scaled, 0, 255).astype(np.uint8))
    return image


def encode(image: Image.Image, quality: int, orientation: int = 1) -> bytes:
    """Return JPEG bytes; with an `orientation` other than 1 the pixels are stored turned and EXIF says how."""
    options = {}
    if orientation != 1:
        image = image.transpose(ORIENTATIONS[orientation])
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def decode(photo: bytes) -> Image.Image:
    """Return the upright RGB picture of JPEG bytes."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(photo), formats=["JPEG"])).convert("RGB")
