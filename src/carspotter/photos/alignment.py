"""Compare two photos block by block after aligning them (Lucas and Kanade, 1981), to see whether they show one shot.

One may be a crop of the other. Cars framed alike correlate as wholes but not in their blocks; a watermark spoils some.
"""

import numpy as np

COARSE_STEPS, FINE_STEPS = 6, 5  # of the alignment, at 16 × 16 and at 32 × 32 points
BLOCKS = 8  # along a side
FLAT = 4.0  # below this spread of grey (0 … 255) a block of a small copy says nothing
CODING_NOISE = 1.0  # added to the spreads, so that noise in nearly flat blocks does not count as structure
# Of large copies: the same, for there noise is seen better, and how to align them: (points, steps).
CLOSE_SIDE, CLOSE_FLAT, CLOSE_NOISE, CLOSE_STEPS = 192, 8.0, 0.1, ((32, 2), (64, 3), (96, 3))
SPOILT = 28  # percent of the blocks that a banner may cover


def compare_shots(whole: np.ndarray, cut: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Align windows of `whole` with `cut`, both uint8 (N, S, S) grey; return how well they agree and the windows found.

    `windows`: where to begin, float (N, 4): start and length of the vertical, then the horizontal side, in shares. The
    agreement is the median correlation of the blocks with structure, float32 (N,), 0 … 1.
    """
    whole, cut = _soften(whole), _soften(cut)
    side = whole.shape[1]
    windows = _align(whole, cut, windows, ((side // 4, COARSE_STEPS), (side // 2, FINE_STEPS)))
    correlation, structured = _correlate(_look_through(whole, windows, side)[0], cut, FLAT, CODING_NOISE)
    enough = structured.sum(axis=1) >= BLOCKS
    correlation = np.where(structured | ~enough[:, None], correlation, np.nan)
    return np.where(enough, np.nanmedian(correlation, axis=1), 0).astype(np.float32), windows


def compare_closely(whole: np.ndarray, cut: np.ndarray, window: np.ndarray) -> float:
    """Return the correlation that 72 % of the structured blocks of one pair reach.

    Both are uint8 (CLOSE_SIDE, CLOSE_SIDE), aligned before by `compare_shots`. Copies keep their detail in every block
    but those under a watermark; a second shot of the scene does not.
    """
    whole, cut = _soften(whole[None]), _soften(cut[None])
    window = _align(whole, cut, window[None], CLOSE_STEPS)
    correlation, structured = _correlate(_look_through(whole, window, CLOSE_SIDE)[0], cut, CLOSE_FLAT, CLOSE_NOISE)
    if structured.sum() < BLOCKS:  # a pale or dark photo: what structure there is
        structured = np.ones_like(structured)
    return float(np.percentile(correlation[structured], SPOILT))


def _soften(grey: np.ndarray) -> np.ndarray:
    """Blur over 3 × 3 pixels: alignment needs slopes, and re-encoding leaves noise."""
    soft = np.pad(grey.astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    soft = (soft[:, :-2] + 2 * soft[:, 1:-1] + soft[:, 2:]) / 4
    return (soft[:, :, :-2] + 2 * soft[:, :, 1:-1] + soft[:, :, 2:]) / 4


def _align(whole: np.ndarray, cut: np.ndarray, windows: np.ndarray, stages) -> np.ndarray:
    side = cut.shape[1]
    for points, steps in stages:
        reduced = cut.reshape(-1, points, side // points, points, side // points).mean(axis=(2, 4))
        for _ in range(steps):
            windows = _improve(whole, reduced, windows)
    return windows


def _look_through(whole: np.ndarray, window: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample a window of each photo at points × points; return the view and its slopes down and across, per pixel."""
    side = whole.shape[1]
    at = _grid(points)
    y, x = (np.clip((window[:, [k]] + window[:, [k + 1]] * at) * side - 0.5, 0, side - 1.001) for k in (0, 2))
    top, left = y.astype(np.intp), x.astype(np.intp)
    dy, dx = (y - top)[:, :, None], (x - left)[:, None, :]
    corner = (np.arange(len(whole)) * side * side)[:, None, None] + top[:, :, None] * side + left[:, None, :]
    pixels = whole.ravel()
    a, b, c, d = (pixels[corner + step] for step in (0, 1, side, side + 1))
    b -= a
    d -= c
    a += b * dx
    c += d * dx
    c -= a
    return a + c * dy, c, b + (d - b) * dy


def _improve(whole: np.ndarray, cut: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Take one Gauss-Newton step towards the window that looks most like the reduced `cut`."""
    side, points = whole.shape[1], cut.shape[1]
    view, down, across = _look_through(whole, window, points)
    at = _grid(points)
    # d view / d (start, length of both sides); brightness may change by a gain and an offset
    slopes = np.stack([down, down * at[:, None], across, across * at, view / side, np.ones_like(view)], axis=1)
    slopes = slopes.reshape(len(view), 6, -1) * side
    error = (cut - view).reshape(len(view), -1)
    # Pixels that differ a lot (a watermark) must not pull: weights of Geman and McClure.
    spread = 2 * np.median(np.abs(error), axis=1, keepdims=True) + 2
    weight = 1 / (1 + (error / spread) ** 2) ** 2
    weighted = slopes * weight[:, None]
    normal = weighted @ slopes.transpose(0, 2, 1)
    normal += np.eye(6, dtype=np.float32) * (1e-5 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-3)
    step = np.linalg.solve(normal, weighted @ error[..., None])[:, :4, 0]
    return window + np.clip(step, -0.03, 0.03)


def _grid(points: int) -> np.ndarray:
    return ((np.arange(points) + 0.5) / points).astype(np.float32)


def _correlate(view: np.ndarray, cut: np.ndarray, flat: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlation of each of the 8 × 8 blocks, and whether either photo has structure there: (N, 64)."""
    block = view.shape[1] // BLOCKS
    view, cut = (
        photo.reshape(-1, BLOCKS, block, BLOCKS, block).transpose(0, 1, 3, 2, 4).reshape(len(photo), BLOCKS**2, -1)
        for photo in (view, cut)
    )
    view = view - view.mean(axis=2, keepdims=True)
    cut = cut - cut.mean(axis=2, keepdims=True)
    view_spread, cut_spread = view.std(axis=2), cut.std(axis=2)
    correlation = (view * cut).mean(axis=2) / ((view_spread + noise) * (cut_spread + noise))
    return correlation, np.maximum(view_spread, cut_spread) > flat
