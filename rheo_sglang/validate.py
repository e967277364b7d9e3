"""What of SGLang's own settings and models rheo can serve with."""

from __future__ import annotations

import importlib
import json
import os
from typing import Any, NoReturn

import torch

from rheo_sglang import compat
from rheo_sglang.config import DEFAULT_PAGE_SIZE, PAGE_SIZES, RheoConfig
from rheo_sglang.errors import ConfigError, reject
from rheo_sglang.kv_dtypes import FIRST_WITH_EIGHT_BITS, KV_DTYPE_NAMES, KV_DTYPES, warn_of_biases
from rheo_sglang.sglang_settings import CPU_ENGINE, REFUSED

STORAGE_BACKENDS = ("file", "dynamic")
SERVED_MODELS = "dense GQA or MHA models (Llama, Qwen2, Qwen3, SmolLM2, ...)"


def uses_rheo(server_args: Any) -> bool:
    """Whether any attention backend flag names rheo."""
    names = ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
    return any(getattr(server_args, name, None) == "rheo" for name in names)


def adapt_server_args(server_args: Any) -> None:
    """Check unresolved server arguments and select what ``--attention-backend rheo`` implies.

    Sets the radix cache backend, the page size where none was given, and turns off the CUDA graphs that rheo cannot
    be captured into: those of prefill, and those of decode where `captures_decode` says no.

    Raises
    ------
    ConfigError
        Naming the flag, its value and what is allowed.
    """
    for name in ("prefill_attention_backend", "decode_attention_backend"):
        if getattr(server_args, name, None) is not None:
            reject(_flag(name), getattr(server_args, name), "not set beside --attention-backend rheo", "rheo")
    if server_args.page_size is None:
        server_args.page_size = DEFAULT_PAGE_SIZE
    if server_args.page_size not in PAGE_SIZES:
        reject("--page-size", server_args.page_size, ", ".join(map(str, PAGE_SIZES)), "rheo")
    if server_args.kv_cache_dtype not in KV_DTYPE_NAMES:
        reject("--kv-cache-dtype", server_args.kv_cache_dtype, ", ".join(KV_DTYPE_NAMES), "rheo")
    if server_args.radix_cache_backend not in (None, "rheo"):
        reject("--radix-cache-backend", server_args.radix_cache_backend, "not set, or 'rheo'", "rheo")
    for name, off in REFUSED.items():
        value = getattr(server_args, name, off[0])
        if value not in off:
            reject(_flag(name), value, _allowed(off), "rheo")
    _check_cuda_graph_config(server_args.cuda_graph_config)
    _check_tree(RheoConfig.from_environment(), server_args)
    if RheoConfig.from_environment().conservative_margin is not None and server_args.pp_size > 1:
        allowed = "1 beside conservative_margin, for the logits are known to the last stage alone"
        reject("--pp-size", server_args.pp_size, allowed, "rheo")
    if server_args.hicache_storage_backend is not None:
        _check_storage(server_args)
    server_args.radix_cache_backend = "rheo"
    server_args.disable_prefill_cuda_graph = True
    if not captures_decode(RheoConfig.from_environment(), server_args.device or default_device()):
        server_args.disable_cuda_graph = True


def _check_tree(config: RheoConfig, server_args: Any) -> None:
    """Refuse what leaves rheo's settings of the radix tree without a tree, or without one that ranks agree on."""
    if config.importance_file is not None and server_args.disable_radix_cache:
        reject(
            "--disable-radix-cache", True, "not set beside importance_file, which is of cached blocks", "rheo"
        )
    if config.tree_eviction == "importance":
        beside = "beside tree_eviction=importance"
        if server_args.radix_eviction_policy != "lru":
            reject("--radix-eviction-policy", server_args.radix_eviction_policy, f"not set {beside}", "rheo")
        if server_args.pp_size > 1:
            reject(
                "--pp-size", server_args.pp_size, f"1 {beside}, whose ranks agree within a stage only", "rheo"
            )


def _check_storage(server_args: Any) -> None:
    """Refuse what the storage tier cannot serve with."""
    beside = "beside --hicache-storage-backend"
    allowed: dict[str, tuple[tuple[Any, ...], str]] = {
        "hicache_storage_backend": (STORAGE_BACKENDS, ", ".join(STORAGE_BACKENDS)),
        "hicache_write_policy": (("write_through",), f"write_through {beside}"),
        "hicache_host_memory_mode": (("cache",), f"cache {beside}"),
        "disable_radix_cache": ((False,), f"not set {beside}, which keeps cached prefixes"),
        "enable_lora": (
            (None, False),
            f"not set {beside}, whose pages would have to name an adapter's weights",
        ),
        "lora_paths": ((None,), f"not set {beside}, whose pages would have to name an adapter's weights"),
        **dict.fromkeys(("tp_size", "pp_size", "dp_size"), ((1,), f"1 {beside}")),
    }
    for name, (values, words) in allowed.items():
        value = getattr(server_args, name, values[0])
        if value not in values:
            reject(_flag(name), value, words, "rheo")
    text = server_args.hicache_storage_backend_extra_config
    flag = "--hicache-storage-backend-extra-config"
    try:
        settings = compat.storage_settings(text)[0]
    except Exception as error:
        reason = " ".join(str(error).split())
        reject(flag, text, f"a JSON object, or @ and the name of a file that holds one ({reason})", "rheo")
    if server_args.hicache_storage_backend == "dynamic":
        missing = [name for name in ("backend_name", "module_path", "class_name") if name not in settings]
        if missing:
            reject(flag, text, f"one with {missing[0]} beside --hicache-storage-backend dynamic", "rheo")
        if settings.get("interface_v1"):
            reject(
                flag,
                text,
                "one without interface_v1, whose backends copy whole pages of SGLang's pools",
                "rheo",
            )


