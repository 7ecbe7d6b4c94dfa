"""The shape of the package: imports point one way, importing is cheap, weights are data."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mlesam

SOURCE = Path(mlesam.__file__).parent

# A module may import from its own layer and from those to its right in design.md's chain (higher numbers here).
LAYERS = {
    "cli": 0, "arguments": 0, "__main__": 0, "doctor": 0, "demo": 0,
    "serving": 1, "training": 1, "bench": 1,
    "evaluation": 2, "inference": 2, "checks": 2, "mini": 2,
    "model": 3, "data": 3,
    "world": 3.5,
    "sensors": 4,
    "sample": 5, "config": 5, "errors": 5,
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """First part below mlesam of everything a file imports, lazily or not; type-checking blocks do not run."""
    found = set()
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("mlesam.")}
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if part == "__init__":
        return  # the lazy public names
    assert part in LAYERS, f"{part} has no layer; give it one here and in design.md"
    wrong = {name for name in imports(path) if LAYERS[name] < LAYERS[part]}
    assert not wrong, f"{path.name} imports {wrong} from a layer above it"


def test_files_can_be_read_in_one_sitting() -> None:
    long = {p.name: n for p in SOURCE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 450}
    assert not long


def test_importing_the_package_is_cheap_and_opens_no_socket() -> None:
    code = (
        "import sys, socket\n"
        "def refuse(*a, **k): raise AssertionError('a socket was opened')\n"
        "socket.socket.connect = refuse\n"
        "import mlesam\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'cv2', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "mlesam.Segmenter, mlesam.MLESAM, mlesam.Batch\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys\n"
        "from mlesam.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_public_name_exists_and_unknown_ones_do_not() -> None:
    assert all(getattr(mlesam, name) is not None for name in mlesam.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        _ = mlesam.Segmentor  # type: ignore[attr-defined]


def test_no_source_file_can_execute_data() -> None:
    forbidden = ("weights_only=False", "allow_pickle=True", "yaml.load(", "eval(", "exec(", "pickle.load", "shell=True")
    for path in SOURCE.rglob("*.py"):
        text = path.read_text().replace(".eval(", "")
        assert not [word for word in forbidden if word in text], path
