"""requests: settings of their own, and what is refused with HTTP 400."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rheo_sglang.config import RheoConfig
from rheo_sglang.errors import ConfigError
from rheo_sglang.hooks.hook import SCHEDULER, Hook
from rheo_sglang.refusal import report_dead_scheduler

ENGINE = "sglang.srt.entrypoints.engine"
TOKENIZER_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"


def check_request(manager: Any, request: Any, *args: Any, **kwargs: Any) -> None:
    """Refuse a request with a bad setting, all its prompts at once: SGLang answers a ValueError with HTTP 400."""
    from rheo_sglang.request_settings import check_parameters
    from rheo_sglang.validate import uses_rheo

    if uses_rheo(manager.server_args):
        check_parameters(request.sampling_params, manager.preferred_sampling_params)


def check_stream(manager: Any, request: Any, *args: Any, **kwargs: Any) -> None:
    """Refuse a request as `check_request` does, before ``/generate`` has answered a stream with HTTP 200.

    SGLang makes the task that ends a stream when it answers, and generates only then.
    """
    from fastapi import HTTPException

    try:
        check_request(manager, request)
    except ConfigError as error:
        raise HTTPException(400, str(error)) from None


def refuse_release(manager: Any, *args: Any, **kwargs: Any) -> None:
    """Refuse to lend the GPU's memory to others, with HTTP 400: under load SGLang's scheduler would end instead."""
    from rheo_sglang.validate import uses_rheo

    if uses_rheo(manager.server_args):
        raise ValueError(
            "release_memory_occupation is not supported with --attention-backend rheo, which keeps its frames and "
            "its pinned host memory as long as it runs; stop the server instead"
        )


def read_request(scheduler: Any, request: Any, *args: Any, **kwargs: Any) -> None:
    """Read a new request's settings; end it with HTTP 400 if they are bad and nobody has checked them.

    Tokenizers that SGLang runs in processes of their own load no plugins. Prompts that would end the server end here,
    too: SGLang refuses none without tokens and none with tokens that the model does not have.
    """
    from rheo_sglang.request_settings import PARAMETERS, brings_settings, read_settings
    from rheo_sglang.validate import uses_rheo

    if not uses_rheo(scheduler.server_args):
        return
    if reason := _wrong_tokens(request.origin_input_ids, scheduler.model_config.vocab_size):
        request.set_finish_with_abort(reason)
        return
    parameters: Any = getattr(request.sampling_params, PARAMETERS, None)
    if not brings_settings(parameters):
        return
    try:
        request.rheo_budget = read_settings(parameters, RheoConfig.from_environment())
    except ConfigError as error:
        request.set_finish_with_abort(str(error))


def _wrong_tokens(tokens: Sequence[int], vocabulary: int) -> str:
    """What is wrong with a prompt's tokens, in one sentence; empty if nothing is."""
    if not len(tokens):
        return "the prompt has 0 tokens; allowed: 1 or more"
    for token in (min(tokens), max(tokens)):
        if not 0 <= token < vocabulary:
            return (
                f"the prompt has token {token}, which the model does not have; allowed: 0 to {vocabulary - 1}"
            )
    return ""


HOOKS = (Hook(f"{SCHEDULER}._add_request_to_queue", read_request, "BEFORE"),)
IN_MAIN_PROCESS = (
    Hook(f"{ENGINE}._scheduler_died_error", report_dead_scheduler, "AFTER"),
    Hook(f"{TOKENIZER_MANAGER}.generate_request", check_request, "BEFORE"),
    Hook(f"{TOKENIZER_MANAGER}.create_abort_task", check_stream, "BEFORE"),
    Hook(f"{TOKENIZER_MANAGER}.release_memory_occupation", refuse_release, "BEFORE"),
)
"""Of the process that answers HTTP: SGLang's other processes need not load what they name."""
