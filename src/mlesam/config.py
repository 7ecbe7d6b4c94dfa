"""The recipe: one YAML file that holds one whole experiment, as frozen dataclasses.

Reading is strict. An unknown key, a wrong type or a value out of range is a :class:`RequestError` that names the key,
the rule and the nearest known key. Nothing in a recipe can name code to run.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from mlesam.errors import RequestError, did_you_mean

PRESETS = ("nano", "nano-random", "tiny", "small", "base_plus", "large")
"""Foundations that need no download. ``nano`` is pre-trained and comes with the package."""
RANDOM_PRESETS = PRESETS[1:]
"""Those that start from random weights."""


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how a frame becomes training crops. The first block may stand in ``dataset.yaml`` instead."""

    classes: tuple[str, ...] | None = None
    """Class names, in the order of the ids in the label files. None: ``dataset.yaml``, else read off the labels."""
    colors: tuple[tuple[int, int, int], ...] | None = None
    """One RGB colour (0-255) per class, for drawing and for label files that are pictures of colours."""
    ignore: int | None = None
    """Label value that is neither trained nor scored. None: ``dataset.yaml``, else 255."""
    ignore_color: tuple[int, int, int] | None = None
    """RGB colour that is neither trained nor scored, in label files that are pictures of colours."""
    label_map: dict[int, int] | None = None
    """Raw value in the label files -> class id, for example ``{255: 1}``. Unnamed values stay as they are."""
    sensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Sensor specs by modality (``mlesam.sensors.SensorSpec``); a key ``like`` starts from a built-in sensor."""
    rig: str | None = None
    """File of a rig. Of a ``folder:`` dataset, the files of the sensors that it names are recordings as they left the device."""

    dataset: str | None = None
    """``KIND:PATH``, for example ``folder:data/mine``."""
    modalities: tuple[str, ...] | None = None
    """Sensors to use. None: all that the dataset has."""
    resize: int | None = None
    """Short side in pixels that frames are brought to for training and testing. None: native size. Results come back
    at the label's own size."""
    crop: int = 256
    """Side of the square training crop in pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale before the crop."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    photometric: float = 1.0
    """Strength of the changes of brightness, contrast, blur and noise, by kind of sensor. 0 switches them off."""
    faults: float = 0.0
    """Probability per frame that a further pass sees one of its sensors with a random fault (of ``mlesam.sensors.faults``, those
    that are seen). The frame itself stays sound."""
    workers: int = 1
    """Processes that load training frames. 0 loads them in the main process."""


@dataclass(frozen=True)
class ModelConfig:
    """MLE-SAM (arXiv 2412.04220) on SAM2."""

    foundation: str = "nano"
    """``nano`` (small, pre-trained, comes with the package), a preset with random weights (nano-random, tiny, small,
    base_plus, large), a Hub id or ``transformers`` folder of a SAM2 or a Swin, or a Meta ``.pt``."""
    revision: str | None = None
    """Revision of the Hub repository."""
    train: Literal["auto", "experts", "all"] = "auto"
    """``experts`` keeps the foundation's weights frozen (the method). ``all`` trains them as well. ``auto``: ``experts``, but a
    training whose foundation starts from random weights trains all, since there is nothing in it worth keeping."""
    mask_decoder: Literal["train", "freeze"] = "train"
    """Whether SAM2's mask decoder is trained; its class tokens and their MLPs always are."""
    experts: Literal["each", "shared"] = "each"
    """A LoRA expert for each sensor (the method), or one that all of them share (its ablation "SAM-LoRA")."""
    rank: int = 32
    """LoRA rank of each expert. 0: no experts."""
    targets: tuple[Literal["q", "k", "v", "proj", "mlp"], ...] = ("q", "v")
    """Projections of each trunk block that an expert updates: query, key, value, the attention's output, both of the MLP."""
    alpha: float | None = None
    """Factor s in q' = q + s B A x is alpha / rank. None: s is 1."""
    rslora: bool = False
    """Rank-stabilised: s is alpha / sqrt(rank) (arXiv 2312.03732)."""
    dropout: float = 0.0
    """Probability that an expert's input is left out in training."""
    align: bool = True
    """A 1x1 projection for each sensor and pyramid level, before the sensors are fused. False: as in the paper."""
    fusion: Literal["mean", "routed", "mean+routed"] = "mean+routed"
    """How the present sensors' maps are combined on each pyramid level."""
    top_k: int | None = None
    """Sensors the router keeps on each level. None: all that are present."""
    router: Literal["image", "pixel"] = "image"
    """One weight for each sensor and frame (the method), or one for each of its pixels."""
    reliability: bool = True
    """Turn away from a broken sensor, as far as its frame looks strange or the other sensors disagree with it. Learned after the
    training, from frames broken on purpose. False: as in the paper."""
    half: tuple[str, ...] = ()
    """Sensors that the trunk sees at half their resolution, for a quarter of the time: those that measure coarsely."""
    look: int | None = None
    """Look before computing: after this stage of the trunk (1 to 3; 0: before the first) only ``look_keep`` sensors of a frame go
    on, those that promise most; the others cost no more. Learned after the training. None: all are computed."""
    look_keep: int = 2
    """Sensors of a frame that go on, where there are more."""
    look_lead: tuple[str, ...] = ()
    """Sensors that go on where they are there. The others hand what they saw early over to them, which a further pass of every
    training step teaches. Empty: those that promise most go on, and what is left behind is lost."""
    rescale: bool = True
    """Bring each fused map to the level of the sensors' own maps, which a mean of them falls short of. False: as in the paper."""
    combine: Literal["logits", "probabilities", "mask", "pyramid"] = "logits"
    """How the two heads become one answer: mean of logits, mean of probabilities, or one head alone."""
    pyramid_width: int | None = None
    """Channels of the pyramid head. None: as many as the neck has."""

    def __post_init__(self) -> None:
        _check_model(self)


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast. All counts are optimiser steps."""

    steps: int = 1000
    batch: int = 4
    """Frames per optimiser step, over all devices and accumulated micro-batches."""
    accumulate: int = 1
    """Micro-batches that a step is split into."""
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    """Share of the steps with linear warm-up (from a tenth of the rate)."""
    power: float = 0.9
    """Exponent of the polynomial decay to zero."""
    clip: float = 1.0
    """Largest norm of the gradient. 0 switches clipping off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpointing: bool = False
    """Keep of the trunk only what goes into each block, and compute the rest again for the gradients: less memory, more time."""
    ohem_threshold: float = 0.7
    """Pixels whose true class has less than this probability are hard examples (1.0: all pixels)."""
    ohem_keep: float = 0.0625
    """At least this share of the valid pixels is kept."""
    mask_loss: float = 1.0
    pyramid_loss: float = 1.0
    only: tuple[str, ...] | None = None
    """Train the expert, stem and routing of these sensors alone; all else stays as it is, bit for bit. None: everything
    that ``model.train`` names. Set by ``mlesam train --extend RUN``, where it names the new sensors."""
    modality_dropout: float = 0.5
    """Probability that a sensor is left out in a further pass over the heads; the full-sensor pass always stays. 0: off."""
    subsets: int = 2
    """Such passes in each step, each with sensors of its own left out. Together they weigh as much as the full pass."""
    distill: float = 0.0
    """Weight of the divergence from what all sensors say to what is said with sensors left out. 0: off."""
    sensor_loss: float = 0.0
    """Weight of the loss of every sensor alone. 0: off."""
    validate_every: int = 0
    """Steps between validations and checkpoints. 0: ten times over the training."""
    tensorboard: bool = False


