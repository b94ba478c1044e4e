"""From the numbers of a car to something that can be drawn: a coarse mesh and a fine skin (normals, materials, shade).

The body is a stack of horizontal slices, each a rectangle with superelliptic corners, so noses, tails and windscreens
round off in plan as well as in profile. Mesh and skin are samplings of the same surface: the mesh decides which pixels
a car covers, the skin, looked up for each pixel, what is seen there.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .shapes import Points, Shape

MESH_LEVELS, MESH_AROUND = 38, 40
SKIN_LEVELS, SKIN_AROUND = 420, 1000
DISC = 256  # side of a wheel's skin in texels
PLATE = (36, 160)
GRAPHIC_SCALE = 400.0  # texels a metre of the drawn window, lamp and door shapes

MATERIALS = {  # linear albedo, reflectance at normal incidence, share of light from within (lamps scatter)
    "paint": ((0.0, 0.0, 0.0), 0.065, 0.0),  # the colour is each car's own, and the roof's
    "glass": ((0.045, 0.05, 0.05), 0.10, 0.0),
    "black": ((0.028, 0.028, 0.03), 0.02, 0.0),
    "gloss_black": ((0.010, 0.010, 0.011), 0.05, 0.0),
    "chrome": ((0.25, 0.25, 0.26), 0.60, 0.0),
    "headlamp": ((0.46, 0.48, 0.50), 0.16, 0.08),
    "tail": ((0.40, 0.012, 0.016), 0.06, 0.10),
    "amber": ((0.50, 0.18, 0.02), 0.06, 0.05),
    "mesh": ((0.012, 0.012, 0.013), 0.03, 0.0),
    "groove": ((0.006, 0.006, 0.006), 0.0, 0.0),
    "void": ((0.004, 0.004, 0.004), 0.0, 0.0),
    "tyre": ((0.016, 0.016, 0.017), 0.008, 0.0),
    "rim": ((0.36, 0.36, 0.37), 0.20, 0.0),
    "plate": ((0.72, 0.72, 0.70), 0.03, 0.0),
    "ink": ((0.01, 0.01, 0.012), 0.02, 0.0),
    "roof": ((0.012, 0.012, 0.012), 0.065, 0.0),
    "gap": ((0.03, 0.03, 0.03), 0.02, 0.0),
}
MATERIAL = {name: number for number, name in enumerate(MATERIALS)}


@dataclass(frozen=True)
class Car:
    """A drawable car, nose towards -x, centred on its outer box, standing on z = 0; metres.

    vertices (N, 3) float32; faces (M, 3) int32, anticlockwise seen from outside; uv (M, 3, 2) float32 in 0..1;
    tile (M, 3) int32: first texel, height and width of the face's part of the skin; mirrored (M,) float32: -1 where the
    skin's y is to be flipped; layer (M,) int8: 0 the body, 1 what is fixed to it.
    Skin, one row a texel: normals (T, 3) float32, materials (T,) uint8, shade (T,) float32.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    tile: np.ndarray
    mirrored: np.ndarray
    layer: np.ndarray
    normals: np.ndarray
    materials: np.ndarray
    shade: np.ndarray
    plate_texels: slice
    outlines: np.ndarray  # (levels, points, 3): slices of the body, for its shadow


def _smooth(points: Points, rounds: int = 3) -> np.ndarray:
    """Round off an open polyline by cutting corners (Chaikin, 1974); the ends stay."""
    line = np.asarray(points, float)
    for _ in range(rounds):
        cut = np.stack([0.75 * line[:-1] + 0.25 * line[1:], 0.25 * line[:-1] + 0.75 * line[1:]], 1).reshape(-1, 2)
        line = np.concatenate([line[:1], cut, line[-1:]])
    return line


