"""ONNX Runtime: one session per graph, few threads and no spinning, and no silent step down to the CPU.

Why these settings: with as many threads as cores, spinning workers steal the control loop's core and slow
inference itself (measured on two cores).
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevla.digests import cache_folder
from edgevla.engines.options import EngineOptions, to_numpy
from edgevla.engines.signature import Found, check_signature
from edgevla.errors import EngineError, MissingExtraError
from edgevla.extras import install_words
from edgevla.graph import GraphSpec, batched

if TYPE_CHECKING:
    import onnxruntime

PROVIDER_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}

NO_GPU_WHEEL = (
    "onnxruntime has no GPU wheel for this Python on 64-bit ARM; on a Jetson use --provider tensorrt, with JetPack's "
    "TensorRT, or --provider cpu"
)


def has_gpu_wheel() -> bool:
    """Whether pip finds an onnxruntime-gpu for this machine: on ARM there is none for Python 3.10 (JetPack 6)."""
    return platform.machine() != "aarch64" or sys.version_info >= (3, 11)


class OnnxGraph:
    """One session. Inputs are numpy arrays or device values that another graph of the same provider gave."""

    def __init__(self, path: Path, spec: GraphSpec, provider: str, options: EngineOptions) -> None:
        self.spec = spec
        self.path = path
        self.provider = provider
        self._options = options
        self._session = _session(path, spec, provider, options)
        self._outputs = [o.name for o in spec.outputs]
        check_signature(
            path.name, spec, _found(self._session.get_inputs()), _found(self._session.get_outputs())
        )

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Input name -> array to output name -> array (a device value with `keep_on_device`)."""
        try:
            if self.provider == "cpu":
                values = self._session.run(self._outputs, {k: to_numpy(v) for k, v in inputs.items()})
                return dict(zip(self._outputs, values, strict=True))
            return self._run_bound(inputs)
        except EngineError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise EngineError(f"{self.path.name} failed on {self.provider}: {_first_line(error)}") from error

    def stack(self, arrays: Sequence[Any]) -> np.ndarray:
        return np.stack([to_numpy(a) for a in arrays], axis=1)

    def _run_bound(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        binding = self._session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(name, value)
        place = "cuda" if self._options.keep_on_device else "cpu"
        for name in self._outputs:
            binding.bind_output(name, place, self._options.device_id if place == "cuda" else 0)
        self._session.run_with_iobinding(binding)
        values = binding.get_outputs()
        if not self._options.keep_on_device:
            values = [v.numpy() for v in values]
        return dict(zip(self._outputs, values, strict=True))


def _session(
    path: Path, spec: GraphSpec, provider: str, options: EngineOptions
) -> onnxruntime.InferenceSession:
    """Raises what `load_graph` documents."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if provider != "cpu" and not has_gpu_wheel():
            raise EngineError(NO_GPU_WHEEL, provider=provider) from error
        extra = "cpu" if provider == "cpu" else "gpu"
        raise MissingExtraError(extra, "onnxruntime", f"the {provider} provider needs it") from error
    if not path.is_file():
        raise EngineError(f"the graph {path} does not exist")
    wanted = PROVIDER_NAMES[provider]
    if wanted not in onnxruntime.get_available_providers():
        if not has_gpu_wheel():
            raise EngineError(NO_GPU_WHEEL, provider=provider)
        raise EngineError(
            f"this onnxruntime has no {provider} provider; replace it: pip uninstall onnxruntime, then "
            f"{install_words('gpu')}",
            provider=provider,
        )
    if provider != "cpu" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = options.n_threads
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if not options.prepack:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = onnxruntime.InferenceSession(
            str(path), settings, providers=_providers(provider, path, spec, options)
        )
    except Exception as error:
        raise EngineError(
            f"onnxruntime cannot open {path} on {provider}: {_first_line(error)}", provider=provider
        ) from error
    got = session.get_providers()[0]
    if got != wanted:
        # onnxruntime prints an error and steps down to the CPU when CUDA's libraries or device are missing.
        raise EngineError(
            f"{provider} was asked for, but onnxruntime runs {path.name} on {got}: its libraries or device are "
            "missing; see `edgevla doctor`, or export and deploy for cpu",
            provider=provider,
        )
    return session


def _providers(provider: str, path: Path, spec: GraphSpec, options: EngineOptions) -> list[Any]:
    if provider == "cpu":
        return [PROVIDER_NAMES["cpu"]]
    device = {"device_id": str(options.device_id)}
    cuda = (PROVIDER_NAMES["cuda"], device)
    if provider == "cuda":
        return [(PROVIDER_NAMES["cuda"], {**device, **options.provider_options})]
    cache = cache_folder() / "tensorrt"
    cache.mkdir(parents=True, exist_ok=True)
    tensorrt = {
        **device,
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_fp16_enable": "1" if _is_in(path, "fp16") else "0",
        "trt_bf16_enable": "1" if _is_in(path, "bf16") else "0",
        **_batch_profile(spec, options.max_batch),
        **options.provider_options,
    }
    return [(PROVIDER_NAMES["tensorrt"], tensorrt), cuda]


def _is_in(path: Path, precision: str) -> bool:
    """Whether the bundle beside the graph was exported in a precision, so that TensorRT may use its kernels."""
    manifest = path.parent / "manifest.json"
    return manifest.is_file() and f'"{precision}"' in manifest.read_text()


def _found(values: Sequence[Any]) -> Found:
    return {
        v.name: (_DTYPES.get(v.type, v.type), tuple(d if isinstance(d, int) else None for d in v.shape))
        for v in values
    }


def _batch_profile(spec: GraphSpec, most: int) -> dict[str, str]:
    """TensorRT's options for 1 to `most` observations; without them it builds an engine anew for every number."""
    if most == 1:
        return {}

    def shapes(n: int) -> str:
        return ",".join(f"{i.name}:{'x'.join(map(str, batched(i, n)))}" for i in spec.inputs)

    sizes = {"min": 1, "opt": most, "max": most}
    return {f"trt_profile_{word}_shapes": shapes(n) for word, n in sizes.items()}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
