"""A ``transformers`` folder: ``config.json`` and safetensors, read strictly and without noise."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlesam.errors import DataError
from mlesam.model.checkpoints import refuse_misfit


@dataclass(frozen=True)
class Fit:
    """How a folder's tensors fit the model of its configuration, by their names in ``transformers``.

    Attributes:
        missing, unexpected: names. misshapen: (name, shape found, shape wanted).
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    def refuse(self, name: str, model: str) -> None:
        """DataError where anything does not fit."""
        misshapen = [tensor for tensor, *_ in self.misshapen]
        refuse_misfit(self.missing, self.unexpected, misshapen, name, model, "use the original folder")


def model_type(folder: Path, name: str) -> str:
    """What ``config.json`` calls the model. DataError where it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(name, "foundation", error) from error
    return str(config.get("model_type") if isinstance(config, dict) else None)


def read_folder(
    model: Any, folder: Path, name: str, what: str, *, numbers: bool = True, **options: Any
) -> tuple[Any, Fit]:
    """A model of a class of ``transformers`` with the folder's weights in float32, in evaluation mode.

    Args:
        model: the class; what a config says about code is not followed. name: what the folder is called in errors.
        what: the kind of model, for errors. numbers: False leaves the weights on the meta device, for names and shapes alone.

    Raises:
        DataError: files that cannot be read, or a configuration that cannot be built.
    """
    with quiet(bars=numbers and sys.stderr.isatty()):
        try:
            loaded, report = model.from_pretrained(
                folder,
                output_loading_info=True,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # so that the report names them
                attn_implementation="sdpa",  # a config may name kernels of the Hub, which are code
                **({"dtype": torch.float32} if numbers else {"device_map": "meta"}),
                **options,
            )
        except Exception as error:  # broken files and impossible configurations come in many types
            raise _unreadable(name, what, error) from error
    misshapen = tuple(sorted((str(n), tuple(found), tuple(wanted)) for n, found, wanted in report["mismatched_keys"]))
    fit = Fit(tuple(sorted(report["missing_keys"])), tuple(sorted(report["unexpected_keys"])), misshapen)
    return loaded.eval(), fit


def _unreadable(name: str, what: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:300]
    return DataError(
        f"{name} cannot be loaded as a {what} ({reason}); give a folder with whole config.json and model.safetensors."
    )


@contextmanager
def quiet(bars: bool) -> Iterator[None]:
    """Let ``transformers`` say nothing but errors; its warnings about weights that are ignored would read like faults."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
