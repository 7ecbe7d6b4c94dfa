"""Recipes: what YAML says is what runs, and anything else is refused by name."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlesam.config import (
    DataConfig,
    ModelConfig,
    Recipe,
    TrainingConfig,
    build,
    dump_recipe,
    load_recipe,
    override,
    plain,
    read_yaml,
)
from mlesam.errors import RequestError, did_you_mean
from mlesam.sensors import BUILTIN


def written(tmp_path: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(RequestError) as error:
        load_recipe(written(tmp_path, text))
    return str(error.value)


# ---------------------------------------------------------------- there and back

FULL = Recipe(
    name="straße: yes",  # a colon, an umlaut and a YAML truth value
    seed=7,
    data=DataConfig(
        classes=("road", "no", "1", "null"),  # YAML would read the last three as something else
        colors=((128, 64, 128), (0, 0, 0), (255, 255, 255), (1, 2, 3)),
        ignore=0,
        label_map={255: 1, 7: 255},
        sensors={
            "fog": {"channels": 3, "mean": [0.1, 0.2, 0.3], "range": [-math.inf, math.inf], "missing": 0.0},
            "aux": {"like": "thermal", "colormap": [[0.0, 0.0, 0.0], [255.0, 128.5, 0.0]]},
        },
        dataset="folder:some where/with space",
        modalities=("rgb", "aux"),
        resize=128,
        scale=(0.75, 1.25),
        workers=0,
    ),
    model=ModelConfig(train="all", mask_decoder="freeze", top_k=2, combine="pyramid", pyramid_width=16, revision="abc"),
    training=TrainingConfig(steps=3, lr=6e-5, weight_decay=1e-30, batch=6, accumulate=3, tensorboard=True),
)


@pytest.mark.parametrize("recipe", [Recipe(), FULL], ids=["default", "full"])
def test_a_recipe_survives_being_written_and_read(recipe: Recipe, tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, dump_recipe(recipe))) == recipe


def test_a_written_recipe_names_every_field(tmp_path: Path) -> None:
    values = yaml.safe_load(dump_recipe(Recipe()))
    for section, cls in (("data", DataConfig), ("model", ModelConfig), ("training", TrainingConfig)):
        assert list(values[section]) == [f.name for f in dataclasses.fields(cls)]


def test_every_builtin_sensor_survives_a_recipe(tmp_path: Path) -> None:
    from mlesam.sensors import sensor_spec

    sensors = {name: plain(spec) for name, spec in BUILTIN.items()}
    recipe = load_recipe(written(tmp_path, dump_recipe(Recipe(data=DataConfig(sensors=sensors)))))
    assert {m: sensor_spec(m, declared) for m, declared in recipe.data.sensors.items()} == BUILTIN


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=12),
    lr=st.floats(1e-12, 1e3, exclude_min=True),
    classes=st.lists(
        st.text("abN0:-[]{}#&*!|>'\"%@` ,~ö", min_size=1, max_size=8), min_size=2, max_size=4, unique=True
    ),
)
def test_any_names_and_rates_survive_being_written_and_read(
    name: str, lr: float, classes: list[str], tmp_path: Path
) -> None:
    recipe = Recipe(name=name, data=DataConfig(classes=tuple(classes)), training=TrainingConfig(lr=lr))
    assert load_recipe(written(tmp_path, dump_recipe(recipe))) == recipe


# ---------------------------------------------------------------- reading


def test_a_recipe_without_a_name_is_called_like_its_file(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, "seed: 3", "street.yaml")).name == "street"
    assert load_recipe(written(tmp_path, "name: other", "street.yaml")).name == "other"


def test_no_file_and_an_empty_file_mean_the_defaults(tmp_path: Path) -> None:
    assert load_recipe(None) == Recipe()
    assert load_recipe(written(tmp_path, "# nothing\n", "default.yaml")) == Recipe()
    assert load_recipe(written(tmp_path, "data:\nmodel:\n", "default.yaml")) == Recipe()


@pytest.mark.parametrize("text", ["6e-5", "6.0e-5", "0.00006", "'6e-5'"])
def test_a_rate_may_be_written_like_6e_5(text: str, tmp_path: Path) -> None:
    value = load_recipe(written(tmp_path, f"training: {{lr: {text}}}")).training.lr
    assert isinstance(value, float)
    assert value == 6e-5


def test_a_whole_number_may_be_written_with_a_decimal_point(tmp_path: Path) -> None:
    steps = load_recipe(written(tmp_path, "training: {steps: 1.0e+3}")).training.steps
    assert isinstance(steps, int)
    assert steps == 1000


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("traning: {}", "traning", "training"),
        ("training: {learning: 1, lrr: 2}", "training.learning", None),
        ("training: {stepps: 1}", "training.stepps", "steps"),
        ("model: {raank: 4}", "model.raank", "rank"),
        ("data: {clases: [a, b]}", "data.clases", "classes"),
        ("data: {7: 1}", "data.7", None),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    text: str, key: str, nearest: str | None, tmp_path: Path
) -> None:
    message = refusal(tmp_path, text)
    assert f"'{key}'" in message
    if nearest is not None:
        assert f"did you mean '{nearest}'" in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("training: {lr: fast}", "training.lr"),
        ("training: {lr: true}", "training.lr"),
        ("training: {lr: [1]}", "training.lr"),
        ("training: {lr: null}", "training.lr"),
        ("training: {lr: .nan}", "training.lr"),
        (f"training: {{lr: 1{'0' * 400}}}", "training.lr"),
        ("training: {steps: 1.5}", "training.steps"),
        ("training: {steps: '10'}", "training.steps"),
        ("training: {steps: true}", "training.steps"),
        ("training: {tensorboard: 1}", "training.tensorboard"),
        ("training: {tensorboard: 'yes'}", "training.tensorboard"),
        ("training: 5", "training"),
        ("training: [1, 2]", "training"),
        ("model: {train: expert}", "model.train"),
        ("model: {train: []}", "model.train"),
        ("model: {combine: 1}", "model.combine"),
        ("model: {foundation: [tiny]}", "model.foundation"),
        ("data: {classes: road}", "data.classes"),
        ("data: {classes: [a, no]}", "data.classes[1]"),  # YAML reads no as false
        ("data: {classes: {a: 1}}", "data.classes"),
        ("data: {colors: [[1, 2]]}", "data.colors[0]"),
        ("data: {colors: [[1, 2, red]]}", "data.colors[0][2]"),
        ("data: {scale: [0.5]}", "data.scale"),
        ("data: {label_map: {road: 1}}", "data.label_map"),
        ("data: {label_map: [1]}", "data.label_map"),
        ("data: {sensors: {depth: 3}}", "data.sensors.depth"),
        ("name: 2024-01-01", "name"),
        ("seed: 1.5", "seed"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(text: str, key: str, tmp_path: Path) -> None:
    assert key in refusal(tmp_path, text)


def test_a_wrong_choice_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    assert "did you mean 'experts'?" in refusal(tmp_path, "model: {train: expert}")
    assert "known: auto, fp32, bf16" in refusal(tmp_path, "training: {precision: 64}")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seed: -1", "seed"),
        ("data: {crop: 31}", "data.crop"),
        ("data: {resize: 16}", "data.resize"),
        ("data: {scale: [0, 1]}", "data.scale"),
        ("data: {scale: [2.0, 0.5]}", "data.scale"),
        ("data: {flip: 1.1}", "data.flip"),
        ("data: {photometric: -0.1}", "data.photometric"),
        ("data: {workers: -1}", "data.workers"),
        ("model: {rank: -1}", "model.rank"),
        ("model: {top_k: 0}", "model.top_k"),
        ("model: {pyramid_width: 0}", "model.pyramid_width"),
        ("training: {steps: 0}", "training.steps"),
        ("training: {batch: 0}", "training.batch"),
        ("training: {batch: 4, accumulate: 3}", "training.accumulate"),
        ("training: {accumulate: 0}", "training.accumulate"),
        ("training: {lr: 0}", "training.lr"),
        ("training: {weight_decay: -1}", "training.weight_decay"),
        ("training: {warmup: 1.0}", "training.warmup"),
        ("training: {power: 0}", "training.power"),
        ("training: {clip: -1}", "training.clip"),
        ("training: {ohem_threshold: 0}", "training.ohem_threshold"),
        ("training: {ohem_keep: 1.5}", "training.ohem_keep"),
        ("training: {mask_loss: 0, pyramid_loss: 0}", "training.mask_loss"),
        ("training: {pyramid_loss: -1}", "training.pyramid_loss"),
        ("training: {modality_dropout: 1}", "training.modality_dropout"),
        ("training: {validate_every: -1}", "training.validate_every"),
        ("data: {classes: [a, b], colors: [[1, 2, 3]]}", "data.colors"),
        ("data: {colors: [[1, 2, 3], [0, 256, 0]]}", "data.colors[1]"),
        ("data: {colors: [[-1, 2, 3]]}", "data.colors[0]"),
        ("data: {classes: [road, car, road]}", "'road' twice"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(text: str, key: str, tmp_path: Path) -> None:
    assert key in refusal(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "data: {crop: 32, resize: 32, scale: [1, 1], flip: 0, photometric: 0, workers: 0}",
        "model: {rank: 0, top_k: 1, pyramid_width: 1}",
        "training: {steps: 1, batch: 1, warmup: 0, clip: 0, weight_decay: 0, ohem_threshold: 1, modality_dropout: 0}",
        "training: {mask_loss: 0, pyramid_loss: 1}",
        "training: {mask_loss: 1, pyramid_loss: 0}",
    ],
)
def test_the_ends_of_the_ranges_are_accepted(text: str, tmp_path: Path) -> None:
    load_recipe(written(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "training: {lr: 1",
        "training:\n\tlr: 1",
        "a: b: c",
        "name: !!python/object/apply:os.system ['true']",
        "name: 2024-13-45",  # a date of no month
        "training: {lr: 1, lr: 2}",
        "seed: 1\nname: a\nseed: 2\n",
        "[" * 600 + "]" * 600,
    ],
)
def test_malformed_yaml_is_refused_with_the_files_name(text: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, text)
    assert "recipe.yaml is not valid YAML" in message
    assert "\n" not in message


def test_how_deep_yaml_may_be_is_not_a_matter_of_the_process(tmp_path: Path) -> None:
    """A library may let Python recurse deeper, as torch.compile does."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        assert "stand more than 100 deep in each other" in refusal(tmp_path, "[" * 600 + "]" * 600)
    finally:
        sys.setrecursionlimit(before)


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, "training:\n  lr: 1\n  steps: 2\n  lr: 3\n")
    assert "'lr' stands twice" in message
    assert "line 4" in message


