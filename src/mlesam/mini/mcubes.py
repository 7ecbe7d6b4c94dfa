"""A miniature of MCubeS: 1224 x 1024 pictures of colour, polarisation and near infrared, and labels of materials.

Layout and encodings follow the dataset's own repository (github.com/kyotovision-public/multimodal-material-segmentation). The
semantic guidance (``SS``, ``SSGT4MS``) is left out: only MCubeSNet reads it.

- Colour is 8 and near infrared 16 bits in reports of the original; its loader takes either, and either occurs here in both.
- ``NIR_warped_mask`` is white (255) where the warped picture is not valid, as the repository's text and its loss say.
- AoLP lies between -90 and 90 degrees; the files hold sine and cosine of the angle itself. Resampling makes them, and DoLP, run
  over their ranges at edges, as they do in the original (sine from -2.7 to 2.4, DoLP from -0.5 to 1.4 by a published loader).
- The left 192 columns, which every loader cuts, have no near infrared; their labels are as elsewhere.

Three arrays of float32 take 15 MB a frame, so there are few frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlesam.data.mcubes import CLASSES
from mlesam.mini.pictures import nearest, smooth, write_png
from mlesam.mini.scene import THINGS, Instant, View, instant, small_objects
from mlesam.world import sensors
from mlesam.world.draws import Draws
from mlesam.world.geometry import SKY, ground_surface
from mlesam.world.scene import COLUMN, MATERIALS
from mlesam.world.shading import Surfaces

SIZE = (1024, 1224)
LEFT = 192
"""Columns without near infrared."""
SMALL = (256, 306)
FOCAL, PITCH = 0.9, -0.03
"""Focal length in picture widths, and the sine of the camera's pitch."""
SPLITS = {"train": 2, "val": 1, "test": 1}
WEATHERS = ("sun", "cloud")
IGNORE = 255
NAMES = {
    "asphalt": "asphalt", "slabs": "concrete", "grass": "grass", "gravel": "gravel", "brick": "brick", "plaster": "plaster",
    "render": "plaster", "hedge": "leaf", "leaves": "leaf", "bark": "wood", "metal": "metal", "paint": "metal",
    "retro": "metal", "cloth": "fabric", "wood": "wood",
}  # fmt: skip
"""Materials of the world, and their classes. The world's renderer hides some more, see :func:`materials`."""
SHINY = ("metal", "glass", "road_marking", "rubber", "plastic")
"""Classes that polarise by reflection. The others do so, more weakly, by light from inside."""
INDEX = 1.5
"""Refractive index of everything."""
BAND = 13
"""Of the world's hyperspectral bands, the one at 840 nm."""


@dataclass(frozen=True)
class Shot:
    """One frame. ``deep``: colour has 16 bits and near infrared 8, instead of the other way round."""

    split: str
    name: str
    weather: str
    deep: bool
    key: tuple[int | str, ...]


def shots(seed: int) -> list[Shot]:
    found = []
    for split, count in SPLITS.items():
        for index in range(count):
            key = (seed, "mcubes", split, index)
            draws = Draws("mini", "name", *key)
            scene = 1000 + 100 * draws.integer(3) + draws.integer(30)
            name = f"outscene{scene}_{len(found) + 1}_{30 * draws.integer(100):010d}"
            found.append(Shot(split, name, WEATHERS[len(found) % 2], len(found) % 2 == 1, key))
    return found


def write(root: Path, seed: int, advance: Callable[[int, int], None]) -> dict[str, int]:
    """Write the miniature; returns the frames of each split."""
    jobs = shots(seed)
    for done, shot in enumerate(jobs, 1):
        write_shot(root, shot)
        advance(done, len(jobs))
    lists = root / "list_folder"
    lists.mkdir()
    for split in ("all", *SPLITS):
        names = [shot.name for shot in jobs if split in ("all", shot.split)]
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return dict(SPLITS)


def write_shot(root: Path, shot: Shot) -> None:
    """Write one frame's files."""
    now = at(shot)
    view = now.view(now.camera(SMALL, FOCAL * SMALL[1], PITCH))
    base = now.draws.integer(2**31)
    picture = now.picture(view, Draws(base, "rgb"))
    write_png(root / "polL_color" / f"{shot.name}.png", smooth(_bits(picture / 255, shot.deep), SIZE))
    label = materials(now, view.seen)
    sine, cosine, degree = polarisation(view, label, Draws(base, "polarisation"))
    for folder, array in (("polL_aolp_sin", sine), ("polL_aolp_cos", cosine), ("polL_dolp", degree)):
        _write_npy(root / folder / f"{shot.name}.npy", array)
    infrared = sensors.hyperspectral(view.light, view.seen, Draws(base, "infrared"))[..., BAND] / 65535
    near = smooth(_bits(infrared, not shot.deep), SIZE)
    outside = margins(Draws(base, "warp"))
    near[outside] = 0
    write_png(root / "NIR_warped" / f"{shot.name}.png", near)
    write_png(root / "NIR_warped_mask" / f"{shot.name}.png", np.where(outside, 255, 0).astype(np.uint8))
    for number in small_objects(view.seen.instance, 1):
        label[view.seen.instance == number] = IGNORE
    write_png(root / "GT" / f"{shot.name}.png", nearest(label, SIZE))


