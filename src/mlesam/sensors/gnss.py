"""Speed and turn of a vehicle, as its receiver of satellite navigation (GNSS) with inertial sensors writes them: MUSES' files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mlesam.errors import DataError
from mlesam.sensors.archives import AnyPath
from mlesam.sensors.camera import Transform
from mlesam.sensors.motion import ConstantTwist

FIELDS = (
    "iTOW", "timestamp", "tAcc", "lon", "lat", "height", "hMSL", "fixType", "numSV", "hAcc", "vAcc", "roll", "pitch",
    "heading", "accRoll", "accPitch", "accHeading", "angular_rate_roll", "angular_rate_pitch", "angular_rate_heading",
    "velN", "velE", "velD", "gSpeed", "sAcc", "pDOP", "magDec", "magAcc",
)  # fmt: skip
"""The 28 whole numbers of a line, named and in the order of MUSES' SDK: mm, mm/s, 1e-5 degrees, 1e-5 degrees a second, 1e-7
degrees of longitude and latitude."""
RATES = ("angular_rate_roll", "angular_rate_pitch", "angular_rate_heading")
FASTEST, QUICKEST = 100_000, 36_000_000
"""mm/s and 1e-5 degrees a second. More is no vehicle but another unit or another order of the numbers."""
MEND = "unpack the dataset's gnss files again, or leave the correction for motion out"


def read_motion(path: AnyPath, time: float) -> ConstantTwist:
    """The motion of a vehicle in the axes of its receiver: x forward, y right, z down.

    As in MUSES' SDK (github.com/timbroed/MUSES, ``processing/utils.py``) the receiver drives along its x axis with the speed over
    ground, ``gSpeed``, and turns by the three angular rates, all constant around the exposure; the time of the line itself is not
    asked for. A speed has no sign: a vehicle that reverses would be corrected the wrong way.

    Args:
        time: the middle of the camera's exposure, seconds, for :attr:`ConstantTwist.time`.

    Raises:
        DataError: no such file, a first line that is not 28 whole numbers, or a speed or rate that no vehicle has.
    """
    try:
        numbers = [int(word) for word in path.read_text(encoding="utf-8").partition("\n")[0].split()]
    except FileNotFoundError:
        raise DataError(f"there is no file {path}, which tells how the vehicle moved; {MEND}.") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path} does not begin with a line of whole numbers ({error}); {MEND}.") from error
    if len(numbers) != len(FIELDS):
        raise DataError(
            f"{path} has {len(numbers)} numbers in its first line, but the receiver writes {len(FIELDS)}; {MEND}."
        )
    values = dict(zip(FIELDS, numbers, strict=True))
    speed, rates = values["gSpeed"], [values[name] for name in RATES]
    if not 0 <= speed <= FASTEST or max(map(abs, rates)) > QUICKEST:
        raise DataError(
            f"{path} has the gSpeed {speed} and the angular rates {', '.join(map(str, rates))}, but a vehicle has 0 to "
            f"{FASTEST} mm/s and at most {QUICKEST} times 1e-5 degrees a second; {MEND}."
        )
    roll, pitch, heading = (math.radians(rate / 1e5) for rate in rates)
    return ConstantTwist((speed / 1e3, 0.0, 0.0), (roll, pitch, heading), time)


@dataclass(frozen=True)
class Drive:
    """What tells how the vehicle's sensors moved while one scene was recorded."""

    gnss: AnyPath
    """The receiver's file."""
    exposure: float
    """The middle of the camera's exposure, seconds on the clock of the recordings."""
    mounts: Mapping[str, Transform]
    """By sensor: from its axes to the receiver's."""

    def motion(self, sensor: str) -> ConstantTwist | None:
        """In the sensor's own axes; None for a sensor that has no mount. Raises DataError as :func:`read_motion`."""
        mount = self.mounts.get(sensor)
        return None if mount is None else read_motion(self.gnss, self.exposure).seen_from(mount)
