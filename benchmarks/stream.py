"""A perception loop along a drive: ``python benchmarks/stream.py``.

Drives and models of benchmarks/sequence.py, each model with and without ``model.reliability``. Sensors measure at their own
rates, are away for one to two seconds, or both. A `SegmenterStream` computes only what is new and lets the rest stand in: for how
long, and does it help to trust it less the older it is? Beside it the plain segmenter with what is new alone, and with all
sensors computed in every frame. Maximum age and half-life are chosen on five drives, and reported on five others, with two seeds.
Where no sensor is fresh enough, the last answer stands in. Last, the time of a frame in turns with that of a full frame.

Writes ``benchmarks/results/stream.json`` and ``docs/stream.svg``, and prints the tables of docs/streams.md. Trainings are kept in
``runs/ablation``, drives in ``runs/drives``; trainings, drives and tests are done once.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carryover import ALL, TRUST, trained
from conditions import ROOT, command, conditions, options_of, shortened
from experts import SEEDS, say
from intervals import estimate, score, signed
from mlesam.config import ModelConfig
from mlesam.errors import RequestError
from mlesam.evaluation.evaluate import FOLDER
from mlesam.evaluation.markup import percent
from mlesam.evaluation.metrics import confusion_matrix, mean_iou
from mlesam.inference.segmenter import Segmenter
from mlesam.inference.stream import MAX_AGE, SegmenterStream, SensorMemory
from mlesam.model.checkpoints import load_tensors, replace_file, save_tensors
from mlesam.model.features import Features
from mlesam.model.mlesam import MLESAM
from mlesam.sample import Classes
from mlesam.sensors.spec import sensor_spec
from mlesam.world.drive import EVERY, FRAMES_PER_SECOND
from mlesam.world.weather import ROTA
from retest import in_processes
from robust import EVERYONE
from schedules import measuring
from sequence import BLOCK, DRIVES, FRAMES, SIZE, drive_file, render
from timeline import timeline

REPORTED = tuple(number for number, _ in DRIVES)
CHOSEN_ON = tuple(range(len(DRIVES), 2 * len(DRIVES)))
STEP = 5
"""One in so many frames is scored where ages are chosen: no common factor with any sensor's rate, so every mix of ages occurs."""
KINDS = ("own rates", "outages", "own rates and outages")
MODELS = {ALL: "without trust", TRUST: "with trust"}
TESTED = SEEDS[:2]
FULL = "all in every frame"
SHOWN = 1
"""The drive of the picture, a night."""


@dataclass(frozen=True)
class Policy:
    """What may stand in, in seconds. ``max_age`` 0: nothing; then it is the plain segmenter."""

    max_age: float | None
    half_life: float | None = None

    @property
    def name(self) -> str:
        if self.max_age == 0:
            return "what is new, alone"
        age = "of any age" if self.max_age is None else f"up to {self.max_age:g} s"
        return age if self.half_life is None else f"{age}, half-life {self.half_life:g} s"


NEW = Policy(0)
AGES, HALF_LIVES = (0.2, 0.5, 1.0, None), (None, 1.6, 0.8, 0.4, 0.2, 0.1, 0.05)
GRID = (NEW, *(Policy(age, half_life) for age in AGES for half_life in HALF_LIVES))
DEFAULT, DECAYING = Policy(MAX_AGE), Policy(1.0, 0.4)
"""The best with a limit on the drives of the choice, without and with decay."""
SHORT = (NEW, DEFAULT, DECAYING, *(Policy(None, half_life) for half_life in (None, 0.2, 0.1, 0.05)))


# ---------------------------------------------------------------- drives


