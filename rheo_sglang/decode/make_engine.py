"""make_engine: the engine for the device and the settings, chosen once at start."""

from __future__ import annotations

import os
from dataclasses import replace

from rheo_kernels.cpu import CPU_ISA, fastest_isa
from rheo_sglang.cpu_offload.cpu_attention import default_cpu_threads
from rheo_sglang.decode.engine import DecodeEngine, EngineInputs
from rheo_sglang.decode.reference_engine import ReferenceDecodeEngine
from rheo_sglang.validate import captures_decode


def make_engine(inputs: EngineInputs) -> DecodeEngine:
    """Build and warm up the engine that serves ``inputs``; ``cpu_attention`` is found out here.

    On a GPU it is `GpuDecodeEngine`, unless the recorder measures attention mass, for which there are no kernels.
    """
    inputs = replace(inputs, cpu_attention=use_fastest_cpu_attention(inputs))
    engine: DecodeEngine
    if captures_decode(inputs.config, inputs.frames.device.type):
        from rheo_sglang.decode.gpu_engine import GpuDecodeEngine

        engine = GpuDecodeEngine(inputs)
    else:
        engine = ReferenceDecodeEngine(inputs)
    engine.warm_up()
    return engine


def use_fastest_cpu_attention(inputs: EngineInputs) -> bool:
    """Have this process attend on the CPU with the variant that is fastest here; False if none works."""
    on_cpu = inputs.frames.device.type == "cpu"
    threads = inputs.config.cpu_threads or (None if on_cpu else default_cpu_threads())
    pages = inputs.host[0].transpose(0, 1)
    isa = fastest_isa(pages, inputs.heads.group, inputs.page_size, threads, inputs.computed_in)
    if isa is not None:
        os.environ[CPU_ISA] = isa
    return isa is not None
