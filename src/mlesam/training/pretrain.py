"""Pre-trains the nano foundation the way SAM was: masks from point prompts on colour pictures, without class labels.

``python -m mlesam.training.pretrain --out DIR`` writes a ``transformers`` folder (config, fp16 safetensors, card). The
pictures are yards of the procedural world: places, assets and seeds that no street of any dataset has.

Losses after SAM (arXiv 2304.02643, section A) and SAM2 (arXiv 2408.00714, section D.2): focal, dice and the error of the
predicted IoU. A single point is ambiguous and gets three masks, of which only the best is trained; several points get one.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Sam2Model

import mlesam
from mlesam.config import TrainingConfig
from mlesam.model.checkpoints import replace_file, save_plain
from mlesam.model.heads import fourier_position
from mlesam.model.sam2 import Sam2Foundation, preset_config
from mlesam.sensors.spec import BUILTIN
from mlesam.training.optimizer import learning_rate, make_optimizer
from mlesam.world.render import VERSION, render_yard

CROP, MARGIN = 128, 32
"""Side of the training crop in pixels, and how much larger the pictures are rendered."""
PROMPTS, POINTS = 8, 3
"""Masks asked for per picture, and the most points that ask for one."""
PIXELS = 48
"""Pixels per picture whose look-alikes are asked for."""
LEAST_AREA = 100
"""Pixels that a target must show: about six cells of the mask."""
FOCAL, DICE = 5.0, 3.0
"""Weights of the losses. SAM's 20 to 1 kept the decoder at empty masks for thousands of steps of this small training."""
TRAIN, HELD_OUT = 0, 1
"""Seeds of the yards."""
NOTHING = -1
"""Label of an unused point, as ``Sam2PromptEncoder`` has it; 1 lies in the mask, 0 outside."""


