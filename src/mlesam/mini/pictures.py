"""Small arrays brought up to a benchmark's size, and PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) or (H, W, C) to ``size`` (height, width), every pixel that of the place it lies in. For labels and depth."""
    return array[sources(array.shape[0], size[0])][:, sources(array.shape[1], size[1])]


def sources(small: int, large: int) -> np.ndarray:
    """For each of ``large`` pixels, the one of ``small`` that its middle lies in."""
    return (2 * np.arange(large) + 1) * small // (2 * large)


def smooth(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) or (H, W, C) to ``size``: linear up to half of it, then every pixel doubled. For colours; keeps the type.

    Linear all the way gives files of twice the bytes and shows nothing more.
    """
    import cv2

    half = cv2.resize(array, (-(-size[1] // 2), -(-size[0] // 2)), interpolation=cv2.INTER_LINEAR)
    return np.repeat(np.repeat(half, 2, axis=0), 2, axis=1)[: size[0], : size[1]]


def write_png(path: Path, array: np.ndarray) -> None:
    """Write (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, uint8 or uint16; makes the folder."""
    import cv2

    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}  # OpenCV has blue first
    stored = array if array.ndim == 2 else array[..., order[array.shape[2]]]
    quick = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(stored), quick)
    if not done:
        raise ValueError(f"{array.dtype} values of the shape {array.shape} are no PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.tobytes())


__all__ = ["nearest", "smooth", "sources", "write_png"]
