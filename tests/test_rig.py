"""A rig: calibration as people write it down, and recordings brought to the camera by the sensor's name."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mlesam.config import parse_yaml
from mlesam.errors import DataError, RequestError
from mlesam.sensors.camera import Camera, Transform
from mlesam.sensors.motion import ConstantTwist
from mlesam.sensors.points import PointsEncoder
from mlesam.sensors.projection import FORWARD_LEFT_UP
from mlesam.sensors.rig import KINDS, Rig

DOCS = Path(__file__).resolve().parents[1] / "docs" / "sensors"
K = ((1000.0, 0.0, 959.5), (0.0, 1000.0, 539.5), (0.0, 0.0, 1.0))
TURN = tuple(tuple(row) for row in FORWARD_LEFT_UP.rotation.tolist())


def values() -> dict:
    return {
        "camera": {"size": [1920, 1080], "matrix": K, "distortion": [-0.1, 0.01, 0, 0]},
        "sensors": {
            "lidar": {"kind": "points", "rotation": TURN, "translation": [0.0, -0.5, "-3e-1"], "nearest": 2},
            "radar": {
                "kind": "radar", "rotation": TURN, "translation": [0, 0, 0], "resolution": 0.0438, "ground": -1.6,
                "keep": "strongest",
            },
        },
    }  # fmt: skip


def write(path: Path, content: dict) -> Path:
    plain = json.dumps(content)  # tuples become lists
    path.write_text(plain if path.suffix == ".json" else yaml.safe_dump(json.loads(plain)))
    return path


def points(count: int = 300) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform((5, -3, -1, 0), (40, 3, 2, 1), (count, 4)).astype(np.float32)


def muses() -> dict:
    pose = Transform.from_parts(TURN, (0.1, 0.2, 0.3)).array.tolist()
    return {
        "intrinsics": {"rgb": {"K": K}, "event": {"K": K}},
        "extrinsics": dict.fromkeys(("lidar2rgb", "radar2rgb", "event2rgb", "lidar2gnss"), pose),
    }


# ---------------------------------------------------------------- reading


def test_a_rig_is_read_from_yaml(tmp_path: Path) -> None:
    rig = Rig.load(write(tmp_path / "rig.yaml", values()))
    assert rig.camera == Camera(K, (1920, 1080), (-0.1, 0.01, 0, 0))
    assert list(rig.sensors) == ["lidar", "radar"]
    assert rig.sensors["lidar"] == PointsEncoder(rotation=TURN, translation=(0, -0.5, -0.3), nearest=2)


def test_a_rig_may_have_no_camera_and_no_sensor(tmp_path: Path) -> None:
    """Pictures that are aligned already need neither."""
    for content in ({}, {"sensors": {}}, {"camera": None, "sensors": None}):
        assert Rig.load(write(tmp_path / "rig.yaml", content)) == Rig(None, {})


def test_every_kind_is_a_frozen_dataclass_under_its_own_name() -> None:
    for kind, encoder in KINDS.items():
        assert encoder.kind == kind
        assert dataclasses.is_dataclass(encoder)
        assert encoder.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert encoder.suffixes
        assert all(s.startswith(".") and s == s.lower() for s in encoder.suffixes)


def test_the_calibration_of_muses_is_read_as_shipped(tmp_path: Path) -> None:
    rig = Rig.load(write(tmp_path / "calib.json", muses()))
    assert rig.camera is not None
    assert rig.camera.size == (1920, 1080)
    recording = np.column_stack([points(), np.zeros(300), np.full(300, 1.66e9)]).astype(np.float64)
    recording.tofile(tmp_path / "REC0001_frame_000001_lidar.bin")
    picture = rig.encode("lidar", tmp_path / "REC0001_frame_000001_lidar.bin")
    plain = PointsEncoder(rotation=TURN, translation=(0.1, 0.2, 0.3))
    np.testing.assert_array_equal(picture, plain.encode(points(), rig.camera))
    raw = np.zeros((11 + 3000, 400), np.uint8)
    raw[10] = 255
    raw[11 + 499, 199] = 90
    Image.fromarray(raw).save(tmp_path / "radar.png")
    radar = rig.encode("radar", tmp_path / "radar.png")
    seen = np.argwhere(np.isfinite(radar[..., 0]))
    # 21.9 m ahead of the radar and 1.62 m below it.
    np.testing.assert_allclose(seen, [[539.5 + 1000 * 1.82 / 22.2, 959.5 + 1000 * 0.1 / 22.2]], atol=0.5)


@pytest.mark.parametrize("page", ["rig", "lidar", "radar"])
def test_the_documentations_rigs_can_be_built(page: str) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        assert Rig.build(parse_yaml(block)).sensors


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_stands_in_the_documentation(kind: str) -> None:
    page = {"points": "lidar", "events": "event"}.get(kind, kind)
    code = " ".join(re.findall(r"```yaml\n.*?```|`[^`\n]+`", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL))
    names = [f.name for f in dataclasses.fields(KINDS[kind])]  # type: ignore[arg-type]
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []


# ---------------------------------------------------------------- encoding


def test_a_recording_is_encoded_from_a_file_or_an_array(tmp_path: Path) -> None:
    rig = Rig.build(values())
    points().tofile(tmp_path / "a.bin")
    picture = rig.encode("lidar", tmp_path / "a.bin")
    assert picture.shape == (1080, 1920, 3)
    assert picture.dtype == np.float32
    np.testing.assert_array_equal(picture, rig.encode("lidar", points()))
    np.testing.assert_array_equal(picture, rig.encode("lidar", str(tmp_path / "a.bin")))


def test_a_rig_for_scaled_pictures_puts_points_at_the_scaled_place() -> None:
    rig = Rig.build(values())
    small = rig.resized((480, 270))
    assert small.sensors == rig.sensors
    one = np.array([[20.0, 2.0, 1.0, 0.5]])
    (row, column), (v, u) = (np.argwhere(np.isfinite(r.encode("lidar", one)[..., 0]))[0] for r in (small, rig))
    assert small.encode("lidar", one).shape == (270, 480, 3)
    assert (row, column) == (v // 4, u // 4)


def test_motion_reaches_the_encoder() -> None:
    content = values()
    content["sensors"]["lidar"]["columns"] = ["x", "y", "z", "intensity", "time"]
    rig = Rig.build(content)
    timed = np.column_stack([points(), np.linspace(-0.05, 0.05, 300)])
    motion = ConstantTwist((20, 0, 0), (0, 0, 0.1), 0.0)
    assert not np.array_equal(rig.encode("lidar", timed, motion), rig.encode("lidar", timed), equal_nan=True)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("camra",), {}, "unknown key 'camra'; did you mean 'camera'?"),
        (("camera", "sise"), [1, 2], "unknown key 'camera.sise'; did you mean 'size'?"),
        (("camera", "matrix"), None, "camera.matrix"),
        (("camera", "matrix"), np.array(K).T.tolist(), "camera: matrix has the last row [959.5, 539.5, 1.0]"),
        (("camera",), {"size": [10, 10]}, "camera.matrix is missing; give it a value"),
        (("sensors",), ["lidar"], "sensors is ['lidar'], but it must be a mapping"),
        (("sensors", "lidar"), "points", "sensors.lidar is 'points', but it must be a mapping with a kind"),
        (("sensors", "lidar", "kind"), "point", "sensors.lidar.kind is 'point'; did you mean 'points'?"),
        (("sensors", "lidar", "kind"), "os.system", "sensors.lidar.kind is 'os.system'; known: points, radar"),
        (("sensors", "lidar", "kind"), None, "sensors.lidar.kind is missing; known: points, radar"),
        (("sensors", "lidar", "nearst"), 1, "unknown key 'sensors.lidar.nearst'; did you mean 'nearest'?"),
        (("sensors", "lidar", "to_camera"), 1, "unknown key 'sensors.lidar.to_camera'"),
        (("sensors", "lidar", "rotation"), np.diag([1, 1, -1]).tolist(), "sensors.lidar: the rotation mirrors"),
        (("sensors", "lidar", "rotation"), [[1, 0], [0, 1]], "sensors.lidar.rotation is"),
        (("sensors", "lidar", "dtype"), "float", "sensors.lidar.dtype is 'float'; did you mean 'float"),
        (("sensors", "radar", "resolution"), "fine", "sensors.radar.resolution is 'fine', but it must be a number"),
        (("sensors", "radar", "sector"), [1, -1], "sensors.radar: sector is [1.0, -1.0]"),
    ],
)
def test_a_wrong_rig_is_refused_by_file_and_key(tmp_path: Path, place: tuple, value: object, expected: str) -> None:
    content = values()
    target = content
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    path = write(tmp_path / "rig.yaml", content)
    with pytest.raises(RequestError) as error:
        Rig.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("intrinsics",), {}, "intrinsics.rgb is missing; a calibration of MUSES has it"),
        (("extrinsics",), {}, "extrinsics.lidar2rgb is missing"),
        (("extrinsics", "radar2rgb"), np.eye(3).tolist(), "extrinsics.radar2rgb: a transform has the shape (3, 3)"),
        (("extrinsics", "lidar2rgb"), (2 * np.eye(4)).tolist(), "extrinsics.lidar2rgb: a transform has the last row"),
        (("intrinsics", "rgb", "K"), [[1]], "intrinsics.rgb.matrix"),
    ],
)
def test_a_wrong_calibration_of_muses_is_refused(tmp_path: Path, place: tuple, value: object, expected: str) -> None:
    content = muses()
    target = content
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    with pytest.raises(RequestError) as error:
        Rig.load(write(tmp_path / "calib.json", content))
    assert str(error.value).startswith(str(tmp_path / "calib.json"))
    assert expected in str(error.value)


def test_a_rig_that_is_no_file_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "a.yaml").write_text("camera: [")
    (tmp_path / "b.json").write_text("[]")
    for name in ("a.json", "a.yaml", "b.json", "no.json", "no.yaml"):
        with pytest.raises(RequestError) as error:
            Rig.load(tmp_path / name)
        assert str(error.value).count(name) == 1


def test_what_the_rig_cannot_encode_is_refused(tmp_path: Path) -> None:
    rig = Rig.build(values())
    with pytest.raises(RequestError, match="the rig has no sensor 'lidr'; did you mean 'lidar'"):
        rig.encode("lidr", points())
    with pytest.raises(RequestError, match=r"a\.png is no recording of the kind points, which reads \.bin, \.npy"):
        rig.encode("lidar", "a.png")
    with pytest.raises(DataError, match=r"^there is no file .*a\.bin"):
        rig.encode("lidar", tmp_path / "a.bin")
    with pytest.raises(DataError, match=r"^lidar: of 300 points 0 lie in front of the camera and 0 inside"):
        rig.encode("lidar", points() * (-1, 1, 1, 1))
    (points() * np.float32(-1)).tofile(tmp_path / "a.bin")
    with pytest.raises(DataError, match=r"a\.bin: of 300 points 0 lie in front"):
        rig.encode("lidar", tmp_path / "a.bin")
    with pytest.raises(RequestError, match="give the rig one"):
        Rig(sensors=rig.sensors).encode("lidar", points())
    with pytest.raises(RequestError, match="no camera whose pictures could be scaled"):
        Rig().resized((10, 10))
