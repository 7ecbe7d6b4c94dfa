"""``mlesam demo``: the whole story on the procedural world, from no data at all to a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from mlesam.config import Recipe, load_recipe
from mlesam.errors import refuse_occupied
from mlesam.world import WorldOptions, write_world

OPTIONS = WorldOptions(frames=480, size=160)
Counter = Callable[[Console, str], AbstractContextManager[Callable[[int, int], None]]]


def demo_recipe(overrides: dict[str, str]) -> Recipe:
    """The packaged recipe, with ``{"section.key": "text"}`` on top."""
    with as_file(files("mlesam") / "demo.yaml") as path:
        return load_recipe(path, overrides)


def _recipe_file() -> Path:
    """The packaged recipe, as a path that can be typed from here."""
    path = Path(__file__).with_name("demo.yaml")
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def demo(out: Path, overrides: dict[str, str], console: Console, counting: Counter) -> None:
    """Render a world, train on it, test every subset of the sensors and write a report.

    Args:
        out: gets ``world`` (the dataset), ``run``, ``metrics.json`` and ``report.html``. Must not exist or be empty.
        overrides: fields of the recipe.
        counting: a progress bar: ``(console, label)`` to a context that gives ``(done, total)``.
    """
    refuse_occupied(out)
    world, run_folder = out / "world", out / "run"
    recipe = demo_recipe({**overrides, "data.dataset": f"folder:{world}"})
    began = time.monotonic()

    def tell(number: int, title: str, text: str) -> None:
        console.print(f"\n[bold]{number}. {title}[/bold]  [dim]{time.monotonic() - began:.0f} s[/dim]", highlight=False)
        console.print(text, soft_wrap=False, highlight=False)

    def command(text: str) -> None:
        console.print(f"[dim]$ {escape(text)}[/dim]", soft_wrap=True, highlight=False)

    sensors = recipe.data.modalities or ()
    tell(1, "A world", (
        f"There is no dataset, so a city is drawn: {OPTIONS.frames} street scenes by day, at night, in fog, rain and glare, "
        "each ray-cast once and seen by a camera, stereo depth, a LiDAR, an event camera and a thermal camera. Each sensor "
        "knows what another does not: a camera sees paint and little at night, a LiDAR is sparse and needs no light, and a "
        "mannequin is told from a person by its warmth alone."
    ))  # fmt: skip
    command(f"mlesam world {world} --frames {OPTIONS.frames} --size {OPTIONS.size}")
    with counting(console, "rendering") as advance:
        about = write_world(world, OPTIONS, advance)
    console.print(f"{OPTIONS.frames} frames in {world} (world version {about['world_version']})", highlight=False)

    tell(2, "A frozen foundation, and an expert for each sensor", (
        "The foundation is a small SAM2 that learned one thing: the mask of whatever a point is on, in colour pictures of other "
        f"places. It has never seen a class, nor any sensor but a camera. It stays frozen. For {', '.join(sensors)} it gets a "
        "LoRA expert each; a router learns whom to trust, and two heads draw the class map. In every step some sensors are "
        "left out of a second pass, so that one model serves every subset."
    ))  # fmt: skip
    command(f"mlesam train {_recipe_file()} --data folder:{world} --out {run_folder}")
    from mlesam.training.loop import train  # torch only now: rendering is done by forked processes
    from mlesam.training.progress import Progress

    run = train(recipe, run_folder, command=f"mlesam demo --out {out}", report=Progress(console))

    tell(3, "Every combination of sensors", (
        f"The test frames show streets the model has never driven. All {2 ** len(run.sensors) - 1} subsets of the sensors are "
        "tested; a sensor that is left out is absent, not black."
    ))  # fmt: skip
    command(f"mlesam evaluate {run_folder} --out {out / 'metrics.json'}")
    from mlesam.evaluation.evaluate import dumps, evaluate, store
    from mlesam.evaluation.report import write_report
    from mlesam.evaluation.show import table
    from mlesam.model.checkpoints import replace_file

    with counting(console, "evaluating") as advance:
        evaluation = evaluate(run, advance=advance)
    store(run, evaluation, None)
    replace_file(out / "metrics.json", dumps(evaluation.metrics))  # the tables lie inside the run
    table(evaluation.metrics, console)

    tell(
        4,
        "A report",
        "One page with pictures: what each sensor sees, what is lost without it, and whom the router trusts.",
    )
    command(f"mlesam report {run_folder}")
    write_report(run, out / "report.html")
    console.print(f"open {out / 'report.html'}", soft_wrap=True, highlight=False)
    tell(
        5, "Your own data", "Put your sensors' files into one folder each, and the same commands do the same for them."
    )
    command("mlesam train --data folder:data/mine --out runs/mine")
