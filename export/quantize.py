"""int8 files, each made for one runtime.

cpu, transformers        dynamic: weights int8, activations on the fly; no calibration, about 2.7 times faster
cpu, ResNet policies     static: U8 activations, S8 weights per channel; needs calibration frames; about 2 times
tensorrt                 static: S8S8 symmetric, biases left alone, the one form that TensorRT takes
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

OPERATIONS = ["Conv", "MatMul", "Gemm"]


def quantize(path: Path, target: str, calibration: Sequence[Mapping[str, np.ndarray]] | None) -> None:
    """Rewrites one float32 ONNX file as int8, in place. calibration: inputs of many runs; None: dynamic."""
    with _quiet():
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        source = path.with_suffix(".float.onnx")
        model = onnx.load(path)
        del model.graph.value_info[:]  # stale shapes make the quantiser's own inference fail
        is_large = (path.parent / f"{path.name}.data").is_file()
        onnx.save(model, source, save_as_external_data=is_large, location=f"{source.name}.data")
        (path.parent / f"{path.name}.data").unlink(missing_ok=True)
        try:
            if calibration is None:
                quantize_dynamic(
                    source,
                    path,
                    op_types_to_quantize=["MatMul", "Gemm"],
                    weight_type=QuantType.QInt8,
                    use_external_data_format=is_large,
                    extra_options={"MatMulConstBOnly": True},
                )
            else:
                _static(source, path, target, calibration, is_large)
        finally:
            source.unlink(missing_ok=True)
            source.with_name(f"{source.name}.data").unlink(missing_ok=True)


def _static(
    source: Path, path: Path, target: str, calibration: Sequence[Mapping[str, np.ndarray]], is_large: bool
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rest = iter(calibration)

        def get_next(self) -> Any:
            return next(self._rest, None)

    options: dict[str, Any] = {"MatMulConstBOnly": True}
    if target == "tensorrt":
        options |= {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    quantize_static(
        source,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8 if target == "tensorrt" else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=OPERATIONS,
        use_external_data_format=is_large,
        extra_options=options,
    )


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
