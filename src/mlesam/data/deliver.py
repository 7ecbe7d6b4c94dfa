"""The DELIVER dataset as it is published."""

from __future__ import annotations

CLASSES: dict[str, tuple[int, int, int]] = {
    "Building": (70, 70, 70), "Fence": (100, 40, 40), "Other": (55, 90, 80), "Pedestrian": (220, 20, 60),
    "Pole": (153, 153, 153), "RoadLine": (157, 234, 50), "Road": (128, 64, 128), "SideWalk": (244, 35, 232),
    "Vegetation": (107, 142, 35), "Cars": (0, 0, 142), "Wall": (102, 102, 156), "TrafficSign": (220, 220, 0),
    "Sky": (70, 130, 180), "Ground": (81, 0, 81), "Bridge": (150, 100, 100), "RailTrack": (230, 150, 140),
    "GroundRail": (180, 165, 180), "TrafficLight": (250, 170, 30), "Static": (110, 190, 160),
    "Dynamic": (170, 120, 50), "Water": (45, 60, 150), "Terrain": (145, 170, 100), "TwoWheeler": (0, 0, 230),
    "Bus": (0, 60, 100), "Truck": (0, 0, 70),
}  # fmt: skip
"""Class names and colours by id, 0 to 24 (the label files hold 1 to 25). Source: github.com/jamycheung/DELIVER."""
