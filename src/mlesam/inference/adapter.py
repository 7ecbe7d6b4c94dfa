"""Adapters: what a training added to its foundation, as a directory or Hub repository to share.

``adapter.safetensors`` holds experts, stems, aligners, routers and heads, and what the foundation's own weights did not bring;
``config.json`` what is needed to use them, and which foundation they belong to, by its hash; ``README.md`` is the model card.
Nothing of the foundation's weights is in it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import mlesam
from mlesam.config import DataConfig, Recipe, TrainingConfig, plain
from mlesam.errors import RequestError, WorkError, did_you_mean, refuse_occupied
from mlesam.evaluation.facts import stored_metrics
from mlesam.model.checkpoints import load_tensors, replace_file, save_tensors
from mlesam.model.foundation import FAMILIES
from mlesam.model.hub import is_hub_id
from mlesam.model.mlesam import belongs_to
from mlesam.model.run import ADAPTER, CARD, CONFIG, FORMAT, Run

ROWS = 16
"""Subsets of sensors that a card shows; with more sensors, each alone and all together."""

CALIBRATED = (
    "Probabilities are calibrated: divided by a temperature that depends on the sensors that are there, fitted on the val split "
    "of its own data. On other data they can be too high or too low."
)


def export_adapter(run: Run, out: Path, without: Collection[str] = ()) -> Path:
    """Write a run's adapter (or another adapter's) to a new directory, whole or not at all.

    Args:
        without: sensors to leave out. What the others give does not change.

    Returns:
        ``out``.

    Raises:
        RequestError: ``out`` is not empty, no such sensor, none would be left, or the foundation was trained as well.
    """
    refuse_occupied(out)
    if run.recipe.model.train == "all":
        raise RequestError(
            f"{run.path} was trained with its foundation, so an adapter alone would be of no use; share the run's directory, "
            "or train with --model.train experts."
        )
    for modality in without:
        if modality not in run.sensors:
            raise RequestError(f"{run.path} has no sensor {modality!r}{did_you_mean(modality, run.sensors)}")
    kept = [m for m in run.sensors if m not in without]
    if not kept:
        raise RequestError(f"{run.path} has the sensors {', '.join(run.sensors)}; at least one of them must stay.")
    tensors, metadata = load_tensors(run.path / run.weights)
    tensors = {n: t for n, t in tensors.items() if not any(belongs_to(n, m) for m in without)}
    recipe = _recipe(run, kept)
    metrics = stored_metrics(run)
    family = str(metadata.get("foundation_family", "sam2"))  # older runs do not say, and had no other
    calibration = run.calibration  # with the sensors left out: they are absent, and the others' temperatures stay
    config = {
        "format": FORMAT,
        "mlesam": mlesam.__version__,
        "foundation": {"name": recipe.model.foundation, "family": family, "sha256": metadata["foundation_sha256"]},
        "training": {"step": metadata.get("step"), "val_miou": metadata.get("miou")},
        "recipe": plain(recipe),
        **({} if calibration is None else {"calibration": plain(calibration)}),
    }
    temporary = out.with_name(f".{out.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save_tensors(temporary / ADAPTER, tensors, metadata)
        replace_file(temporary / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        replace_file(temporary / CARD, card(run, recipe, config, metrics, sum(t.numel() for t in tensors.values())))
        if out.exists():
            out.rmdir()
        temporary.replace(out)
    except OSError as error:
        raise WorkError(f"{out} cannot be written ({error}); make room or choose another place.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _recipe(run: Run, kept: Collection[str]) -> Recipe:
    """What of a recipe is needed to use the model; no path of the machine that it was trained on."""
    old = run.recipe
    data = DataConfig(
        classes=old.data.classes, colors=old.data.colors, ignore=old.data.ignore, label_map=old.data.label_map,
        ignore_color=old.data.ignore_color, resize=old.data.resize, modalities=tuple(kept),
        sensors={m: old.data.sensors[m] for m in kept},
    )  # fmt: skip
    foundation = old.model.foundation
    local = Path(foundation).exists() and not is_hub_id(foundation)
    model = dataclasses.replace(old.model, foundation=Path(foundation).name if local else foundation)
    return Recipe(old.name, old.seed, data, model, TrainingConfig())


def push(folder: Path, name: str, private: bool = False) -> str:
    """Upload an exported adapter to the Hub, as the user that ``hf auth login`` knows. Returns its address.

    Args:
        name: ``owner/name``; made if it is not there.
    """
    if not is_hub_id(name):
        raise RequestError(f"{name!r} is no name on the Hub; write owner/name.")
    if not (folder / ADAPTER).is_file():
        raise RequestError(f"{folder} holds no {ADAPTER}; export the adapter first.")
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"mlesam {mlesam.__version__}")
    except Exception as error:  # Hub, network and authorisation errors come in many types
        reason = " ".join(str(error).split())[:200]
        raise WorkError(f"{folder} cannot be uploaded to {name} ({reason}); log in with: hf auth login") from error
    return f"https://huggingface.co/{name}"


# ---------------------------------------------------------------- the card


def card(run: Run, recipe: Recipe, config: dict[str, Any], metrics: dict[str, Any] | None, parameters: int) -> str:
    """The model card, with the metadata block that the Hub reads."""
    model, classes, foundation = recipe.model, recipe.data.classes or (), config["foundation"]
    sensors = {m: spec for m, spec in run.sensors.items() if m in recipe.data.sensors}
    head = ["---", "library_name: mlesam", "pipeline_tag: image-segmentation"]
    head += [f"tags: [semantic-segmentation, multi-sensor, {foundation['family']}, lora]"]
    if is_hub_id(model.foundation):
        head += [f"base_model: {model.foundation}", "base_model_relation: adapter"]
    title = f"# {recipe.name}: semantic segmentation from {_listed(sensors)}"
    what = (
        f"An adapter of {parameters:,} parameters for the {FAMILIES[foundation['family']]} `{model.foundation}` (sha256 "
        f"`{foundation['sha256']}`), made with mlesam {mlesam.__version__}. Any subset of the sensors may be given."
    )
    example = ", ".join(f'"{m}": "{m}.png"' for m in sensors)
    use = (
        '```python\nfrom mlesam import Segmenter\n\nsegmenter = Segmenter.load("<this directory or repository>")\n'
        f"prediction = segmenter({{{example}}})  # any subset\n"
        "prediction.labels, prediction.confidence, prediction.weights\n```"
    )
    rows = ["| sensor | channels | stored as | unit | mean | std |", "|---|--:|---|---|---|---|"]
    for name, spec in sensors.items():
        rows.append(
            f"| {name} | {spec.channels} | {spec.dtype or 'any'} | {spec.unit} | {_numbers(spec.mean)} | {_numbers(spec.std)} |"
        )
    parts = [
        "\n".join([*head, "---"]), title, what, use, "## Sensors\n\n" + "\n".join(rows),
        "## Classes\n\n" + ", ".join(classes), "## Results\n\n" + _results(metrics, set(sensors)),
        *(["## Confidence\n\n" + CALIBRATED] if "calibration" in config else []),
        "## Intended use\n\nClass maps for sensors, places and conditions like those it was trained on. Results on others are "
        "not known and should be measured first: `mlesam evaluate <this directory> --data folder:PATH`. It is not meant to be "
        "the only ground for a decision that can harm somebody.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _results(metrics: dict[str, Any] | None, kept: set[str]) -> str:
    if metrics is None:
        return "Not evaluated when it was exported."
    rows = [r for r in metrics["results"] if set(r["present"]) <= kept]
    if len(rows) > ROWS:
        rows = [r for r in rows if len(r["present"]) in (1, len(kept))]
    lines = ["| sensors | mIoU | pixel accuracy | frames |", "|---|--:|--:|--:|"]
    lines += [
        f"| {r['name']} | {_percent(r['miou'])} | {_percent(r['pixel_accuracy'])} | {r['frames']} |" for r in rows
    ]
    dataset = metrics["dataset"].rstrip("/").rpartition("/")[2]
    return f"Split `{metrics['split']}` of `{dataset}`, in per cent.\n\n" + "\n".join(lines)


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _numbers(values: Collection[float]) -> str:
    shown = [f"{v:.4g}" for v in list(values)[:4]]
    return ", ".join(shown) + (f" and {len(values) - 4} more" if len(values) > 4 else "")


def _listed(names: Collection[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
