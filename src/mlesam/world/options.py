"""What can be chosen about a procedural dataset, and how it is named: ``world:seed=3,city=1``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mlesam.config import build, parse_yaml
from mlesam.errors import RequestError, did_you_mean
from mlesam.world.weather import CONDITIONS


@dataclass(frozen=True)
class WorldOptions:
    """One dataset of the world. The same options give the same files, byte for byte."""

    frames: int = 600
    """Frames over all splits: seven tenths train, one tenth val, two tenths test."""
    seed: int = 0
    """Streets and everything that is drawn at random."""
    size: int = 256
    """Side of the pictures in pixels."""
    city: int = 0
    """Assets: buildings, cars, people, trees, signs and their textures."""
    weather: str | None = None
    """One condition for all frames. None: all of them by turns."""
    hyperspectral: bool = False
    """A 16-band camera as a sixth sensor."""
    sequence: bool = False
    """One drive with the sensors at their own rates, as the split test, instead of single frames."""
    camera: int = 0
    """Colour camera: white balance, exposure, response, noise, sharpness and vignetting. Changes rgb alone."""
    lidar: int = 0
    """LiDAR: beams and their spread, noise, reach and intensity. Changes lidar alone."""

    def __post_init__(self) -> None:
        least = 1 if self.sequence else 10
        device = "between 0 and 999999"
        rules = [
            ("frames", self.frames, least <= self.frames <= 100_000, f"between {least} and 100000"),
            ("seed", self.seed, 0 <= self.seed < 2**31, "between 0 and 2147483647"),
            ("size", self.size, 32 <= self.size <= 2048, "between 32 and 2048 pixels"),
            ("city", self.city, 0 <= self.city < 1_000_000, "between 0 and 999999 (the rest belongs to pre-training)"),
            ("camera", self.camera, 0 <= self.camera < 1_000_000, device),
            ("lidar", self.lidar, 0 <= self.lidar < 1_000_000, device),
        ]
        for name, value, holds, rule in rules:
            if not holds:
                raise RequestError(f"{name} is {value}, but it must be {rule}.")
        if self.weather is not None and self.weather not in CONDITIONS:
            raise RequestError(f"weather is {self.weather!r}{did_you_mean(self.weather, CONDITIONS)}")

    @staticmethod
    def parse(text: str) -> WorldOptions:
        """``"seed=3,city=1"``; an empty text gives the defaults. RequestError for what is unknown or out of range."""
        known = [f.name for f in dataclasses.fields(WorldOptions)]
        values = {}
        for part in filter(None, text.split(",")):
            name, equals, value = part.strip().partition("=")
            if not equals or name not in known:
                raise RequestError(
                    f"'world:{text}' has the part {part.strip()!r}; write world:NAME=VALUE,...{did_you_mean(name, known)}"
                )
            if name in values:
                raise RequestError(f"'world:{text}' gives {name} twice; give it once.")
            try:
                values[name] = parse_yaml(value)
            except ValueError:
                raise RequestError(f"{name} of 'world:{text}' has the value {value!r}, which cannot be read.") from None
        return build(WorldOptions, values, "world")

    def text(self) -> str:
        """The shortest text that :meth:`parse` turns into these options."""
        changed = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return ",".join(f"{f.name}={str(getattr(self, f.name)).lower()}" for f in changed)

    def splits(self) -> dict[str, int]:
        """Frames of each split."""
        if self.sequence:
            return {"test": self.frames}
        test, val = self.frames // 5, self.frames // 10
        return {"train": self.frames - val - test, "val": val, "test": test}