@dataclass(frozen=True)
class Recipe:
    """One whole experiment."""

    name: str = "default"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        check_ranges(self)


def check_ranges(recipe: Recipe) -> None:
    """Refuse values that no training could mean; those of a model, which may be built without a recipe, are checked by itself."""
    data, training = recipe.data, recipe.training
    _refuse([
        ("seed", recipe.seed, recipe.seed >= 0, "at least 0"),
        ("data.crop", data.crop, data.crop >= 32, "at least 32 pixels"),
        ("data.resize", data.resize, data.resize is None or data.resize >= 32, "null or at least 32 pixels"),
        ("data.scale", data.scale, 0 < data.scale[0] <= data.scale[1], "two positive numbers, smaller first"),
        ("data.flip", data.flip, 0 <= data.flip <= 1, "between 0 and 1"),
        ("data.photometric", data.photometric, 0 <= data.photometric <= 3, "between 0 and 3"),
        ("data.faults", data.faults, 0 <= data.faults <= 1, "between 0 and 1"),
        ("data.workers", data.workers, data.workers >= 0, "at least 0"),
        ("training.steps", training.steps, training.steps >= 1, "at least 1"),
        ("training.batch", training.batch, training.batch >= 1, "at least 1"),
        ("training.accumulate", training.accumulate,
         training.accumulate >= 1 and training.batch % training.accumulate == 0, "a divisor of training.batch"),
        ("training.lr", training.lr, training.lr > 0, "above 0"),
        ("training.weight_decay", training.weight_decay, training.weight_decay >= 0, "at least 0"),
        ("training.warmup", training.warmup, 0 <= training.warmup < 1, "at least 0 and below 1"),
        ("training.power", training.power, training.power > 0, "above 0"),
        ("training.clip", training.clip, training.clip >= 0, "at least 0"),
        ("training.ohem_threshold", training.ohem_threshold, 0 < training.ohem_threshold <= 1, "above 0 and at most 1"),
        ("training.ohem_keep", training.ohem_keep, 0 < training.ohem_keep <= 1, "above 0 and at most 1"),
        ("training.mask_loss", training.mask_loss,
         min(training.mask_loss, training.pyramid_loss) >= 0 < training.mask_loss + training.pyramid_loss,
         "at least 0, like training.pyramid_loss, and not both 0"),
        ("training.modality_dropout", training.modality_dropout, 0 <= training.modality_dropout < 1, "at least 0 and below 1"),
        ("training.subsets", training.subsets, training.subsets >= 1, "at least 1"),
        ("training.distill", training.distill, training.distill == 0 or training.distill > 0 < training.modality_dropout,
         "0, or above 0 with training.modality_dropout above 0"),
        ("training.sensor_loss", training.sensor_loss, training.sensor_loss >= 0, "at least 0"),
        ("training.validate_every", training.validate_every, training.validate_every >= 0, "at least 0"),
    ])  # fmt: skip
    check_classes(data.classes, data.colors, "data.")


