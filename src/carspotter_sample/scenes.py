"""Places where used cars are photographed: light, sky, ground, walls, trees, people, poles, other cars.

A `Place` belongs to a listing; `draw_scene` shows it through one camera. Walls and ground are met by a ray for each
pixel and looked up in drawn textures; trees and people are upright pictures.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from . import textures
from .bodies import Car, build_car
from .raster import Camera, Light, Look, draw_car, draw_look
from .shapes import SHAPES, Shape
from .textures import GROUNDS, TEXTURE, WALLS, shared_noise, tileable_noise

TEXELS_PER_METRE = 110.0
FAR = 1e9  # metres: nothing there but the sky
BAND = 24  # rows of a picture handled together
SHADOW_METRES, SHADOW_TEXELS = 11.0, 560  # half width of the shadow map and its side
# The last two numbers of each row: how often, in the first site's cities and in the shifted city.
WEATHERS = {  # strength of the sun, colour of the sky
    "sun": (0.98, (0.22, 0.29, 0.39), 0.38, 0.14),
    "haze": (0.45, (0.50, 0.52, 0.53), 0.24, 0.06),
    "cloud": (0.06, (0.62, 0.64, 0.67), 0.2, 0.15),
    "evening": (0.65, (0.34, 0.33, 0.40), 0.06, 0.4),
    "shade": (0.05, (0.46, 0.51, 0.57), 0.12, 0.25),
}
LAYOUTS = {  # the sides, of four, that have a wall
    "street": ((1, 3), 0.42, 0.1),
    "yard": ((0, 1, 2, 3), 0.34, 0.62),
    "open": ((), 0.05, 0.02),
    "corner": ((0, 1), 0.19, 0.26),
}


@dataclass(frozen=True)
class Wall:
    """An upright plane: unit normal (2-D) towards the car, distance in metres, height, texture and its shift, tint."""

    normal: tuple[float, float]
    distance: float
    height: float
    kind: str
    variant: int
    shift: float
    half_length: float
    tint: np.ndarray


@dataclass(frozen=True)
class Upright:
    """An upright picture: position on the ground, height in metres, which picture."""

    position: tuple[float, float]
    height: float
    kind: str
    variant: int
    mirrored: bool


@dataclass(frozen=True)
class Parked:
    """Another car of the place: position, heading in radians, shape and look."""

    position: tuple[float, float]
    turn: float
    shape: Shape
    look: Look


@dataclass(frozen=True)
class Place:
    light: Light
    ground: str
    ground_variant: int
    ground_tint: np.ndarray
    ground_turn: float
    walls: tuple[Wall, ...]
    uprights: tuple[Upright, ...]
    parked: tuple[Parked, ...]
    cloud: float


def _pick(rng: np.random.Generator, table: dict[str, tuple], shifted: bool) -> str:
    return str(rng.choice(list(table), p=[row[-1 if shifted else -2] for row in table.values()]))


def draw_place(rng: np.random.Generator, shifted: bool) -> Place:
    """Draw a place; those of the shifted city have another mix of light, grounds and walls, and cars stand closer."""
    weather = _pick(rng, WEATHERS, shifted)
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(28, 70))
    if weather == "evening":
        elevation = np.radians(rng.uniform(8, 20))
    strength, sky = WEATHERS[weather][0] * rng.uniform(0.85, 1.15), np.array(WEATHERS[weather][1])
    warmth = np.array({"evening": (1.0, 0.72, 0.42), "sun": (1.0, 0.94, 0.84)}.get(weather, (1.0, 0.96, 0.9)))
    ground = _pick(rng, GROUNDS, shifted)
    sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    walls, layout = [], _pick(rng, LAYOUTS, shifted)
    turn, start = rng.normal(0, 0.12), rng.integers(4)
    for number in LAYOUTS[layout][0]:
        heading = turn + (number + (start if layout == "corner" else 0)) * np.pi / 2
        near = layout == "yard" and rng.random() < 0.6
        distance = (2.0 if number % 2 else 3.1) + (rng.uniform(0.2, 2) if near else rng.gamma(2, 2.2))
        kind = _pick(rng, WALLS, shifted)
        height = WALLS[kind][0] * rng.uniform(0.85, 1.3)
        variant, shift, half_length = rng.integers(3), rng.uniform(0, 12), rng.uniform(10, 30)
        tint = rng.uniform(0.85, 1.05) * rng.uniform(0.95, 1.05, 3)
        normal = (-np.cos(heading), -np.sin(heading))
        walls.append(Wall(normal, distance, height, kind, variant, shift, half_length, tint))
    uprights = []
    for _ in range(rng.poisson(14 if layout == "open" else 7)):
        heading, away = rng.uniform(0, 2 * np.pi), rng.uniform(7, 28)
        kind = str(rng.choice(["tree", "tree", "tree", "bush", "bush", "pole", "pole", "scooter"]))
        tall = {"tree": rng.uniform(4, 9), "bush": rng.uniform(0.8, 2), "pole": rng.uniform(4, 7), "scooter": 1.1}
        position = (away * np.cos(heading), away * np.sin(heading))
        uprights.append(Upright(position, tall[kind], kind, rng.integers(6), rng.random() < 0.5))
    parked = []
    strangers = [shape for shape in SHAPES if shape.model not in ("swift", "wagonr")]
    for _ in range(rng.choice([0, 1, 2], p=[0.1, 0.35, 0.55] if shifted else [0.55, 0.3, 0.15])):
        shape = strangers[rng.integers(len(strangers))]
        if rng.random() < 0.6:  # beside the car on sale
            position = (rng.normal(0, 0.5), rng.choice([-1, 1]) * rng.uniform(2.4, 3.4))
            heading = rng.choice([0, np.pi]) + rng.normal(0, 0.04)
        else:  # before or behind it
            position = (rng.choice([-1, 1]) * rng.uniform(4.9, 9), rng.normal(0, 1.5))
            heading = rng.normal(0, 0.1)
        parked.append(Parked(position, heading, shape, draw_look(rng, shape)))
    bounce = np.array((0.30, 0.28, 0.25)) * (strength * max(sun[2], 0.2) + sky.mean()) * 0.55
    light = Light(sun, strength * warmth, sky, bounce, _surroundings(rng, sky, bounce, bool(walls)))
    variant, tint = rng.integers(4), rng.uniform(0.82, 1.08) * rng.uniform(0.96, 1.04, 3)
    turn, cloud = rng.uniform(0, np.pi), rng.uniform(0, 1)
    return Place(light, ground, variant, tint, turn, tuple(walls), tuple(uprights), tuple(parked), cloud)


def _surroundings(rng: np.random.Generator, sky: np.ndarray, ground: np.ndarray, built_up: bool) -> np.ndarray:
    """Draw what paint and glass mirror: sky, a ragged line of roofs and trees, ground; (64, 96, 3) linear float32."""
    rows, columns = 64, 96
    elevation = np.linspace(-1, 1, rows)[:, None, None]
    skyward = (sky * 1.25 + 0.12)[None, None] * (1.0 + 0.35 * np.exp(-np.clip(elevation, 0, 1) * 5))
    skyward = skyward * (1 + 0.12 * tileable_noise(rng, 96, 1.6)[:rows, :, None])
    edge = 0.26 if built_up else 0.10
    edge = edge + 0.10 * tileable_noise(rng, 96, 1.3)[0] + 0.04 * tileable_noise(rng, 96, 0.6)[1]
    things = rng.uniform(0.06, 0.22, (1, columns, 3)) * sky.mean() * 1.6
    things = things * (0.8 + 0.2 * tileable_noise(rng, 96, 1.0)[:rows, :, None])
    floor = ground * 1.6 * (1 + 0.4 * elevation)
    picture = np.where(elevation > edge[None, :, None], skyward, np.where(elevation > -0.03, things, floor))
    image = picture.astype(np.float32)
    return np.clip((image + np.roll(image, 1, 1) + np.roll(image, -1, 1)) / 3, 0, 1.2).astype(np.float32)


def _shadow_map(place: Place, cars: list[tuple[Car, tuple[float, float], float]]) -> np.ndarray:
    """Draw shadows on the ground: (rows, columns, 2) float32, sun and sky let through, 0..1."""
    scale = SHADOW_TEXELS / (2 * SHADOW_METRES)
    half = SHADOW_TEXELS // 2  # the sky's soft shadow needs no more
    sun_image, sky_image = (Image.new("L", (side, side), 255) for side in (SHADOW_TEXELS, half))
    sun_draw, sky_draw = ImageDraw.Draw(sun_image), ImageDraw.Draw(sky_image)
    slope = place.light.sun[:2] / max(place.light.sun[2], 0.12)
    for car, offset, turn in cars:
        c, s = np.cos(turn), np.sin(turn)
        for level, outline in enumerate(car.outlines):
            ground = outline[:, :2] @ np.array([[c, s], [-s, c]]) + offset
            if level == 2:
                sky_draw.polygon([tuple(p) for p in ((ground + SHADOW_METRES) * scale / 2).tolist()], fill=30)
            cast = (ground - slope * outline[:, 2:] + SHADOW_METRES) * scale
            sun_draw.polygon([tuple(p) for p in cast.tolist()], fill=0)
            if level == 0:
                bottom = (ground - slope * max(outline[0, 2] - 0.2, 0) + SHADOW_METRES) * scale
                sun_draw.polygon([tuple(p) for p in bottom.tolist()], fill=0)
    sun = np.asarray(sun_image.filter(ImageFilter.BoxBlur(1.2)), np.float32)
    sky_image = sky_image.filter(ImageFilter.BoxBlur(3)).filter(ImageFilter.BoxBlur(2))
    sky = np.asarray(sky_image.resize(sun_image.size, Image.Resampling.BILINEAR), np.float32)
    return np.stack([sun, sky], -1) / 255


def draw_background(place: Place, camera: Camera, cars: list[tuple[Car, tuple[float, float], float]]) -> Image.Image:
    """Draw sky, walls, ground with the shadows of `cars` (car, position, heading), trees: RGB, the camera's size."""
    width, height = camera.size
    x = ((np.arange(width, dtype=np.float32) + 0.5 - camera.centre[0]) / camera.focal)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5 - camera.centre[1]) / camera.focal)[:, None]
    right, down, forward = camera.axes.astype(np.float32)
    out = np.empty((height, width, 3), np.uint8)
    distance = np.full((height, width), FAR, np.float32)
    light, shadows = place.light, _shadow_map(place, cars)
    for top in range(0, height, BAND):  # a band's arrays fit the processor's cache: twice as fast as the whole at once
        band = slice(top, top + BAND)
        rays = [x * right[k] + y[band] * down[k] + forward[k] for k in range(3)]
        for wall in place.walls:
            _draw_wall(out[band], distance[band], wall, light, camera, rays)
        _draw_ground(out[band], distance[band], place, camera, rays, shadows)
        _draw_sky(out[band], distance[band], place, rays)
    image = Image.fromarray(out)
    for upright in sorted(place.uprights, key=lambda one: -camera.away(one.position)):
        hidden = any(-np.dot(wall.normal, upright.position) > wall.distance - 0.3 for wall in place.walls)
        if not hidden or (upright.kind == "tree" and camera.away(upright.position) >= 9):
            _paste_upright(image, upright, camera, light, distance if hidden else None)
    return image


