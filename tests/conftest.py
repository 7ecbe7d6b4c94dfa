"""What the tests share: small real datasets on disk, small models, and where the shared material lies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlesam.cli import main

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure() -> None:
    torch.set_num_threads(1)  # two workers share two cores


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared material, for tests on real frames and real key layouts."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared material is not at {SHARED}")
    return SHARED


def write_frame(
    root: Path, split: str, name: str, seed: int, size: tuple[int, int] = (48, 64), classes: int = 3
) -> None:
    """A frame with three sensors whose label can be learned: a bright, near, warm rectangle on a dark, far, cold ground."""
    rng = np.random.default_rng(seed)
    height, width = size
    label = np.zeros(size, dtype=np.uint8)
    for value in range(1, classes):
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        label[top : top + height // 3, left : left + width // 3] = value
    share = label / (classes - 1)
    rgb = np.clip(share[..., None] * (200, 120, 60) + rng.normal(30, 8, (*size, 3)), 0, 255).astype(np.uint8)
    depth = np.clip(9000 - 6000 * share + rng.normal(0, 50, size), 1, 65535).astype(np.uint16)
    thermal = np.clip(80 + 120 * share + rng.normal(0, 4, size), 0, 255).astype(np.uint8)
    for folder, array in (("rgb", rgb), ("depth", depth), ("thermal", thermal), ("labels", label)):
        path = root / folder / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def write_dataset(root: Path, train: int = 6, val: int = 2, test: int = 3) -> Path:
    """A folder dataset with rgb, 16-bit depth and thermal, three classes, and a tag ``night``."""
    seed = 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        for index in range(count):
            write_frame(root, split, f"{split}{index}", seed)
            seed += 1
    (root / "tags").mkdir()
    (root / "tags" / "night.txt").write_text("train0\ntest0\n")
    (root / "dataset.yaml").write_text("classes: [ground, near, far]\n")
    return root


def trained_for_a_moment(root: Path, tags: Mapping[str, Sequence[str]] | None = None) -> Path:
    """``ROOT/data``, four test frames of which one lacks its depth, with further tags, and ``ROOT/run`` trained on it."""
    write_dataset(root / "data", test=4)
    for tag, ids in (tags or {}).items():
        (root / "data" / "tags" / f"{tag}.txt").write_text("".join(f"{frame}\n" for frame in ids))
    (root / "data/depth/test/test2.png").unlink()
    short = ("--model.rank", "4", "--data.crop", "64", "--data.workers", "0", "--training.batch", "2", "--steps", "2")
    assert main(["train", "--data", f"folder:{root / 'data'}", "--out", str(root / "run"), *short]) == 0
    return root


def trained_and_tested(name: str, run: Path) -> dict[str, Any]:
    """Two steps on a dataset, then every protocol on two frames: ``{protocol: metrics}``, for the machinery alone."""
    short = ("--model.rank", "2", "--data.crop", "64", "--data.workers", "0", "--training.batch", "2", "--steps", "2")
    assert main(["train", "--data", name, "--out", str(run), *short]) == 0
    out, few = run.with_suffix(".json"), ("--frames", "2", "--severities", "1,5")
    assert main(["evaluate", str(run), "--protocol", "all", *few, "--out", str(out)]) == 0
    return json.loads(out.read_text())["protocols"]


def corrected_as_by_the_sdk(
    points: np.ndarray, times: np.ndarray, exposure: float, mount: np.ndarray, gnss: Sequence[int]
) -> np.ndarray:
    """What MUSES' SDK makes of (N, 3) points of a moving sensor (``motion_compensate_pcd``): in the receiver's axes shifted along
    x by the speed, then turned by Rz Ry Rx. mount: (4, 4) sensor to receiver. gnss: the 28 numbers."""
    from scipy.spatial.transform import Rotation

    late = times - exposure
    moved = points @ mount[:3, :3].T + mount[:3, 3]
    moved = moved + np.outer(late, [gnss[23] / 1000, 0, 0])
    roll, pitch, heading = (late * rate / 1e5 for rate in gnss[17:20])
    moved = Rotation.from_euler("ZYX", np.stack([heading, pitch, roll], axis=1), degrees=True).apply(moved)
    return (moved - mount[:3, 3]) @ np.linalg.inv(mount[:3, :3]).T


def true_depth(shot: Any) -> tuple[np.ndarray, np.ndarray]:
    """(1080, 1920) metres along the colour camera's axis, inf in the sky, and things, from a scene of the MUSES miniature."""
    from mlesam.mini import muses, rig

    now = muses.at(shot)
    size, focal, window = rig.frame_of(rig.RGB_SIZE, rig.RGB_SCALE, rig.RGB_K)
    seen = now.view(now.camera(size, focal, float(np.sin(rig.PITCH)))).seen
    block = np.ones((4, 4))
    return np.kron(seen.hits.depth[window], block), np.kron(now.things(seen)[window], block).astype(int)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data")


def _miniature(name: str, factory: pytest.TempPathFactory, worker: str) -> Path:
    """One for all processes of a run: the first that asks writes it, whole or not at all, and the others wait."""
    from filelock import FileLock

    from mlesam.mini import write_mini

    base = factory.getbasetemp()
    root = (base if worker == "master" else base.parent) / "mini" / name
    root.parent.mkdir(exist_ok=True)
    with FileLock(f"{root}.lock"):
        if not root.is_dir():
            write_mini(name, root)
    return root


@pytest.fixture(scope="session")
def deliver_mini(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A miniature of DELIVER. Tests that change files copy them first."""
    return _miniature("deliver", tmp_path_factory, worker_id)


@pytest.fixture(scope="session")
def muses_mini(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A miniature of MUSES. Tests that change files copy them first."""
    return _miniature("muses", tmp_path_factory, worker_id)


@pytest.fixture(scope="session")
def mcubes_mini(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A miniature of MCubeS. Tests that change files copy them first."""
    return _miniature("mcubes", tmp_path_factory, worker_id)
