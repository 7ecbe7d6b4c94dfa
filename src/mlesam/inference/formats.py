"""The formats of exported models: a traced module becomes ONNX, OpenVINO or a ``torch.export`` program, and can be run again.

OpenVINO comes by way of ONNX: its own conversion of a ``torch.export`` program gave wrong features on SAM2's trunk.
What a file is about travels inside it, as JSON under the key ``mlesam``.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlesam.errors import DataError, RequestError, WorkError

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
"""What the files of each format end with."""
PRECISIONS = {"onnx": ("fp32",), "openvino": ("fp32", "bf16", "int8"), "torch": ("fp32",)}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino"), "torch": ()}
"""What each format needs beside torch; int8 needs ``nncf`` as well."""
OUTPUTS = ("logits", "weights")
KEY = "mlesam"
FLOAT = r".*\b(preparation|reliability|routers|scorers|stems|classify|hypernetworks)\b.*"
"""Where int8 stays out: what is small and decides much. Nodes are named after the module that they come from."""

Saver = Callable[[Path, Mapping[str, Any]], None]
"""Writes a converted model under a name, with what it is about."""
Runner = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]
"""Runs a model on one input by sensor; gives ``OUTPUTS``."""


def convert(
    format: str,
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    precision: str,
    scenes: Sequence[Mapping[str, np.ndarray]] = (),
) -> Saver:
    """Trace a module whose arguments are ``inputs`` in order, and convert it.

    Args:
        scenes: inputs that the ranges of int8 are measured on.

    Raises:
        RequestError: a package is not installed.
    """
    if format == "torch":
        program = _traced(module, inputs)
        return lambda path, about: torch.export.save(program, path, extra_files={KEY: _dumps(about)})
    if format == "openvino":
        openvino = needed("openvino")
        quantized = _quantizer(scenes) if precision == "int8" else lambda model: model
        model = quantized(openvino.Core().read_model(_onnx(module, inputs).SerializeToString()))
        for output, name in zip(model.outputs, OUTPUTS, strict=True):
            output.get_tensor().set_names({name})

        def save(path: Path, about: Mapping[str, Any]) -> None:
            model.set_rt_info(_dumps(about), [KEY])
            openvino.save_model(model, str(path), compress_to_fp16=precision == "bf16")  # which loses less than running

        return save
    onnx, graph = needed("onnx"), _onnx(module, inputs)

    def save_onnx(path: Path, about: Mapping[str, Any]) -> None:
        del graph.metadata_props[:]
        graph.metadata_props.add(key=KEY, value=_dumps(about))
        graph.producer_name = "mlesam"
        onnx.save(graph, str(path))

    return save_onnx


def _dumps(about: Mapping[str, Any]) -> str:
    return json.dumps(about, ensure_ascii=False, allow_nan=False)


def needed(package: str) -> Any:
    """An optional package. RequestError where it is not installed."""
    try:
        with _unreported():
            return importlib.import_module(package)
    except ImportError:
        raise RequestError(
            f"exported models need the package {package.partition('.')[0]}, which is not installed; "
            'pip install "mlesam[export]".'
        ) from None


@contextmanager
def _unreported() -> Iterator[None]:
    """OpenVINO reports to its makers that it is imported and used, unless it finds itself in a CI job when it is first imported.
    NNCF shares that decision."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


class _Stack(ctypes.Structure):
    """``stack_t`` of Linux."""  # man 2 sigaltstack

    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


_DISABLED = 2  # SS_DISABLE: no stack of its own


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Leave this thread the stack that it handles signals on.

    OpenVINO's CPU plugin, when it is first needed, gives the thread one of its own, and gives back the one before when it goes.
    Of two plugins where the first goes first, the second gives back what has been freed. The next signal then kills the process:
    the end of any child is one, where a handler is installed for it, as PyTorch's data loading does.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    system, before = ctypes.CDLL(None), _Stack()
    system.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if system.sigaltstack(ctypes.byref(before), None):  # too small, now that AMX is in use: none then
            system.sigaltstack(ctypes.byref(_Stack(None, _DISABLED, 0)), None)


# ---------------------------------------------------------------- to the formats


