"""Draws the pictures of the documentation: ``python benchmarks/pictures.py --run runs/demo/run``.

``docs/drive.webp`` is a drive at night as every sensor records it, each at its own rate (rendered here, no run needed);
``docs/demo.webp`` shows two test frames of the demo: sensors, truth, and predictions with all sensors and without one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from conditions import ROOT
from drawing import sheet, tile
from mlesam.data.dataset import open_dataset
from mlesam.data.reading import read_frame
from mlesam.evaluation.evaluate import evaluate, open_split
from mlesam.evaluation.gallery import choose, frames_by_tag, show
from mlesam.evaluation.pictures import class_picture, sensor_picture
from mlesam.model.run import Run
from mlesam.sample import Classes
from mlesam.sensors.spec import sensor_spec
from mlesam.world import WorldOptions, write_world
from mlesam.world.drive import FRAMES_PER_SECOND
from mlesam.world.render import SENSORS
from mlesam.world.scene import CLASSES


def drive(out: Path, frames: int = 48, side: int = 200) -> None:
    """Every second frame of a drive; a sensor that did not measure keeps its last picture, as a stream does."""
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder) / "drive", WorldOptions(frames, seed=4, size=side, weather="night", sequence=True))
        dataset = open_dataset(f"folder:{folder}/drive")
        specs = {m: sensor_spec(m, dataset.sensor(m)) for m in SENSORS}
        classes = Classes(tuple(CLASSES), tuple(CLASSES.values()))
        last, pictures = {}, []
        for index, frame in enumerate(dataset.frames("test")):
            sample = read_frame(frame, specs, classes)
            for modality, values in sample.images.items():
                last[modality] = sensor_picture(modality, values.numpy(), specs[modality], side)
            assert sample.label is not None
            last["classes"] = class_picture(sample.label.numpy(), classes.colors, side)
            tiles = [tile(last[m], m if m in sample.images or m == "classes" else f"{m} (earlier)", side) for m in last]
            if index % 2 == 0:
                pictures.append(sheet([tiles[:3], tiles[3:]]))
    delay = round(2000 / FRAMES_PER_SECOND)
    pictures[0].save(out, save_all=True, append_images=pictures[1:], duration=delay, loop=0, quality=60, method=6)


def demo(run: Run, out: Path, side: int = 160) -> None:
    """The median night frame and the median day frame of the test split, of those where every sensor works."""
    scored = open_split(run, None, None, "test")
    metrics = evaluate(run, split="test").metrics
    sound = [frame for frame in scored.frames if len(frame.tags) == 1]
    tags = {t: ids for t, ids in frames_by_tag(sound).items() if t in ("day", "night")}
    chosen = choose(metrics["frame_miou"], tags, 2)
    model, frames = run.load_model(), {f.id: f for f in scored.frames}
    rows = []
    for name, tag in sorted(chosen.items(), key=lambda item: item[1]):
        shown = show(model, run, scored, frames[name], tag, side)
        row = [
            tile(p, f"{m} ({tag}), trust {100 * shown.full.shares[m]:.0f} %", side) for m, p in shown.sensors.items()
        ]
        row += [
            tile(shown.truth, "truth", side),
            tile(shown.full.labels, f"all: mIoU {100 * (shown.full.miou or 0):.0f}", side),
        ]
        lost = shown.without["rgb"]
        rows.append([*row, tile(lost.labels, f"without rgb: {100 * (lost.miou or 0):.0f}", side)])
    sheet(rows).save(out, quality=85, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="the demo's run; without it only the drive is drawn")
    options = parser.parse_args()
    drive(ROOT / "docs" / "drive.webp")
    if options.run:
        demo(Run.load(options.run), ROOT / "docs" / "demo.webp")


if __name__ == "__main__":
    main()
