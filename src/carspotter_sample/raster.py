"""Draws a car with its paint, dirt and number plate through a perspective camera.

Pillow fills triangles with their numbers, numpy shades each pixel.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .bodies import MATERIAL, MATERIALS, PLATE, Car
from .shapes import Shape

CHUNK = 16384  # pixels handled together: their arrays fit the processor's cache
PAINTS = (  # linear RGB, metallic, how often
    ((0.76, 0.76, 0.75), 0.0, 30),
    ((0.42, 0.43, 0.44), 1.0, 22),
    ((0.16, 0.165, 0.17), 0.9, 13),
    ((0.50, 0.02, 0.02), 0.2, 10),
    ((0.035, 0.075, 0.30), 0.6, 8),
    ((0.012, 0.012, 0.014), 0.3, 5),
    ((0.30, 0.22, 0.15), 0.8, 5),
    ((0.60, 0.16, 0.02), 0.5, 4),
    ((0.10, 0.03, 0.03), 0.6, 4),
    ((0.03, 0.16, 0.20), 0.6, 3),
    ((0.55, 0.50, 0.36), 0.4, 3),
)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: position in metres; `axes` rows right, down, forward; focal length and centre in pixels."""

    position: np.ndarray
    axes: np.ndarray
    focal: float
    centre: tuple[float, float]
    size: tuple[int, int]

    @classmethod
    def looking(cls, position, target, size: tuple[int, int], view_angle: float, roll: float = 0.0) -> "Camera":
        """Aim at `target`; `view_angle` across the picture's longer side and `roll` in radians."""
        position = np.asarray(position, float)
        forward = np.asarray(target, float) - position
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, (0, 0, 1.0))
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        right, down = np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right
        focal = max(size) / 2 / np.tan(view_angle / 2)
        return cls(position, np.stack([right, down, forward]), focal, (size[0] / 2, size[1] / 2), size)

    def seen_from(self, offset: tuple[float, float], turn: float) -> "Camera":
        """Return the same camera in the coordinates of something that stands at `offset`, turned by `turn` radians."""
        c, s = np.cos(turn), np.sin(turn)
        back = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        return replace(self, position=back @ (self.position - (*offset, 0)), axes=self.axes @ back.T)

    def away(self, position: tuple[float, float]) -> float:
        """Return how many metres along the ground a position is from the camera."""
        return np.hypot(*(np.array(position) - self.position[:2]))

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return (…, 3): pixel x, pixel y and depth in metres of points (…, 3)."""
        local = (points - self.position) @ self.axes.T
        depth = np.maximum(local[..., 2:], 0.05)
        return np.concatenate([local[..., :2] / depth * self.focal + self.centre, local[..., 2:]], -1)


@dataclass(frozen=True)
class Light:
    """Sun and sky: direction towards the sun (unit), linear RGB of sun, sky and ground bounce, mirror image of the
    surroundings as (elevation, azimuth, 3) linear float32."""

    sun: np.ndarray
    sun_colour: np.ndarray
    sky_colour: np.ndarray
    ground_colour: np.ndarray
    surroundings: np.ndarray

    def turned(self, turn: float) -> "Light":
        c, s = np.cos(turn), np.sin(turn)
        return replace(self, sun=np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) @ self.sun)


@dataclass(frozen=True)
class Look:
    """What one car looks like beyond its shape: linear paint colour, 0..1 metallic, dirt and rim brightness."""

    paint: tuple[float, float, float]
    metallic: float
    dirt: float
    rim: float
    black_roof: bool
    plate: np.ndarray | None  # bool, True where there is ink; None for the plain white of a covered plate


def draw_look(rng: np.random.Generator, shape: Shape) -> Look:
    """Draw paint, dirt, rims and plate; the same distribution for every model, so that colour tells nothing."""
    weights = np.array([weight for _, _, weight in PAINTS], float)
    paint, metallic, _ = PAINTS[rng.choice(len(PAINTS), p=weights / weights.sum())]
    varied = np.clip(np.array(paint) * rng.uniform(0.8, 1.15) * rng.uniform(0.95, 1.05, 3), 0.005, 0.82)
    black_roof, covered = rng.random() < 0.06, rng.random() < 0.3
    plate = None if covered else _plate_ink(rng)
    dirt, rim = float(rng.beta(1.2, 3.5)), float(rng.choice([0.35, 0.7, 1.0, 1.15]))
    return Look(tuple(varied), metallic, dirt, rim, black_roof, plate)


@cache
def _glyph(letter: str) -> np.ndarray:
    image = Image.new("L", (17, 30), 0)
    ImageDraw.Draw(image).text((8, 15), letter, fill=255, font=ImageFont.load_default(26), anchor="mm")
    return np.asarray(image) > 110


def _plate_ink(rng: np.random.Generator) -> np.ndarray:
    """Return an invented number plate as bool of `PLATE`: True where there is ink. No real number is meant."""
    letters, digits = list("ABCDEFGHJKLMNPRSTUVWXYZ"), list("0123456789")
    text = *rng.choice(letters, 2), *rng.choice(digits, 2), rng.choice(letters), *rng.choice(digits, 4)
    ink = np.zeros(PLATE, bool)
    ink[[0, 1, -2, -1], :] = True
    for place, letter in enumerate(text):
        left = 3 + place * 17
        ink[3:33, left : left + 17] |= _glyph(letter)
    return ink


def _fill(corners: np.ndarray, order: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Paint triangles (M, 3, 2) far to near into an image of their numbers + 1."""
    image = Image.new("I", size, 0)
    polygon = ImageDraw.Draw(image).polygon
    flat = corners.reshape(-1, 6).tolist()
    for face in order.tolist():
        polygon(flat[face], fill=face + 1)
    return np.asarray(image)