def _traced(module: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """The module as a program of torch's own operations, for these shapes alone."""
    with torch.no_grad(), _quiet():
        program = torch.export.export(module.eval(), tuple(inputs.values()))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine it was made on
    return program


def _onnx(module: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """The module as an ONNX model with named inputs and outputs, its nodes named after the modules that they come from.

    Constants are folded. The exporter's own optimiser is left out: it also rewrites patterns, one of them wrongly (it takes a
    scattered sum that fills its target for a copy), needs longer than all the rest, and the runtimes optimise by themselves.
    """
    common = needed("onnx_ir.passes.common")
    optimizer = needed("onnxscript.optimizer")
    program = _traced(module, inputs)
    with _quiet():
        made = torch.onnx.export(
            program, input_names=list(inputs), output_names=list(OUTPUTS), dynamo=True, optimize=False, verbose=False
        )
        assert made is not None
        model = made.model
        optimizer.inline(model)
        for _ in range(2):
            # Weights are stored as they are multiplied, however large: int8 knows them by being constants.
            optimizer.fold_constants_ir(model, should_fold=lambda node: True if node.op_type in _LAYOUT else None)
            _unmoved(model)
            optimizer.remove_unused_nodes(model)
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            common.CommonSubexpressionEliminationPass()(model)
        common.DeduplicateInitializersPass()(model)
        for node in model.graph:
            scopes = [scope.strip("'\" ") for scope in node.metadata_props.get(_SCOPES, "").strip("[]").split(",")]
            node.name = f"{scopes[-2] if len(scopes) > 1 else ''}/{node.name}"
            node.metadata_props.clear()  # stack traces of the machine it was made on
            node.doc_string = None
        for value in (v for node in model.graph for v in node.outputs):
            value.metadata_props.clear()
        model.metadata_props.clear()
        return made.model_proto


def _unmoved(model: Any) -> None:
    """Leave out what moves a map's channels and moves them back. In torch neither takes time; a runtime copies the map twice."""
    replace = needed("onnx_ir").convenience.replace_all_uses_with
    for node in model.graph:
        source = node.inputs[0].producer() if node.op_type == "Transpose" else None
        if source is not None and source.op_type == "Transpose":
            first, then = (n.attributes["perm"].as_ints() for n in (source, node))
            if [first[place] for place in then] == list(range(len(then))):
                replace(node.outputs[0], source.inputs[0])


_LAYOUT = ("Transpose", "Reshape", "Slice", "Gather", "Squeeze", "Unsqueeze")
_SCOPES = "pkg.torch.onnx.name_scopes"


def _quantizer(scenes: Sequence[Mapping[str, np.ndarray]]) -> Callable[[Any], Any]:
    """What brings the products of matrices of an OpenVINO model to int8, after training: weights by channel, inputs by
    the ranges that they have on ``scenes``, smoothed between the two (SmoothQuant, arXiv 2211.10438)."""
    with _quiet():
        nncf = needed("nncf")

    def quantized(model: Any) -> Any:
        try:
            with _quiet(), _own_signal_stack():
                return nncf.quantize(
                    model,
                    nncf.Dataset(list(scenes)),
                    subset_size=len(scenes),
                    preset=nncf.QuantizationPreset.MIXED,
                    model_type=nncf.ModelType.TRANSFORMER,
                    ignored_scope=nncf.IgnoredScope(patterns=[FLOAT], validate=False),
                )
        except Exception as error:  # its errors come in many types
            raise WorkError(f"NNCF cannot bring this model to int8 ({error!r}); export it in bf16.") from error

    return quantized


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters print and log about themselves; errors are raised as ever."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---------------------------------------------------------------- and back


def open_onnx(
    path: Path, precision: str | None = None, threads: int | None = None
) -> tuple[dict[str, Any], str, Runner]:
    """What an ONNX file is about, the precision it runs in, and what runs it: ONNX Runtime on the CPU."""
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors come in a dozen types
        raise _unreadable(path, error) from None
    about = _about(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    if precision not in (None, about["precision"]):
        raise RequestError(f"{path} runs in {about['precision']}, not in {precision}; export it anew.")
    return about, about["precision"], lambda inputs: session.run(list(OUTPUTS), dict(inputs))


@_own_signal_stack()
def openvino_computes_bf16() -> bool:
    """Whether this CPU has bf16 instructions for OpenVINO to use."""
    return _computes_bf16(needed("openvino").Core())


def _computes_bf16(core: Any) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@_own_signal_stack()
def open_openvino(
    path: Path, precision: str | None = None, threads: int | None = None
) -> tuple[dict[str, Any], str, Runner]:
    """What an OpenVINO file is about, the precision it runs in, and what runs it: OpenVINO on the CPU.

    ``bf16`` is how a CPU runs the file and not what is in it, so any file can be loaded so. In an ``int8`` file it is what the
    rest runs in.
    """
    openvino = needed("openvino")
    try:
        core = openvino.Core()
        model = core.read_model(str(path))
        about = _about(model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None, path)
        able = _computes_bf16(core)
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    stored = about["precision"]
    chosen = precision or ("fp32" if stored == "bf16" and not able else stored)
    if chosen not in PRECISIONS["openvino"] or (chosen == "int8") != (stored == "int8"):
        raise RequestError(f"{path} was exported in {stored} and cannot run in {chosen}; export it anew.")
    if chosen == "bf16" and not able:
        raise RequestError("this CPU has no bf16 instructions; load the file with precision fp32.")
    hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    hints["INFERENCE_PRECISION_HINT"] = "bf16" if able and chosen != "fp32" else "f32"
    if threads is not None:
        hints["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(model, "CPU", hints)

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        found = compiled(dict(inputs))
        return [found[name] for name in OUTPUTS]

    return about, chosen, run


def open_torch(path: Path) -> tuple[dict[str, Any], str, Runner]:
    """What a ``torch.export`` program is about, and what runs it. Its format can execute code: for files of one's own alone."""
    extra = {KEY: ""}
    module = torch.export.load(path, extra_files=extra).module()
    about = _about(extra[KEY], path)

    @torch.inference_mode()
    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [t.numpy() for t in module(*(torch.from_numpy(inputs[m]) for m in about["modalities"]))]

    return about, "fp32", run


def _about(text: str | None, path: Path) -> dict[str, Any]:
    about = json.loads(text) if text else None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DataError(f"{path} was not written by this version of `mlesam export`; export the run again.")
    return about


FORMAT = "mlesam export 1"
"""First words of what a file is about. The number is raised when an older package could not read it."""


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{path} cannot be read ({reason}); copy it again, with the .bin beside an .xml.")
