"""What of SGLang's own settings and models rheo can serve with."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from rheo_sglang.config import DEFAULT_PAGE_SIZE, PAGE_SIZES, ConfigError, RheoConfig, reject

KV_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KV_DTYPE_NAMES = ("auto", "bf16", "bfloat16")


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
    unsupported = {
        "speculative_algorithm": (None,),
        "disaggregation_mode": (None, "null"),
        "enable_mixed_chunk": (False,),
        "enable_hierarchical_cache": (False,),
        "enable_two_batch_overlap": (False,),
        "enable_pdmux": (False,),
        "enable_lmcache": (False,),
        "enable_hisparse": (False,),
        "enable_streaming_session": (False,),
        "enable_memory_saver": (False,),
        "dcp_size": (1, None),
    }
    for name, allowed in unsupported.items():
        value = getattr(server_args, name, allowed[0])
        if value not in allowed:
            reject(_flag(name), value, "not set", "rheo")
    server_args.radix_cache_backend = "rheo"
    server_args.disable_prefill_cuda_graph = True
    if not captures_decode(RheoConfig.from_environment(), server_args.device or default_device()):
        server_args.disable_cuda_graph = True


def default_device() -> str:
    """Device that SGLang picks where none was asked for."""
    return "cuda" if torch.cuda.is_available() else "cpu"


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


def check_loaded_model(configurator: Any) -> None:
    """Check what SGLang knows of a model only once it is built.

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
    if configurator.kv_cache_dtype not in KV_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in KV_DTYPES)
        raise ConfigError(
            f"--kv-cache-dtype: the KV dtype {configurator.kv_cache_dtype} of this model is not supported by "
            f"--attention-backend rheo; allowed: {allowed}"
        )


def _reject_model(model: Any, reason: str) -> NoReturn:
    name = (model.hf_config.architectures or ["this model"])[0]
    raise ConfigError(
        f"--attention-backend: 'rheo' does not support {name}, which has {reason}; allowed: dense GQA or MHA models "
        "(Llama, Qwen2, Qwen3, SmolLM2, ...)"
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
