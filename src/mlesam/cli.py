"""The command line. Every command imports what it needs when it runs, so that ``--help`` answers at once.

Exit status: 0 done, 1 the work failed, 2 the request was wrong. An error is one sentence on standard error.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlesam.arguments import parsers
from mlesam.errors import MlesamError, RequestError, WorkError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # How long an idle thread spins before it sleeps. For ever (the default) takes the core from the loading of the next
    # step; not at all makes a second thread worthless, since a step is many short operations. Read when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    debug = "--debug" in words
    try:
        return _run(words)
    except MlesamError as error:
        if debug:
            raise
        print(f"mlesam: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("mlesam: stopped.", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug:
            raise
        print(f"mlesam: {error.strerror or error}{f': {error.filename}' if error.filename else ''}.", file=sys.stderr)
        return 1


def _run(words: list[str]) -> int:
    parser, commands = parsers()
    first = next((w for w in words if not w.startswith("-")), None)
    if first is None:
        if words and not {"--help", "-h", "--version"} & set(words):
            parser.error(f"unknown option {words[0]}")
        parser.parse_args(words or ["--help"])  # both options print and leave
        return 0
    if first not in commands:
        raise RequestError(f"unknown command {first!r}{did_you_mean(first, commands)}")
    known, others = _split(words, {*parser._option_string_actions, *commands[first]._option_string_actions})
    options = parser.parse_args(known)
    run = {
        "demo": _demo, "world": _world, "mini": _mini, "train": _train, "evaluate": _evaluate, "report": _report,
        "predict": _predict, "export": _export, "doctor": _doctor, "ablate": _ablate, "bench": _bench,
    }[first]  # fmt: skip
    return run(options, others, f"mlesam {shlex.join(words)}")


def _split(words: list[str], options: set[str]) -> tuple[list[str], dict[str, str]]:
    """Words for argparse, and the ``--name VALUE`` or ``--name=VALUE`` pairs that it does not know.

    argparse alone would take the value of an unknown option for a positional argument.
    """
    known: list[str] = []
    others: dict[str, str] = {}
    words = list(words)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("--") or word == "--" or name in options:
            known.append(word)
            continue
        name = name[2:]
        if not equals:
            if not words or words[0].startswith("--"):
                raise RequestError(f"--{name} is no option of this command, or needs a value; see --help.")
            value = words.pop(0)
        if name in others:
            raise RequestError(f"--{name} is given twice; give it once.")
        others[name] = value
    return known, others


def _overrides(pairs: dict[str, str], command: str) -> dict[str, str]:
    """Recipe fields set on the command line; what is neither a field nor an option gets the nearest one."""
    known = ("--data", "--out", "--steps", "--resume", "--init", "--extend", "--dry-run", "--seed", "--name")
    for name in pairs:
        if "." not in name and name not in ("seed", "name"):
            raise RequestError(f"unknown option --{name} for `mlesam {command}`{did_you_mean(f'--{name}', known)}")
    return pairs


def _chosen(options: argparse.Namespace, others: dict[str, str], command: str) -> dict[str, str]:
    """:func:`_overrides`, and the fields that --steps and --data stand for."""
    overrides = _overrides(others, command)
    if options.steps is not None:
        overrides["training.steps"] = str(options.steps)
    if options.data is not None:
        overrides["data.dataset"] = options.data
    return overrides


def _console() -> Console:
    from rich.console import Console

    return Console()


def _demo(options: argparse.Namespace, others: dict[str, str], command: str) -> int:
    overrides = _overrides(others, "demo")
    from mlesam.demo import demo

    numbered = (Path("runs") / (f"demo-{number}" if number > 1 else "demo") for number in itertools.count(1))
    out = options.out or next(path for path in numbered if not path.exists())
    demo(out, overrides, _console(), _counting)
    return 0


def _world(options: argparse.Namespace, others: dict[str, str], command: str) -> int:
    _nothing_left(others, "world")
    from mlesam.world import WorldOptions, write_world

    given = {name: getattr(options, name) for name in ("frames", "seed", "size", "city", "camera", "lidar", "weather")}
    if options.sequence is not None:
        given |= {"frames": options.sequence, "sequence": True}
    if options.hyperspectral:
        given["hyperspectral"] = True
    chosen = WorldOptions(**{name: value for name, value in given.items() if value is not None})
    console = _console()
    began = time.monotonic()
    with _counting(console, "rendering") as advance:
        about = write_world(options.out, chosen, advance)
    rate = chosen.frames / (time.monotonic() - began)
    console.print(
        f"{chosen.frames} frames in {options.out}, {rate:.0f} a second (world version {about['world_version']}, frames sha256 "
        f"{str(about['frames_sha256'])[:12]}); next: mlesam train --data folder:{options.out}",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    return 0


def _mini(options: argparse.Namespace, others: dict[str, str], command: str) -> int:
    _nothing_left(others, "mini")
    from mlesam.mini import write_mini

    console = _console()
    with _counting(console, "rendering") as advance:
        written = write_mini(options.name, options.out, options.seed, options.projected, advance)
    frames = ", ".join(f"{split} {count}" for split, count in written.frames.items())
    console.print(
        f"a miniature of {options.name} in {options.out}: {frames} frames, {written.bytes / 1e6:.0f} MB; "
        f"next: mlesam doctor {options.name}:{options.out}",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    return 0


def _train(options: argparse.Namespace, others: dict[str, str], command: str) -> int:
    overrides = _chosen(options, others, "train")
    if options.resume and (options.recipe or overrides or options.init or options.extend):
        raise RequestError("--resume goes on with the recipe stored in the run; give --out RUN --resume alone.")
    if options.init and options.extend:
        raise RequestError("--init takes other classes and --extend further sensors; give one of the two.")
    if options.resume and options.out is None:
        raise RequestError("--resume needs the run to go on with; give --out RUN.")
    from mlesam.config import load_recipe
    from mlesam.model.run import Run
    from mlesam.training.loop import train
    from mlesam.training.progress import Progress

    report = Progress(_console())
    recipe = Run.load(options.out).recipe if options.resume else load_recipe(options.recipe, overrides)
    if options.dry_run:
        from mlesam.training.dry_run import dry_run

        return dry_run(recipe, options.init, report, options.extend)
    out = options.out or Path("runs") / recipe.name
    run = train(
        recipe, out, init=options.init, extend=options.extend, resume=options.resume, command=command, report=report
    )
    report.say(f"run written to {run.path}; next: mlesam evaluate {run.path}")
    return 0


def _ablate(options: argparse.Namespace, others: dict[str, str], command: str) -> int:
    overrides = _chosen(options, others, "ablate")
    from mlesam.evaluation.show import comparison
    from mlesam.training.ablation import TABLE, ablate
    from mlesam.training.grid import axes

    console = _console()

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False, highlight=False)

    chosen = axes(options.vary, options.variant)
    done = ablate(options.recipe, overrides, chosen, options.out, options.runs, options.jobs, command, say)
    comparison(done.rows, done.heads, console)
    say(f"written to {options.out / TABLE}.json, .md and .svg")
    if done.failed:
        raise WorkError(f"{len(done.failed)} trainings failed and are not in the table, first: {done.failed[0]}")
    return 0


def _evaluate(options: argparse.Namespace, others: dict[str, str], command: str) -> int:
    _nothing_left(others, "evaluate")
    from mlesam.evaluation.evaluate import ALL, evaluate, evaluate_all, store, store_all
    from mlesam.evaluation.show import table
    from mlesam.evaluation.stored import check_out
    from mlesam.evaluation.views import Views

    console = _console()

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False, highlight=False)

    check_out(options.out)
    views = Views.parse(options.scales, options.flip, options.window, options.stride)
    run = _load_run(options)
    chosen = {
        "views": views,
        "modalities": options.modalities.split(",") if options.modalities else None,
        "data": options.data,
        "class_map": options.class_map,
        "split": options.split,
        "limit": options.frames,
        "published_noise": options.published_noise,
        "severities": _severities(options.severities),
    }
    notes: dict[str, str] = {}
    with _counting(console, "evaluating") as advance:
        if options.protocol == ALL:
            found, notes = evaluate_all(run, **chosen, advance=advance)
        else:
            found = {options.protocol: evaluate(run, protocol=options.protocol, **chosen, advance=advance)}
    if options.protocol == ALL:
        paths = store_all(run, found, notes, options.out)
    else:
        paths = [store(run, found[options.protocol], options.out)]
    for evaluation in found.values():
        table(evaluation.metrics, console)
    for name, why in notes.items():
        say(f"protocol {name} was left out: {why}")
    left_out = next(iter(found.values())).left_out
    if left_out:
        names = ", ".join(left_out[:5])
        say(f"{len(left_out)} frames have no label or none of the run's sensors and were left out: {names}")
    stored = paths[0] if len(paths) == 1 else f"{paths[0].parent} ({', '.join(path.name for path in paths)})"
    say(f"stored in {stored}{f' and {options.out}' if options.out else ''}; tables beside it: .md, .tex")
    return 0


def _severities(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(word) for word in text.split(",")]
    except ValueError:
        raise RequestError(
            f"--severities is {text!r}, but it must be numbers with commas between them, as in 1,5."
        ) from None


def _report(options: argparse.Namespace, others: dict[str, str], command: str) -> int:
    _nothing_left(others, "report")
    from mlesam.evaluation.report import write_report

    console = _console()
    run = _load_run(options)
    if run.recipe.data.dataset is None:
        raise RequestError(
            f"{run.path} is an adapter; a report needs the run, since it shows its training and its dataset."
        )
    with _counting(console, "evaluating") as advance:
        path = write_report(run, advance=advance)
    console.print(f"report written to {path}", soft_wrap=True, markup=False, highlight=False)
    return 0


def _predict(options: argparse.Namespace, others: dict[str, str], command: str) -> int:
    files = others
    if bool(files) == bool(options.input):
        raise RequestError(
            "give either --input DATASET_OR_FOLDER or files by sensor, for example --rgb a.png --depth a.png."
        )
    if files and (options.split or options.modalities or options.submission):
        raise RequestError(
            "--split, --modalities and --submission go with --input; with single files, name just the files to use."
        )
    if options.submission and options.fault:
        raise RequestError("--submission holds what the sensors as recorded give; leave --fault out.")
    if options.input and options.calibration:
        raise RequestError("--calibration goes with single files; a dataset names its rig in dataset.yaml (rig: FILE).")
    from mlesam.inference.predict import find_frames, given_frame, open_source, predict_frames
    from mlesam.inference.segmenter import Segmenter
    from mlesam.inference.submission import check_frames, submission_of, write_submission
    from mlesam.sensors.faults import SensorFault

    faults = [SensorFault.parse(text) for text in options.fault]
    dataset = open_source(options.input) if options.input else None
    wanted = None
    if dataset is not None and options.submission:
        wanted = submission_of(dataset, options.split, options.submission)
    segmenter = Segmenter.load(options.run, foundation=options.foundation, any_foundation=options.any_foundation)
    chosen = options.modalities.split(",") if options.modalities else None
    for modality in [*files, *(chosen or ())]:
        if modality not in segmenter.sensors:
            raise RequestError(f"{options.run} has no sensor {modality!r}{did_you_mean(modality, segmenter.sensors)}")
    if dataset is None:
        frames = [given_frame({m: Path(p) for m, p in files.items()}, options.calibration)]
        for fault in faults:
            if fault.fault.needs_earlier:
                raise RequestError(f"{fault} shows an earlier frame, and single files have none; give --input DATASET.")
    else:
        frames = find_frames(dataset, wanted.split if wanted else options.split)
    console = _console()
    if wanted is not None and dataset is not None:
        note = check_frames(wanted, dataset, frames, segmenter.classes.names, chosen or tuple(segmenter.sensors))
        if note:
            console.print(note, soft_wrap=True, markup=False, highlight=False)
    with _counting(console, "predicting") as advance:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            advance(done, len(frames))

        summary = predict_frames(
            segmenter,
            frames,
            options.out,
            modalities=chosen,
            faults=faults,
            run=str(options.run),
            advance=count,
        )
    for row in summary["frames"][:5]:
        shares = ", ".join(f"{m} {w:.2f}" for m, w in row["weights"].items())
        console.print(f"{row['id']}: trust {shares}", markup=False, highlight=False)
    skipped = summary["skipped"]
    if skipped:
        text = f"{len(skipped)} of {len(frames)} frames have none of the sensors and were left out: {', '.join(skipped[:5])}"
        console.print(text, markup=False, highlight=False)
    console.print(f"{len(summary['frames'])} predictions in {options.out}", markup=False, highlight=False)
    if wanted:
        pictures = {wanted.name(frame): options.out / "labels" / f"{frame.id}.png" for frame in frames}
        write_submission(options.submission, wanted, pictures)
        text = f"{len(pictures)} class maps in {options.submission}, checked; upload it at {wanted.server}"
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    return 0


def _export(options: argparse.Namespace, others: dict[str, str], command: str) -> int:
    _nothing_left(others, "export")
    from mlesam.inference.command import check, export

    check(options)
    console = _console()
    export(_load_run(options), options, lambda text: console.print(text, soft_wrap=True, markup=False, highlight=False))
    return 0


def _load_run(options: argparse.Namespace):
    from mlesam.model.run import Run

    return Run.load(options.run, foundation=options.foundation, any_foundation=options.any_foundation)


def _doctor(options: argparse.Namespace, others: dict[str, str], command: str) -> int:
    from mlesam.doctor import doctor

    names = ("parity", "image", "out", "stats", "split", "frames")
    chosen = {name: getattr(options, name) for name in names}
    return doctor(options.target, _overrides(others, "doctor"), _console(), **chosen)


def _bench(options: argparse.Namespace, others: dict[str, str], command: str) -> int:
    _nothing_left(others, "bench")
    from mlesam.bench.command import Request, bench

    names = ("suite", "preset", "size", "rounds", "threads", "device", "memory", "seed")
    request = Request.parse(**{name: getattr(options, name) for name in names})
    console = _console()
    with _counting(console, "measuring in turns") as advance:
        bench(request, options.out, command, console, advance)
    return 0


def _nothing_left(others: dict[str, str], command: str) -> None:
    if others:
        raise RequestError(
            f"unknown option --{next(iter(others))} for `mlesam {command}`; see `mlesam {command} --help`."
        )


class _counting:
    """A progress bar on a terminal, nothing elsewhere; calls back with (done, total)."""

    def __init__(self, console: Console, label: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)

    def __enter__(self):
        self.bar.start()
        task = self.bar.add_task("", total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


if __name__ == "__main__":
    sys.exit(main())
