"""arguments: the command line, and models that rheo refuses before their weights are loaded."""

from __future__ import annotations

import logging
import os
from typing import Any

from rheo_sglang import compat
from rheo_sglang.config import DEFAULT_PAGE_SIZE, ENVIRONMENT, RheoConfig
from rheo_sglang.errors import FLAG, ConfigError
from rheo_sglang.hooks.hook import SCHEDULER, Hook
from rheo_sglang.refusal import end_scheduler, expect_schedulers, note_command_line, refuse

SERVER_ARGS = "sglang.srt.server_args.ServerArgs"
MODEL_CONFIG = "sglang.srt.configs.model_config.ModelConfig"

logger = logging.getLogger(__name__)


def add_flag(result: Any, parser: Any, *args: Any, **kwargs: Any) -> Any:
    """Add ``--rheo-config`` to SGLang's command line."""
    parser.add_argument(
        FLAG,
        type=str,
        default=None,
        help="Settings of --attention-backend rheo: a JSON object, or a file that holds one. "
        f"The environment variable {ENVIRONMENT} takes the same and is not read where this is given.",
    )
    return result


def parse_flag(original: Any, cls: Any, args: Any) -> Any:
    """Hand ``--rheo-config`` to every process of this server, and adapt the other arguments."""
    note_command_line()
    text = getattr(args, "rheo_config", None)
    try:
        if text is not None:
            if args.attention_backend != "rheo":
                raise ConfigError(f"{FLAG}: needs --attention-backend rheo, not {args.attention_backend!r}")
            chosen = RheoConfig.parse(text).to_json()
            if os.environ.get(ENVIRONMENT, chosen) != chosen:
                logger.warning(
                    "rheo: %s is given, so the environment variable %s is not read", FLAG, ENVIRONMENT
                )
            os.environ[ENVIRONMENT] = chosen
    except ConfigError as error:
        refuse(error)
    return original(cls, args)


def adapt_arguments(server_args: Any) -> None:
    """Check the unresolved server arguments and select what rheo needs."""
    from rheo_sglang.validate import adapt_server_args, check_device, check_kernels, uses_rheo

    if not uses_rheo(server_args) or getattr(server_args, "_resolution_finished", False):
        return
    try:
        RheoConfig.from_environment()
        adapt_server_args(server_args)
        check_device(server_args.device)
        check_kernels()
        expect_schedulers()
    except ConfigError as error:
        refuse(error)


def check_model(result: Any, server_args: Any, *args: Any, **kwargs: Any) -> Any:
    """Check the model's configuration, before its weights are loaded."""
    from rheo_sglang.validate import check_context, check_model_config, default_device, uses_rheo

    if uses_rheo(server_args):
        try:
            check_model_config(result)
            page_size = server_args.page_size or DEFAULT_PAGE_SIZE
            check_context(result.context_len, page_size, server_args.device or default_device())
        except ConfigError as error:
            refuse(error)
    return result


HOOKS = (
    Hook(f"{SERVER_ARGS}.add_cli_args", add_flag, "AFTER"),
    Hook(f"{SERVER_ARGS}.from_cli_args", parse_flag, "AROUND"),
    Hook(f"{SERVER_ARGS}.{compat.unresolved_arguments_hook()}", adapt_arguments, "BEFORE"),
    Hook(f"{MODEL_CONFIG}.from_server_args", check_model, "AFTER"),
    Hook(f"{SCHEDULER}.__init__", end_scheduler, "AROUND"),
)
