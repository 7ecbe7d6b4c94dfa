"""The same numbers as `transformers` on the true layout of all four sizes, and the check that says so to anyone."""

from __future__ import annotations

import copy
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Sam2Config, Sam2Model

import mlesam.model.sam2
from mlesam.checks import parity
from mlesam.checks.parity import TOLERANCE, check_parity, compare, preprocess, scores
from mlesam.checks.weights import check_checkpoint
from mlesam.cli import main
from mlesam.doctor import doctor
from mlesam.errors import DataError, RequestError
from mlesam.model import checkpoints
from mlesam.model.foundation import load_foundation
from mlesam.model.heads import MaskHead
from mlesam.model.sam2 import NANO, LoadedSam2, Sam2Foundation, preset_config
from test_weights import hub_name, hub_names, random_state

SIZES = ((64, 64), (64, 128), (128, 64))


def ask(target: object, image: Path | None = None, out: Path | None = None) -> tuple[int, str]:
    """Exit status and what is printed."""
    text = io.StringIO()
    return doctor(str(target), {}, Console(file=text, width=80), parity=True, image=image, out=out), text.getvalue()


def silent(what: str, value: str) -> None:
    pass


def of_transformers(shared: Path, state: dict[str, Tensor], config: Sam2Config) -> Sam2Model:
    """Meta's tensors in `transformers`, by the table of names and not by this package's loader."""
    names = hub_names(shared)
    with torch.device("meta"):
        sam2 = Sam2Model(config).eval().requires_grad_(False)
    renamed = {hub_name(key, names): value for key, value in state.items() if "point_embeddings" not in key}
    renamed["prompt_encoder.point_embed.weight"] = torch.cat(
        [state[f"sam_prompt_encoder.point_embeddings.{i}.weight"] for i in range(4)]
    )
    matrix = state["sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    renamed["shared_image_embedding.positional_embedding"] = matrix
    wanted = {name: value.reshape(renamed[name].shape) for name, value in sam2.state_dict().items()}
    sam2.load_state_dict({name: renamed[name] for name in wanted}, assign=True)
    return sam2


def lively_state(shared: Path, size: str) -> dict[str, Tensor]:
    """Random weights through which everything is felt: norms near 1, and tokens, embeddings and positions of ordinary size.

    With all of them small, attention would be uniform and the tokens alike, and a mix-up would stay below any tolerance.
    """
    std = 0.03
    state = random_state(shared, f"sam2.1_hiera_{size}", std=std)
    for key, value in state.items():
        if "norm" in key and key.endswith("weight"):
            state[key] = value + 1
        elif any(word in key for word in ("token", "embed", "gaussian")) and "patch_embed" not in key:
            state[key] = value / std
        elif key.startswith("sam_mask_decoder"):
            state[key] = 3 * value
    return state


# ---------------------------------------------------------------- all four sizes


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
@torch.no_grad()
def test_a_checkpoint_of_this_size_gives_the_numbers_of_transformers(shared: Path, tmp_path: Path, size: str) -> None:
    state = lively_state(shared, size)
    torch.save({"model": state}, tmp_path / "sam2.pt")
    loaded = load_foundation(str(tmp_path / "sam2.pt"))
    # In double precision: in single, weights this lively let the rounding of two CPUs differ by up to 0.004.
    foundation, oracle = loaded.foundation.double(), of_transformers(shared, state, preset_config(size)).double()
    state = {key: value.double() for key, value in state.items()}
    head = MaskHead(loaded.decoder, 4).double()
    head.mask_tokens.weight.copy_(state["sam_mask_decoder.mask_tokens.weight"])  # without the noise of the copies
    decoder = oracle.mask_decoder
    decoder.dynamic_multimask_via_stability = False
    stages: list[Tensor] = []
    oracle.vision_encoder.backbone.register_forward_hook(
        lambda module, inputs, output: stages.extend(output.intermediate_hidden_states)
    )
    torch.manual_seed(0)
    for height, width in SIZES:
        images = torch.randn(2, 3, height, width, dtype=torch.float64)
        stages.clear()
        maps = list(oracle.vision_encoder(images).fpn_hidden_states)
        ours = foundation.stages(images)
        y, x = ((torch.arange(n // 16, dtype=torch.float64) + 0.5) / (n // 16) for n in (height, width))
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        masks = [
            decoder(
                image_embeddings=maps[2] + state["no_mem_embed"].reshape(1, -1, 1, 1),
                image_positional_embeddings=oracle.shared_image_embedding(grid).permute(2, 0, 1).expand(2, -1, -1, -1),
                sparse_prompt_embeddings=torch.zeros(2, 1, 0, 256, dtype=torch.float64),
                dense_prompt_embeddings=state["sam_prompt_encoder.no_mask_embed.weight"].reshape(1, -1, 1, 1),
                multimask_output=several,
                high_resolution_features=[decoder.conv_s0(maps[0]), decoder.conv_s1(maps[1])],
            )[0][:, 0]
            for several in (False, True)
        ]
        pairs = [*zip(ours, stages, strict=True), *zip(foundation.pyramid(ours), maps, strict=True)]
        for mine, other in [*pairs, (head(maps, foundation), torch.cat(masks, dim=1))]:
            assert other.std() > 0.1, "outputs that are nearly constant would prove nothing"
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- the check can fail


@pytest.fixture(scope="module")
def nano() -> Sam2Model:
    return Sam2Model.from_pretrained(NANO, dtype=torch.float32).eval()


def with_a_changed(name: str, sam2: Sam2Model) -> LoadedSam2:
    """A SAM2 and a foundation that is not quite made of it: one number, as a loader with a fault might make it."""
    loaded = LoadedSam2(Sam2Foundation(copy.deepcopy(sam2), "changed"), sam2.mask_decoder, False, sam2)
    if name:
        with torch.no_grad():
            tensor = loaded.foundation.state_dict()[name].flatten()
            tensor[3:4].add_(0.01)
    return loaded


PARTS = {
    "": None,
    "trunk.blocks.4.attn.qkv.weight": "trunk",
    "trunk.pos_embed_window": "trunk",
    "neck.convs.3.bias": "neck",
    "no_memory": "mask decoder",
    "no_mask": "mask decoder",
    "position": "mask decoder",
}


@pytest.mark.parametrize("name", PARTS)
def test_one_changed_number_is_seen_in_its_part_at_every_size_and_in_no_other(nano: Sam2Model, name: str) -> None:
    found = list(compare(with_a_changed(name, nano), SIZES))
    assert len(found) == 3 * len(SIZES)
    for comparison in found:
        assert comparison.equal == (comparison.part != PARTS[name]), comparison
        assert comparison.largest > 0.1
    if not name:
        assert max(c.difference for c in found) <= TOLERANCE


def test_nan_is_not_equal() -> None:
    assert not parity.Comparison("trunk", 64, 64, float("nan"), 1.0).equal
    assert not parity.Comparison("trunk", 64, 64, 2e-5, 0.5).equal
    assert parity.Comparison("trunk", 64, 64, 2e-5, 2.5).equal


def test_a_difference_is_a_fault_of_the_doctor(
    nano: Sam2Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "load_foundation", lambda name: with_a_changed("neck.convs.3.bias", nano))
    monkeypatch.setattr(parity, "SIZES", SIZES)
    status, text = ask("nano", out=tmp_path / "parity.json")
    assert status == 1
    assert "the neck differs from that of transformers by 1.0e-02 at 64x64, more than 1e-05" in text
    record = json.loads((tmp_path / "parity.json").read_text())
    assert [c["equal"] for c in record["comparisons"]] == [True, False, True] * 3
    assert len(record["faults"]) == 3
    assert record["verdict"] == "3 faults, 1 note"


def test_the_nano_foundation_has_parity_and_the_report_can_be_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(parity, "SIZES", SIZES)
    folder = shutil.copytree(NANO, tmp_path / "mine")
    assert main(["doctor", str(folder), "--parity", "--out", str(tmp_path / "parity.json")]) == 0
    text = capsys.readouterr().out
    assert "mask decoder  128x64: differs by " in text
    assert "the published scores were not checked; give --image FILE with the picture https://huggingface.co/" in text
    record = json.loads((tmp_path / "parity.json").read_text())
    assert str(tmp_path) not in json.dumps(record), "nobody else's business"
    assert record["checkpoint"] == "mine"
    assert record["files"] == {"model.safetensors": check_checkpoint(folder).files["model.safetensors"]}
    assert record["foundation_sha256"] == load_foundation("nano").foundation.sha256
    assert set(record["versions"]) == {"mlesam", "transformers", "torch", "python"}
    assert all(c["difference"] <= 1e-5 for c in record["comparisons"])
    assert record["scores"] is None
    assert record["verdict"] == "no faults, 1 note"


# ---------------------------------------------------------------- published scores


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1100x700 pixels of smooth colours, with one object around the point that is asked for."""
    small = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((1100, 700), Image.Resampling.BICUBIC)
    image.paste((230, 40, 40), (900, 500, 1060, 660))
    path = tmp_path_factory.mktemp("picture") / "car.png"
    image.save(path)
    return path


def small_input(config: Sam2Config) -> Sam2Config:
    """The same model for pictures of 256 pixels instead of 1024, so that a test need not wait."""
    config.prompt_encoder_config.image_size = 256
    config.vision_config.backbone_feature_sizes = [[64, 64], [32, 32], [16, 16]]
    return config


@torch.no_grad()
def plain_scores(sam2: Sam2Model, picture: Path) -> tuple[float, ...]:
    """What a user of `transformers` alone would compute, with Pillow's resizing."""
    image = Image.open(picture).convert("RGB")
    pixels = np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    pixels = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    point = torch.tensor([[[[1000 / image.width * 256, 600 / image.height * 256]]]])
    output = sam2(pixel_values=torch.from_numpy(pixels).float().permute(2, 0, 1)[None], input_points=point)
    return tuple(output.iou_scores.flatten().tolist())


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pre-trained nano as a SAM 2.1 video model for pictures of 256 pixels."""
    folder = tmp_path_factory.mktemp("video") / "nano"
    sam2 = Sam2Model.from_pretrained(NANO, dtype=torch.float32)
    small_input(sam2.config)
    sam2.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    names = ("memory_attention.layer.weight", "occlusion_spatial_embedding_parameter")
    save_file(
        {**weights, **{n: torch.zeros(2) for n in names}}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    return folder


def publish(monkeypatch: pytest.MonkeyPatch, **table: tuple[float, ...]) -> None:
    """Other scores than Meta's, by size, as those of SAM 2.1."""
    monkeypatch.setattr(parity, "SCORES", {("2.1", size): values for size, values in table.items()})
    monkeypatch.setattr(parity, "SIZES", ())


def test_published_scores_are_met_by_the_weights_and_the_picture_they_belong_to(
    video: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain_scores(Sam2Model.from_pretrained(video, dtype=torch.float32).eval(), picture)
    assert max(expected) - min(expected) > 0.1, "three scores that are alike would show no mix-up"
    publish(monkeypatch, nano=expected)
    status, text = ask(video, picture, tmp_path / "parity.json")
    assert status == 0, text
    assert "published     " + " ".join(f"{v:.4f}" for v in expected) + " for SAM 2.1 nano, to 0.01" in text
    found = json.loads((tmp_path / "parity.json").read_text())["scores"]
    assert found["met"] == ["2.1"]
    assert found["mlesam"] == pytest.approx(expected, abs=5e-3)
    assert found["transformers"] == pytest.approx(found["mlesam"], abs=1e-5)
    assert len(found["image_sha256"]) == 64


def test_published_scores_are_missed_by_other_values(
    video: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain_scores(Sam2Model.from_pretrained(video, dtype=torch.float32).eval(), picture)
    for wrong in ((expected[0] + 0.02, *expected[1:]), expected[::-1]):
        publish(monkeypatch, nano=wrong)
        status, text = ask(video, picture)
        assert status == 1
        assert "the scores are not those published for SAM 2.1 nano: the picture is not https://" in text


def test_published_scores_are_missed_by_another_point(
    video: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, nano=plain_scores(Sam2Model.from_pretrained(video, dtype=torch.float32).eval(), picture))
    monkeypatch.setattr(parity, "POINT", (600.0, 100.0))
    assert ask(video, picture)[0] == 1


@pytest.mark.parametrize("mixed_up", [False, True])
def test_a_loader_that_mixes_tensors_up_misses_the_published_scores(
    shared: Path, tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, mixed_up: bool
) -> None:
    """Both sides of the comparison part by part would have the same wrong tensors; this is what the scores are for."""
    state = lively_state(shared, "tiny")
    torch.save({"model": state}, tmp_path / "sam2.pt")
    expected = plain_scores(of_transformers(shared, state, small_input(preset_config("tiny"))), picture)
    assert all(0.05 < score < 0.95 for score in expected)
    publish(monkeypatch, tiny=expected)
    monkeypatch.setattr(mlesam.model.sam2, "preset_config", lambda size: small_input(preset_config(size)))
    if mixed_up:
        rename = checkpoints.rename
        norm = "vision_encoder.backbone.blocks.3.layer_norm1"
        swap = {f"{norm}.weight": f"{norm}.bias", f"{norm}.bias": f"{norm}.weight"}
        monkeypatch.setattr(checkpoints, "rename", lambda key: swap.get(rename(key), rename(key)))
    found = check_parity(str(tmp_path / "sam2.pt"), check_checkpoint(tmp_path / "sam2.pt"), picture, silent)
    assert bool(found.faults) == mixed_up
    assert found.record["version"] == "2.1"
    assert found.record["size"] == "tiny"


def test_a_foundation_that_scores_otherwise_than_transformers_is_a_fault(
    video: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_foundation(str(video))
    expected = scores(loaded, np.asarray(Image.open(picture)))[0]
    publish(monkeypatch, nano=tuple(expected))
    changed = with_a_changed("", loaded.sam2)
    changed.foundation.no_memory.add_(0.05)
    monkeypatch.setattr(parity, "load_foundation", lambda name: changed)
    status, text = ask(video, picture)
    assert status == 1
    assert "the scores of this package differ from those of transformers by more than 0.0001" in text


def test_an_image_model_does_not_tell_its_version_so_either_will_do(
    video: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam2 = Sam2Model.from_pretrained(video, dtype=torch.float32).eval()
    sam2.save_pretrained(tmp_path / "image")
    expected = plain_scores(sam2, picture)
    publish(monkeypatch)
    monkeypatch.setattr(parity, "SCORES", {("2.1", "nano"): (0.0, 0.0, 0.0), ("2.0", "nano"): expected})
    assert ask(tmp_path / "image", picture)[0] == 0
    assert ask(video, picture)[0] == 1, "this one says that it is 2.1"


def test_weights_of_which_nothing_was_published_are_told_so(
    video: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch)
    status, text = ask(video, picture)
    assert status == 0
    assert "no scores were published of these weights" in text


def test_the_table_holds_what_the_conversion_script_asserts() -> None:
    """Copied from huggingface/transformers, src/transformers/models/sam2/convert_sam2_to_hf.py, a second time."""
    script = {
        "sam2.1_hiera_tiny": [0.0316, 0.9647, 0.1029], "sam2.1_hiera_small": [0.9664, 0.1494, 0.0456],
        "sam2.1_hiera_base_plus": [0.0361, 0.9775, 0.1307], "sam2.1_hiera_large": [0.9648, 0.0371, 0.1898],
        "sam2_hiera_tiny": [0.0439, 0.9567, 0.1415], "sam2_hiera_small": [0.9593, 0.1633, 0.0392],
        "sam2_hiera_base_plus": [0.0423, 0.9815, 0.0897], "sam2_hiera_large": [0.9514, 0.0535, 0.1787],
    }  # fmt: skip
    written = {f"sam2{'' if v == '2.0' else '.1'}_hiera_{size}": list(s) for (v, size), s in parity.SCORES.items()}
    assert written == script


def test_preprocessing_squashes_and_normalises_as_pillow_does(picture: Path) -> None:
    image = Image.open(picture)
    ours = preprocess(np.asarray(image), 256)
    theirs = np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    theirs = (theirs - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    assert ours.shape == (1, 3, 256, 256)
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - theirs).max() <= 1.01 / 255 / 0.224, "one level of 8 bits"


# ---------------------------------------------------------------- what is refused


def test_an_interrupted_download_is_named_before_anything_is_computed(shared: Path, tmp_path: Path) -> None:
    part = shared / "data" / "sam2_key_layout" / "raw_prefix" / "sam2.1_hiera_tiny.pt.first1310720"
    shutil.copy(part, tmp_path / "sam2.1_hiera_tiny.pt")
    status, text = ask(tmp_path / "sam2.1_hiera_tiny.pt")
    assert status == 1
    assert "download was cut off" in text
    assert "nothing was computed, since the weights are faulty" in text


def test_a_picture_without_the_point_is_refused_at_once(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480)).save(tmp_path / "car.png")
    with pytest.raises(
        RequestError, match=r"640x480 pixels, and the point 1000, 600 is not in it; --image takes https"
    ):
        ask("nano", tmp_path / "car.png")
    Image.new("L", (1100, 700)).save(tmp_path / "grey.png")
    with pytest.raises(RequestError, match=r"grey.png is no 8-bit colour picture"):
        ask("nano", tmp_path / "grey.png")
    with pytest.raises(DataError, match="there is no file"):
        ask("nano", tmp_path / "nothing.png")


REFUSED = {
    "an image alone": (["nano", "--image", "car.png"], "--image goes with --parity"),
    "an output alone": (["nano", "--out", "x.json"], "--out goes with --parity"),
    "no weights": (["--parity"], "--parity runs SAM2 weights; give a .pt file"),
    "a recipe": (["recipe.yaml", "--parity"], "recipe.yaml is a recipe; give its foundation"),
    "a recipe's field": (["nano", "--parity", "--model.rank", "3"], "--model.rank sets a field of a recipe"),
    "nothing that is there": (["nowhere.pt", "--parity"], "there is no 'nowhere.pt'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_a_wrong_request_to_give(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("")
    words, says = REFUSED[name]
    assert main(["doctor", *words]) == 2
    assert says in capsys.readouterr().err
