"""Checks of the installation: versions, what does not import, the device, the optional extras.

Nothing heavy is imported at the top, since a broken package is what this has to report.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
from dataclasses import dataclass, field

from mlesam.checks.findings import Findings, named

PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "opencv": "cv2",
    "pillow": "PIL",
    "tifffile": "tifffile",
}
"""What versions are shown of: the name to show, and the module."""
TRANSFORMERS_MODEL = ("transformers", "Sam2Model")
"""What of ``transformers`` is used. It is imported lazily, so that ``import transformers`` alone shows nothing."""


@dataclass
class InstallationFindings(Findings):
    """Findings about the installation, and lines of (what, value) about it."""

    facts: list[tuple[str, str]] = field(default_factory=list)


def check_installation() -> InstallationFindings:
    """Check what is installed here. Imports every package that a training needs."""
    findings = InstallationFindings()
    findings.facts.append(("python", f"{platform.python_version()} ({platform.system()}, {platform.machine()})"))
    findings.facts.append(("mlesam", _version("mlesam")))
    for name, module in PACKAGES.items():
        _check_package(name, module, findings)
    _check_torchvision(findings)
    _check_sam2(findings)
    _check_device(findings)
    _check_requirements(findings)
    return findings


def _check_package(name: str, module: str, findings: InstallationFindings) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken binary can raise anything
        findings.facts.append((name, "does not import"))
        findings.fault("packages", f"{name} cannot be imported ({_reason(error)}); install it again.")
        return
    findings.facts.append((name, _version(module)))


def _check_torchvision(findings: InstallationFindings) -> None:
    """torchvision is not needed, but ``transformers`` uses one that is there and fails with it."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        findings.fault(
            "packages",
            f"torchvision is installed but does not import beside this torch ({_reason(error)}), which breaks transformers; "
            "uninstall torchvision, or install the build that belongs to this torch.",
        )
    else:
        findings.facts.append(("torchvision", f"{_version('torchvision')}, not needed"))


def _check_sam2(findings: InstallationFindings) -> None:
    module, name = TRANSFORMERS_MODEL
    try:
        getattr(importlib.import_module(module), name)
    except Exception as error:
        if importlib.util.find_spec(module) is not None:
            findings.fault(
                "packages", f"{module}.{name} cannot be imported ({_reason(error)}), and SAM2 is built from it."
            )


def _check_device(findings: InstallationFindings) -> None:
    try:
        import torch

        bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        cpu = f"{torch.get_num_threads()} threads, {'with' if bf16 else 'without'} bf16 instructions"
        findings.facts.append(("cpu", cpu))
        if not torch.cuda.is_available():
            findings.facts.append(("gpu", "none that torch can use"))
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            properties = torch.cuda.get_device_properties(i)
            name = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB, CUDA {torch.version.cuda}"
            findings.facts.append((f"gpu {i}", name))
    except Exception as error:  # a driver that does not fit torch
        findings.fault("packages", f"torch cannot say what this machine has ({_reason(error)}); install it again.")


def _check_requirements(findings: InstallationFindings) -> None:
    """Versions against what this package's metadata ask for, and the optional extras."""
    from packaging.requirements import Requirement

    try:
        metadata = importlib.metadata.metadata("mlesam")
    except importlib.metadata.PackageNotFoundError:
        findings.note("packages", "mlesam is not installed but imported from its source, so its extras are unknown")
        return
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist") or []]
    extras = [e for e in metadata.get_all("Provides-Extra") or [] if e != "dev"]
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            lacking = _lacking(requirement)
            if lacking:
                findings.fault("packages", f"mlesam needs {requirement.name}{requirement.specifier}, but {lacking}.")
    for extra in extras:
        own = [r for r in requirements if r.marker and r.marker.evaluate({"extra": extra})]
        own = [r for r in own if not r.marker or not r.marker.evaluate({"extra": ""})]
        missing = [r.name for r in own if _lacking(r)]
        said = f"no (lacks {named(missing)}; pip install 'mlesam[{extra}]')" if missing else "yes"
        findings.facts.append((f"extra {extra}", said))


def _lacking(requirement) -> str | None:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        if requirement.name.startswith("opencv") and importlib.util.find_spec("cv2") is not None:
            return None  # one of the other builds of OpenCV serves as well
        return "it is not installed"
    return None if requirement.specifier.contains(version, prereleases=True) else f"{version} is installed"


def _version(module: str) -> str:
    return str(getattr(importlib.import_module(module), "__version__", "of unknown version"))


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
