"""A stand-in for TensorRT's Python module, for tests on machines without a GPU: the few calls that EdgeVLA makes.

An "engine" is the ONNX file, run by onnxruntime on raw addresses. It proves names, shapes, dtypes, lifetimes and the
order of calls; nothing about numbers, speed or memory of a GPU. With STANDIN_RTX=1 every build is also made for real by
TensorRT-RTX (its parser, its builder, no GPU needed), whose progress and refusals are then the ones that count.

STANDIN_VERSION   what `__version__` says
STANDIN_S         how long a build takes, in 100 steps
STANDIN_GATE      GRAPH=FILE: the build of GRAPH.onnx waits for FILE, half done
STANDIN_REFUSES   builds fail, and this is why
STANDIN_DIES      number of the signal by which a building process dies
"""

import ctypes
import enum
import json
import os
import time
from pathlib import Path

import numpy as np
import onnxruntime

__version__ = os.environ.get("STANDIN_VERSION", "10.3.0")
MAGIC = b"STANDIN\n"

DataType = enum.Enum("DataType", ["FLOAT", "HALF", "BF16", "INT8", "INT32", "INT64", "BOOL", "UINT8"])
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
BuilderFlag = enum.Enum("BuilderFlag", ["TF32"])
KINDS = {
    "tensor(float)": (DataType.FLOAT, np.float32),
    "tensor(float16)": (DataType.HALF, np.float16),
    "tensor(int32)": (DataType.INT32, np.int32),
    "tensor(int64)": (DataType.INT64, np.int64),
    "tensor(bool)": (DataType.BOOL, np.bool_),
    "tensor(uint8)": (DataType.UINT8, np.uint8),
}


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IProgressMonitor:
    pass


class Tensor:
    def __init__(self, value):
        self.name = value.name
        self.dtype, self.kind = KINDS[value.type]
        self.shape = tuple(d if isinstance(d, int) else -1 for d in value.shape)


def session_of(content):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


# -- building ---------------------------------------------------------------------------------------------------


class Network:
    def read(self, path):
        self.path, self.content = path, Path(path).read_bytes()
        session = session_of(self.content)
        self.inputs = [Tensor(i) for i in session.get_inputs()]
        self.outputs = [Tensor(o) for o in session.get_outputs()]
        self.num_inputs, self.num_outputs = len(self.inputs), len(self.outputs)

    def get_input(self, i):
        return self.inputs[i]

    def get_output(self, i):
        return self.outputs[i]


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.errors = network, []

    def parse_from_file(self, path):
        try:
            self.network.read(path)
        except Exception as error:
            self.errors = [str(error)]
        return not self.errors

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, i):
        return self.errors[i]


class TimingCache:
    def __init__(self, content):
        self.content = content

    def serialize(self):
        return self.content + b"measured "


class Config:
    def __init__(self):
        self.progress_monitor, self.timing, self.profiles, self.cleared, self.pools = None, None, [], [], {}

    def set_memory_pool_limit(self, pool, n_bytes):
        self.pools[pool.name] = n_bytes

    def clear_flag(self, flag):
        self.cleared.append(flag.name)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)

    def create_timing_cache(self, content):
        return None if content.startswith(b"damaged") else TimingCache(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.timing = cache
        return True

    def get_timing_cache(self):
        return self.timing


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, best, most):
        self.shapes[name] = [least, best, most]


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        if number := os.environ.get("STANDIN_DIES"):
            os.kill(os.getpid(), int(number))
        if reason := os.environ.get("STANDIN_REFUSES"):
            self.logger.log(ILogger.ERROR, reason)
            return None
        if os.environ.get("STANDIN_RTX") and not built_by_rtx(network.path, config, self.logger):
            return None
        if not os.environ.get("STANDIN_RTX"):
            pretend(config.progress_monitor, Path(network.path).stem)
        about = {"profiles": config.profiles, "cleared": config.cleared, "pools": config.pools}
        return MAGIC + json.dumps(about).encode() + b"\n" + network.content


