"""Draw class folders of made-up photos with the light core alone: try_wheel.sh imports them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from generated_photos import scene

folder = Path(sys.argv[1])
for number in range(24):
    path = folder / ("swift", "wagonr")[number % 2] / f"{number // 4:03}__{number}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    scene(number).save(path, quality=90)
