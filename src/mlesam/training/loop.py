"""The training loop: one for a CPU, one GPU and several, through ``accelerate``."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor

import mlesam
from mlesam.config import Recipe, TrainingConfig, dump_recipe
from mlesam.data.loading import (
    EvaluationFrames,
    StepSampler,
    TrainingFrames,
    batches,
    evaluation_loader,
    training_loader,
)
from mlesam.errors import DataError, RequestError, WorkError
from mlesam.model.checkpoints import file_sha256, load_tensors, replace_file, save_tensors
from mlesam.model.mlesam import MLESAM
from mlesam.model.run import LAST, LOG, RECIPE, RECORD, WEIGHTS, Run, load_weights, save_weights
from mlesam.sample import Batch
from mlesam.training.calibration import calibrate_run, owes_calibration
from mlesam.training.look import learn_look, owes_look
from mlesam.training.optimizer import learning_rate, make_optimizer
from mlesam.training.prepare import Prepared, prepare, refuse_existing
from mlesam.training.progress import Progress
from mlesam.training.step import Step, led_pass, rows_to_keep
from mlesam.training.trust import learn_trust, owes_trust
from mlesam.training.validation import collapses, validate


def train(
    recipe: Recipe,
    out: Path,
    *,
    init: Path | None = None,
    extend: Path | None = None,
    resume: bool = False,
    command: str = "",
    report: Progress | None = None,
) -> Run:
    """Train a recipe and write the run.

    Args:
        out: the run's directory. It must not hold a run yet, unless ``resume``.
        init: a run whose experts and router are the start. extend: a run that gets further sensors.
        resume: go on from the last checkpoint of the run in ``out``, whose stored recipe this must be.
        command: what is written into the run's record.

    Returns:
        The finished run.
    """
    report = report or Progress()
    if not resume:
        refuse_existing(out)
    elif Run.load(out).recipe != recipe:
        raise RequestError(f"{out} was started with another recipe; resume it with the one stored in it.")
    prepared = prepare(recipe, None if extend is None else Run.load(extend))
    if resume and (changed := _changed_frames(prepared, out)):
        raise DataError(
            f"the frames of {prepared.dataset.name} have changed since {out} was started ({changed}); start a new run."
        )
    for note in prepared.notes:
        report.say(note)
    model = prepared.model(None if resume else init)
    report.say(model.parameter_summary())
    trainer = Trainer(prepared, model, out, report)
    if resume:
        trainer.restore()
    elif trainer.main:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / RECORD, json.dumps(_record(prepared, model, command, init), indent=2) + "\n")
        replace_file(out / RECIPE, dump_recipe(prepared.recipe))
    if trainer.step < trainer.config.steps:
        trainer.run()
    if trainer.main:
        learn_trust(prepared, out, report)
        learn_look(prepared, out, report)
        calibrate_run(prepared, out, report)
    trainer.accelerator.wait_for_everyone()
    return Run.load(out)


def precision(config: TrainingConfig, foundation: str, device: torch.device) -> str:
    """``bf16`` or ``no`` for accelerate. On a CPU, bf16 pays from Hiera-tiny on, where the processor has it."""
    if config.precision != "auto":
        return "bf16" if config.precision == "bf16" else "no"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bf16" if has and foundation != "nano" else "no"


class Trainer:
    """State of one training: model, optimiser, step, best value, log."""

    def __init__(self, prepared: Prepared, model: MLESAM, out: Path, report: Progress) -> None:
        self.prepared, self.out, self.report = prepared, out, report
        self.config = prepared.recipe.training
        self.model = model
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        AcceleratorState._reset_state()  # a training before this one in the same process may have had another precision
        self.accelerator = Accelerator(
            mixed_precision=precision(self.config, prepared.recipe.model.foundation, device),
            # A batch without a sensor gives its expert no gradient, which is no error.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        world = self.accelerator.num_processes
        if self.config.batch // self.config.accumulate % world:
            raise RequestError(
                f"training.batch {self.config.batch} in {self.config.accumulate} parts cannot be shared by {world} processes; "
                "make each part a multiple of them."
            )
        self.module = self.accelerator.prepare(Step(model, self.config))
        self.optimizer = make_optimizer(model, self.config)
        self.main = self.accelerator.is_main_process
        self.step = 0
        self.best: float | None = None
        self.validations: list[dict[str, Any]] = []
        self.every = self.config.validate_every or max(1, self.config.steps // 10)
        self.board: Any = None

    # ------------------------------------------------------------ the loop

    def run(self) -> None:
        config, steps = self.config, self.config.steps
        self.board = _tensorboard(self.out) if config.tensorboard and self.main else None
        micro_batches = batches(self._training_loader())
        started = time.monotonic()
        try:
            self.report.start(steps, self.step)
            while self.step < steps:
                self._log(
                    {"event": "step", **self._one_step(micro_batches), "seconds": round(time.monotonic() - started, 3)}
                )
                if self.step % self.every == 0 or self.step == steps:
                    self._validate()
                    self._checkpoint()
            done = {"event": "done", "step": steps, "lr": learning_rate(steps, config), "best_miou": self.best}
            self._log({**done, "peak_mib": _peak_mib()})
        except KeyboardInterrupt:
            self._checkpoint()
            raise WorkError(
                f"stopped at step {self.step} of {steps}; go on with: mlesam train --out {self.out} --resume"
            ) from None
        finally:
            self.report.stop()
            if self.board is not None:
                self.board.close()

    def _one_step(self, micro_batches: Iterator[Batch]) -> dict[str, Any]:
        config = self.config
        rate = learning_rate(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.module.train()
        totals: dict[str, float] = {}
        for micro in range(config.accumulate):
            batch = next(micro_batches).to(self.accelerator.device, non_blocking=True)
            subsets, led = self._subsets(batch, micro), led_pass(self.model, batch, self._rng(micro, 1))
            last = micro == config.accumulate - 1
            with self.accelerator.no_sync(self.module) if not last else _nothing():
                losses = self.module(batch, subsets, led)
                self._stop_if_not_finite(losses["loss"], "loss", batch)
                if losses["loss"].requires_grad:  # not where none of the frames has a sensor that is trained
                    self.accelerator.backward(losses["loss"] / config.accumulate)
            for name, value in losses.items():
                everywhere = self.accelerator.reduce(value.detach(), "mean")
                totals[name] = totals.get(name, 0.0) + float(everywhere) / config.accumulate  # type: ignore[arg-type]
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        norm = self.accelerator.clip_grad_norm_(trainable, config.clip if config.clip else float("inf"))
        self._stop_if_not_finite(norm, "gradient", batch)  # type: ignore[arg-type]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.report.advance(self.step, totals["loss"])
        return {"step": self.step, **totals, "lr": rate, "grad_norm": float(norm)}  # type: ignore[arg-type]

    def _subsets(self, batch: Batch, micro: int) -> list[dict[str, Tensor]]:
        if not self.config.modality_dropout:
            return []
        rng = self._rng(micro)
        drawn = [rows_to_keep(batch, self.config.modality_dropout, rng) for _ in range(self.config.subsets)]
        return [{m: k.to(self.accelerator.device) for m, k in rows.items()} for rows in drawn if rows is not None]

    def _rng(self, micro: int, *purpose: int) -> np.random.Generator:
        """Of this step, process and micro-batch; ``purpose`` tells several draws apart."""
        seed = self.prepared.recipe.seed
        return np.random.default_rng([seed, self.step, micro, self.accelerator.process_index, *purpose])

    def _stop_if_not_finite(self, value: Tensor, what: str, batch: Batch) -> None:
        if not bool(torch.isfinite(value)):
            raise WorkError(
                f"the {what} is {float(value.detach())} at step {self.step + 1}, with the samples {', '.join(batch.ids)}; "
                f"look at these frames, or lower training.lr. The last checkpoint in {self.out} is untouched."
            )

    def _training_loader(self):
        prepared, config = self.prepared, self.config
        sampler = StepSampler(
            len(prepared.train),
            config.batch,
            prepared.recipe.seed,
            self.step,
            config.steps,
            config.accumulate,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        data = prepared.recipe.data
        frames = TrainingFrames(prepared.train, prepared.sensors, prepared.classes, data, prepared.recipe.seed)
        return training_loader(frames, sampler, data.workers)

    def _validate(self) -> None:
        prepared, accelerator = self.prepared, self.accelerator
        if not prepared.val:
            if self.main:
                save_weights(self.model, self.out / WEIGHTS, {"step": self.step, "miou": None})
            return
        share = prepared.val[accelerator.process_index :: accelerator.num_processes]
        frames = EvaluationFrames(share, prepared.sensors, prepared.classes, prepared.recipe.data.resize)
        self.model.eval()
        with accelerator.autocast():
            result = validate(self.model, batches(evaluation_loader(frames)), lambda t: accelerator.reduce(t, "sum"))
        warnings = collapses(result, self.validations)
        self.validations.append(result)
        self._log({"event": "validation", "step": self.step, **result, "warnings": warnings})
        self.report.validated(self.step, result, warnings)
        miou = result["miou"]
        if miou is not None and (self.best is None or miou > self.best):
            self.best = miou
            if self.main:
                save_weights(self.model, self.out / WEIGHTS, {"step": self.step, "miou": miou})

    # ------------------------------------------------------------ log and checkpoints

    def _log(self, event: dict[str, Any]) -> None:
        if not self.main:
            return
        with (self.out / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
        if self.board is not None:
            for key, value in event.items():
                if isinstance(value, float) and key != "seconds":
                    self.board.add_scalar(f"{event['event']}/{key}", value, event["step"])

    def _checkpoint(self) -> None:
        if not self.main:
            return
        state = self.model.state_dict()
        tensors = {f"model.{n}": state[n] for n in self.model.saved_names}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        metadata = {"step": self.step, "best": self.best, "foundation_sha256": self.model.foundation_sha256}
        save_tensors(self.out / LAST, tensors, {**metadata, "validations": self.validations})

    def restore(self) -> None:
        """Continue from the last checkpoint; without one, from the start. The log is cut back to it."""
        path = self.out / LAST
        if path.is_file():
            metadata = load_weights(self.model, path, "model.")
            self.step, self.best = int(metadata["step"]), metadata["best"]  # type: ignore[call-overload, assignment]
            self.validations = metadata["validations"]  # type: ignore[assignment]
            saved, _ = load_tensors(path, "optimizer.")
            for name, parameter in self.model.named_parameters():
                if not parameter.requires_grad:
                    continue
                own = {k: v for k, v in saved.items() if k.rpartition(".")[0] == name}
                if own:
                    state = {k.rpartition(".")[2]: v for k, v in own.items()}
                    self.optimizer.state[parameter] = {
                        k: v if k == "step" else v.to(parameter.device) for k, v in state.items()
                    }
        owed = owes_trust(self.out) or owes_look(self.out) or owes_calibration(self.prepared, self.out)
        if self.step >= self.config.steps and not owed:
            raise RequestError(f"{self.out} is finished ({self.step} of {self.config.steps} steps); nothing to resume.")
        self.report.say(f"going on from step {self.step} of {self.config.steps}")
        if self.main and (self.out / LOG).is_file():
            lines = [json.loads(line) for line in _whole_lines(self.out / LOG)]
            kept = [json.dumps(e) for e in lines if e.get("step", 0) <= self.step]
            replace_file(self.out / LOG, "".join(f"{line}\n" for line in kept))


def _whole_lines(path: Path) -> list[str]:
    """A killed process may have left half a line at the end."""
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def _peak_mib() -> float | None:
    """The most memory so far: of the GPU's tensors, or else resident memory of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def _tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RequestError("training.tensorboard needs the package tensorboard; install mlesam[tensorboard].") from None
    return SummaryWriter(str(out / "tensorboard"))


