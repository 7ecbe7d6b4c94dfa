"""What each sensor's numbers mean, and how files become them."""

from mlesam.sensors.spec import BUILTIN, SensorSpec, canonical_order, sensor_spec

__all__ = ["BUILTIN", "SensorSpec", "canonical_order", "sensor_spec"]