def at(shot: Shot) -> Instant:
    """The instant that a frame shows, from the height of a cart's camera."""
    return instant(shot.key, shot.weather, dark=False, height=1.2)


def materials(now: Instant, seen: Surfaces) -> np.ndarray:
    """(H, W) uint8 class ids 0 to 19."""
    ids = {name: i for i, name in enumerate(CLASSES)}
    part = seen.hits.part
    on_part = part >= 0
    rows = now.scene.parts[np.where(on_part, part, 0)]
    x, _, z = seen.position
    underfoot = now.scene.ground.surfaces[ground_surface(now.scene.ground, x, z), 1]
    number = np.where(on_part, rows[..., COLUMN["material"]], underfoot).astype(np.int64)
    label = np.array([ids[NAMES[name]] for name in MATERIALS], dtype=np.uint8)[number]
    things = now.things(seen)
    of = lambda *names: np.isin(things, [THINGS.index(name) for name in names])  # noqa: E731
    car = of("vehicle", "lorry")
    label[of("building") & (seen.infrared < 0.16)] = ids["glass"]  # windows reflect 0.08, walls 0.40 and more
    label[car & (seen.infrared < 0.1)] = ids["rubber"]  # wheels reflect 0.05, bodies 0.35
    label[car & (rows[..., COLUMN["hx"]] < 0.8)] = ids["glass"]  # a car's cabin
    label[of("clutter") & (label == ids["metal"])] = ids["plastic"]  # bins
    label[of("pedestrian") & (rows[..., COLUMN["hx"]] < 0.16)] = ids["human"]  # heads
    label[of("marking")] = ids["road_marking"]
    label[part == SKY] = ids["sky"]
    return label


def polarisation(view: View, label: np.ndarray, draws: Draws) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sine and cosine of the angle, and degree of linear polarisation, (1024, 1224) float32.

    Degree and angle follow from the surface's normal, after Atkinson and Hancock (IEEE TIP 2006), equations 6 and 12. The sky is
    polarised a little, level with the horizon.
    """
    seen = view.seen
    cosine = np.clip(seen.facing.astype(np.float64), 0.05, 1.0)
    square = 1 - cosine * cosine
    root = np.sqrt(INDEX * INDEX - square)
    diffuse = (INDEX - 1 / INDEX) ** 2 * square
    diffuse /= 2 + 2 * INDEX**2 - (INDEX + 1 / INDEX) ** 2 * square + 4 * cosine * root
    specular = 2 * square * cosine * root / (INDEX**2 - square - INDEX**2 * square + 2 * square * square)
    shiny = np.isin(label, [i for i, name in enumerate(CLASSES) if name in SHINY])
    sky = seen.hits.part == SKY
    degree = np.where(sky, 0.15, np.where(shiny, specular, diffuse))
    # The normal in the picture's plane; light from inside swings along it, reflected light across it.
    right, up, _ = seen.hits.camera.rotation().T.astype(np.float64)
    across = sum(right[axis] * seen.normal[axis] for axis in range(3))
    along = sum(up[axis] * seen.normal[axis] for axis in range(3))
    angle = np.arctan2(along, across) + np.where(shiny, np.pi / 2, 0)
    angle = np.where(sky, 0.0, angle) + 0.05 * draws.normals(*angle.shape)
    angle = np.mod(angle + np.pi / 2, np.pi) - np.pi / 2
    degree = degree + 0.02 * draws.normals(*degree.shape)
    sine, cosine, degree = (_sharp(array) for array in (np.sin(angle), np.cos(angle), degree))
    return sine, cosine, degree


def margins(draws: Draws) -> np.ndarray:
    """(1024, 1224) bool: what the near-infrared picture, warped to the colour camera, lacks: the left, and a slanted frame."""
    rows, columns = np.indices(SIZE)
    top, bottom, right = (8 + draws.integer(24) for _ in range(3))
    lean = draws.uniform(-0.02, 0.02)
    outside = (columns < LEFT) | (columns >= SIZE[1] - right + lean * rows)
    return outside | (rows < top + lean * columns) | (rows >= SIZE[0] - bottom + lean * columns)


def _bits(share: np.ndarray, deep: bool) -> np.ndarray:
    """0 to 1 as uint16 (in steps of 16, since noise does not compress) or uint8."""
    if deep:
        return np.rint(share * 4095).astype(np.uint16) * np.uint16(16)
    return np.rint(share * 255).astype(np.uint8)


def _sharp(array: np.ndarray) -> np.ndarray:
    """Up to the full size by cubic interpolation, which overshoots at edges."""
    import cv2

    return cv2.resize(array.astype(np.float32), SIZE[::-1], interpolation=cv2.INTER_CUBIC)


def _write_npy(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


__all__ = ["LEFT", "SPLITS", "shots", "write", "write_shot"]