class Road:
    """What one model says of every sensor in every frame of a drive: computed once, since it is the same under every policy."""

    def __init__(self, segmenter: Segmenter, folder: Path, number: int) -> None:
        with np.load(drive_file(folder, number)) as stored:
            self.arrays = {name: stored[name] for name in (*EVERYONE, "label")}
        self.segmenter, self.number = segmenter, number
        self.features = [self._features(index) for index in range(FRAMES)]
        self._answers: dict[Any, tuple[Tensor, list[float]]] = {}

    def inputs(self, index: int, modalities: Iterable[str] = EVERYONE) -> dict[str, np.ndarray]:
        return {m: self.arrays[m][index] for m in modalities}

    def _features(self, index: int) -> dict[str, Features]:
        memory = SensorMemory(self.segmenter.model)
        memory.keep(self.segmenter.encode(self.segmenter.read(self.inputs(index))), 0.0)
        return {m: kept.features for m, kept in memory.kept.items()}

    @torch.inference_mode()
    def along(self, measured: np.ndarray, policy: Policy, step: int = 1) -> tuple[Tensor, Tensor]:
        """(F, C, C) confusion matrices and (F, M) weights of one in ``step`` frames.

        Args:
            measured: (F, M) bool, which sensors measure in a frame.
        """
        memory = SensorMemory(self.segmenter.model, policy.max_age, policy.half_life)
        matrices, weights = [], []
        last: tuple[Any, Features, Tensor | None] | None = None
        for index in range(FRAMES):
            now = index / FRAMES_PER_SECOND
            new = [self.features[index][m] for m, there in zip(EVERYONE, measured[index], strict=True) if there]
            if new:
                memory.keep(Features.join(new), now)
            try:
                features, trust = memory.recall(now)
                last = tuple((m, kept.time) for m, kept in memory.kept.items()), features, trust
            except RequestError:  # nothing is fresh enough
                pass
            if index % step == 0:
                assert last is not None  # in the first frame all sensors measure
                labels, shares = self._answer(*last)
                matrices.append(self._confusion(labels, index))
                weights.append(shares)
        return torch.stack(matrices).int(), torch.tensor(weights)

    def _answer(self, times: Any, features: Features, trust: Tensor | None) -> tuple[Tensor, list[float]]:
        """Labels and shares, decoded once for the same measurements and trust."""
        key = times, tuple(trust.tolist()) if trust is not None and trust.any() else None
        if key not in self._answers:
            output = self.segmenter.model.decode(features, trust)
            columns = [self.segmenter.model.modalities.index(m) for m in EVERYONE]
            shares = output.shares[0].mean(dim=0)[columns].tolist()
            self._answers[key] = output.logits[0].argmax(dim=0).to(torch.uint8), shares
        return self._answers[key]

    def _confusion(self, labels: Tensor, index: int) -> Tensor:
        truth = torch.from_numpy(self.arrays["label"][index].astype(np.int64))
        return confusion_matrix(labels.long(), truth, len(self.segmenter.classes.names))

    def check(self, measured: np.ndarray, policy: Policy, frames: int = 36) -> None:
        """A stream that is given the pictures themselves says the same; else the command ends here."""
        stream = SegmenterStream(self.segmenter, max_age=policy.max_age, half_life=policy.half_life)
        expected, _ = self.along(measured, policy)
        for index in range(frames):
            new = [m for m, there in zip(EVERYONE, measured[index], strict=True) if there]
            found = stream(self.inputs(index, new), index / FRAMES_PER_SECOND)
            matrix = self._confusion(torch.from_numpy(found.labels), index)
            if int((matrix - expected[index]).abs().sum()) > 4:  # two pixels, whose logits are equal but for a rounding
                raise SystemExit(f"drive {self.number}, frame {index}: a stream and its memory say something else")


# ---------------------------------------------------------------- tests


def grid_file(run: Path) -> Path:
    return run / FOLDER / f"stream-choice-{len(CHOSEN_ON)}x{FRAMES}x{SIZE}.safetensors"


def reported_file(run: Path) -> Path:
    policies = hashlib.sha256(repr(SHORT).encode()).hexdigest()[:8]
    return run / FOLDER / f"stream-{len(REPORTED)}x{FRAMES}x{SIZE}-{policies}.safetensors"