def _outline(shape: Shape, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    front, rear, half = _smooth(shape.front), _smooth(shape.rear), _smooth(shape.half_width, 2)
    x_front = np.interp(heights, front[:, 1], front[:, 0])
    x_rear = shape.length - np.interp(heights, rear[:, 1], rear[:, 0])
    return x_front, x_rear, np.interp(heights, half[:, 0], half[:, 1]) * shape.width / 2


def _heights(shape: Shape, count: int) -> np.ndarray:
    """Return `count` slice heights, dense where the outline runs flat (bonnet, roof)."""
    fine = np.linspace(shape.half_width[0][0], shape.height, 2000)
    x_front, x_rear, half = _outline(shape, fine)
    inwards = 0.45 * (np.abs(np.diff(x_front)) + np.abs(np.diff(x_rear))) + 0.5 * np.abs(np.diff(half))
    cost = np.hypot(np.diff(fine), inwards)
    along = np.concatenate([[0], np.cumsum(cost)])
    return np.interp(np.linspace(0, along[-1], count), along, fine)


def _surface(shape: Shape, heights: np.ndarray, around: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample half of the body (y >= 0): points (levels, around, 3), way from the nose (levels, around)."""
    x_front, x_rear, half = _outline(shape, heights)
    to_glass = np.clip((heights - shape.belt + 0.12) / 0.16, 0, 1)
    wanted = np.linspace(0, 1, around)
    phi = np.linspace(0, np.pi / 2, 90)
    points, way = np.empty((len(heights), around, 3), np.float32), np.empty((len(heights), around), np.float32)
    for row, z in enumerate(heights):
        share = to_glass[row]
        corners = []
        for own in (shape.nose_corner, shape.tail_corner):
            reach = min(own[0] * (1 - share) + shape.glass_corner[0] * share, 0.49 * (x_rear[row] - x_front[row]))
            power = 2 / (own[1] * (1 - share) + shape.glass_corner[1] * share)
            corners.append((reach * (1 - np.cos(phi) ** power), half[row] * np.sin(phi) ** power))
        (xa, ya), (xb, yb) = corners
        x = np.concatenate([x_front[row] + xa, (x_rear[row] - xb)[::-1]])
        y = np.concatenate([ya, yb[::-1]])
        length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
        # fixed shares for nose, side and tail keep the texels of one part together from slice to slice
        at = np.interp(wanted, (0, 0.32, 0.70, 1), (0, length[89], length[90], length[-1]))
        points[row, :, 0], points[row, :, 1], points[row, :, 2] = np.interp(at, length, x), np.interp(at, length, y), z
        way[row] = at
    points[..., 0] -= shape.length / 2
    return points, way


class _Graphic:
    """A drawn map of materials over (along, height); 255 means nothing drawn."""

    def __init__(self, length: float, height: float):
        size = int(length * GRAPHIC_SCALE) + 2, int(height * GRAPHIC_SCALE) + 2
        self.image = Image.new("L", size, 255)
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Points, material: str) -> None:
        self.draw.polygon([(x * GRAPHIC_SCALE, z * GRAPHIC_SCALE) for x, z in points], fill=MATERIAL[material])

    def line(self, points: Points, material: str, width: float) -> None:
        scaled = [(x * GRAPHIC_SCALE, z * GRAPHIC_SCALE) for x, z in points]
        self.draw.line(scaled, fill=MATERIAL[material], width=max(int(width * GRAPHIC_SCALE), 1), joint="curve")

    def ellipse(self, x: float, z: float, radius_x: float, radius_z: float, material: str) -> None:
        box = [(x - radius_x), (z - radius_z), (x + radius_x), (z + radius_z)]
        self.draw.ellipse([v * GRAPHIC_SCALE for v in box], fill=MATERIAL[material])

    def look_up(self, along: np.ndarray, height: np.ndarray) -> np.ndarray:
        pixels = np.asarray(self.image)
        column = np.clip(along * GRAPHIC_SCALE, 0, pixels.shape[1] - 1).astype(np.int32)
        return pixels[np.clip(height * GRAPHIC_SCALE, 0, pixels.shape[0] - 1).astype(np.int32), column]


def _side_graphic(shape: Shape) -> _Graphic:
    side = _Graphic(shape.length, shape.height)
    axles = (shape.overhang, shape.overhang + shape.wheelbase)
    bottom = shape.half_width[0][0]
    start, top = 0.3 if shape.cladding else 0.5, bottom + 0.05 + shape.cladding
    side.polygon(((start, 0), (shape.length - start, 0), (shape.length - start, top), (start, top)), "black")
    d0, d1, d2 = shape.doors
    arch = shape.wheel_radius + 0.05
    floor, ceiling = min(z for _, z in shape.windows), max(z for _, z in shape.windows)
    belt, sill = floor + 0.02, bottom + 0.09
    over_wheel = (axles[1] - arch * 0.85, shape.wheel_radius + arch * 0.72)
    side.line(((d0 + 0.03, belt - 0.05), (d0, 0.75), (d0, sill), (d2 - 0.18, sill)), "groove", 0.009)
    side.line(((d1, belt), (d1, sill)), "groove", 0.009)
    side.line(((d2 + 0.02, belt + 0.02), (d2 + 0.03, 0.80), over_wheel, (d2 - 0.18, sill)), "groove", 0.009)
    for x in axles:
        edge = arch + (shape.cladding * 0.5 if shape.cladding else 0.012)
        side.ellipse(x, shape.wheel_radius, edge, edge, "black" if shape.cladding else "gap")
        side.ellipse(x, shape.wheel_radius, arch, arch, "void")
    z = shape.handle_height
    for x in (d1 - 0.25, d2 - 0.25):
        side.polygon(((x, z - 0.018), (x + 0.17, z - 0.012), (x + 0.17, z + 0.006), (x, z + 0.006)), "gap")
        side.line(((x + 0.01, z + 0.014), (x + 0.17, z + 0.018)), "paint", 0.022)
    side.ellipse(shape.overhang + shape.wheel_radius + 0.14, shape.crease_height + 0.04, 0.03, 0.012, "amber")
    outline = _smooth((*shape.windows, shape.windows[0]), 2)
    side.line(outline, "gloss_black", 0.045)
    side.polygon(outline, "glass")
    low, high = floor - 0.03, ceiling + 0.03
    for at_belt, at_roof, width in shape.pillars:
        left, right = -width / 2, width / 2
        corners = ((at_belt + left, low), (at_belt + right, low), (at_roof + right, high), (at_roof + left, high))
        side.polygon(corners, shape.pillar_material)
        side.line(((at_belt, low), (at_roof, high)), "groove", 0.006)
    if shape.rails:
        side.line(((1.3, shape.height - 0.055), (shape.length - 0.5, shape.height - 0.055)), "black", 0.025)
    return side


def _end_graphic(window: Points, parts: tuple[tuple[str, Points], ...], height: float) -> _Graphic:
    end = _Graphic(1.5, height)
    end.line([(x * 1.025, z) for x, z in window], "gloss_black", 0.035)
    end.polygon(window, "glass")
    for material, points in parts:
        # what starts and ends on the centreline goes on, mirrored, on the other half: only the free ends are rounded
        on_centre = points[0][0] == points[-1][0] == 0
        smooth = points if material == "groove" else _smooth(points if on_centre else (*points, points[0]), 2)
        end.polygon(tuple(map(tuple, smooth)), material)
        if material in ("headlamp", "tail"):
            end.line(smooth, "groove", 0.006)
        if material == "headlamp" and len(points) > 5:  # the reflectors behind the lens
            x, z = np.mean(points, axis=0)
            end.ellipse(x, z, 0.075, 0.055, "mesh")
            end.ellipse(x, z, 0.052, 0.04, "chrome")
            end.ellipse(x - 0.16, z - 0.035, 0.045, 0.035, "mesh")
            end.ellipse(x - 0.16, z - 0.035, 0.03, 0.025, "chrome")
    return end


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9)


def _box(values: np.ndarray, *radii: int) -> np.ndarray:
    """Mean over 2 * radius + 1 neighbours along each axis that has a radius, the edges repeated."""
    for axis, radius in enumerate(radii):
        rows, wide = values.swapaxes(0, axis), 2 * radius + 1
        padded = np.pad(rows, [(radius + 1, radius)] + [(0, 0)] * (values.ndim - 1), mode="edge")
        summed = np.cumsum(padded, axis=0, dtype=np.float64)
        values = ((summed[wide:] - summed[:-wide]) / wide).astype(np.float32).swapaxes(0, axis)
    return values


def _body_skin(shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points, way = _surface(shape, _heights(shape, SKIN_LEVELS), SKIN_AROUND)
    normals = _unit(np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1)))
    normals = _unit(_box(normals, 4, 5))
    x, z = points[..., 0] + shape.length / 2, points[..., 2]
    sideways = np.clip(np.abs(normals[..., 1]) * 2 - 1, 0, 1)
    # a crease along the doors and a hollow below it catch the light as pressed steel does
    lift = (z - shape.crease_height) / 0.025
    normals[..., 2] += sideways * (0.34 * np.exp(-((lift - 0.8) ** 2)) - 0.26 * np.exp(-((lift + 1.2) ** 2 / 3)))
    hollow = (z - shape.crease_height + 0.24) / 0.05
    normals[..., 2] += sideways * 0.16 * np.exp(-(hollow**2)) * (x > shape.doors[0]) * (x < shape.doors[2])
    material = np.full(x.shape, MATERIAL["paint"], np.uint8)
    roof_edge = max(height for _, height in shape.windows) + 0.015
    material[(z > roof_edge) & (normals[..., 2] > 0.3)] = MATERIAL["roof"]
    back_way = way[:, -1:] - way
    gaps = np.zeros(x.shape, np.float32)
    for graphic, along in (
        (_side_graphic(shape), np.where((way > 0.45) & (back_way > 0.3), x, 0)),
        (_end_graphic(shape.windscreen, shape.face, shape.height), np.minimum(way, 1.49)),
        (_end_graphic(shape.rear_window, shape.back, shape.height), np.minimum(back_way, 1.49)),
    ):
        drawn = graphic.look_up(along, z)
        gap = drawn == MATERIAL["groove"]
        gaps = np.maximum(gaps, gap)
        material = np.where((drawn != 255) & ~gap, drawn, material)
    shade = 1 - 0.55 * np.exp(-(z - shape.half_width[0][0]) / 0.10)
    axles = (shape.overhang, shape.overhang + shape.wheelbase)
    near = np.minimum(*(np.hypot(x - axle, z - shape.wheel_radius) for axle in axles))
    shade *= 1 - 0.25 * np.exp(-np.clip(near - shape.wheel_radius - 0.05, 0, None) / 0.05) * (sideways > 0)
    floor = min(height for _, height in shape.windows)
    # behind the glass: the far window is light; seats, headrests and the dashboard are dark
    inside = np.ones_like(shade)
    for seat in (shape.doors[1] - 0.18, shape.doors[2] - 0.10):
        inside[np.hypot((x - seat) / 0.17, (z - floor - 0.02) / 0.20) < 1] = 0.35
        inside[np.hypot((x - seat - 0.03) / 0.10, (z - floor - 0.24) / 0.085) < 1] = 0.4
    inside = np.where((way < 0.8) & (z < floor + 0.13), 0.45, inside)
    shade *= 1 - 0.8 * np.minimum(_box(gaps, 1, 1) * 1.6, 1)
    shade = np.where(material == MATERIAL["glass"], _box(inside, 2, 2), shade)
    return _unit(normals).astype(np.float32), material, shade.astype(np.float32)


def _wheel_skin(shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    axis = (np.arange(DISC) + 0.5) / DISC * 2 - 1
    x, z = np.meshgrid(axis, axis)
    radius, angle = np.hypot(x, z), np.arctan2(z, x)
    rim = 0.70
    normals = np.stack([x * 0, np.ones_like(x), z * 0], -1)
    bulge = np.where(radius > 0.62, (radius - 0.66) * -9, (0.3 - radius) * -0.5)
    bulge = np.where(radius > rim, (radius - 0.84) * 4.0, bulge)
    normals[..., 0] = np.cos(angle) * bulge
    normals[..., 2] = np.sin(angle) * bulge
    material = np.where(radius > rim, MATERIAL["tyre"], MATERIAL["rim"]).astype(np.uint8)
    turn = angle * shape.spokes / (2 * np.pi)
    off_spoke = np.abs(turn - np.round(turn)) * 2 * np.pi / shape.spokes * radius
    wide = 0.055 + 0.035 * radius + 0.25 / shape.spokes * (0.62 - radius)
    hole = (off_spoke > wide) & (radius < 0.62) & (radius > 0.20)
    material[hole] = MATERIAL["void"]
    material[(radius < 0.62) & (radius > 0.5) & hole] = MATERIAL["gap"]
    material[radius < 0.075] = MATERIAL["black"]
    material[np.abs(radius - rim) < 0.012] = MATERIAL["gap"]
    shade = np.clip(1.15 - 0.35 * radius, 0, 1) * np.where(radius > 0.97, 0.7, 1)
    return _unit(normals).astype(np.float32), material, shade.astype(np.float32)


class _Builder:
    """Collects faces and skins of the parts of one car, under the names of `Car`."""

    def __init__(self):
        self.parts = defaultdict(list)
        self.vertex_count, self.texel_count = 0, 0

    def skin(self, normals: np.ndarray, materials: np.ndarray, shade: np.ndarray) -> tuple[int, int, int]:
        tile = self.texel_count, *materials.shape
        self._add(normals=normals.reshape(-1, 3), materials=materials.ravel(), shade=shade.ravel())
        self.texel_count += materials.size
        return tile

    def _add(self, **parts: np.ndarray) -> None:
        for name, part in parts.items():
            self.parts[name].append(part)

    def grid(self, points: np.ndarray, uv: np.ndarray, tile: tuple[int, int, int], layer: int, mirrored: float) -> None:
        """Add a grid of points (rows, columns, 3) with uv (rows, columns, 2) as triangles."""
        rows, columns = points.shape[:2]
        index = np.arange(rows * columns).reshape(rows, columns)
        a, b, c, d = index[:-1, :-1].ravel(), index[:-1, 1:].ravel(), index[1:, 1:].ravel(), index[1:, :-1].ravel()
        faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
        if mirrored < 0:
            faces = faces[:, ::-1]
        count = len(faces)
        self._add(vertices=points.reshape(-1, 3), faces=faces + self.vertex_count, uv=uv.reshape(-1, 2)[faces])
        self._add(tile=np.tile(tile, (count, 1)), mirrored=np.full(count, mirrored), layer=np.full(count, layer))
        self.vertex_count += rows * columns


def _grid_uv(rows: int, columns: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows)), -1)


@cache
def build_car(shape: Shape) -> Car:
    """Build the drawable car of a shape (about a third of a second; kept for the life of the process)."""
    build = _Builder()
    body, _ = _surface(shape, _heights(shape, MESH_LEVELS), MESH_AROUND)
    tile = build.skin(*_body_skin(shape))
    for sign in (1.0, -1.0):
        build.grid(body * (1, sign, 1), _grid_uv(MESH_LEVELS, MESH_AROUND), tile, 0, sign)
    _add_wheels(build, shape)
    _add_mirrors(build, shape)
    first = build.texel_count
    x_front, x_rear, _ = _outline(shape, np.array([shape.plate_front, shape.plate_rear]))
    y, z = np.meshgrid((0.25, -0.25), (0.057, -0.057))
    for at, height, facing in ((x_front[0] - 0.02, shape.plate_front, 1), (x_rear[1] + 0.03, shape.plate_rear, -1)):
        normals = np.full((*PLATE, 3), (-1, 0, 0), np.float32) * facing
        tile = build.skin(normals, np.full(PLATE, MATERIAL["plate"], np.uint8), np.ones(PLATE, np.float32))
        # rows run downwards as text does, so the columns are ordered for the face to look outwards
        points = np.stack([np.full_like(y, at - shape.length / 2), facing * y, z + height], -1).astype(np.float32)
        build.grid(points, _grid_uv(2, 2), tile, 1, 1.0)
    outlines = body[:: MESH_LEVELS // 9]
    outlines = np.concatenate([outlines, (outlines * np.array([1, -1, 1], np.float32))[:, ::-1]], axis=1)
    types = {"faces": np.int32, "tile": np.int32, "layer": np.int8, "materials": np.uint8}
    parts = {name: np.concatenate(part).astype(types.get(name, np.float32)) for name, part in build.parts.items()}
    return Car(**parts, plate_texels=slice(first, build.texel_count), outlines=outlines)


def _add_wheels(build: _Builder, shape: Shape) -> None:
    disc_tile = build.skin(*_wheel_skin(shape))
    segments = 28
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    ring = np.stack([np.cos(angle), np.zeros_like(angle), np.sin(angle)], -1)
    tread_normals = ring[None, :, :].astype(np.float32)
    shade = np.full((1, segments + 1), 0.75, np.float32)
    tread_tile = build.skin(tread_normals, np.full((1, segments + 1), MATERIAL["tyre"], np.uint8), shade)
    radius, width = shape.wheel_radius, 0.17
    for axle in (shape.overhang, shape.overhang + shape.wheelbase):
        centre = np.array([axle - shape.length / 2, shape.width / 2 - 0.035, radius])
        for sign in (1.0, -1.0):
            outer = centre + ring * radius
            inner = outer - (0, width, 0)
            hub = np.broadcast_to(centre, outer.shape)
            disc = np.stack([outer, hub])
            disc_uv = np.stack([ring[:, [0, 2]] * 0.5 + 0.5, np.full((segments + 1, 2), 0.5)])
            build.grid(disc * (1, sign, 1), disc_uv, disc_tile, 1, sign)
            tread_uv = np.stack([np.stack([angle / (2 * np.pi), angle * 0], -1)] * 2)
            build.grid(np.stack([inner, outer]) * (1, sign, 1), tread_uv, tread_tile, 1, sign)


def _sphere(rows: int, columns: int) -> np.ndarray:
    theta, phi = np.meshgrid(np.linspace(0, np.pi, rows), np.linspace(0, 2 * np.pi, columns), indexing="ij")
    return np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), -np.cos(theta)], -1)


def _add_mirrors(build: _Builder, shape: Shape) -> None:
    ball, normals = _sphere(7, 11), _sphere(24, 48)
    material = np.where(normals[..., 0] > 0.55, MATERIAL["glass"], MATERIAL["paint"]).astype(np.uint8)
    material[normals[..., 2] < -0.45] = MATERIAL["black"]
    tile = build.skin(normals.astype(np.float32), material, np.ones(material.shape, np.float32))
    windows_start, floor = shape.windows[0]
    _, _, half = _outline(shape, np.array([floor + 0.03]))
    centre = np.array([windows_start + 0.16 - shape.length / 2, half[0] + 0.085, floor + 0.055])
    for sign in (1.0, -1.0):
        build.grid((centre + ball * (0.055, 0.105, 0.07)) * (1, sign, 1), _grid_uv(7, 11), tile, 1, sign)
