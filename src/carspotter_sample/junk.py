"""Pictures that listings carry beside the car itself: cabin, dashboard, engine, papers. Drawn flat."""

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = (800, 600)


def _lit(image: Image.Image, rng: np.random.Generator, strength: float = 0.5) -> Image.Image:
    """Lay soft light from one side and a mottle of dust over a drawn picture."""
    spots, fine = (
        Image.fromarray(rng.integers(darkest, 255, shape, dtype=np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
        for darkest, shape in ((90, (5, 6)), (200, (150, 200)))
    )
    light = Image.blend(Image.new("L", image.size, 255), ImageChops.multiply(spots, fine), strength)
    return ImageChops.multiply(image.filter(ImageFilter.GaussianBlur(1.0)), Image.merge("RGB", (light,) * 3))


def _seen(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Look at a drawn picture as somebody with a phone: nearer or farther, off centre, tilted.

    Without it two cabins would be drawn so alike that they are near-duplicates.
    """
    width, height = image.size
    share = rng.uniform(0.6, 0.95)
    left, top = rng.uniform(0, 1 - share, 2)
    corners = np.array([(0, 0), (0, 1), (1, 1), (1, 0)]) * share + (left, top)
    corners += rng.normal(0, 0.045, (4, 2)) * share
    turn = rng.normal(0, 0.07)
    middle, (c, s) = corners.mean(0), (np.cos(turn), np.sin(turn))
    corners = np.clip((corners - middle) @ np.array([[c, s], [-s, c]]) + middle, 0, 1) * (width, height)
    return image.transform(image.size, Image.Transform.QUAD, corners.ravel().tolist(), Image.Resampling.BICUBIC)


def _tone(rng: np.random.Generator, base: tuple[int, int, int], spread: float = 0.2) -> tuple[int, int, int]:
    return tuple(int(np.clip(v, 0, 255)) for v in np.array(base) * rng.uniform(1 - spread, 1 + spread))


def _shaded(image: Image.Image, low: tuple, high: tuple, form: str, *sizes, upright: bool = True) -> None:
    """Fill a form, drawn by the method of that name, with a run of colour from `high` (top or left) to `low`."""
    mask = Image.new("L", image.size, 0)
    getattr(ImageDraw.Draw(mask), form)(*sizes, fill=255)
    box = mask.getbbox()
    size = box[2] - box[0], box[3] - box[1]
    run = np.linspace(0, 1, size[1] if upright else size[0])
    ramp = np.array(high)[None] * (1 - run[:, None]) + np.array(low)[None] * run[:, None]
    picture = np.repeat(ramp[:, None], size[0], 1) if upright else np.repeat(ramp[None], size[1], 0)
    image.paste(Image.fromarray(picture.astype(np.uint8)), box[:2], mask.crop(box))


def _block(image: Image.Image, box: tuple[float, float, float, float], grey: int, corner: float) -> None:
    _shaded(image, (grey // 3,) * 3, (grey, grey, grey + 4), "rounded_rectangle", box, corner)


def _round(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, flat: float = 1.0, **colours) -> None:
    draw.ellipse([x - r, y - r * flat, x + r, y + r * flat], **colours)


def _wheel(image: Image.Image, x: float, y: float, r: float, rng: np.random.Generator) -> None:
    dark, light = (22, 22, 24), (78, 78, 82)
    ring = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(ring)
    _round(draw, x, y, r, 0.92, fill=255)
    _round(draw, x, y, r * 0.82, 0.92, fill=0)
    for angle in rng.choice([0, 8]) + np.array([180, 0, 90]):
        a = np.radians(angle)
        draw.line([(x, y), (x + np.cos(a) * r * 0.9, y + np.sin(a) * r * 0.83)], fill=255, width=int(r * 0.22))
    draw.ellipse([x - r * 0.32, y - r * 0.28, x + r * 0.32, y + r * 0.28], fill=255)
    ramp = np.linspace(0, 1, image.height)[:, None, None] * np.ones((1, image.width, 1))
    fill = np.array(light) * (1 - ramp) + np.array(dark) * ramp
    shadow = ring.filter(ImageFilter.GaussianBlur(14))
    image.paste(Image.new("RGB", image.size, (8, 8, 8)), (6, 12), shadow.point(lambda v: int(v * 0.6)))
    image.paste(Image.fromarray(fill.astype(np.uint8)), (0, 0), ring.filter(ImageFilter.GaussianBlur(0.8)))
    ImageDraw.Draw(image).ellipse([x - r * 0.1, y - r * 0.09, x + r * 0.1, y + r * 0.09], fill=(150, 152, 156))


def draw_interior(rng: np.random.Generator, outside: Image.Image) -> Image.Image:
    """Draw a cabin seen from the back seat: windscreen with what is outside, dashboard, front seats."""
    image = Image.new("RGB", SIDE, _tone(rng, (120, 112, 100)))
    view = outside.resize((560, 300)).filter(ImageFilter.GaussianBlur(2)).point(lambda v: min(int(v * 1.25) + 25, 255))
    glass = Image.new("L", SIDE, 0)
    ImageDraw.Draw(glass).polygon([(150, 90), (650, 90), (720, 290), (80, 290)], fill=255)
    layer = Image.new("RGB", SIDE)
    layer.paste(view, (120, 30))
    image.paste(layer, (0, 0), glass.filter(ImageFilter.GaussianBlur(1.5)))
    _shaded(image, (28, 28, 30), (80, 78, 76), "polygon", [(40, 270), (760, 270), (800, 470), (0, 470)])
    beige = _tone(rng, (150, 134, 108) if rng.random() < 0.5 else (62, 62, 66))
    dim = tuple(v // 2 for v in beige)
    _shaded(image, (16, 16, 18), (60, 60, 62), "rounded_rectangle", [310, 300, 490, 520], 14)
    ImageDraw.Draw(image).rectangle([340, 320, 460, 384], fill=_tone(rng, (24, 40, 60)))
    for x0, x1, top in ((60, 260, 306), (556, 740, 306), (318, 482, 402)):  # air vents
        _block(image, (x0, top, x1, top + 22), 40, 8)
    draw = ImageDraw.Draw(image)
    draw.polygon([(150, 90), (122, 92), (24, 300), (80, 290)], fill=(44, 42, 40))  # the pillars of the windscreen
    draw.polygon([(650, 90), (678, 92), (776, 300), (720, 290)], fill=(36, 35, 33))
    draw.rectangle([396, 88, 404, 112], fill=(30, 30, 30))
    _block(image, (338, 106, 462, 146), 70, 16)  # mirror
    image.paste(view.crop((200, 120, 360, 200)).transpose(0).resize((108, 28)), (346, 112))
    _wheel(image, 584, 322, 104, rng)
    for x in (150, 660):
        wide = rng.uniform(120, 150)
        _shaded(image, dim, beige, "rounded_rectangle", [x - wide, 330, x + wide, 640], 60, upright=False)
        _shaded(image, dim, beige, "rounded_rectangle", [x - 62, 235, x + 62, 335], 34)
        ImageDraw.Draw(image).line([(x - 40, 350), (x - 50, 600)], fill=dim, width=4)
        ImageDraw.Draw(image).line([(x + 40, 350), (x + 50, 600)], fill=dim, width=4)
    return _lit(_seen(image, rng), rng)


def draw_dashboard(rng: np.random.Generator, outside: Image.Image) -> Image.Image:
    """Draw the dials behind the steering wheel."""
    image = outside.resize(SIDE).filter(ImageFilter.GaussianBlur(9))
    _shaded(image, (18, 18, 20), (74, 72, 70), "polygon", [(0, 120), (800, 90), (800, 600), (0, 600)])
    _shaded(image, (10, 10, 12), (30, 30, 34), "rounded_rectangle", [150, 150, 650, 400], 90)
    draw = ImageDraw.Draw(image)
    glow = _tone(rng, (220, 226, 235) if rng.random() < 0.6 else (235, 130, 60))

    def on_dial(x: float, degrees: float, share: float) -> tuple[float, float]:
        a = np.radians(degrees)
        return x + np.cos(a) * 98 * share, 275 + np.sin(a) * 98 * share

    for x in (290, 510):
        _round(draw, x, 275, 98, outline=(110, 112, 116), width=4, fill=(14, 15, 17))
        for step in range(11):
            degrees = 140 + step * 26
            draw.line([on_dial(x, degrees, 0.78), on_dial(x, degrees, 0.92)], fill=glow, width=4)
            draw.text(on_dial(x, degrees, 0.6), str(step * 20), fill=glow, anchor="mm")
        draw.line([(x, 275), on_dial(x, rng.uniform(140, 220), 0.8)], fill=(226, 70, 40), width=5)
        _round(draw, x, 275, 13, fill=(40, 40, 42))
    draw.rectangle([368, 300, 432, 340], fill=_tone(rng, (70, 110, 90)))
    draw.text((400, 320), str(rng.integers(8_000, 140_000)), fill=(10, 16, 12), anchor="mm")
    _wheel(image, 400 + rng.normal(0, 30), 470, 300, rng)
    return _lit(_seen(image, rng), rng, 0.6)


def draw_engine(rng: np.random.Generator, outside: Image.Image) -> Image.Image:
    """Draw an engine bay from above: block, battery, air box, hoses, dirt."""
    image = Image.new("RGB", SIDE, (46, 44, 42))
    paint = outside.resize((1, 1)).getpixel((0, 0))
    brighter = tuple(min(v + 40, 255) for v in paint)
    _shaded(image, paint, brighter, "polygon", [(0, 0), (800, 0), (760, 90), (40, 90)])
    _shaded(image, (20, 20, 20), paint, "polygon", [(0, 560), (800, 540), (800, 600), (0, 600)])
    for _ in range(45):  # small parts in the dark between the large ones
        x, y, w, h = rng.uniform(0, 760), rng.uniform(90, 520), rng.uniform(16, 60), rng.uniform(12, 40)
        _block(image, (x, y, x + w, y + h), int(rng.uniform(40, 100)), 5)
    for x in (86, 714):  # the heads of the spring struts
        draw = ImageDraw.Draw(image)
        for r, grey in ((62, 52), (48, 30), (40, 74), (16, 24)):
            _round(draw, x, 250, r, 0.72, fill=(grey, grey, grey + 2))
    _block(image, (120, 470, 690, 540), 96, 6)  # radiator
    for y in range(480, 536, 6):
        ImageDraw.Draw(image).line([(130, y), (680, y)], fill=(24, 24, 26), width=2)
    hoses = (
        ((300, 440), (190, 430), (170, 500)),
        ((520, 300), (660, 420), (620, 490)),
        ((250, 250), (150, 190), (120, 120)),
        ((530, 230), (580, 130), (690, 120)),
        ((200, 380), (240, 450), (330, 440)),
        ((480, 420), (560, 470), (600, 420)),
        ((330, 190), (340, 120), (460, 108)),
    )
    for points in hoses:
        steps = np.linspace(0, 1, 24)[:, None]
        a, b, c = np.array(points, float) + rng.normal(0, 14, (3, 2))
        curve = [tuple(p) for p in (a * (1 - steps) ** 2 + 2 * b * steps * (1 - steps) + c * steps**2)]
        width = int(rng.uniform(10, 26))
        for share, grey, lift in ((1.0, 14, 0.0), (0.6, 34, 0.1), (0.2, 84, 0.22)):
            moved = [(x - width * lift, y - width * lift) for x, y in curve]
            ImageDraw.Draw(image).line(moved, fill=(grey,) * 3, width=max(int(width * share), 1), joint="curve")
    _block(image, (250, 200, 530, 400), int(rng.uniform(80, 112)), 24)  # cover of the block, ribbed
    for y in (228, 318, 338, 358, 378):
        ImageDraw.Draw(image).line([(276, y), (504, y)], fill=(40, 40, 42), width=4)
    ImageDraw.Draw(image).text((390, 272), "1.2", fill=(190, 192, 190), font_size=52, anchor="mm")
    _block(image, (150, 200, 236, 330), 100, 14)  # air box
    _block(image, (570, 320, 722, 452), 88, 8)  # battery with its clamps
    _block(image, (570, 320, 722, 346), 120, 4)
    draw = ImageDraw.Draw(image)
    for x, colour in ((606, (170, 60, 50)), (690, (84, 86, 90))):
        draw.ellipse([x - 15, 324, x + 15, 344], fill=colour)
        draw.line([(x, 334), (x - 40, 300), (x - 90, 296)], fill=colour, width=6, joint="curve")
    _shaded(image, (110, 112, 100), (214, 216, 204), "ellipse", [90, 330, 190, 430])
    return _lit(_seen(image, rng), rng, 0.55)


def draw_document(rng: np.random.Generator, outside: Image.Image) -> Image.Image:
    """Draw a registration paper or a price sheet lying on a table; every word is a row of boxes."""
    paper = Image.new("RGB", (600, 820), _tone(rng, (226, 222, 208), 0.06))
    draw = ImageDraw.Draw(paper)
    draw.rectangle([24, 24, 576, 110], fill=_tone(rng, (120, 140, 170)))
    draw.text((300, 66), "CERTIFICATE OF REGISTRATION", fill=(30, 30, 40), font_size=28, anchor="mm")
    for row in range(21):
        y, x = 150 + row * 30, 44
        while x < 540:
            wide = rng.uniform(14, 76)
            if rng.random() < 0.8:
                draw.rectangle([x, y, min(x + wide, 556), y + 11], fill=(62, 62, 70))
            x += wide + 9
    for y in (134, 320, 500):
        draw.line([(30, y), (570, y)], fill=(120, 120, 130), width=2)
    draw.ellipse([400, 640, 540, 780], outline=(130, 70, 120), width=7)
    ground = np.array(_tone(rng, (116, 84, 58), 0.3))
    grain = np.cumsum(rng.normal(0, 2.5, 600))[:, None, None] + rng.normal(0, 5, (600, 800, 1))
    table = Image.fromarray(np.clip(ground + grain, 0, 255).astype(np.uint8))
    turned = paper.convert("RGBA").rotate(rng.uniform(-24, 24), expand=True, resample=Image.Resampling.BICUBIC)
    scale = rng.uniform(0.55, 0.95)
    turned = turned.resize((int(turned.width * scale), int(turned.height * scale)), Image.Resampling.BILINEAR)
    place = int((800 - turned.width) / 2 + rng.normal(0, 40)), int((600 - turned.height) / 2 + rng.normal(0, 30))
    shadow = turned.getchannel("A").filter(ImageFilter.GaussianBlur(8)).point(lambda v: v // 2)
    table.paste((16, 12, 8), (place[0] + 8, place[1] + 10), shadow)
    table.paste(turned, place, turned)
    return _lit(table, rng, 0.45)


DRAWN = {"interior": draw_interior, "dashboard": draw_dashboard, "engine": draw_engine, "document": draw_document}