def test(job: tuple[Path, Path, bool]) -> str:
    """Every policy along every drive, those of the choice or those reported."""
    run, folder, choosing = job
    path = grid_file(run) if choosing else reported_file(run)
    if not path.is_file():
        segmenter = Segmenter.load(run, "cpu")
        found: dict[str, list[Tensor]] = {}
        for number in CHOSEN_ON if choosing else REPORTED:
            road = Road(segmenter, folder, number)
            everything = np.ones((FRAMES, len(EVERYONE)), dtype=bool)
            ways = [(FULL, everything, NEW, FULL)]
            for kind in KINDS:
                measured = measuring(kind, FRAMES, EVERYONE, number)
                ways += [(kind, measured, p, f"{kind}: {p.name}") for p in (GRID if choosing else SHORT)]
            for _, measured, policy, name in ways:
                matrices, weights = road.along(measured, policy, STEP if choosing else 1)
                found.setdefault(name, []).append(matrices)
                found.setdefault(f"weights of {name}", []).append(weights)
            if not choosing and number == REPORTED[0]:
                road.check(measuring(KINDS[-1], FRAMES, EVERYONE, number), DEFAULT)
        save_tensors(path, {name: torch.cat(parts) for name, parts in found.items()}, {})
    return f"{'chose on' if choosing else 'drove along'} with {run.name}"


class Driven:
    """What :func:`test` found for one run: by schedule and policy, frames of all drives one after the other."""

    def __init__(self, path: Path) -> None:
        tensors, _ = load_tensors(path)
        self.weights = {
            n.removeprefix("weights of "): t.numpy() for n, t in tensors.items() if n.startswith("weights of ")
        }
        self.confusions = {n: t.numpy().astype(np.int64) for n, t in tensors.items() if not n.startswith("weights of ")}


Models = Mapping[str, Mapping[str, Driven]]
"""By model, by seed."""


# ---------------------------------------------------------------- answers


