"""Layer: one layer's queries, keys and values of decode steps that all read the same prompt, and dense attention."""

from __future__ import annotations

import torch


class Layer:
    """One layer's decode steps; each attends the prompt, what follows it, and the tokens of the steps up to it.

    Parameters
    ----------
    query
        ``[H, T, G, D]``, float32.
    keys, values
        Of the prompt, ``R`` tokens behind it and the steps, ``[H, L + R + T, D]``, float32.
    length
        ``L``.
    scale
        Softmax scale.

    Attributes
    ----------
    flat
        Scaled queries, ``[H, T * G, D]``.
    top
        Largest logit of a step and query head, ``[H, T, G, 1]``. All weights are relative to it.
    weights
        Of the prompt's tokens, ``[H, T, G, L]``.
    recent, recent_mass
        Weighted sum of V behind the prompt, ``[H, T, G, D]``, and the sum of the weights, ``[H, T, G]``.
    mass
        Sum of all weights, ``[H, T, G]``.
    dense
        Attention output, ``[H, T, G, D]``.
    """

    def __init__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, length: int, scale: float
    ) -> None:
        self.heads, self.steps, self.group, self.dim = query.shape
        self.flat = query.flatten(1, 2) * scale
        self.keys, self.values, self.length = keys[:, :length], values[:, :length], length
        old = self.by_head(self.flat @ self.keys.transpose(1, 2))
        new = self.by_head(self.flat @ keys[:, length:].transpose(1, 2))
        behind = new.shape[-1]
        future = torch.ones(self.steps, behind, dtype=torch.bool, device=query.device)
        future = future.triu(1 + behind - self.steps)
        new.masked_fill_(future[:, None], -torch.inf)
        self.top = torch.maximum(old.amax(-1), new.amax(-1))[..., None]
        self.weights = (old - self.top).exp()
        recent = (new - self.top).exp()
        self.recent = self.by_head(recent.flatten(1, 2) @ values[:, length:])
        self.recent_mass = recent.sum(-1)
        self.mass = self.weights.sum(-1) + self.recent_mass
        whole = self.by_head(self.weights.flatten(1, 2) @ self.values)
        self.dense = (whole + self.recent) / self.mass[..., None]

    def by_head(self, flat: torch.Tensor) -> torch.Tensor:
        """``[H, T * G, X]`` as ``[H, T, G, X]``."""
        return flat.unflatten(1, (self.steps, self.group))