def _check_cuda_graph_config(config: Any) -> None:
    """Refuse in ``--cuda-graph-config`` what is refused in the flags that it stands for."""
    if isinstance(config, str):
        try:
            config = json.loads(config)
        except json.JSONDecodeError:
            return
    for phase in ("decode", "prefill"):
        settings = config.get(phase) if isinstance(config, dict) else None
        backend = settings.get("backend") if isinstance(settings, dict) else None
        off = REFUSED[f"cuda_graph_backend_{phase}"]
        if backend not in off:
            reject(f"--cuda-graph-config {phase}.backend", backend, _allowed(off), "rheo")


def _allowed(off: tuple[Any, ...]) -> str:
    """Values that leave a setting off, as its user would write them."""
    return ", or ".join(["not set", *(repr(value) for value in off if value in ("full", "disabled"))])


def default_device() -> str:
    """Device that SGLang picks where none was asked for."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str | None) -> None:
    """Check that there is the device asked for, and that SGLang was made to run on a CPU where that is the one.

    Raises
    ------
    ConfigError
        Naming the flag, its value and what is allowed.
    """
    gpu = torch.cuda.is_available()
    kind = (device or default_device()).split(":")[0]
    if kind not in ("cuda", "cpu") or (kind == "cuda" and not gpu):
        reject("--device", device, "cuda, cpu" if gpu else "cpu (torch sees no GPU)", "rheo")
    if kind == "cpu" and os.environ.get(CPU_ENGINE) != "1":
        why = "is given" if device else "is what is left where torch sees no GPU"
        raise ConfigError(
            f"rheo: --device cpu {why}, and SGLang chooses its CPU engine only before it starts; allowed: "
            f"'rheo serve' with the same arguments, or {CPU_ENGINE}=1 in the environment"
        )


def check_kernels() -> None:
    """Check that the compiled module is there, which attends on the CPU: misses, or without a GPU everything.

    Raises
    ------
    ConfigError
        Saying what cannot be loaded and what helps.
    """
    try:
        importlib.import_module("rheo_kernels.cpu")
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"rheo: the compiled module of rheo_kernels.cpu does not load ({reason}); allowed: a package that was "
            "built for this Python, by 'pip install .' in the repository; 'rheo doctor' checks it"
        ) from None


def captures_decode(config: RheoConfig, device: str) -> bool:
    """Whether decode runs by kernels that CUDA graphs can hold: on a GPU, unless covered mass is measured."""
    return device.startswith("cuda") and config.recorder != "mass"


def check_model_config(model: Any) -> None:
    """Check a model's configuration against what rheo serves; its weights need not be loaded.

    Parameters
    ----------
    model
        SGLang's ``ModelConfig``.

    Raises
    ------
    ConfigError
        Naming the model, what it needs and what is allowed.
    """
    from sglang.srt.configs.model_config import AttentionArch

    text = model.hf_text_config
    reasons = {
        "multi-head latent attention (MLA)": model.attention_arch == AttentionArch.MLA,
        "recurrent or other layers without a KV cache": model.attention_arch
        not in (AttentionArch.MHA, AttentionArch.MLA),
        "sliding-window attention": bool(model.is_hybrid_swa),
        "different head sizes for K and V": model.v_head_dim != model.head_dim,
        "a head size that is no multiple of 16": model.head_dim % 16 != 0,
        "capped attention logits": bool(getattr(text, "attn_logit_softcapping", None)),
        "an encoder with cross attention": bool(getattr(model.hf_config, "is_encoder_decoder", False)),
    }
    for reason, applies in reasons.items():
        if applies:
            _reject_model(model, reason)


def check_context(context_len: int, page_size: int, device: str) -> None:
    """Check that kernels can count the pages of the longest request.

    Parameters
    ----------
    context_len
        Most tokens of a request.
    page_size
        Tokens of a page.
    device
        Where decode runs; on a CPU there is no limit.

    Raises
    ------
    ConfigError
        Naming both flags, their values and what is allowed.
    """
    from rheo_kernels.triton.launch import MAX_PAGES

    longest = MAX_PAGES * page_size
    if device.startswith("cuda") and context_len > longest:
        larger = ", or a larger --page-size" if page_size < max(PAGE_SIZES) else ""
        raise ConfigError(
            f"rheo: --context-length={context_len} (from the model where not given) is more than {MAX_PAGES} pages of "
            f"--page-size={page_size}, which is what kernels can count; allowed: --context-length up to "
            f"{longest}{larger}"
        )


def check_attention_layers(model: torch.nn.Module, architecture: str) -> None:
    """Check every attention layer of a loaded model: what it computes must be what rheo computes.

    Parameters
    ----------
    model
        The loaded model, or this rank's part of it.
    architecture
        Its name, for the message.

    Raises
    ------
    ConfigError
        Naming the layer, the model, what the layer needs and what is allowed.
    """
    from sglang.srt.layers.radix_attention import RadixAttention

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, RadixAttention)]
    seen: set[int] = set()
    for name, layer in layers:
        reason = _unserved(layer)
        first = layers[0][1]
        if _sinks(model.get_submodule(name.rpartition(".")[0])):
            reason = "learned attention sinks"
        elif _heads(layer) != _heads(first):
            reason = f"other heads than layer {layers[0][0]}"
        elif layer.layer_id in seen:
            reason = "the KV cache of another layer"
        seen.add(layer.layer_id)
        if reason is not None:
            raise ConfigError(
                f"--attention-backend: 'rheo' does not support {architecture}, whose layer {name} has {reason}; "
                f"allowed: {SERVED_MODELS}"
            )


def _heads(layer: Any) -> tuple[int, int, int]:
    return layer.tp_q_head_num, layer.tp_k_head_num, layer.head_dim


def _unserved(layer: Any) -> str | None:
    """What an attention layer asks of its backend beyond causal softmax attention over one KV cache."""
    reasons = {
        f"attention that is not causal ({layer.attn_type.value})": layer.attn_type.value != "decoder",
        "cross attention": layer.is_cross_attention,
        f"attention logits capped at {layer.logit_cap}": (layer.logit_cap or 0) > 0,
        f"a sliding window of {layer.sliding_window_size} tokens": (layer.sliding_window_size or -1) >= 0,
        "attention within chunks": layer.use_irope,
        "a softmax temperature that depends on the position": (layer.xai_temperature_len or -1) > 0,
        f"positions encoded in attention ({layer.pos_encoding_mode})": layer.pos_encoding_mode != "NONE",
        f"head size {layer.head_dim} for K and {layer.v_head_dim} for V": not (
            layer.head_dim == layer.qk_head_dim == layer.v_head_dim
        ),
        f"head size {layer.head_dim}, which is no multiple of 16": layer.head_dim % 16 != 0,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _sinks(attention: torch.nn.Module) -> bool:
    """Whether a model's attention module hands learned sinks to its backend, as gpt-oss does."""
    return any(getattr(attention, name, None) is not None for name in ("sinks", "attention_sink_bias"))


