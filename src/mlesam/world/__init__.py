"""The procedural world: street scenes for when there is no dataset, seen by five sensors that know different things."""

from mlesam.world.options import WorldOptions
from mlesam.world.writer import write_world

__all__ = ["WorldOptions", "write_world"]
