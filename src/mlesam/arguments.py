"""What every command takes: its options and their help. Nothing here imports more than argparse needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from mlesam import __version__
from mlesam.errors import RequestError


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see `{self.prog} --help`.")


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole command line, and each command's own."""
    parser = Parser(
        prog="mlesam",
        description="Semantic segmentation from any set of aligned sensors, on one frozen SAM2.",
        epilog="A dataset is named KIND:PATH, for example folder:data/mine. Each command has its own --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mlesam {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    made: dict[str, Parser] = {}

    def command(name: str, text: str, **options: Any) -> Parser:
        made[name] = commands.add_parser(name, help=text, description=text, allow_abbrev=False, **options)
        made[name].add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return made[name]

    demo = command(
        "demo",
        "The whole story on a procedural world: data, foundation, training, every subset of the sensors, report.",
        epilog="Any field of the recipe can be set with --section.key VALUE.",
    )
    demo.add_argument("--out", type=Path, metavar="DIR", help="default: the first free of runs/demo, runs/demo-2, ...")

    world = command("world", "Write a procedural dataset: street scenes seen by five sensors, in the folder layout.")
    world.add_argument("out", type=Path, metavar="DIR")
    length = world.add_mutually_exclusive_group()
    length.add_argument("--frames", type=int, metavar="N", help="frames over train, val and test (600)")
    length.add_argument("--sequence", type=int, metavar="N", help="instead, one drive of N frames at 30 a second")
    world.add_argument("--seed", type=int, metavar="S", help="streets and everything drawn at random (0)")
    world.add_argument("--size", type=int, metavar="PIXELS", help="side of the pictures (256)")
    world.add_argument("--city", type=int, metavar="K", help="buildings, cars, people and their textures (0)")
    world.add_argument("--camera", type=int, metavar="K", help="another colour camera (0)")
    world.add_argument("--lidar", type=int, metavar="K", help="another LiDAR (0)")
    world.add_argument("--weather", metavar="NAME", help="day, night, fog, rain or glare (default: all by turns)")
    world.add_argument("--hyperspectral", action="store_true", help="a 16-band camera as a sixth sensor")

    mini = command(
        "mini", "Write a miniature of a benchmark: its exact layout and encodings, with frames of the procedural world."
    )
    mini.add_argument("name", metavar="NAME", help="deliver, muses or mcubes")
    mini.add_argument("out", type=Path, metavar="DIR")
    mini.add_argument("--seed", type=int, default=0, metavar="S", help="streets and everything drawn at random (0)")
    mini.add_argument("--projected", metavar="KIND", help="muses: the SDK's projections too: png, npz or npy (1.4 GB)")

    train = command(
        "train",
        "Train a segmenter and write a run.",
        epilog="Any field of the recipe can be set with --section.key VALUE, for example --training.lr 3e-4.",
    )
    train.add_argument("recipe", nargs="?", type=Path, help="YAML file (default: the default recipe, model nano)")
    train.add_argument("--data", metavar="DATASET", help="KIND:PATH, on top of the recipe")
    train.add_argument("--out", type=Path, metavar="RUN", help="directory of the run (default: runs/NAME)")
    train.add_argument("--steps", type=int, metavar="N", help="train for N steps")
    train.add_argument("--resume", action="store_true", help="go on with the run in --out")
    train.add_argument("--init", type=Path, metavar="RUN", help="start from a trained run with other classes")
    train.add_argument("--extend", type=Path, metavar="RUN", help="add the data's further sensors to a trained run")
    train.add_argument("--dry-run", action="store_true", help="check data and model, say what it will take, stop")

    ablate = command(
        "ablate",
        "Train a grid of short runs, each once, and compare them: a table, a plot and JSON.",
        epilog="Every combination of the axes is trained, the last axis changing fastest; the first makes the groups. "
        "Runs differing in `seed` alone are averaged. Lists are written [rgb,depth],[rgb]. Any field can be set for "
        "all of them with --section.key VALUE.",
    )
    ablate.add_argument("recipe", nargs="?", type=Path, help="YAML file that all runs have in common")
    ablate.add_argument(
        "--vary", action="append", default=[], metavar="KEY=A,B,...", help="an axis: a field and its values; repeatable"
    )
    ablate.add_argument(
        "--variant",
        action="append",
        default=[],
        nargs="+",
        metavar=("NAME", "KEY=VALUE"),
        help="one value of the axis `variant`: a name, and the fields it changes together; repeatable",
    )
    ablate.add_argument("--data", metavar="DATASET", help="KIND:PATH, on top of the recipe")
    ablate.add_argument("--steps", type=int, metavar="N", help="train for N steps")
    ablate.add_argument(
        "--out", type=Path, metavar="DIR", required=True, help="gets ablation.json, .md, .svg and the runs"
    )
    ablate.add_argument(
        "--runs", type=Path, metavar="DIR", help="where the runs are kept and looked for (default: OUT/runs)"
    )
    ablate.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time (1)")

    evaluate = command("evaluate", "Test a run with missing, noisy or broken sensors, under a protocol.")
    evaluate.add_argument("run", metavar="RUN", help="a run, an adapter, or an adapter on the Hub")
    _foundation_options(evaluate)
    evaluate.add_argument(
        "--protocol", default="subsets", help="subsets (default), emm, rmm, nm, cases, faults or all: docs/protocols.md"
    )
    evaluate.add_argument(
        "--published-noise", type=int, metavar="N", help="nm as in the published scripts, on batches of N frames"
    )
    evaluate.add_argument("--severities", metavar="1,5", help="faults of these severities alone (1 to 5; default all)")
    evaluate.add_argument("--data", metavar="DATASET", help="another dataset than the run's own")
    evaluate.add_argument(
        "--class-map",
        metavar="FILE",
        help="YAML: class of that dataset: class of the run; or deliver-to-muses, muses-to-deliver",
    )
    evaluate.add_argument("--modalities", metavar="A,B", help="only these of the run's sensors")
    evaluate.add_argument("--split", help="default: test where it is labelled, else val")
    evaluate.add_argument("--frames", type=int, metavar="N", help="only the first N frames")
    evaluate.add_argument(
        "--scales", metavar="A,B,...", help="look at each frame at several sizes, for example 0.5,1,1.5"
    )
    evaluate.add_argument("--flip", action="store_true", help="look at it mirrored as well")
    evaluate.add_argument("--window", type=int, metavar="PIXELS", help="look at it window by window, at native size")
    evaluate.add_argument("--stride", type=int, metavar="PIXELS", help="from window to window (two thirds of one)")
    evaluate.add_argument(
        "--out", type=Path, metavar="FILE", help="also write the result here, tables beside it as .md and .tex"
    )

    report = command("report", "Write RUN/report.html, one page about a run; evaluates it first if it was not yet.")
    report.add_argument("run", metavar="RUN", help="a run or an adapter")
    _foundation_options(report)

    predict = command(
        "predict",
        "Segment a dataset, a folder or single files.",
        epilog="Single files are named by sensor: --rgb a.png --depth a.png, any subset of the run's sensors.",
    )
    predict.add_argument("run", metavar="RUN", help="a run, an adapter, or an adapter on the Hub")
    _foundation_options(predict)
    predict.add_argument(
        "--input", metavar="DATASET_OR_FOLDER", help="KIND:PATH, or a folder with <modality>/<id>.<ext>"
    )
    predict.add_argument("--split", help="with --input: only this split")
    predict.add_argument(
        "--calibration",
        metavar="FILE",
        help="with single files: the rig of those that are recordings (docs/sensors/rig.md)",
    )
    predict.add_argument("--modalities", metavar="A,B", help="with --input: use only these sensors")
    predict.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="SENSOR:NAME:SEVERITY",
        help="break a sensor first, for example rgb:fog:3; repeatable (docs/protocols.md lists the faults)",
    )
    predict.add_argument("--out", type=Path, metavar="DIR", required=True)
    predict.add_argument(
        "--submission",
        type=Path,
        metavar="FILE.zip",
        help="with --input muses:PATH: also what the benchmark's server takes",
    )

    export = command(
        "export",
        "Write a run as an adapter to share, one sensor's expert for PEFT, or a model that runs without this package.",
        epilog="An exported model (onnx, openvino, torch) takes one set of sensors at one size: docs/export.md.",
    )
    export.add_argument("run", metavar="RUN", help="a run, an adapter, or an adapter on the Hub")
    export.add_argument("--format", default="adapter", help="adapter (default), peft, onnx, openvino or torch")
    export.add_argument(
        "--out", type=Path, metavar="PATH", required=True, help="a directory, or a file .onnx, .xml or .pt2"
    )
    export.add_argument("--without", metavar="A,B", help="adapter: leave these sensors out")
    export.add_argument("--push", metavar="OWNER/NAME", help="adapter: upload it to the Hub as well")
    export.add_argument("--private", action="store_true", help="with --push: a private repository")
    export.add_argument("--modality", metavar="NAME", help="peft: whose expert")
    export.add_argument(
        "--modalities", metavar="A,B", help="model: the sensors that it takes (default: all of the run's)"
    )
    export.add_argument(
        "--size",
        metavar="WIDTHxHEIGHT",
        help="model: of the frames (default: that of the run's dataset, else its crop)",
    )
    export.add_argument("--precision", metavar="NAME", help="model: fp32 (default); openvino: bf16 or int8")
    export.add_argument("--data", metavar="DATASET", help="model: check it on this dataset instead of the run's own")
    _foundation_options(export)

    doctor = command("doctor", "Check the installation, a dataset, a recipe, a run or a SAM2 checkpoint.")
    doctor.add_argument("target", nargs="?", metavar="RECIPE|DATASET|RUN|CHECKPOINT")
    doctor.add_argument(
        "--parity", action="store_true", help="run SAM2 weights (a Hub id is downloaded) beside transformers"
    )
    doctor.add_argument(
        "--image", type=Path, metavar="FILE", help="with --parity: car.png, to compare published scores"
    )
    doctor.add_argument("--out", type=Path, metavar="FILE", help="with --parity: also write the result here, as JSON")
    doctor.add_argument("--stats", action="store_true", help="measure a dataset's sensors by band, with YAML to paste")
    doctor.add_argument("--split", metavar="NAME", help="with --stats: the split to measure (train)")
    doctor.add_argument("--frames", type=int, metavar="N", help="with --stats: only N frames, evenly spaced (all)")

    bench = command(
        "bench",
        "Measure speed and memory, as ratios to what is compared with.",
        epilog="All that is compared is measured in turns, on random pictures. With --threads 1 the thread's own time counts, so "
        "that other work on the machine does not.",
    )
    bench.add_argument(
        "--suite",
        default="inference",
        metavar="NAME",
        help="inference (default), training, stream, scaling, data, memory or all",
    )
    bench.add_argument(
        "--preset", default="tiny", metavar="A,B,...", help="foundations: nano, tiny, small, base_plus, large (tiny)"
    )
    bench.add_argument("--size", metavar="PIXELS,...", help="sides of the pictures, multiples of 32 (256; data: 1024)")
    bench.add_argument(
        "--rounds", type=int, metavar="N", help="turns that count, of which the median is taken (3 to 15)"
    )
    bench.add_argument("--threads", type=int, metavar="N", help="CPU threads (as many as torch takes)")
    bench.add_argument("--device", metavar="NAME", help="cpu or cuda (a GPU where there is one)")
    bench.add_argument(
        "--memory", type=float, metavar="GIB", help="memory: what the largest batch may take (60 %% of what is free)"
    )
    bench.add_argument("--seed", type=int, default=0, metavar="S", help="weights and pictures (0)")
    bench.add_argument(
        "--out", type=Path, metavar="FILE", help="the JSON file (runs/bench/SUITE.json); plots beside it"
    )
    return parser, made


def _foundation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--foundation", metavar="NAME", help="where the foundation is, instead of what RUN names")
    parser.add_argument("--any-foundation", action="store_true", help="take it even if RUN was trained on another one")
