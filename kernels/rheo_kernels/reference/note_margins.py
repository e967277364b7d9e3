"""note_margins: how far the two most probable next tokens of each request are apart."""

from __future__ import annotations

import torch


def note_margins(
    logits: torch.Tensor, rows: torch.Tensor, num_pages: torch.Tensor, margins: torch.Tensor
) -> None:
    """Keep the margin of each request's latest pass: the largest logit less the second largest.

    That is the difference of their log-probabilities. A logit that is NaN counts as ``-inf``; a margin between two
    infinities of one sign is NaN, which is below nothing.

    Parameters
    ----------
    logits
        Of each request's next token, ``[B, V]``, floating point.
    rows
        Requests' rows of SGLang's token table, ``[B]``, integer.
    num_pages
        Pages of each request, ``[B]``, int32; one without any is padding and is not noted.
    margins
        By row of the token table, in nats, ``[R]``, float32; updated.
    """
    first, second = (
        logits.float().nan_to_num(-torch.inf, torch.inf, -torch.inf).topk(2, dim=1).values.unbind(1)
    )
    live = num_pages > 0
    margins[rows[live].long()] = (first - second)[live]
