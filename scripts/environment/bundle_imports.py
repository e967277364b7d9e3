#!/usr/bin/env python3
"""Imports what SGLang's servers and Triton import at their start, and says what is not there.

    bash scripts/gpu_run.sh check

For a bundle of `environment.gpu_bundle`, before it is carried to a GPU and as the first step there. It needs no GPU:
``sgl_kernel``, which loads the libraries of the GPU that it finds, is imported only where there is one.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version

import torch

SERVER = (
    *("sglang.launch_server", "sglang.srt.entrypoints.http_server", "sglang.srt.managers.scheduler"),
    *("sglang.srt.managers.tokenizer_manager", "sglang.srt.managers.detokenizer_manager"),
    *("sglang.srt.model_executor.model_runner", "sglang.srt.models.llama", "sglang.srt.models.qwen2"),
    *("sglang.srt.models.qwen3", "sglang.srt.constrained.xgrammar_backend", "sglang.bench_serving"),
    *("triton.backends.amd.driver", "triton.backends.nvidia.driver", "flashinfer", "rheo_sglang.plugin"),
)
ON_GPU = ("sgl_kernel",)
PACKAGES = ("sglang", "sglang-kernel", "torch", "triton", "flashinfer-python", "transformers", "rheo-sglang")


def broken(names: tuple[str, ...]) -> dict[str, str]:
    """Modules that cannot be imported, and why."""
    found = {}
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def main() -> int:
    """Import, and tell the versions; 1 if anything is missing."""
    gpu = torch.cuda.is_available()
    missing = broken(SERVER + (ON_GPU if gpu else ()))
    for name, reason in missing.items():
        print(f"{name}: {reason}")
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES), "on a GPU" if gpu else "without a GPU")
    if not missing:
        print("everything is there")
    return int(bool(missing))


if __name__ == "__main__":
    raise SystemExit(main())