def test_yaml_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    assert "must hold a mapping" in refusal(tmp_path, "- 1\n- 2\n")
    assert "must hold a mapping" in refusal(tmp_path, "just words")


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"there is no file .*nowhere\.yaml"):
        read_yaml(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RequestError, match=r"binary\.yaml cannot be read"):
        read_yaml(tmp_path / "binary.yaml")
    with pytest.raises(RequestError, match="cannot be read"):
        read_yaml(tmp_path)


# ---------------------------------------------------------------- overrides


def test_overrides_stand_above_the_file_and_leave_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 1\ntraining: {lr: 1.0e-3, steps: 5}\n")
    recipe = load_recipe(path, {"training.lr": "6e-5", "data.scale": "[0.9, 1.1]", "model.top_k": "null", "seed": "4"})
    assert recipe.training.lr == 6e-5
    assert recipe.training.steps == 5
    assert recipe.data.scale == (0.9, 1.1)
    assert recipe.model.top_k is None
    assert recipe.seed == 4


def test_an_override_reaches_a_sensors_field(tmp_path: Path) -> None:
    recipe = load_recipe(None, {"data.sensors.depth.scale": "0.01"})
    assert recipe.data.sensors == {"depth": {"scale": 0.01}}


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("training.lrr", "1", "did you mean 'lr'?"),
        ("trainings.lr", "1", "did you mean 'training'?"),
        ("seed.x", "1", "seed"),
        ("training.lr", "[1", "not valid YAML"),
        ("training.steps", "", "training.steps is None"),
        ("name", "2024-13-45", "not valid YAML"),
        ("", "1", "unknown key"),
    ],
)
def test_an_override_that_does_not_fit_is_refused(key: str, text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as error:
        load_recipe(written(tmp_path, "seed: 3"), {key: text})
    assert expected in str(error.value)


def test_an_override_makes_the_sections_it_needs() -> None:
    values: dict = {"training": None}
    override(values, "training.lr", "0.5")
    override(values, "data.sensors.fog.channels", "2")
    assert values == {"training": {"lr": 0.5}, "data": {"sensors": {"fog": {"channels": 2}}}}


# ---------------------------------------------------------------- messages


def test_the_nearest_name_is_offered_and_else_all_of_them() -> None:
    assert did_you_mean("dept", ["rgb", "depth"]) == "; did you mean 'depth'?"
    assert did_you_mean("xyz", ["rgb", "depth"]) == "; known: rgb, depth"
    assert did_you_mean("xyz", []) == ""


def test_what_a_section_checks_itself_is_said_with_its_place() -> None:
    from mlesam.sensors.spec import SensorSpec

    with pytest.raises(RequestError, match=r"^sensors\.fog: std is \[0\.0\]"):
        build(SensorSpec, {"std": [0]}, "sensors.fog")


def test_the_recipes_of_the_package_are_valid() -> None:
    recipes = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert isinstance(load_recipe(path), Recipe), path