class Yards(Dataset):
    """Pictures with prompts, rendered as they are asked for: ``(seed, index)``."""

    def __getitem__(self, address: tuple[int, int]) -> dict[str, Tensor]:
        seed, index = address
        rng = np.random.default_rng([seed, index])
        frame = render_yard(seed, index, CROP + MARGIN)
        top, left = rng.integers(0, MARGIN + 1, 2)
        picture = frame.images["rgb"][top : top + CROP, left : left + CROP]
        instances = frame.instances[top : top + CROP, left : left + CROP]
        if rng.random() < 0.5:
            picture, instances = picture[:, ::-1], instances[:, ::-1]
        values = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 255
        if seed == TRAIN:
            values = recolored(values, rng)
        targets, points, labels = prompts(instances, rng)
        spec = BUILTIN["rgb"]
        cells = rng.choice(instances.size, PIXELS, replace=False)
        same = instances.ravel()[cells][:, None, None] == instances[None]
        places = np.stack([cells % CROP, cells // CROP], axis=1).astype(np.float32)
        return {
            "image": spec.normalized(values), "targets": targets, "points": points, "labels": labels,
            "pixels": torch.from_numpy(places), "same": torch.from_numpy(same.astype(np.float32)),
        }  # fmt: skip


def recolored(values: Tensor, rng: np.random.Generator) -> Tensor:
    """Another exposure and contrast; (3, H, W) in 0..1. Swapped and inverted colours were tried: they slow learning down."""
    values = values * float(np.exp(rng.normal(0, 0.2)))
    middle = values.mean()
    return (middle + (values - middle) * float(np.exp(rng.normal(0, 0.2)))).clamp(0, 1)


def prompts(instances: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """What to ask for in a picture: any visible object, the larger the likelier (by the square root of its area).

    Returns:
        targets (PROMPTS, H, W) float32 masks; points (PROMPTS, POINTS, 2) as x, y in pixels; labels (PROMPTS, POINTS).
    """
    numbers, areas = np.unique(instances, return_counts=True)
    numbers, areas = numbers[areas >= LEAST_AREA], areas[areas >= LEAST_AREA]
    chosen = rng.choice(numbers, PROMPTS, p=np.sqrt(areas) / np.sqrt(areas).sum())
    height, width = instances.shape
    targets = np.zeros((PROMPTS, height, width), dtype=np.float32)
    points = np.zeros((PROMPTS, POINTS, 2), dtype=np.float32)
    labels = np.full((PROMPTS, POINTS), NOTHING, dtype=np.int64)
    for i, number in enumerate(chosen):
        mask = instances == number
        targets[i] = mask
        for k in range(1 if rng.random() < 0.5 else POINTS):
            inside = k == 0 or mask.all() or rng.random() < 0.5
            place = rng.choice(np.flatnonzero(mask if inside else ~mask))
            points[i, k] = place % width, place // width
            labels[i, k] = int(inside)
    return torch.from_numpy(targets), torch.from_numpy(points), torch.from_numpy(labels)


class Addresses(Sampler):
    """Batches of new pictures for the steps: no picture is seen twice."""

    def __init__(self, seed: int, steps: int, batch: int) -> None:
        self.seed, self.steps, self.batch = seed, steps, batch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.steps):
            yield [(self.seed, step * self.batch + i) for i in range(self.batch)]


class Similarity(nn.Module):
    """The plainest answer to a point: the mask is what looks alike. It gives the trunk a direct gradient from the first
    step on, while SAM's decoder has yet to learn to look where the point is, and is thrown away afterwards."""

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(width, hidden) for _ in range(3))
        self.place = nn.Linear(width, hidden)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.offset = nn.Parameter(torch.tensor(-7.0))

    def forward(self, maps: list[Tensor], points: Tensor, position: Tensor) -> Tensor:
        """Maps (B, C, h, w) at strides 4, 8, 16 and points (B, K, 2) in pixels to mask logits (B, K, 1, H / 4, W / 4).

        Args:
            position: (2, C / 2), random Fourier matrix: two trees look alike and are told apart by where they are.
        """
        size = maps[0].shape[-2:]
        place = self.place(fourier_position(position, *size).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        levels = [p(m.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for p, m in zip(self.project, maps, strict=True)]
        joined = sum((F.interpolate(x, size=size, mode="bilinear") for x in levels), start=place)
        unit = F.normalize(joined, dim=1)
        columns, rows = (points / 4).long().clamp(min=0).unbind(dim=-1)
        at = unit.permute(0, 2, 3, 1)[torch.arange(len(unit))[:, None], rows, columns]
        return (self.scale * torch.einsum("bkc,bchw->bkhw", at, unit) + self.offset)[:, :, None]


class PointPrompted(nn.Module):
    """SAM2 with point prompts at any size, through the project's own loop over the trunk."""

    def __init__(self, sam2: Sam2Model) -> None:
        super().__init__()
        self.sam2 = sam2
        self.foundation = Sam2Foundation(sam2, "nano")
        self.sam2.requires_grad_(True)
        self.similarity = Similarity(self.foundation.width)

    def forward(
        self, images: Tensor, points: Tensor, labels: Tensor, pixels: Tensor, several: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks for points.

        Args:
            images: (B, 3, H, W), normalised. points: (B, K, P, 2) as x, y in pixels. labels: (B, K, P).
            pixels: (B, N, 2), whose look-alikes are asked for.
            several: three masks for an ambiguous prompt, or one.

        Returns:
            mask logits (B, K, 3 or 1, H / 4, W / 4), predicted IoUs (B, K, 3 or 1), and logits (B, N, 1, H / 4, W / 4) by
            similarity alone.
        """
        sam2, encoder = self.sam2, self.sam2.prompt_encoder
        fine, middle, coarse = self.foundation(images)
        embedded = encoder.shared_embedding(points + 0.5, tuple(images.shape[-2:]))
        embedded = torch.where(labels[..., None] == NOTHING, encoder.not_a_point_embed.weight, embedded)
        position = fourier_position(sam2.shared_image_embedding.positional_embedding, *coarse.shape[-2:])
        masks, quality, _, _ = sam2.mask_decoder(
            image_embeddings=coarse + sam2.no_memory_embedding.reshape(1, -1, 1, 1),
            image_positional_embeddings=position.expand(len(images), -1, -1, -1),
            sparse_prompt_embeddings=embedded + encoder.point_embed(labels.clamp(min=0)) * (labels >= 0)[..., None],
            dense_prompt_embeddings=encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
            multimask_output=several,
            high_resolution_features=[sam2.mask_decoder.conv_s0(fine), sam2.mask_decoder.conv_s1(middle)],
        )
        alike = self.similarity([fine, middle, coarse], pixels, sam2.shared_image_embedding.positional_embedding)
        return masks, quality, alike


def livelier_start(sam2: Sam2Model) -> None:
    """Start as Meta's code does: PyTorch's own initialisation. That of ``transformers`` is for loading, not for training:
    its weights are small, its positions zero and its tokens nearly equal."""
    for module in sam2.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)):
            module.reset_parameters()
    trunk = sam2.vision_encoder.backbone
    for position in (trunk.pos_embed, trunk.pos_embed_window):
        nn.init.trunc_normal_(position, std=0.02)


def losses(masks: Tensor, quality: Tensor, alike: Tensor, targets: Tensor, same: Tensor) -> dict[str, Tensor]:
    """Losses of one batch of prompts.

    Args:
        masks: (B, K, M, h, w) logits. quality: (B, K, M) predicted IoU. alike: (B, N, 1, h, w) logits by similarity.
        targets: (B, K, H, W), 1 inside. same: (B, N, H, W), 1 in the object of each pixel.
    """
    share = F.interpolate(targets, size=masks.shape[-2:], mode="area")[:, :, None]
    focal, dice = mask_losses(masks, share)
    best = (FOCAL * focal + DICE * dice).argmin(dim=2, keepdim=True)
    error = (quality - mask_iou(masks, share)).square().mean()
    parts = {"focal": focal.gather(2, best).mean(), "dice": dice.gather(2, best).mean(), "iou_error": error}
    plain = [x.mean() for x in mask_losses(alike, F.interpolate(same, size=masks.shape[-2:], mode="area")[:, :, None])]
    parts |= {"alike_focal": plain[0], "alike_dice": plain[1]}
    loss = FOCAL * (parts["focal"] + parts["alike_focal"]) + DICE * (parts["dice"] + parts["alike_dice"]) + error
    return {"loss": loss, **parts}


def mask_losses(masks: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice loss (B, K, M) of logits (B, K, M, h, w) against shares (B, K, 1, h, w) of the target in each cell."""
    share = share.expand_as(masks)
    cross_entropy = F.binary_cross_entropy_with_logits(masks, share, reduction="none")
    probability = masks.sigmoid()
    wrong = (probability - share).abs()
    focal = (wrong.square() * cross_entropy).mean(dim=(3, 4))
    overlap, total = (probability * share).sum(dim=(3, 4)), (probability + share).sum(dim=(3, 4))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    return focal, dice


def mask_iou(masks: Tensor, share: Tensor) -> Tensor:
    """IoU of logits (..., h, w) above 0 with targets above a half."""
    predicted, truth = masks > 0, share > 0.5
    union = (predicted | truth).sum(dim=(-2, -1))
    return (predicted & truth).sum(dim=(-2, -1)) / union.clamp(min=1)


@torch.inference_mode()
def held_out(model: PointPrompted, frames: int = 128) -> dict[str, float]:
    """Mean IoU with the objects of yards never trained on, from a single point, at the size of the picture."""
    model.eval()
    best, first, count = 0.0, 0.0, 0
    for batch in _loader(HELD_OUT, frames // 16, 16, workers=0):
        labels = batch["labels"].clone()
        labels[:, :, 1:] = NOTHING
        masks, quality, _ = model(batch["image"], batch["points"], labels, batch["pixels"], several=True)
        full = F.interpolate(masks.flatten(0, 1), size=batch["targets"].shape[-2:], mode="bilinear")
        ious = mask_iou(full.unflatten(0, masks.shape[:2]), batch["targets"][:, :, None])
        best += float(ious.max(dim=2).values.sum())
        first += float(ious.gather(2, quality.argmax(dim=2, keepdim=True)).sum())
        count += ious.shape[0] * ious.shape[1]
    model.train()
    return {
        "iou_best_of_three": round(best / count, 4),
        "iou_most_confident": round(first / count, 4),
        "prompts": count,
    }


def _loader(seed: int, steps: int, batch: int, workers: int) -> DataLoader:
    return DataLoader(Yards(), batch_sampler=Addresses(seed, steps, batch), num_workers=workers)  # type: ignore[arg-type]


def pretrain(out: Path, steps: int, batch: int, lr: float, workers: int, every: int = 250) -> dict[str, object]:
    """Train the preset ``nano`` from a random start and write it to ``out`` as a ``transformers`` folder."""
    torch.manual_seed(0)
    sam2 = Sam2Model(preset_config("nano"))
    livelier_start(sam2)
    model = PointPrompted(sam2).train()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = TrainingConfig(steps=steps, batch=batch, lr=lr, weight_decay=0.05, warmup=0.04)
    optimizer = make_optimizer(model.to(device), config)
    log: list[dict[str, float]] = []
    began = time.monotonic()
    for step, data in enumerate(_loader(TRAIN, steps, batch, workers)):
        data = {name: tensor.to(device) for name, tensor in data.items()}
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        several = step % 2 == 0  # an ambiguous prompt is a single point
        if several:
            data["labels"][:, :, 1:] = NOTHING
        masks, quality, alike = model(data["image"], data["points"], data["labels"], data["pixels"], several)
        parts = losses(masks, quality, alike, data["targets"], data["same"])
        parts["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log.append({name: float(value.detach()) for name, value in parts.items()})
        if (step + 1) % every == 0 or step + 1 == steps:
            recent = {name: float(np.mean([row[name] for row in log[-every:]])) for name in log[-1]}
            shown = "  ".join(f"{name} {value:.4f}" for name, value in recent.items())
            print(f"step {step + 1} of {steps}  {shown}  {time.monotonic() - began:.0f} s", flush=True)
            save(sam2, out)
    result: dict[str, object] = {
        "steps": steps, "batch": batch, "lr": lr, "pictures": steps * batch, "crop": CROP, "prompts_per_picture": PROMPTS,
        "seconds": round(time.monotonic() - began), "device": str(device), "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "mlesam": mlesam.__version__, "world_version": VERSION, "held_out": held_out(model.cpu()),
    }  # fmt: skip
    replace_file(out / "training.json", json.dumps(result, indent=2) + "\n")
    return result


def save(sam2: Sam2Model, out: Path) -> None:
    """Config and half-precision weights, as ``transformers`` reads them."""
    out.mkdir(parents=True, exist_ok=True)
    sam2.config.save_pretrained(out)
    save_plain(out / "model.safetensors", {n: t.half() for n, t in sam2.state_dict().items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(pretrain(**vars(options)), indent=2))


if __name__ == "__main__":
    main()