def choice(models: Models) -> list[dict[str, Any]]:
    """mIoU of every policy on the drives of the choice, best first: by schedule, and their mean, over models and seeds."""
    rows = []
    for policy in GRID:
        by_kind = {
            kind: {
                MODELS[model]: float(np.mean([score([d.confusions[f"{kind}: {policy.name}"]]) for d in own.values()]))
                for model, own in models.items()
            }
            for kind in KINDS
        }
        rows.append({
            "name": policy.name, "max_age": policy.max_age, "half_life": policy.half_life,
            "miou": round(float(np.mean([v for own in by_kind.values() for v in own.values()])), 4),
            **{kind: {model: round(v, 4) for model, v in own.items()} for kind, own in by_kind.items()},
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row["miou"])


def rows_of(models: Models) -> list[dict[str, Any]]:
    """mIoU along the reported drives by schedule, policy and model, and the difference to all sensors in every frame."""
    rows = []
    for kind in KINDS:
        computed = float(np.mean([measuring(kind, FRAMES, EVERYONE, n).sum(axis=1).mean() for n in REPORTED]))
        for model, own in models.items():
            full = {seed: [d.confusions[FULL]] for seed, d in own.items()}
            names = {FULL: FULL, **{p.name: f"{kind}: {p.name}" for p in SHORT}}
            for name, key in names.items():
                tested = {seed: [d.confusions[key]] for seed, d in own.items()}
                weights = np.mean([d.weights[key].mean(axis=0) for d in own.values()], axis=0)
                rows.append({
                    "schedule": kind, "name": name, "model": MODELS[model], "frames": len(REPORTED) * FRAMES,
                    "sensors_computed": len(EVERYONE) if name == FULL else round(computed, 2),
                    **estimate(tested, None if name == FULL else full, block=BLOCK),
                    "weights": {m: round(float(w), 4) for m, w in zip(EVERYONE, weights, strict=True)},
                })  # fmt: skip
    return rows


def summary(chosen: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """The tables of docs/streams.md."""
    lines = [f"| stands in | {' | '.join(KINDS)} | mean |", f"|---|{'--:|' * (len(KINDS) + 1)}"]
    for row in chosen:
        cells = [percent(float(np.mean(list(row[kind].values())))) for kind in KINDS]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {percent(row['miou'])} |")
    lines += [
        "",
        "| schedule | stands in | sensors computed a frame | without trust | difference | with trust | difference |",
    ]
    lines.append("|---|---|--:|--:|--:|--:|--:|")
    for kind in KINDS:
        for name in dict.fromkeys(row["name"] for row in rows):
            pair = [r for r in rows if r["schedule"] == kind and r["name"] == name]
            cells = [cell for r in pair for cell in (percent(r["miou"]), signed(r))]
            lines.append(f"| {kind} | {name} | {pair[0]['sensors_computed']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


# ---------------------------------------------------------------- latency


def latencies(rounds: int) -> list[dict[str, Any]]:
    """CPU seconds of a frame on one thread, in turns with a full frame's: what runs beside it takes no part of them."""
    torch.set_num_threads(1)
    rows = []
    for preset, size in (("nano", 128), ("tiny", 256)):
        for reliability in (False, True):
            segmenter = _segmenter(preset, reliability)
            shapes = {
                m: (size, size, s.channels) if s.channels > 1 else (size, size) for m, s in segmenter.sensors.items()
            }
            rng = np.random.default_rng(0)
            inputs = {m: rng.integers(1, 255, shape, dtype=np.uint8) for m, shape in shapes.items()}
            stream = SegmenterStream(segmenter, max_age=None, half_life=0.1)
            stream(inputs, 0.0)
            cycle = math.lcm(*(EVERY[m] for m in EVERYONE))
            new = [[m for m in EVERYONE if index % EVERY[m] == 0] for index in range(1, cycle + 1)]
            times: dict[str, list[float]] = {}
            now = 0
            for _ in range(rounds):
                times.setdefault("full", []).append(_seconds(lambda i=inputs, s=segmenter: s(i)))
                now += 1
                one = {"rgb": inputs["rgb"]}
                times.setdefault("stream-1of4", []).append(_seconds(lambda i=one, t=now, s=stream: s(i, t)))
            for _ in range(max(1, rounds // 10)):
                own = []
                for names in new:
                    now += 1
                    given = {m: inputs[m] for m in names}
                    own.append(_seconds(lambda i=given, t=now, s=stream: s(i, t)))
                times.setdefault("stream-own-rates", []).append(statistics.mean(own))
            baseline = statistics.median(times["full"])
            kept = sum(x.nbytes for k in stream.memory.kept.values() for x in k.features.levels) / 2**20 / len(EVERYONE)
            for name in ("stream-1of4", "stream-own-rates"):
                seconds = statistics.median(times[name])
                rows.append({
                    "name": f"{name}@{preset}-{size}", "reliability": reliability, "ratio": round(seconds / baseline, 4),
                    "baseline": "all four sensors computed", "seconds": round(seconds, 5),
                    "baseline_seconds": round(baseline, 5), "kept_mib_per_sensor": round(kept, 3),
                    "conditions": "four sensors from uint8 arrays to a Prediction, rank 16, fp32, CPU seconds of one thread, "
                    f"median of {len(times[name])} in turns",
                })  # fmt: skip
                say(
                    f"{rows[-1]['name']}, reliability {reliability}: {rows[-1]['ratio']:.3f} of {1e3 * baseline:.0f} ms"
                )
    return rows


def _segmenter(preset: str, reliability: bool) -> Segmenter:
    sensors = {m: sensor_spec(m) for m in EVERYONE}
    config = ModelConfig(foundation=preset, rank=16, reliability=reliability)
    model = MLESAM({m: s.channels for m, s in sensors.items()}, 13, config)
    classes = Classes(tuple(f"class{i}" for i in range(13)), tuple((20 * i, 0, 0) for i in range(13)))
    return Segmenter(model, sensors, classes, device="cpu")


def _seconds(do: Any) -> float:
    start = time.process_time()
    do()
    return time.process_time() - start


def shown(models: Models) -> tuple[dict[str, dict[str, list[float]]], tuple[str, np.ndarray]]:
    """Of the drive in the picture, the first seed with trust: two panels of frame mIoU, and the weights."""
    own = models[TRUST][TESTED[0]]
    part = slice(SHOWN * FRAMES, (SHOWN + 1) * FRAMES)

    def line(key: str) -> list[float]:
        return [round(float(v), 4) for v in mean_iou(own.confusions[key][part])]

    panels = {
        title: {FULL: line(FULL), NEW.name: line(f"{kind}: {NEW.name}"), "stream": line(f"{kind}: {DECAYING.name}")}
        for kind, title in ((KINDS[0], "Own rates"), (KINDS[2], "Own rates and outages"))
    }
    return panels, ("Weights in the stream, with outages", own.weights[f"{KINDS[2]}: {DECAYING.name}"][part])


def main() -> None:
    parser = options_of(__doc__, "stream", "stream")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "drives", help="where the drives are kept")
    parser.add_argument("--rounds", type=int, default=20, help="of the measurement of time")
    options = parser.parse_args()
    runs = trained(shortened(options), options.runs, options.jobs, tuple(MODELS))
    in_processes(render, [(options.folder, number) for number in (*REPORTED, *CHOSEN_ON)], options.jobs)
    runs = {m: {seed: own[seed] for seed in TESTED} for m, own in runs.items()}
    everyone = [path for own in runs.values() for path in own.values()]
    in_processes(test, [(path, options.folder, True) for path in everyone], options.jobs)
    chosen = choice({m: {seed: Driven(grid_file(p)) for seed, p in own.items()} for m, own in runs.items()})
    for text, decays in (("without decay", False), ("with it", True)):
        best = next(r["name"] for r in chosen if r["max_age"] is not None and (r["half_life"] is not None) == decays)
        say(f"best with a limit, {text}, on the drives of the choice: {best}")
    in_processes(test, [(path, options.folder, False) for path in everyone], options.jobs)
    models = {m: {seed: Driven(reported_file(p)) for seed, p in own.items()} for m, own in runs.items()}
    rows = rows_of(models)
    panels, weights = shown(models)
    content = {
        "name": "stream", "command": command("stream"), **conditions(), "seeds": [int(s) for s in TESTED],
        "conditions": {
            "drives": [{"seed": n, "weather": ROTA[n]} for n in REPORTED],
            "chosen_on": [{"seed": n, "weather": ROTA[n]} for n in CHOSEN_ON], "one_frame_in": STEP,
            "frames": FRAMES, "size": SIZE, "frames_per_second": FRAMES_PER_SECOND, "every": {m: EVERY[m] for m in EVERYONE},
            "runs": {MODELS[m]: {seed: p.name for seed, p in own.items()} for m, own in runs.items()},
            "interval": f"95 %, bootstrap over blocks of {BLOCK} frames and seeds; differences are to {FULL}, paired by both",
        },
        "latency": latencies(options.rounds), "choice": chosen, "results": rows,
        "shown": {"drive": SHOWN, "seed": int(TESTED[0]), "model": MODELS[TRUST], "frame_miou": panels},
    }  # fmt: skip
    replace_file(options.result, json.dumps(content, indent=2) + "\n")
    replace_file(options.plot, timeline(panels, weights, EVERYONE, FRAMES_PER_SECOND))
    say(summary(chosen, rows))


if __name__ == "__main__":
    main()
