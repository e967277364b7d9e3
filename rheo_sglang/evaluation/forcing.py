"""Forced decoding: a server decodes a given text, and its log-probabilities are those of the unforced model.

SGLang applies a request's custom logit processor before it takes the logits' softmax, so a processor that simply raises
the wanted token would destroy the distribution that is to be read. This one keeps it: the wanted token's logit goes to
a spare token, and the wanted token gets the greatest logit plus `MARGIN`. `recover` undoes both.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rheo_sglang.compat import tokens_after_pass

if TYPE_CHECKING:
    import torch

MARGIN = 1.0
"""How far above the greatest logit the wanted token is raised: its share stays below 0.74, so the rest keeps digits."""
FORCED, SPARE = "forced_tokens", "spare_token"
REQUEST = "__req__"
"""Where SGLang puts the request itself, beside the parameters that came with it."""


class ForcedTokens:
    """SGLang custom logit processor that makes greedy decoding follow ``custom_params["forced_tokens"]``.

    Which token is next follows from the length of the request's KV. The request's output is a step behind where SGLang
    overlaps scheduling; calls are more than tokens, for SGLang also samples behind every chunk of a prompt but the last
    and takes requests back with a token under way, and what it samples there it drops.
    """

    def __call__(self, logits: torch.Tensor, custom_param_list: list[dict[str, Any]]) -> torch.Tensor:
        """Raise each request's next token.

        Parameters
        ----------
        logits
            ``[B, V]``; updated.
        custom_param_list
            Each request's ``custom_params``, SGLang's own entry included.
        """
        for row, params in zip(logits, custom_param_list, strict=True):
            request = params[REQUEST]
            step = tokens_after_pass(request) - len(request.origin_input_ids)
            if 0 <= step < len(params[FORCED]):
                raise_token(row, params[FORCED][step], params[SPARE])
        return logits


def raise_token(logits: torch.Tensor, token: int, spare: int) -> None:
    """Make ``token`` the greatest of ``logits`` ``[V]``, in place; ``spare`` gets the logit that it had."""
    greatest = logits.max()
    logits[spare] = logits[token]
    logits[token] = greatest + MARGIN


def processor_text() -> str:
    """`ForcedTokens` as SGLang's ``custom_logit_processor`` takes it; the server must have this package installed."""
    return json.dumps({"callable": pickle.dumps(ForcedTokens).hex()})


def recover(reported: Mapping[int, float], forced: int, spare: int) -> dict[int, float]:
    """Log-probabilities of the model from those of a step whose token was forced.

    Parameters
    ----------
    reported
        The step's log-probabilities by token; the forced and the spare token are among them.
    forced, spare
        Tokens; they differ.

    Returns
    -------
    dict of int to float
        Without the spare token, whose own probability is lost: it should be one that text does not use.
    """
    others = math.log1p(-math.exp(min(reported[forced], -1e-9)))
    found = {token: value - others for token, value in reported.items() if token not in (forced, spare)}
    found[forced] = reported[spare] - others
    return found