def _check_model(model: ModelConfig) -> None:
    _refuse([
        ("model.rank", model.rank, model.rank >= 0, "at least 0"),
        ("model.targets", list(model.targets), 0 < len(set(model.targets)) == len(model.targets), "at least one, each once"),
        ("model.alpha", model.alpha, model.alpha is None or model.alpha > 0, "null or above 0"),
        ("model.rslora", model.rslora, not model.rslora or model.alpha is not None, "false, or come with model.alpha"),
        ("model.dropout", model.dropout, 0 <= model.dropout < 1, "at least 0 and below 1"),
        ("model.look", model.look, model.look is None or 0 <= model.look <= 3, "null, or a stage from 0 to 3"),
        ("model.look_keep", model.look_keep, model.look_keep >= 1, "at least 1"),
        ("model.look_lead", list(model.look_lead), len(model.look_lead) <= (0 if model.look is None else model.look_keep),
         "empty, or come with model.look and name at most model.look_keep sensors"),
        ("model.half", list(model.half), not model.half or model.look is None, "empty where model.look chooses sensors"),
        ("model.top_k", model.top_k, model.top_k is None or model.top_k >= 1, "null or at least 1"),
        ("model.pyramid_width", model.pyramid_width, model.pyramid_width is None or model.pyramid_width >= 1,
         "null or at least 1"),
    ])  # fmt: skip


def _refuse(rules: Iterable[tuple[str, object, bool, str]]) -> None:
    """RequestError for the first of (key, value, whether it holds, rule) that does not hold."""
    for key, value, holds, rule in rules:
        if not holds:
            raise RequestError(f"{key} is {value}, but it must be {rule}.")


def check_classes(classes: tuple[str, ...] | None, colors: tuple[tuple[int, int, int], ...] | None, where: str) -> None:
    """Refuse names and colours that do not fit each other; ``where`` stands before the key in messages."""
    names = classes or ()
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated is not None:
        raise RequestError(f"{where}classes names {repeated!r} twice; give every class its own name.")
    for i, color in enumerate(colors or ()):
        if min(color) < 0 or max(color) > 255:
            raise RequestError(f"{where}colors[{i}] is {list(color)}, but its values must be between 0 and 255.")
    if classes is not None and colors is not None and len(classes) != len(colors):
        raise RequestError(
            f"{where}colors has {len(colors)} colours for {len(classes)} classes; give one colour per class."
        )


