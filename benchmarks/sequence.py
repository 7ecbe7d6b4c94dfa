"""Sensors that come and go along a drive: ``python benchmarks/sequence.py``.

Five drives in weathers of the training frames, three models of four sensors (those of benchmarks/robust.py). Every sensor is
rendered in every frame; what the model is given of it follows a schedule: all in every frame; each sensor at its own rate, left
out or with its last measurement standing in while there is no new one; and outages, in which each sensor is away for one to two
seconds of a drive and comes back, left out or held again. mIoU along the drives, with intervals from a bootstrap of half-drives;
the same sensors in single frames beside it; and whether a sensor that was away leaves anything behind once it is back.

Writes ``benchmarks/results/sequence.json`` and ``docs/sequence.svg``, and prints the tables of docs/results.md. Trainings are
kept in ``runs/ablation``, drives in ``runs/drives``; trainings, drives and tests are done once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from carryover import ALL, trained
from conditions import ROOT, command, conditions, options_of, shortened
from experts import SEEDS, say
from intervals import estimate, score, signed
from mlesam.evaluation.evaluate import FOLDER
from mlesam.evaluation.markup import percent
from mlesam.evaluation.metrics import confusion_matrix, mean_iou
from mlesam.inference.segmenter import Segmenter
from mlesam.model.checkpoints import load_tensors, replace_file, save_tensors
from mlesam.training.ablation import read_result
from mlesam.world.drive import EVERY, FRAMES_PER_SECOND, Drive
from mlesam.world.weather import ROTA
from retest import in_processes
from robust import EVERYONE
from schedules import SCHEDULES, present, sources
from timeline import timeline

FRAMES, SIZE = 96, 128
"""Of each drive: 3.2 seconds, and eight times the shortest stretch in which all rates meet."""
DRIVES = tuple(enumerate(ROTA[:5]))
"""Seed and weather: two by day, two at night, one in fog."""
BLOCK = FRAMES // 2
SHOWN = 1
"""The drive of the picture: a night, in which every sensor has something to say."""
FULL = "all in every frame"


# ---------------------------------------------------------------- drives


def drive_file(folder: Path, number: int) -> Path:
    return folder / f"{number}-{ROTA[number]}-{FRAMES}x{SIZE}.npz"


def render(job: tuple[Path, int]) -> str:
    """Write one drive with every sensor in every frame: ``{sensor: (F, H, W[, 3])}`` and ``label``."""
    folder, number = job
    path = drive_file(folder, number)
    if not path.is_file():
        drive = Drive(number, FRAMES, SIZE, condition=ROTA[number])
        frames = [drive.view(index, EVERYONE) for index in range(FRAMES)]
        arrays: dict[str, Any] = {m: np.stack([frame.images[m] for frame in frames]) for m in EVERYONE}
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part.npz")
        np.savez_compressed(partial, label=np.stack([frame.label for frame in frames]), **arrays)
        partial.replace(path)
    return f"drive {path.stem}"


# ---------------------------------------------------------------- tests


def tested_file(run: Path) -> Path:
    return run / FOLDER / f"sequence-{len(DRIVES)}x{FRAMES}x{SIZE}.safetensors"


def test(job: tuple[Path, Path]) -> str:
    """Drive along every drive under every schedule: each frame's confusion matrix, weights and a hash of its probabilities."""
    run, folder = job
    path = tested_file(run)
    if not path.is_file():
        segmenter = Segmenter.load(run, "cpu")
        tensors: dict[str, torch.Tensor] = {}
        hashes = {}
        for schedule in SCHEDULES:
            steps = [step for number in range(len(DRIVES)) for step in along(segmenter, folder, number, schedule)]
            tensors[f"{schedule}: confusions"] = torch.stack([confusion for confusion, _, _ in steps])
            tensors[f"{schedule}: weights"] = torch.tensor([weights for _, weights, _ in steps])
            hashes[schedule] = [digest for _, _, digest in steps]
        save_tensors(path, tensors, {"hashes": hashes})
    return f"driven along with {run.name}"