def _frame_record(prepared: Prepared) -> dict[str, Any]:
    """How many frames a training has, and a hash of their ids."""
    ids = json.dumps([[f.id for f in prepared.train], [f.id for f in prepared.val]])
    return {"train": len(prepared.train), "val": len(prepared.val), "sha256": hashlib.sha256(ids.encode()).hexdigest()}


def _changed_frames(prepared: Prepared, out: Path) -> str:
    """What differs between the frames now and those the run was started with; empty where nothing does."""
    before = json.loads((out / RECORD).read_text(encoding="utf-8"))["frames"]
    now = _frame_record(prepared)
    counts = [
        f"{split} {before[split]} then, {now[split]} now" for split in ("train", "val") if before[split] != now[split]
    ]
    return ", ".join(counts) or ("other ids" if before["sha256"] != now["sha256"] else "")


def _record(prepared: Prepared, model: MLESAM, command: str, init: Path | None) -> dict[str, Any]:
    import accelerate
    import transformers

    old = prepared.extends
    return {
        "command": command,
        "init": None if init is None else str(init),
        "extends": None if old is None else {"run": str(old.path), "sha256": file_sha256(old.path / old.weights)},
        "seed": prepared.recipe.seed,
        "foundation": {
            "name": prepared.recipe.model.foundation,
            "revision": model.foundation.commit or prepared.recipe.model.revision,
            "source": model.foundation.source,
            "sha256": model.foundation_sha256,
        },
        "parameters": {
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "total": sum(p.numel() for p in model.parameters()),
        },
        "frames": _frame_record(prepared),
        "notes": prepared.notes,
        "versions": {
            "mlesam": mlesam.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
            "numpy": np.__version__,
        },
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "argv": sys.argv[1:],
    }
