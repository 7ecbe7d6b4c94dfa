"""A model's pass compiled by ``torch.compile``, for each set of sensors and each size when it is first seen.

Shapes are fixed, so that nothing is left to be decided while it runs; on a GPU the whole pass becomes one CUDA graph, which is
launched at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mlesam.errors import RequestError
from mlesam.model.mlesam import MLESAM

FORMS = 256
"""Sets of sensors and sizes that are compiled before torch gives up. Its own limit is 8, and four sensors have 15 sets."""


class Compiled:
    """The pass of a model for frames of one, from normalised images to logits and shares.

    Args:
        model: in evaluation mode, on its device and in its precision for good.
        backend: of ``torch.compile``.

    Raises:
        RequestError: the model leaves sensors behind on the way, which differs from frame to frame.
    """

    def __init__(self, model: MLESAM, backend: str = "inductor") -> None:
        if len(model.looks):
            raise RequestError(
                "this model leaves sensors behind by what it sees of them (model.look), which cannot be compiled; load it "
                "without compile."
            )
        self.model = model
        graphs = next(model.parameters()).device.type == "cuda" and backend == "inductor"
        mode = "reduce-overhead" if graphs else None
        self._pass = torch.compile(_pass, fullgraph=True, dynamic=False, backend=backend, mode=mode)

    def __call__(self, images: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (1, K, H, W) and shares (1, levels, M) of ``{modality: (1, C, H, W)}``.

        Raises:
            RequestError: nothing here can compile.
        """
        from torch._dynamo import config  # these take their time to import
        from torch._inductor.exc import GPUTooOldForTriton, InductorError, TritonMissing

        names = tuple(m for m in self.model.modalities if m in images)
        try:
            with config.patch(recompile_limit=FORMS):
                logits, shares = self._pass(self.model, names, *(images[m] for m in names))
        except (InductorError, TritonMissing, GPUTooOldForTriton) as error:
            reason = str(error).strip().splitlines()[0]
            raise RequestError(
                f"torch.compile failed ({reason}); it needs a C++ compiler on a CPU and Triton on a GPU. Load the model without "
                "compile."
            ) from error
        return logits.clone(), shares.clone()  # the next answer of a CUDA graph is written into the same memory


def _pass(model: MLESAM, names: tuple[str, ...], *images: Tensor) -> tuple[Tensor, Tensor]:
    output = model(dict(zip(names, images, strict=True)))
    return output.logits, output.shares