@cache
def _skyline(variant: int) -> np.ndarray:
    """Return the height of far roofs and trees round the horizon as tangent of elevation, (TEXTURE,) float32."""
    rng = np.random.default_rng([13, variant])
    crowns = np.convolve(np.tile(shared_noise(variant, 0.8)[9], 3), np.hanning(9) / 4, "same")[TEXTURE : 2 * TEXTURE]
    trees = 0.055 + 0.022 * shared_noise(variant, 1.5)[7] + 0.009 * crowns
    houses = np.repeat(np.where(rng.random(64) < 0.3, rng.uniform(0.03, 0.11, 64), 0), TEXTURE // 64)
    return np.maximum(trees, houses).astype(np.float32)


def _draw_sky(out, distance, place: Place, rays) -> None:
    hit = np.flatnonzero(distance == FAR)
    rx, ry, rz = (ray.ravel()[hit] for ray in rays)
    base = (np.sqrt(np.clip(place.light.sky_colour * 1.15 + 0.05, 0, 1)) * 255).astype(np.float32)
    flat = 1 / np.sqrt(rx * rx + ry * ry)
    up = np.clip(rz * flat, 0, 2)
    v = (130 / (up + 0.12)).astype(np.int32) % TEXTURE
    u = ((np.arctan2(ry, rx) / np.float32(2 * np.pi) + 1) * TEXTURE).astype(np.int32) % TEXTURE
    veil = np.clip(shared_noise(3, 1.7)[v, u] * 0.35 + (place.cloud - 0.5), 0, 1)[:, None] * 0.6
    pale = np.minimum(base * 0.6 + 96, 246)
    colour = pale + (base - pale) * np.minimum(up * 1.6, 1)[:, None]
    colour += (240 - colour) * veil
    skyline = _skyline(place.ground_variant)
    below = up < skyline[u]
    mass = np.array((70, 84, 62) if place.ground_variant % 2 else (122, 116, 108), np.float32)
    mass = mass * float(np.sqrt(place.light.sky_colour.mean() + 0.3))
    mass = mass * (0.86 + 0.09 * shared_noise(1, 0.8)[v, (u * 7) % TEXTURE])[:, None]
    out.reshape(-1, 3)[hit] = np.clip(np.where(below[:, None], mass * 0.55 + pale * 0.45, colour), 0, 255)


def _draw_wall(out, distance, wall: Wall, light: Light, camera: Camera, rays) -> None:
    nx, ny = map(float, wall.normal)
    px, py = map(float, camera.position[:2])
    towards = rays[0] * nx + rays[1] * ny
    gap = -wall.distance - (px * nx + py * ny)
    if gap >= -0.05:  # the camera stands behind this wall: leave it out
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(towards < -1e-4, np.float32(gap) / towards, np.float32(FAR))
    z = float(camera.position[2]) + t * rays[2]
    hit = np.flatnonzero((t < distance) & (z < wall.height) & (z > 0) & (t < 200))
    if not hit.size:
        return
    texture = textures.wall_texture(wall.kind, wall.variant)
    th, tw, _ = texture.shape
    flat_t = t.ravel()[hit]
    along = py * nx - px * ny + flat_t * (rays[1].ravel()[hit] * nx - rays[0].ravel()[hit] * ny)
    reached = np.abs(along - wall.shift + 6) < wall.half_length
    hit, flat_t, along = hit[reached], flat_t[reached], along[reached]
    column = ((along + wall.shift) * (tw / 12)).astype(np.int32) % tw
    row = np.clip(th - 1 - z.ravel()[hit] * (tw / 12), 0, th - 1).astype(np.int32)
    lit = max(float(np.dot(wall.normal, light.sun[:2])), 0)
    colour = light.sun_colour * lit + light.sky_colour * 0.75 + light.ground_colour * 0.3
    factor = np.sqrt(np.clip(colour, 0, 1.3)) * wall.tint
    texel, flat = texture.reshape(-1, 3)[row.astype(np.intp) * tw + column], out.reshape(-1, 3)
    for k in range(3):  # channel by channel: loops over three values at a time are slow in numpy
        flat[hit, k] = np.minimum(texel[:, k] * np.float32(factor[k]), 255)
    distance.ravel()[hit] = flat_t


def _draw_ground(out, distance, place: Place, camera: Camera, rays, shadows: np.ndarray) -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(rays[2] < -1e-3, np.float32(-camera.position[2]) / rays[2], np.float32(FAR))
    hit = np.flatnonzero((t < distance) & (t < 400))
    t = t.ravel()[hit]
    x = float(camera.position[0]) + t * rays[0].ravel()[hit]
    y = float(camera.position[1]) + t * rays[1].ravel()[hit]
    c, s = (np.float32(part(place.ground_turn) * TEXELS_PER_METRE) for part in (np.cos, np.sin))
    texture, mean = textures.ground_texture(place.ground, place.ground_variant)
    u, v = (x * c + y * s).astype(np.int32) & (TEXTURE - 1), (y * c - x * s).astype(np.int32) & (TEXTURE - 1)
    scale = SHADOW_TEXELS / (2 * SHADOW_METRES)
    column = np.clip((x + SHADOW_METRES) * scale, 0, SHADOW_TEXELS - 1).astype(np.int32)
    row = np.clip((y + SHADOW_METRES) * scale, 0, SHADOW_TEXELS - 1).astype(np.int32)
    sunny_part, open_part = shadows.reshape(-1, 2)[row.astype(np.intp) * SHADOW_TEXELS + column].T
    light, tint = place.light, place.ground_tint
    far = np.minimum(t / 30, 1) * np.float32(0.8)
    texel = texture.reshape(-1, 3)[v.astype(np.intp) * TEXTURE + u]
    sunny = light.sun_colour * max(light.sun[2], 0.1)
    dark = (np.sqrt(light.sky_colour * 0.9) * tint).astype(np.float32)
    bright = (np.sqrt(np.clip(sunny + light.sky_colour * 0.9, 0, 1.2)) * tint).astype(np.float32)
    flat = out.reshape(-1, 3)
    for k in range(3):
        colour = texel[:, k].astype(np.float32)
        colour += (mean[k] - colour) * far
        colour *= (dark[k] + (bright[k] - dark[k]) * sunny_part) * open_part
        flat[hit, k] = np.minimum(colour, 255)
    distance.ravel()[hit] = t


def _paste_upright(image: Image.Image, upright: Upright, camera: Camera, light: Light, depth=None) -> None:
    """Paste a picture that always faces the camera; with `depth`, only where nothing nearer was drawn."""
    foot = camera.project(np.array([*upright.position, 0.0]))
    if foot[2] < 0.8:
        return
    head = camera.project(np.array([*upright.position, upright.height]))
    picture = textures.upright_picture(upright.kind, upright.variant)
    tall = foot[1] - head[1]
    wide = tall * picture.width / picture.height
    if tall < 4 or tall > 6 * camera.size[1]:
        return
    box = [int(foot[0] - wide / 2), int(head[1]), int(foot[0] + wide / 2) + 1, int(foot[1]) + 1]
    seen = [max(box[0], 0), max(box[1], 0), min(box[2], camera.size[0]), min(box[3], camera.size[1])]
    if seen[0] >= seen[2] or seen[1] >= seen[3]:
        return
    kx, ky = picture.width / (box[2] - box[0]), picture.height / (box[3] - box[1])
    source = ((seen[0] - box[0]) * kx, (seen[1] - box[1]) * ky, (seen[2] - box[0]) * kx, (seen[3] - box[1]) * ky)
    if upright.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    size = seen[2] - seen[0], seen[3] - seen[1]
    piece = picture.resize(size, Image.Resampling.BILINEAR, box=source, reducing_gap=2.0)
    brightness = np.sqrt(np.clip(light.sun_colour * 0.5 + light.sky_colour * 0.8, 0.02, 1.2)) * 1.12
    tables = sum((np.clip(np.arange(256) * b, 0, 255).astype(int).tolist() for b in brightness), [])
    mask = piece.getchannel("A")
    if depth is not None:
        free = depth[seen[1] : seen[3], seen[0] : seen[2]] > foot[2]
        mask = Image.fromarray(np.asarray(mask) * free)
    image.paste(piece.convert("RGB").point(tables), (seen[0], seen[1]), mask)


def _hides(parked: Parked, camera: Camera) -> bool:
    """Say whether a parked car stands between the camera and the car on sale; nobody would photograph that."""
    towards, sale = np.array(parked.position) - camera.position[:2], -camera.position[:2]
    away, sale_away = np.hypot(*towards), np.hypot(*sale)
    return bool(away < sale_away - 0.4 and np.dot(towards, sale) > 0.7 * away * sale_away)


def draw_scene(
    place: Place, camera: Camera, car: Car | None = None, look: Look | None = None, front: tuple[Upright, ...] = ()
) -> Image.Image:
    """Draw the whole picture: background, cars far to near, then what stands in front."""
    cars = [(build_car(p.shape), p.position, p.turn, p.look, 1.3) for p in place.parked if not _hides(p, camera)]
    if car is not None:
        cars.append((car, (0.0, 0.0), 0.0, look, 2.0 if camera.size[0] < 700 else 1.6))
    image = draw_background(place, camera, [entry[:3] for entry in cars])
    for each, position, turn, each_look, detail in sorted(cars, key=lambda entry: -camera.away(entry[1])):
        drawn = draw_car(each, each_look, camera.seen_from(position, turn), place.light.turned(turn), detail)
        if drawn is not None:
            image.paste(drawn[0], drawn[1], drawn[0])
    for upright in front:
        _paste_upright(image, upright, camera, place.light)
    return image
