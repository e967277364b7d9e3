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

if TYPE_CHECKING:
    import torch

MARGIN = 1.0
"""How far above the greatest logit the wanted token is raised: its share stays below 0.74, so the rest keeps digits."""
FORCED, SPARE, STEP = "forced_tokens", "spare_token", "forced_step"


class ForcedTokens:
    """SGLang custom logit processor that makes greedy decoding follow ``custom_params["forced_tokens"]``.

    It counts its calls in the request's own ``custom_params``: with SGLang's overlapped scheduler the request's output
    is a step behind when the next token is sampled.
    """

    def __call__(self, logits: torch.Tensor, custom_param_list: list[dict[str, Any]]) -> torch.Tensor:
        """Raise each request's next token.

        Parameters
        ----------
        logits
            ``[B, V]``; updated.
        custom_param_list
            Each request's ``custom_params``.
        """
        for row, params in zip(logits, custom_param_list, strict=True):
            step = params.get(STEP, 0)
            params[STEP] = step + 1
            if step < len(params[FORCED]):
                token = params[FORCED][step]
                greatest = row.max()
                row[params[SPARE]] = row[token]
                row[token] = greatest + MARGIN
        return logits


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
