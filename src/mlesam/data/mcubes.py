"""MCubeS: 20 materials seen in colour, polarisation and near infrared (Liang et al., CVPR 2022).

``ROOT/{polL_color,polL_aolp_sin,polL_aolp_cos,polL_dolp,NIR_warped,NIR_warped_mask,GT}/<name>.{png,npy}``, 1224 x 1024 pixels,
and ``ROOT/list_folder/{train,val,test}.txt``. The left 192 columns of every picture are cut off, as in the published code: the
cameras do not all see them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from mlesam.data.benchmark import SPLITS, Benchmark
from mlesam.data.dataset import Frame
from mlesam.data.folder import read_list
from mlesam.sensors.archives import AnyPath
from mlesam.sensors.files import read_array, read_label

CLASSES: dict[str, tuple[int, int, int]] = {
    "asphalt": (44, 160, 44), "concrete": (31, 119, 180), "metal": (255, 127, 14),
    "road_marking": (214, 39, 40), "fabric": (140, 86, 75), "glass": (127, 127, 127), "plaster": (188, 189, 34),
    "plastic": (255, 152, 150), "rubber": (23, 190, 207), "sand": (174, 199, 232), "gravel": (196, 156, 148),
    "ceramic": (197, 176, 213), "cobblestone": (247, 182, 210), "brick": (199, 199, 199),
    "grass": (219, 219, 141), "wood": (158, 218, 229), "leaf": (57, 59, 121), "water": (107, 110, 207),
    "human": (156, 158, 222), "sky": (99, 121, 57),
}  # fmt: skip
"""Class names and colours by id. Source: github.com/kyotovision-public/multimodal-material-segmentation."""

LEFT = 192
"""Columns that are cut off."""
SENSORS = {"rgb": "polL_color", "aolp": "polL_aolp_sin", "dolp": "polL_dolp", "nir": "NIR_warped"}
SPECS = {
    "rgb": {"range": [0.0, 1.0]},
    "aolp": {"channels": 2, "range": [-1.0, 1.0]},
    "dolp": {"channels": 1, "range": [0.0, 1.0]},
    "nir": {"channels": 1, "range": [0.0, 1.0]},
}
"""Colour is read as fractions of full scale. Interpolation between the sensor's pixels leaves the physical ranges of the
polarisation; what lies outside is clipped."""
PUBLISHED = {"train": {"": 302}, "val": {"": 96}, "test": {"": 102}}
LABELS = "GT"
LISTS = "list_folder"
ON_TEST = (
    "The 102 frames of list_folder/test.txt. Most publications choose their best epoch on this list and call it val; "
    "list_folder/val.txt is another one. A number is comparable only if it comes from the same list."
)
ON_VAL = (
    "The 96 frames of list_folder/val.txt, which is not the list that most publications call val (that is test.txt)."
)


class McubesFrame(Frame):
    """Fractions of full scale, without the left columns; the angle of polarisation as sine and cosine."""

    def read(self, modality: str, channels: int | None = None) -> np.ndarray:
        path = self.files[modality]
        if modality == "aolp":
            cosine = path.parent.parent / "polL_aolp_cos" / path.name
            array = np.stack([read_array(path, 1), read_array(cosine, 1)], axis=-1)
        else:
            array = read_array(path, channels)
        if array.dtype.kind == "u":  # 8 and 16 bits stand side by side
            array = array.astype(np.float32) / np.iinfo(array.dtype).max
        if modality == "nir":
            array = self._valid(array, path.parent.parent / "NIR_warped_mask" / f"{path.stem}.png")
        return array[:, LEFT:]

    def _valid(self, array: np.ndarray, mask: AnyPath) -> np.ndarray:
        """(H, W), NaN where the mask is white: warping left nothing there."""
        if array.ndim == 3:
            array = array[..., 0]  # grey saved as colour
        if mask.exists():
            invalid = read_array(mask)
            invalid = invalid if invalid.ndim == 2 else invalid[..., :3].max(axis=-1)
            array = np.where(invalid > 0, np.float32("nan"), array)
        return array

    def read_label(self, colors: Collection[tuple[int, int, int]] = ()) -> np.ndarray:
        assert self.label is not None
        return read_label(self.label, colors)[:, LEFT:]


class Mcubes(Benchmark):
    """``mcubes:ROOT``; ROOT is the folder, zip or tar that holds ``polL_color``, ``GT`` and ``list_folder``."""

    kind = "mcubes"
    title = "MCubeS"
    source = "https://github.com/kyotovision-public/multimodal-material-segmentation"
    folders = SENSORS
    needed = ("polL_color", LABELS, LISTS)
    classes = CLASSES
    specs = SPECS
    published = PUBLISHED

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if (self.root / LISTS / f"{split}.txt").is_file())

    def about(self, split: str) -> str | None:
        return {"test": ON_TEST, "val": ON_VAL}.get(split)

    def _list_frames(self, split: str) -> Iterable[Frame]:
        for name in read_list(self.root / LISTS / f"{split}.txt"):
            found: dict[str, AnyPath] = {}
            for modality in self.modalities:
                folder = self.root / self.folders[modality]
                path = folder / f"{name}.{'npy' if modality in ('aolp', 'dolp') else 'png'}"
                if path.is_file():
                    found[modality] = path
            label = self.root / LABELS / f"{name}.png"
            yield McubesFrame(name, found, label if label.is_file() else None)
