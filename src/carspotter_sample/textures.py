"""Drawn grounds, walls, trees, people: the pictures that places are made of. Each is drawn once and kept."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

TEXTURE = 1024  # side of a ground texture in texels
# The last two numbers of each row: how often, in the first site's cities and in the shifted city.
GROUNDS = {  # colour, how strong the fine and the coarse mottle are, in grey levels
    "asphalt": ((104, 103, 102), 15, 10, 0.34, 0.1),
    "concrete": ((158, 154, 146), 7, 13, 0.2, 0.2),
    "pavers": ((150, 122, 108), 9, 10, 0.14, 0.28),
    "dirt": ((160, 131, 98), 14, 17, 0.18, 0.08),
    "gravel": ((146, 139, 128), 27, 9, 0.08, 0.14),
    "tiles": ((170, 163, 150), 5, 8, 0.06, 0.2),
}
WALLS = {  # height in metres
    "plaster": (2.6, 0.14, 0.05),
    "brick": (2.4, 0.12, 0.05),
    "shutters": (6.0, 0.18, 0.1),
    "house": (6.0, 0.2, 0.1),
    "hedge": (1.8, 0.08, 0.2),
    "compound": (2.3, 0.14, 0.15),
    "showroom": (6.0, 0.06, 0.2),
    "flats": (6.0, 0.08, 0.15),
}
HUES = (  # of plaster and shutters
    (205, 198, 180),
    (196, 170, 130),
    (188, 190, 188),
    (170, 130, 104),
    (150, 168, 160),
    (214, 206, 204),
    (182, 158, 96),
    (120, 140, 160),
)


def tileable_noise(rng: np.random.Generator, size: int, roughness: float) -> np.ndarray:
    """Return noise that tiles, of mean 0 and deviation 1; amplitude falls as frequency ** -roughness; (size, size)."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * frequency**-roughness
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, (size, size))
    return (noise / noise.std()).astype(np.float32)


@cache
def shared_noise(number: int, roughness: float) -> np.ndarray:
    return tileable_noise(np.random.default_rng(9000 + number), TEXTURE, roughness)