def along(
    segmenter: Segmenter, folder: Path, number: int, schedule: str
) -> Iterator[tuple[torch.Tensor, list[float], str]]:
    """One drive from its first frame to its last: confusion matrix, weight of each sensor, hash of the probabilities."""
    with np.load(drive_file(folder, number)) as stored:
        arrays = {name: stored[name] for name in (*EVERYONE, "label")}
    for index, row in enumerate(sources(schedule, FRAMES, EVERYONE, number)):
        inputs = {m: arrays[m][source] for m, source in zip(EVERYONE, row, strict=True) if source >= 0}
        found = segmenter(inputs)
        truth = torch.from_numpy(arrays["label"][index].astype(np.int64))
        matrix = confusion_matrix(torch.from_numpy(found.labels.astype(np.int64)), truth, len(segmenter.classes.names))
        digest = hashlib.sha256(found.probabilities.tobytes()).hexdigest()[:16]
        yield matrix.int(), [found.weights.get(m, 0.0) for m in EVERYONE], digest


class Driven:
    """What :func:`test` found for one run, frames of all drives one after the other."""

    def __init__(self, run: Path) -> None:
        tensors, facts = load_tensors(tested_file(run))
        self.confusions = {s: tensors[f"{s}: confusions"].numpy().astype(np.int64) for s in SCHEDULES}
        self.weights = {s: tensors[f"{s}: weights"].numpy() for s in SCHEDULES}
        self.hashes: dict[str, list[str]] = facts["hashes"]  # type: ignore[assignment]


def part_of(number: int) -> slice:
    """A drive's frames among those of all drives."""
    return slice(number * FRAMES, (number + 1) * FRAMES)


def all_sources(schedule: str) -> np.ndarray:
    """(drives * F, M)"""
    return np.concatenate([sources(schedule, FRAMES, EVERYONE, number) for number in range(len(DRIVES))])


# ---------------------------------------------------------------- answers


def rows_of(driven: Mapping[str, Driven]) -> list[dict[str, Any]]:
    """mIoU along the drives under every schedule, and the difference to all sensors in every frame."""
    rows = []
    for schedule in SCHEDULES:
        own, full = ({seed: [d.confusions[s]] for seed, d in driven.items()} for s in (schedule, FULL))
        weights = np.mean([d.weights[schedule].mean(axis=0) for d in driven.values()], axis=0)
        rows.append({
            "name": schedule, "frames": len(DRIVES) * FRAMES,
            "sensors_given": round(float((all_sources(schedule) >= 0).sum(axis=1).mean()), 2),
            **estimate(own, None if schedule == FULL else full, block=BLOCK), "difference_to": None if schedule == FULL else FULL,
            "weights": {m: round(float(w), 4) for m, w in zip(EVERYONE, weights, strict=True)},
            "by_drive": {
                f"{number} {weather}": _mean(d.confusions[schedule][part_of(number)] for d in driven.values())
                for number, weather in DRIVES
            },
        })  # fmt: skip
    return rows


