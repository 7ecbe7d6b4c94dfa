"""Draws the pictures of docs/datasets: ``python benchmarks/dataset_pictures.py``.

The benchmarks' own frames cannot be shown here, so the pictures are of the miniatures that ``mlesam mini NAME DIR`` writes: the
layout and encodings of the original, read by the same reader, with frames of the procedural world. They are written to a
temporary folder, 120 MB, or kept in ``--data DIR`` for the next time.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from conditions import ROOT
from drawing import below, colored, enlarged, legend, save, sheet, tile
from mlesam.data.dataset import Frame, open_dataset
from mlesam.data.reading import choose_modalities, match_sensor, read_frame, resolve_classes
from mlesam.evaluation.pictures import MEANING, class_picture, kind, sensor_picture
from mlesam.mini import write_mini
from mlesam.sample import IGNORE
from mlesam.sensors.spec import SensorSpec

SHOWN = {
    "deliver": (
        ("val", "sun", None), ("val", "night", "lidarjitter"), ("test", "cloud", "underexposure"), ("val", "rain", "eventlowres"),
    ),
    "muses": (("train", "clear", "day"), ("val", "fog", "day"), ("train", "rain", "night"), ("val", "snow", "day")),
    "mcubes": (("train", None, None), ("val", None, None), ("test", None, None)),
}  # fmt: skip
"""Of each frame in a picture the split and two tags; None: none of that kind."""
SIZE = {"deliver": (196, 196), "muses": (240, 135), "mcubes": (204, 202)}
MEANINGS = {
    "three": "disparity, height and angle as red, green and blue",
    "grey": "0 black, 1 white, striped: nothing measured",
    "echo": "strength of the echo, violet: weak, yellow: strong, dark: nothing measured",
    "angle": "hue: angle; on the road it jumps between -90 and 90 degrees, which are the same polarisation",
}
"""What the colours say, where the report's words for a kind of sensor do not fit here."""


def miniature(name: str, folder: Path) -> Path:
    """Where a miniature lies; it is written where there is none."""
    root = folder / name
    if not root.is_dir():
        write_mini(name, root)
    return root


def chosen(frames: list[Frame], first: str | None, second: str | None) -> Frame:
    """The first frame with exactly these tags."""
    wanted = tuple(tag for tag in (first, second) if tag)
    return next(frame for frame in frames if frame.tags == wanted)


def shown(modality: str, values: np.ndarray, spec: SensorSpec, width: int) -> tuple[np.ndarray, str]:
    """A sensor's picture as the report draws it, or better for a page that shows no weights; and what its colours say."""
    how = kind(modality, spec)
    if modality == "radar":  # its range is the same slope in every frame
        echo = enlarged(values[1], round(values.shape[2] / width))
        return colored(echo, 0, 200, "viridis"), MEANINGS["echo"]
    if how == "grey":
        return colored(values[0], *spec.range, "grey"), MEANINGS[how]
    return sensor_picture(modality, values, spec, width), MEANINGS.get(how, MEANING[how])


def draw(name: str, root: Path, out: Path) -> None:
    """One picture of a dataset: rows are frames, columns its sensors and its labels."""
    dataset = open_dataset(f"{name}:{root}")
    modalities = choose_modalities(dataset, None)
    specs = {m: match_sensor(dataset, m, dataset.frames("train"))[0] for m in modalities}
    classes, _ = resolve_classes(dataset, dataset.frames("train"))
    width, height = SIZE[name]
    rows, seen, meanings = [], set(), {}
    for split, first, second in SHOWN[name]:
        frame = chosen(dataset.frames(split), first, second)
        sample = read_frame(frame, specs, classes)
        assert sample.label is not None
        label = sample.label.numpy()
        words = ", ".join(frame.tags) or split
        tiles = []
        for modality, values in sample.images.items():
            picture, meanings[modality] = shown(modality, values.numpy(), specs[modality], width)
            tiles.append(tile(picture, f"{modality} ({words})" if modality == "rgb" else modality, width, height))
        tiles.append(tile(class_picture(label, classes.colors, width), "labels", width, height))
        rows.append(tiles)
        seen |= set(np.unique(label).tolist())
    lines = [f"{modality}: {meaning}" for modality, meaning in meanings.items() if modality != "rgb"]
    lines.append(
        f"From the miniature that `mlesam mini {name}` writes: a procedural world in the files of {dataset.title}."
    )
    found = {n: classes.colors[i] for i, n in enumerate(classes.names) if i in seen}
    found |= {"striped: not scored": (135, 139, 147)} if IGNORE in seen else {}
    picture = sheet(rows, lines)
    save(below(picture, legend(found, picture.width)), out / f"{name}.webp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SHOWN)}; all of them without a name")
    parser.add_argument("--data", type=Path, help="where the miniatures are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or SHOWN:
            draw(name, miniature(name, options.data or Path(folder)), ROOT / "docs" / "datasets")


if __name__ == "__main__":
    main()