def _pack(corners: np.ndarray, depth: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Return what the pixels of each triangle need: corner, edges / determinant, u/w v/w 1/w, steps (15, M)."""
    p0, e1, e2 = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    determinant = e1[:, 0] * e2[:, 1] - e2[:, 0] * e1[:, 1]
    determinant = np.where(np.abs(determinant) > 0.01, determinant, 1)[:, None]  # those are not drawn
    inverse = 1 / depth[..., None]
    values = np.concatenate([uv * inverse, inverse], -1)
    first = values[:, 0]
    columns = [p0, e1 / determinant, e2 / determinant, first, values[:, 1] - first, values[:, 2] - first]
    return np.ascontiguousarray(np.concatenate(columns, 1).T)


def _texels(packed: np.ndarray, faces, pixel_x, pixel_y, tile) -> tuple[np.ndarray, np.ndarray]:
    """Return texel and inverse depth of pixels of the triangles `faces`; perspective-correct."""
    row = [column.take(faces) for column in packed]  # columns one by one stay contiguous: three times as fast
    x, y = pixel_x.astype(np.float32) + np.float32(0.5) - row[0], pixel_y.astype(np.float32) + np.float32(0.5) - row[1]
    b1 = np.clip(x * row[5] - y * row[4], 0, 1)
    b2 = np.clip(y * row[2] - x * row[3], 0, 1)
    w = row[8] + b1 * row[11] + b2 * row[14]
    u = np.clip((row[6] + b1 * row[9] + b2 * row[12]) / w, 0, 1)
    v = np.clip((row[7] + b1 * row[10] + b2 * row[13]) / w, 0, 1)
    first, height, width = (column.take(faces) for column in tile)
    half = np.float32(0.5)
    return first + (v * (height - 1).astype(np.float32) + half).astype(np.intp) * width + (
        u * (width - 1).astype(np.float32) + half
    ).astype(np.intp), w


def draw_car(car: Car, look: Look, camera: Camera, light: Light, detail: float = 2.0):
    """Draw one car; the camera is in the car's coordinates, `detail` is the oversampling.

    Gives an RGBA Pillow image (sRGB, reduced to the camera's scale) and the (left, top) pixel where it belongs, or None
    when nothing of the car is in the picture.
    """
    seen = camera.project(car.vertices)
    before = seen[:, 2] > 0.2
    if not before.any():
        return None
    left, top = np.floor(np.maximum(seen[before, :2].min(0), 0)).astype(int)
    right, bottom = np.ceil(np.minimum(seen[before, :2].max(0), camera.size)).astype(int)
    if right - left < 2 or bottom - top < 2:
        return None
    size = int((right - left) * detail), int((bottom - top) * detail)
    scale = np.array(size) / (right - left, bottom - top)
    points = ((seen[:, :2] - (left, top)) * scale).astype(np.float32)
    corners, depth = points[car.faces], seen[:, 2].astype(np.float32)[car.faces]
    e1, e2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = e1[:, 0] * e2[:, 1] - e2[:, 0] * e1[:, 1]
    inside = ((corners.max(1) > 0) & (corners.min(1) < size)).all(1)
    visible = np.flatnonzero((area > 0.3) & inside & before[car.faces].all(1))
    visible = visible[np.argsort(-depth[visible].mean(1), kind="stable")]
    nearest = np.zeros(size[::-1], np.float32).ravel()
    texel = np.zeros(nearest.size, np.intp)
    mirrored = np.zeros(nearest.size, np.float32)
    packed = _pack(corners, depth, car.uv)
    tile = np.ascontiguousarray(car.tile.T, np.intp)
    for layer in (0, 1):
        numbers = _fill(corners, visible[car.layer[visible] == layer], size).ravel()
        all_hits = np.flatnonzero(numbers)
        for start in range(0, all_hits.size, CHUNK):
            hits = all_hits[start : start + CHUNK]
            faces = numbers[hits].astype(np.intp) - 1
            at, w = _texels(packed, faces, hits % size[0], hits // size[0], tile)
            if layer == 0:  # the hollow of a wheel arch lies behind the wheel
                w = np.where(car.materials[at] == MATERIAL["void"], np.float32(1e-6), w)
            closer = w > nearest[hits]
            hits = hits[closer]
            nearest[hits], texel[hits], mirrored[hits] = w[closer], at[closer], car.mirrored[faces[closer]]
    covered = np.flatnonzero(nearest)
    if not covered.size:
        return None
    pixels = np.zeros((nearest.size, 4), np.uint8)
    skin = _Skin(car, look)
    for start in range(0, covered.size, CHUNK):
        part = covered[start : start + CHUNK]
        pixels[part, :3] = _shade(skin, light, texel[part], mirrored[part], _rays(camera, left, top, scale, size, part))
    pixels[covered, 3] = 255
    patch = Image.fromarray(pixels.reshape(size[1], size[0], 4))
    return patch.resize((int(right - left), int(bottom - top)), Image.Resampling.BOX), (int(left), int(top))


def _rays(camera: Camera, left, top, scale, size, covered) -> np.ndarray:
    """Unit viewing directions (N, 3) float32 of the covered pixels."""
    x = ((covered % size[0]) / scale[0] + left - camera.centre[0]) / camera.focal
    y = ((covered // size[0]) / scale[1] + top - camera.centre[1]) / camera.focal
    x, y = x.astype(np.float32), y.astype(np.float32)
    length = 1 / np.sqrt(x * x + y * y + 1)
    right, down, forward = camera.axes.astype(np.float32)
    return np.stack([(x * right[k] + y * down[k] + forward[k]) * length for k in range(3)])


class _Skin:
    """A car's skin with one look: materials with the plate's ink, and what each material is made of."""

    def __init__(self, car: Car, look: Look):
        self.normals, self.shade, self.materials = car.normals, car.shade, car.materials
        self.metallic = np.float32(look.metallic * 0.5)
        if look.plate is not None:
            self.materials = car.materials.copy()
            ink = np.where(look.plate, MATERIAL["ink"], MATERIAL["plate"]).astype(np.uint8)
            self.materials[car.plate_texels] = np.tile(ink.ravel(), 2)
        columns = zip(*MATERIALS.values(), strict=True)
        self.albedo, self.reflectance, self.glow = (np.array(column, np.float32) for column in columns)
        self.albedo[MATERIAL["paint"]] = look.paint
        if not look.black_roof:
            self.albedo[MATERIAL["roof"]] = look.paint
        self.albedo[MATERIAL["rim"]] *= look.rim
        dusty = np.array([name not in ("void", "groove") for name in MATERIALS])
        dust = np.array([0.30, 0.25, 0.19], np.float32)
        self.albedo[dusty] += (dust - self.albedo[dusty]) * np.float32(look.dirt * 0.35)
        self.reflectance[dusty] *= np.float32(1 - 0.6 * look.dirt)


def _shade(skin: _Skin, light: Light, texel, mirrored, rays) -> np.ndarray:
    """Light the pixels: sun, sky, ground bounce, mirror image (Schlick, 1994), highlight; sRGB uint8 (N, 3)."""
    albedo, reflectance, glow = skin.albedo, skin.reflectance, skin.glow
    kind = skin.materials[texel].astype(np.intp)
    n = np.ascontiguousarray(skin.normals[texel].T)
    nx, ny, nz = n[0], n[1] * mirrored, n[2]
    shade = skin.shade[texel]
    rx, ry, rz = rays
    facing = nx * rx + ny * ry + nz * rz
    mx, my, mz = rx - 2 * facing * nx, ry - 2 * facing * ny, rz - 2 * facing * nz
    grazing = np.clip(1 + facing, 0, 1)
    f0 = reflectance[kind]
    share = np.where(f0 > 0.015, np.float32(0.8), np.float32(0.1))
    fresnel = f0 + (1 - f0) * (grazing * grazing) ** 2 * grazing * share
    rows, columns, _ = light.surroundings.shape
    around = mx / (np.abs(mx) + np.abs(my) + 1e-6)
    around = np.where(my < 0, 3 - around, 1 + around) * np.float32(0.25)  # a cheap angle: 0..1 once round
    row = ((np.clip(mz, -1, 1) * 0.5 + 0.5) * (rows - 1)).astype(np.int32)
    mirrored_at = row.astype(np.intp) * columns + (around * columns).astype(np.intp) % columns
    sx, sy, sz = light.sun.astype(np.float32)
    lit = np.clip(nx * sx + ny * sy + nz * sz, 0, 1)
    toward = np.clip(mx * sx + my * sy + mz * sz, 0, 1)
    gleam = toward * toward
    sharp = gleam
    for _ in range(6):  # to the power of 128 by squaring
        sharp = sharp * sharp
    gleam = gleam * gleam * gleam  # wide lobe of metallic flakes
    colours = (light.sun_colour, light.sky_colour, light.ground_colour)
    sun_colour, sky_colour, ground_colour = (colour.astype(np.float32) for colour in colours)
    painted = (kind == MATERIAL["paint"]) | (kind == MATERIAL["roof"])
    glass = kind == MATERIAL["glass"]
    up = nz * 0.5 + 0.5
    mirror = np.ascontiguousarray(light.surroundings.reshape(-1, 3).T)
    out = np.empty((texel.size, 3), np.uint8)
    own_light = glow.take(kind)
    spark = fresnel * sharp * 6
    flakes = painted * skin.metallic * gleam
    dim = np.where(glass, shade * 0.9, shade)
    veil = 1 - 0.7 * glass.astype(np.float32)
    mirrored_part = fresnel * np.where(glass, 1, 0.3 + 0.7 * shade)
    for k in range(3):
        base = albedo[:, k].take(kind)
        diffuse = lit * sun_colour[k] * veil + sky_colour[k] * up + ground_colour[k] * (1 - up)
        colour = base * (diffuse * dim + flakes * sun_colour[k] + own_light)
        colour += mirrored_part * mirror[k].take(mirrored_at) + spark * sun_colour[k]
        out[:, k] = np.sqrt(np.clip(colour, 0, 1)) * 255
    return out