def pretend(monitor, graph):
    """Steps as TensorRT takes them."""
    steps, (gated, _, gate) = 100, os.environ.get("STANDIN_GATE", "").partition("=")
    monitor.phase_start("Building engine", None, 2)
    monitor.phase_start("Timing tactics", "Building engine", steps)
    for i in range(steps):
        time.sleep(float(os.environ.get("STANDIN_S", "0")) / steps)
        monitor.step_complete("Timing tactics", i)
        while gated == graph and i == steps // 2 and not Path(gate).exists():
            time.sleep(0.01)
    monitor.phase_finish("Timing tactics")
    monitor.step_complete("Building engine", 1)
    monitor.phase_finish("Building engine")


def built_by_rtx(path, wanted, logger):
    import tensorrt_rtx_bindings as rtx

    class Log(rtx.ILogger):
        def __init__(self):
            rtx.ILogger.__init__(self)

        def log(self, severity, text):
            logger.log(int(severity), text)

    class Monitor(rtx.IProgressMonitor):
        def __init__(self):
            rtx.IProgressMonitor.__init__(self)

        def phase_start(self, *args):
            wanted.progress_monitor.phase_start(*args)

        def step_complete(self, *args):
            return wanted.progress_monitor.step_complete(*args)

        def phase_finish(self, *args):
            wanted.progress_monitor.phase_finish(*args)

    log, monitor = Log(), Monitor()
    builder = rtx.Builder(log)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if not rtx.OnnxParser(network, log).parse_from_file(path):
        return False
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(rtx.ComputeCapability.SM89, 0)
    config.progress_monitor = monitor
    return builder.build_serialized_network(network, config) is not None


# -- running ----------------------------------------------------------------------------------------------------


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, content):
        with memoryview(content) as view:  # any buffer, as TensorRT's own takes
            magic, _, rest = bytes(view).partition(b"\n")
        if magic + b"\n" != MAGIC:
            self.logger.log(ILogger.ERROR, "magic tag does not match")
            return None
        about, _, onnx = rest.partition(b"\n")
        return Engine(json.loads(about), onnx)


class Engine:
    def __init__(self, about, onnx):
        self.about, self.session = about, session_of(onnx)
        self.tensors = {}
        for mode, values in (
            (TensorIOMode.INPUT, self.session.get_inputs()),
            (TensorIOMode.OUTPUT, self.session.get_outputs()),
        ):
            self.tensors |= {v.name: (mode, Tensor(v)) for v in values}

    @property
    def num_io_tensors(self):
        return len(self.tensors)

    def get_tensor_name(self, i):
        return list(self.tensors)[i]

    def get_tensor_mode(self, name):
        return self.tensors[name][0]

    def get_tensor_dtype(self, name):
        return self.tensors[name][1].dtype

    def get_tensor_shape(self, name):
        return self.tensors[name][1].shape

    def get_tensor_profile_shape(self, name, i):
        return self.about["profiles"][i][name]

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.addresses, self.shapes = engine, {}, {}

    def set_tensor_address(self, name, address):
        assert name in self.engine.tensors
        self.addresses[name] = address
        return True

    def set_input_shape(self, name, shape):
        least, _, most = self.engine.about["profiles"][0][name]
        assert all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
        self.shapes[name] = tuple(shape)
        return True

    def execute_async_v3(self, stream):
        assert stream
        inputs = {}
        for name, (mode, tensor) in self.engine.tensors.items():
            if mode is TensorIOMode.INPUT:
                shape = self.shapes.get(name, tensor.shape)
                inputs[name] = at(self.addresses[name], shape, tensor.kind).copy()
        names = [o.name for o in self.engine.session.get_outputs()]
        for name, value in zip(names, self.engine.session.run(names, inputs), strict=True):
            at(self.addresses[name], value.shape, value.dtype)[...] = value
        return True


def at(address, shape, kind):
    n_bytes = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_char * n_bytes).from_address(address), kind).reshape(shape)