# ---------------------------------------------------------------- reading and writing


def build(cls: type, values: Any, where: str = "") -> Any:
    """Build dataclass ``cls`` from plain YAML values; ``where`` is the dotted path for messages."""
    if not isinstance(values, dict):
        raise RequestError(f"{where or 'a recipe'} must be a mapping of keys to values, not {values!r}.")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            raise RequestError(f"unknown key {_join(where, key)!r}{did_you_mean(key, known)}")
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    for key in required:
        if key not in values:
            raise RequestError(f"{_join(where, key)} is missing; give it a value.")
    converted = {key: _convert(hints[key], value, _join(where, key)) for key, value in values.items()}
    try:
        return cls(**converted)
    except RequestError as error:  # what the class itself checks, most of them without knowing where they stand
        told = not where or str(error).startswith(f"{where}.")
        raise RequestError(str(error) if told else f"{where}: {error}") from None


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        for option in options[:-1]:
            try:
                return _convert(option, value, where)
            except RequestError:
                continue
        return _convert(options[-1], value, where)
    if origin is Literal:
        if value not in arguments:
            raise RequestError(f"{where} is {value!r}{did_you_mean(value, arguments)}")
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), {} if value is None else value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise RequestError(f"{where} is {value!r}, but it must be a list.")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise RequestError(f"{where} is {value!r}, but it must have {len(kinds)} values.")
        return tuple(_convert(kind, v, f"{where}[{i}]") for i, (kind, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise RequestError(f"{where} is {value!r}, but it must be a mapping.")
        return {
            _convert(arguments[0], k, f"a key of {where}"): _convert(arguments[1], v, _join(where, k))
            for k, v in value.items()
        }
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and not isinstance(value, bool):
        try:
            number = float(value)  # YAML 1.1 reads 6e-5 as a string
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isnan(number):
            return number
    elif hint is int and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    elif hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    raise RequestError(f"{where} is {value!r}, but it must be {names.get(hint, hint)}.")


def plain(value: Any) -> Any:
    """A dataclass as plain dicts, lists and scalars, ready for YAML or JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


DEPTH = 100  # what Python recurses to is not the same in every process


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error (plain YAML silently keeps the last one), and so is what is nested deeper
    than ``DEPTH``."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.depth > DEPTH:
            raise yaml.MarkedYAMLError(problem=f"lists and mappings stand more than {DEPTH} deep in each other")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                what = f"the key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(problem=what, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """YAML text as plain values. Raises ValueError with the reason and the place."""
    try:
        loader = _Loader(text)  # a safe loader: it builds plain values only
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2024-13-45 is a date of no month
        raise ValueError(" ".join(str(error).split())) from None


class TextFile(Protocol):
    """A path on disk or inside an archive."""

    def read_text(self, encoding: str) -> str: ...


def read_yaml(path: TextFile) -> dict[str, Any]:
    """A YAML file that holds a mapping; anything else is a RequestError that names the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RequestError(f"there is no file {path}; give the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read ({error}); give the path of a YAML file.") from None
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise RequestError(f"{path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RequestError(f"{path} must hold a mapping of keys to values at its top level.")
    return values


def override(values: dict[str, Any], key: str, text: str) -> None:
    """Set ``section.key`` in plain recipe values from a command-line text, read as YAML."""
    *sections, last = key.split(".")
    target = values
    for section in sections:
        if target.get(section) is None:
            target[section] = {}
        target = target[section]
        if not isinstance(target, dict):
            raise RequestError(f"--{key} does not fit the recipe: {section} is not a section.")
    try:
        target[last] = parse_yaml(text)
    except ValueError:
        raise RequestError(f"--{key} has the value {text!r}, which is not valid YAML.") from None


def load_recipe(path: Path | None, overrides: dict[str, str] | None = None) -> Recipe:
    """Read a recipe (None: all defaults) and apply ``{"section.key": "text"}`` on top of it."""
    values = read_yaml(path) if path is not None else {}
    if path is not None:
        values.setdefault("name", Path(path).stem)
    for key, text in (overrides or {}).items():
        override(values, key, text)
    return build(Recipe, values)


def dump_recipe(recipe: Recipe) -> str:
    return yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
