"""``faults``: each sensor, broken by each fault it can have, in each severity, while the others are as they should be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mlesam.data.faulty import BrokenFrames
from mlesam.evaluation.protocols import Encoder, Protocol, Row
from mlesam.evaluation.results import mean_of
from mlesam.model.features import Features
from mlesam.sample import Batch
from mlesam.sensors.faults import FAULTS, HELD_OUT, SEVERITIES, SensorFault, applicable


class Faults(Protocol):
    """A row for each sensor, fault and severity, and a last one with nothing broken.

    The trunk sees a frame's sensors once, and then only what is broken: each fault's five severities in one pass.
    """

    name = "faults"

    def __init__(self, source: BrokenFrames, severities: Sequence[int] = SEVERITIES) -> None:
        self.source = source
        everyone = tuple(source.sensors)
        self.rows = []
        self.groups: list[list[tuple[int, SensorFault]]] = []
        for sensor, spec in source.sensors.items():
            for name in applicable(spec, sensor):
                removes = FAULTS[name].removes
                if removes and len(everyone) == 1:
                    continue
                first = len(self.rows)
                faults = [SensorFault(sensor, name, s) for s in (SEVERITIES[-1:] if removes else severities)]
                self.rows += [_row(fault, everyone) for fault in faults]
                self.groups.append([(first + i, fault) for i, fault in enumerate(faults)])
        nothing = {"fault": None, "severity": None, "sensor": None, "seen": None}
        self.rows.append(Row("clean", everyone, details=nothing, reference=True))

    def features(self, model: Encoder, batch: Batch) -> Iterator[tuple[int, Features]]:
        clean = model.encode(batch)
        yield len(self.rows) - 1, clean
        for group in self.groups:
            first, fault = group[0]
            if fault.fault.removes:
                rest = self.rows[first].present
                if set(rest) & set(clean.modalities):
                    yield first, clean.select(rest)
            elif fault.sensor not in clean.modalities:
                yield from ((i, clean) for i, _ in group)
            else:
                yield from self._broken(model, batch, clean, group)

    def _broken(
        self, model: Encoder, batch: Batch, clean: Features, group: Sequence[tuple[int, SensorFault]]
    ) -> Iterator[tuple[int, Features]]:
        sensor = group[0][1].sensor
        owners, image = batch.frames[sensor], batch.images[sensor]
        images = [self.source.image(batch.ids[i], fault) for _, fault in group for i in owners.tolist()]
        stacked = torch.stack([x for x in images if x is not None]).to(image.device)
        encoded = model.encode(Batch.of({sensor: stacked}))
        turn = torch.arange(len(stacked), device=stacked.device) // len(owners)
        for place, (i, _) in enumerate(group):
            broken = replace(encoded.keep({sensor: turn == place}), frames=(owners,), count=clean.count)
            yield i, Features.join([clean, broken])

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """``degradation``: how much of the clean mIoU is lost, 0 to 1, as the mean over the severities of each sensor and
        fault, and then over those: ``mean``, ``seen``, ``unseen``, by ``sensors`` and by ``faults``."""
        lost: dict[tuple[str, str], list[float | None]] = {}
        for row in rows:
            if row["fault"] is not None:
                ratio = row["ratio"]
                lost.setdefault((row["sensor"], row["fault"]), []).append(None if ratio is None else 1 - ratio)
        cells = {key: mean_of(values) for key, values in lost.items()}

        def over(sensors: Sequence[str] | None = None, faults: Sequence[str] | None = None) -> float | None:
            chosen = [
                value
                for (sensor, fault), value in cells.items()
                if (sensors is None or sensor in sensors) and (faults is None or fault in faults)
            ]
            return mean_of(chosen)

        names = [name for name in FAULTS if any(fault == name for _, fault in cells)]
        return {
            "degradation": {
                "mean": over(),
                "seen": over(faults=[n for n in names if n not in HELD_OUT]),
                "unseen": over(faults=HELD_OUT),
                "sensors": {sensor: over(sensors=[sensor]) for sensor in self.source.sensors},
                "faults": {name: over(faults=[name]) for name in names},
            }
        }


def _row(fault: SensorFault, everyone: tuple[str, ...]) -> Row:
    details = {
        "fault": fault.name,
        "severity": fault.severity,
        "sensor": fault.sensor,
        "seen": fault.name not in HELD_OUT,
    }
    if fault.fault.removes:
        return Row(f"{fault.sensor} {fault.name}", tuple(m for m in everyone if m != fault.sensor), details=details)
    return Row(f"{fault.sensor} {fault.name} {fault.severity}", everyone, details=details)