@cache
def ground_texture(kind: str, variant: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a tileable ground as seen in white light, (TEXTURE, TEXTURE, 3) uint8, and its mean colour."""
    rng = np.random.default_rng([7, list(GROUNDS).index(kind), variant])
    fine, coarse = shared_noise(variant, 0.45), np.roll(shared_noise(variant + 1, 1.5), 311, 0)
    base, fine_part, coarse_part, *_ = GROUNDS[kind]
    grey = fine * fine_part + coarse * coarse_part
    if kind in ("pavers", "tiles", "concrete"):
        step = {"pavers": 16, "tiles": 64, "concrete": 512}[kind]
        rows, columns = np.mgrid[:TEXTURE, :TEXTURE]
        shifted = columns + (step // 2 * ((rows // step) % 2) if kind == "pavers" else 0)
        joint = (rows % step < 2) | (shifted % (step * (2 if kind == "pavers" else 1)) < 2)
        tone = rng.normal(0, 9 if kind == "pavers" else 4, (TEXTURE // step, TEXTURE // step + 1))
        grey = grey + tone[rows // step, np.minimum(shifted // step, tone.shape[1] - 1)] - 38 * joint
    if kind == "dirt":
        grass = np.clip(np.roll(coarse, 97, 1) - 0.6, 0, 1)[..., None]
        colour = np.array(base) * (1 - grass) + np.array((94, 112, 58)) * grass
    else:
        colour = np.broadcast_to(np.array(base, float), (TEXTURE, TEXTURE, 3))
    stains = np.clip(np.roll(coarse, 500, 0) - 1.1, 0, 1) * (35 if kind != "dirt" else 0)
    texture = np.clip(colour + (grey - stains)[..., None], 0, 255).astype(np.uint8)
    return texture, texture.mean((0, 1)).astype(np.float32)


@cache
def wall_texture(kind: str, variant: int) -> np.ndarray:
    """Return a wall 12 m long and 6 m high, tileable along its length, top row first; (H, W, 3) uint8."""
    rng = np.random.default_rng([8, list(WALLS).index(kind), variant])
    k = TEXTURE / 12  # texels a metre
    width, height = TEXTURE, TEXTURE // 2
    base = np.array(HUES[rng.integers(len(HUES))]) * rng.uniform(0.85, 1.1)
    image = Image.new("RGB", (width, height), tuple(int(min(v, 255)) for v in base))
    draw = ImageDraw.Draw(image)

    def box(x0, top, x1, bottom, fill):  # metres; heights from the ground
        draw.rectangle([x0 * k, height - top * k, x1 * k, height - bottom * k], fill=tuple(map(int, fill)))

    if kind == "brick":
        box(0, 6, 12, 0, (150, 138, 126))
        for row in range(75):
            for column in range(50):
                x, z = column * 0.24 + 0.12 * (row % 2), row * 0.08
                tone = rng.normal(1, 0.09)
                box(x, z + 0.066, x + 0.225, z, np.clip(np.array((158, 86, 62)) * tone, 0, 255))
    elif kind == "hedge":
        box(0, 6, 12, 0, (52, 74, 34))
        for _ in range(9000):
            x, z, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(2, 6)
            tone = rng.uniform(0.5, 1.6)
            draw.ellipse([x - r, z - r * 0.7, x + r, z + r * 0.7], fill=tuple(int(c * tone) for c in (58, 84, 38)))
    elif kind in ("house", "flats"):
        storeys = (0.0, 3.0) if kind == "house" else (0.3, 3.2)
        for x in np.arange(0.8, 12, 3.0 if kind == "house" else 2.4):
            for floor in storeys:
                if kind == "house" and floor == 0 and rng.random() < 0.35:
                    box(x, 2.15, x + 1.0, 0, rng.uniform(0.6, 1.2) * np.array((96, 62, 40)))
                    continue
                box(x - 0.08, floor + 2.28, x + 1.28, floor + 0.92, base * 0.72 + 50)
                box(x, floor + 2.2, x + 1.2, floor + 1.0, (44, 52, 60))
                box(x, floor + 2.2, x + 0.58, floor + 1.65, (92, 108, 118))
                for bar in np.arange(0.1, 1.2, 0.18):
                    box(x + bar, floor + 2.2, x + bar + 0.02, floor + 1.0, (150, 146, 138))
                box(x - 0.15, floor + 2.42, x + 1.35, floor + 2.34, base * 0.6)
        box(0, 3.05, 12, 2.9, base * 0.7)
        box(0, 0.35, 12, 0, base * 0.5)
    elif kind in ("shutters", "showroom"):
        box(0, 6, 12, 3.1, base * 0.9)
        for x in np.arange(0.3, 12, 3.0):
            if kind == "shutters":
                colour = np.array(HUES[rng.integers(len(HUES))]) * 0.75
                for z in np.arange(0, 2.5, 0.09):
                    box(x, z + 0.09, x + 2.4, z, colour * (0.82 + 0.25 * (z / 0.09 % 2 > 1)))
            else:
                box(x, 2.7, x + 2.5, 0.15, (58, 70, 76))
                box(x + 0.1, 2.6, x + 1.2, 1.2, (116, 132, 138))
                box(x + 1.25, 2.7, x + 1.31, 0.15, (150, 150, 150))
            sign = rng.integers(60, 215, 3) * 0.55 + rng.integers(40, 215) * 0.45
            box(x, 3.35, x + 2.4, 2.75, sign)
            for letter in np.arange(x + 0.3, x + 2.0, 0.17):
                if rng.random() < 0.8:
                    top = 3.2 - rng.uniform(0, 0.08)
                    box(letter, top, letter + 0.11, 2.92, (30, 30, 34) if sign.mean() > 128 else (225, 225, 215))
    elif kind == "compound":
        box(0, 6, 12, 2.2, base)
        for x in np.arange(0, 12, 3.0):
            box(x, 6, x + 0.35, 0, base * 0.82)
        gate = rng.uniform(2, 7)
        box(gate, 6, gate + 3.2, 0, (60, 66, 72))
        for x in np.arange(gate, gate + 3.2, 0.13):
            box(x, 6, x + 0.03, 0, (104, 108, 112))
    shift = tuple(rng.integers(0, TEXTURE, 2))
    rough, fine = (np.roll(shared_noise(variant, roughness), shift, (0, 1))[:height] for roughness in (1.5, 0.45))
    grime = rough * 7 + fine * 5
    streaks = rough[:1] * 9 * np.linspace(1, 0.2, height)[:, None]
    foot = -38 * np.exp(-(height - np.arange(height)) / (0.35 * k))[:, None]
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), np.float32) + (grime + streaks + foot)[..., None]
    return np.clip(pixels, 0, 255).astype(np.uint8)


@cache
def upright_picture(kind: str, variant: int) -> Image.Image:
    """Return an RGBA picture of a tree, a bush, a person, a pole or a motor scooter; lit from the upper left."""
    rng = np.random.default_rng([11, ("tree", "bush", "person", "pole", "scooter").index(kind), variant])
    if kind in ("tree", "bush"):
        return _foliage(rng, kind == "tree")
    if kind == "person":
        return _person(rng)
    return _pole(rng, variant) if kind == "pole" else _scooter(rng)


def _pole(rng: np.random.Generator, variant: int) -> Image.Image:
    width, height = 40, 1200
    across = np.linspace(-1, 1, width)
    tone = rng.uniform(90, 190) * (0.55 + 0.45 * np.sqrt(1 - (across * 0.98) ** 2) * (0.9 - 0.35 * across))
    pixels = np.repeat(tone[None, :, None], height, 0) * rng.uniform(0.9, 1.05, 3)
    pixels = pixels + np.resize(shared_noise(variant % 4, 0.45)[:, :width], (height, width))[..., None] * 7
    if rng.random() < 0.4:
        pixels[700:] *= np.where((np.arange(500) // 60 % 2)[:, None, None], (1.1, 0.9, 0.2), (0.3, 0.3, 0.3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert("RGBA")


def _integers(colour: np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in colour)


def _foliage(rng: np.random.Generator, tree: bool) -> Image.Image:
    side = 420
    image = Image.new("RGBA", (side, side), (60, 80, 40, 0))
    draw = ImageDraw.Draw(image)
    if tree:
        for _ in range(3):
            x, lean = side / 2, rng.normal(0, 25)
            trunk = [(x, side), (x + lean * 0.3, side * 0.7), (x + lean, side * 0.45)]
            draw.line(trunk, fill=(84, 68, 52, 255), width=int(rng.uniform(8, 16)))
    hue = np.array((70, 92, 46)) * rng.uniform(0.7, 1.05) + rng.normal(0, 7, 3)
    span = (0.14, 0.52) if tree else (0.45, 0.9)
    clumps = [(rng.normal(0.5, 0.17), rng.uniform(*span), rng.uniform(0.09, 0.17)) for _ in range(22)]
    for x, y, r in sorted(clumps, key=lambda clump: -clump[1]):
        angle, share = rng.uniform(0, 2 * np.pi, 90), np.sqrt(rng.random(90))
        px, py = (x + r * share * np.cos(angle)) * side, (y + r * share * np.sin(angle) * 0.8) * side
        lightness = 0.78 - (0.5 * np.sin(angle) + 0.16 * np.cos(angle)) * share + rng.normal(0, 0.14, 90)
        size = rng.uniform(3.5, 8, 90)
        boxes = np.stack([px - size, py - size * 0.6, px + size, py + size * 0.6], 1).tolist()
        colours = np.clip(hue * lightness[:, None], 8, 235).astype(int).tolist()
        for box, colour in zip(boxes, colours, strict=True):
            draw.ellipse(box, fill=(*colour, 255))
    return image.filter(ImageFilter.GaussianBlur(0.8))


def _person(rng: np.random.Generator) -> Image.Image:
    s = 3
    width, height = 190 * s, 500 * s
    image = Image.new("RGBA", (width, height), (90, 80, 70, 0))
    draw = ImageDraw.Draw(image)
    skin = _integers(np.array((150, 104, 76)) * rng.uniform(0.7, 1.15))
    cloth = (200, 200, 196), (62, 84, 130), (150, 44, 44), (196, 150, 60), (70, 100, 72), (120, 70, 110), (40, 42, 48)
    shirt = _integers(rng.choice(cloth) * rng.uniform(0.8, 1.1))
    trousers = _integers(rng.choice([(44, 48, 62), (70, 62, 52), (120, 112, 96), (30, 30, 32)]))
    centre = 95 * s
    stride, swing = rng.uniform(4, 34) * s, rng.uniform(-16, 30) * s

    def limb(points, colour, thick):
        draw.line([(x, y * s) for x, y in points], fill=(*colour, 255), width=int(thick * s), joint="curve")
        for x, y in points:
            r = thick * s / 2
            draw.ellipse([x - r, y * s - r, x + r, y * s + r], fill=(*colour, 255))

    def arm(side, elbow, wrist, sleeve):
        bent, hand = centre + side * (elbow * s + swing * 0.4), centre + side * (wrist * s + swing)
        limb([(centre + side * 31 * s, 114), (bent, 186), (hand, 250)], sleeve, 18)
        limb([(hand + side * s, 246), (hand - side * s, 268)], skin, 13)

    long_dress = rng.random() < 0.35
    limb([(centre - 8 * s, 262), (centre - stride * 0.7, 370), (centre - stride, 475)], trousers, 30)
    darker = [int(c * 0.85) for c in trousers]
    limb([(centre + 8 * s, 262), (centre + stride * 0.8, 370), (centre + stride * 0.7, 475)], darker, 30)
    for foot in (centre - stride, centre + stride * 0.7):
        draw.ellipse([foot - 14 * s, 468 * s, foot + 24 * s, 492 * s], fill=(34, 28, 26, 255))
    if long_dress:
        corners = [(-30, 200), (30, 200), (46, 420), (-46, 420)]
        draw.polygon([(centre + x * s, y * s) for x, y in corners], fill=(*shirt, 255))
    arm(-1, 42, 34, shirt)
    draw.rounded_rectangle([centre - 36 * s, 94 * s, centre + 36 * s, 272 * s], radius=26 * s, fill=(*shirt, 255))
    arm(1, 43, 36, [int(c * 0.86) for c in shirt])
    limb([(centre, 80), (centre, 100)], skin, 24)
    draw.ellipse([centre - 20 * s, 30 * s, centre + 20 * s, 86 * s], fill=(*skin, 255))
    draw.pieslice([centre - 22 * s, 24 * s, centre + 22 * s, 80 * s], 165, 380, fill=(26, 22, 20, 255))
    pixels = np.asarray(image.resize((190, 500), Image.Resampling.BOX), np.float32).copy()
    folds = tileable_noise(rng, 500, 1.4)[:, :190]
    pixels[..., :3] *= (1.12 - 0.42 * np.linspace(0, 1, 190)[None, :] + 0.09 * folds)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))


def _scooter(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGBA", (720, 460), (60, 60, 60, 0))
    draw = ImageDraw.Draw(image)
    colour = (*_integers(rng.uniform(40, 150) * rng.uniform(0.7, 1.15, 3)), 255)
    dark = (30, 30, 32, 255)
    for x in (140, 570):
        for r, fill in ((88, dark), (52, (120, 120, 122, 255)), (40, (52, 52, 54, 255))):
            draw.ellipse([x - r, 358 - r, x + r, 358 + r], fill=fill)
    draw.polygon([(150, 330), (215, 150), (262, 130), (285, 330), (430, 350), (450, 380), (230, 385)], fill=colour)
    draw.polygon([(390, 340), (420, 225), (640, 205), (670, 260), (620, 330), (470, 380)], fill=colour)
    draw.rounded_rectangle([385, 180, 660, 228], radius=24, fill=dark)
    draw.line([(225, 160), (190, 60), (160, 70)], fill=dark, width=16)
    draw.ellipse([172, 96, 232, 156], fill=(210, 212, 205, 255))
    pixels = np.asarray(image.resize((360, 230), Image.Resampling.BOX), np.float32).copy()
    pixels[..., :3] *= np.linspace(1.25, 0.65, 230)[:, None, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