def by_sensors(driven: Mapping[str, Driven], ordinary: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
    """For each set of sensors that a schedule leaves: those frames of the drives, left out, held and with all sensors, beside the
    same sensors in single frames of the test split."""
    rows = []
    everything = "+".join(EVERYONE)
    for absent in (s for s in SCHEDULES if s.endswith("left out")):
        held = absent.replace("left out", "held")
        sets = present(all_sources(absent), EVERYONE)
        for name in sorted(set(sets), key=lambda n: (n.count("+"), n)):
            chosen = np.array([s == name for s in sets])
            along_drive = {s: _mean(d.confusions[s][chosen] for d in driven.values()) for s in (absent, held, FULL)}
            single, single_full = (_mean(own[n] for own in ordinary.values()) for n in (name, everything))
            rows.append({
                "schedule": absent.split(",")[0], "present": name.split("+"), "frames": int(chosen.sum()),
                "left_out": along_drive[absent], "held": along_drive[held], "all_sensors": along_drive[FULL],
                "single_frames": single, "single_frames_all_sensors": single_full,
            })  # fmt: skip
    return rows


def _mean(matrices: Iterable[np.ndarray]) -> float:
    return round(float(np.mean([score([own]) for own in matrices])), 4)


def lingering(driven: Mapping[str, Driven]) -> dict[str, int]:
    """Frames that were given the same measurements under another schedule, whatever came before them: all must have the same
    probabilities to the bit, else the command ends here."""
    full = all_sources(FULL)
    counts = {"frames": 0, "after_a_sensor_was_away_or_stale": 0}
    for schedule in SCHEDULES:
        own = all_sources(schedule)
        same = (own == full).all(axis=1)
        gone_before = np.concatenate([
            np.maximum.accumulate((part != reference).any(axis=1))
            for part, reference in zip(np.split(own, len(DRIVES)), np.split(full, len(DRIVES)), strict=True)
        ])  # fmt: skip
        for seed, one in driven.items():
            for index in np.flatnonzero(same) if schedule != FULL else ():
                if one.hashes[schedule][index] != one.hashes[FULL][index]:
                    raise SystemExit(f"seed {seed}, frame {index}, {schedule}: another answer to the same measurements")
                counts["frames"] += 1
                counts["after_a_sensor_was_away_or_stale"] += int(gone_before[index])
    return counts


def summary(rows: list[dict[str, Any]], sets: list[dict[str, Any]], counts: Mapping[str, int]) -> str:
    """The tables of docs/results.md."""
    lines = ["| given | sensors a frame | mIoU along the drives | difference |", "|---|--:|--:|--:|"]
    for row in rows:
        low, high = row["interval"]
        own = f"{percent(row['miou'])} ({100 * low:.1f} to {100 * high:.1f})"
        lines.append(f"| {row['name']} | {row['sensors_given']:.1f} | {own} | {signed(row)} |")
    lines += [
        "", "| schedule | sensors | frames | left out | held | all sensors | left out / all | single frames | / all |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for row in sets:
        numbers = [percent(row[key]) for key in ("left_out", "held", "all_sensors")]
        kept = row["left_out"] / row["all_sensors"], row["single_frames"] / row["single_frames_all_sensors"]
        lines.append(
            f"| {row['schedule']} | {' + '.join(row['present'])} | {row['frames']} | {' | '.join(numbers)} | {kept[0]:.2f} "
            f"| {percent(row['single_frames'])} | {kept[1]:.2f} |"
        )
    return "\n".join([*lines, "", f"equal to the bit: {dict(counts)}"])


def shown(one: Driven) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Of the drive in the picture: each frame's mIoU under every schedule, and the weights."""
    part = part_of(SHOWN)
    lines = {s: [round(float(v), 4) for v in mean_iou(one.confusions[s][part])] for s in SCHEDULES}
    return lines, {s: one.weights[s][part] for s in SCHEDULES}


def main() -> None:
    parser = options_of(__doc__, "sequence", "sequence")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "drives", help="where the drives are kept")
    options = parser.parse_args()
    overrides = shortened(options)
    runs = trained(overrides, options.runs, options.jobs, (ALL,))[ALL]
    in_processes(render, [(options.folder, number) for number in range(len(DRIVES))], options.jobs)
    in_processes(test, [(path, options.folder) for path in runs.values()], options.jobs)
    driven = {seed: Driven(path) for seed, path in runs.items()}
    counts = lingering(driven)
    rows = rows_of(driven)
    sets = by_sensors(driven, {seed: read_result(path).confusions for seed, path in runs.items()})
    lines, weights = shown(driven[SEEDS[0]])
    content = {
        "name": "sequence", "command": command("sequence"), **conditions(), "seeds": [int(s) for s in SEEDS],
        "conditions": {
            "drives": [{"seed": seed, "weather": weather} for seed, weather in DRIVES], "frames": FRAMES, "size": SIZE,
            "frames_per_second": FRAMES_PER_SECOND, "every": {m: EVERY[m] for m in EVERYONE},
            "runs": {seed: path.name for seed, path in runs.items()},
            "interval": f"95 %, bootstrap over blocks of {BLOCK} frames and seeds; differences are to {FULL}, paired by both",
        },
        "equal_to_the_bit": counts, "results": rows, "by_sensors": sets,
        "shown": {"drive": SHOWN, "seed": int(SEEDS[0]), "frame_miou": lines},
    }  # fmt: skip
    replace_file(options.result, json.dumps(content, indent=2) + "\n")
    panels = {
        title: {FULL: lines[FULL], **{how: lines[f"{kind}, {how}"] for how in ("left out", "held")}}
        for kind, title in (("own rates", "Sensors at their own rates"), ("outages", "Sensors that go and come back"))
    }
    shares = "Weights while they are away", weights["outages, left out"]
    replace_file(options.plot, timeline(panels, shares, EVERYONE, FRAMES_PER_SECOND))
    say(summary(rows, sets, counts))


if __name__ == "__main__":
    main()
