"""int8 files, each made for one runtime.

cpu         products on the fly (dynamic: weights int8, per channel; needs no calibration); convolutions static (U8
            activations, S8 weights per channel, from calibration frames), after ONNX Runtime's own basic optimisation
            has folded their normalisations and the attention's split weights
cpu, many   products static as well: what is scaled on the fly is scaled by all that share one inference
tensorrt    static: S8S8 symmetric, biases left alone, the one form that TensorRT takes
"""

from __future__ import annotations

import inspect
import logging
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

PRODUCTS = ["MatMul", "Gemm"]
Calls = Sequence[Mapping[str, np.ndarray]]


class Quantizer:
    """One float32 graph, ready to be written as int8 many times with other layers left alone.

    folder: for its working files. calibration: inputs of many runs of it; empty: nothing is static.
    is_shared: several observations share an inference.
    """

    def __init__(self, path: Path, folder: Path, target: str, calibration: Calls, is_shared: bool) -> None:
        import onnx

        self.target, self.calibration = target, calibration
        self.on_the_fly = [] if target == "tensorrt" or is_shared else PRODUCTS
        self.source = folder / f"{path.stem}.source.onnx"
        self._ranges = folder / f"{path.stem}.ranges.json"
        self.is_large = (path.parent / f"{path.name}.data").is_file()
        model = onnx.load(_optimised(path, folder) if target == "cpu" else path)
        del model.graph.value_info[:]  # stale shapes make the quantiser's own inference fail
        used = {node.domain for node in model.graph.node} | {""}
        declared = [o for o in model.opset_import if o.domain in used]
        del model.opset_import[:]
        model.opset_import.extend(declared)
        self._save(model, self.source)
        self._nodes = {node.name for node in model.graph.node}

    def write(self, path: Path, keep: Collection[str]) -> None:
        """keep: names of nodes that stay float32."""
        middle = path.with_suffix(".middle.onnx")
        with _quiet():
            left = self._static(middle, keep) if self.calibration else self.source
            if self.on_the_fly:
                self._dynamic(left, path, keep)
            else:
                _copy(left, path)
        for file in (middle, middle.with_name(f"{middle.name}.data")):
            file.unlink(missing_ok=True)

    def _static(self, path: Path, keep: Collection[str]) -> Path:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Reader(CalibrationDataReader):
            def __init__(self, calls: Calls) -> None:
                self._rest = iter(calls)

            def get_next(self) -> Any:
                return next(self._rest, None)

        options: dict[str, Any] = {"MatMulConstBOnly": True}
        if self.target == "tensorrt":
            options |= {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
        remembered = {}
        if "calibration_cache_path" in inspect.signature(quantize_static).parameters:
            remembered["calibration_cache_path"] = self._ranges  # older ones calibrate every time anew
        quantize_static(
            self.source,
            path,
            Reader(self.calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if self.target == "tensorrt" else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", *(p for p in PRODUCTS if p not in self.on_the_fly)],
            nodes_to_exclude=self._named(keep),
            use_external_data_format=self.is_large,
            extra_options=options,
            **remembered,
        )
        return path

    def _dynamic(self, source: Path, path: Path, keep: Collection[str]) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=self.on_the_fly,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=self._named(keep),
            use_external_data_format=self.is_large,
            extra_options={"MatMulConstBOnly": True},
        )

    def _named(self, keep: Collection[str]) -> list[str]:
        """The quantiser makes a MatMul of a Gemm first, and calls it by another name."""
        return [name for node in keep if node in self._nodes for name in (node, f"{node}_MatMul")]

    def _save(self, model: Any, path: Path) -> None:
        import onnx

        onnx.save(model, path, save_as_external_data=self.is_large, location=f"{path.name}.data")


def _optimised(path: Path, folder: Path) -> Path:
    """The graph after what every session does first and no machine matters for. Nodes keep their names."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.log_severity_level = 3
    out = folder / f"{path.stem}.basic.onnx"
    settings.optimized_model_filepath = str(out)
    if (path.parent / f"{path.name}.data").is_file():
        settings.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{out.name}.data"
        )
        settings.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
    onnxruntime.InferenceSession(
        str(path),
        settings,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["MatMulAddFusion"],  # its Gemms have new names, and are taken apart again
    )
    return out


def _copy(source: Path, path: Path) -> None:
    """A copy under another name; weights in a file of their own are written again under theirs."""
    import onnx

    data = source.with_name(f"{source.name}.data")
    if not data.is_file():
        shutil.copyfile(source, path)
        return
    onnx.save(onnx.load(source), path, save_as_external_data=True, location=f"{path.name}.data")


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantiser sets the root logger to INFO and floods the console."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            yield
    finally:
        logging.disable(logging.NOTSET)
        root.setLevel(level)
        root.handlers[:] = handlers