def check_loaded_model(configurator: Any) -> None:
    """Check what SGLang knows of a model only once it is built, and warn of what it may lose.

    Parameters
    ----------
    configurator
        SGLang's ``KVCacheConfigurator``.

    Raises
    ------
    ConfigError
        Naming the model or the flag, and what is allowed.
    """
    model = configurator.model_config
    if configurator.is_hybrid_swa or configurator.sliding_window_size is not None:
        _reject_model(model, "sliding-window attention")
    if configurator.mambaish_config is not None:
        _reject_model(model, "recurrent or other layers without a KV cache")
    check_attention_layers(configurator.model, _architecture(model))
    if configurator.kv_cache_dtype not in KV_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in KV_DTYPES)
        raise ConfigError(
            f"--kv-cache-dtype: the KV dtype {configurator.kv_cache_dtype} of this model is not supported by "
            f"--attention-backend rheo; allowed: {allowed}"
        )
    check_kv_dtype(configurator.kv_cache_dtype, configurator.device)
    warn_of_biases(configurator.model, _architecture(model), configurator.kv_cache_dtype)


def check_kv_dtype(dtype: torch.dtype, device: str) -> None:
    """Check that the GPU, if there is one, converts from the KV dtype.

    Raises
    ------
    ConfigError
        Naming the flag, its value and what is allowed.
    """
    if dtype.itemsize > 1 or not device.startswith("cuda"):
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < FIRST_WITH_EIGHT_BITS:
        allowed = "auto, bf16, bfloat16, or a GPU of compute capability {}.{} or above".format(
            *FIRST_WITH_EIGHT_BITS
        )
        reject("--kv-cache-dtype", str(dtype).removeprefix("torch."), allowed, "rheo")


def _reject_model(model: Any, reason: str) -> NoReturn:
    raise ConfigError(
        f"--attention-backend: 'rheo' does not support {_architecture(model)}, which has {reason}; "
        f"allowed: {SERVED_MODELS}"
    )


def _architecture(model: Any) -> str:
    return (model.hf_config.architectures or ["this model"])[0]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
