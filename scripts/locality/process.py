"""process: synthetic page scores with the temporal locality of a real model, for benchmarks only.

The score of a page is a sum of standard normals,

    score(page, step) = static * g(page) + exp(spread * z(layer, head)) * sum_k weight_k * u_k(page, step),

where ``g`` never changes, ``u_k`` forgets its value within two times ``period_k`` steps, and ``z`` makes some heads
restless and others calm. ``g`` and ``u_k`` differ between requests, layers, heads and pages; every normal is a hash
of these, the component and a node, so that any step can be computed on its own and on any device. Component `k` has
one node every ``period_k`` steps (shifted by a phase of the page, so that pages do not change in unison); between
nodes it moves on a quarter circle, ``cos(x) * node_j + sin(x) * node_{j+1}`` with `x` from 0 to pi/2, which keeps
its variance at 1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

MASK = 0xFFFFFFFF
NODE_STRIDE = 0x9E3779B9
COMPONENT_STRIDE = 0x2545F491
PHASE_BITS = 8
MAX_COMPONENTS = 32 // PHASE_BITS


@dataclass(frozen=True)
class Locality:
    """Parameters of the process. Of the weights only the ratios matter to a selection.

    Attributes
    ----------
    static
        Weight of what a page keeps for ever.
    weights
        Weight of each component that changes, at most 4.
    periods
        Steps between the nodes of each component, 1 to 256; 1 draws anew at every step.
    spread
        Standard deviation, over layers and heads, of the logarithm of the factor on all `weights`.

    Raises
    ------
    ValueError
        If there are too many components, periods are missing, or a period is out of range.
    """

    static: float
    weights: tuple[float, ...]
    periods: tuple[int, ...]
    spread: float

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.periods) or len(self.periods) > MAX_COMPONENTS:
            raise ValueError(
                f"locality has {len(self.weights)} weights and {len(self.periods)} periods; allowed: up to "
                f"{MAX_COMPONENTS} weights and one period for each"
            )
        for period in self.periods:
            if not 1 <= period <= 1 << PHASE_BITS:
                raise ValueError(f"locality has a period of {period} steps; allowed: 1 to {1 << PHASE_BITS}")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Locality:
        """Parameters as `to_json` wrote them."""
        return cls(values["static"], tuple(values["weights"]), tuple(values["periods"]), values["spread"])

    def to_json(self) -> dict[str, Any]:
        """Parameters as JSON knows them."""
        return asdict(self)


def synthetic_scores(
    num_pages: int, step: int, layer: int, heads: int, seeds: torch.Tensor, locality: Locality
) -> torch.Tensor:
    """Scores of the first `num_pages` pages of every request; the reference of `locality.kernel`.

    Parameters
    ----------
    num_pages
        Pages to score; a page's score does not depend on their number.
    step
        Decode step, 0 or more.
    layer
        Layer, 0 or more.
    heads
        KV heads.
    seeds
        Seed of each request, ``[B]``, int32 or int64; the low 32 bits count.
    locality
        Parameters.

    Returns
    -------
    torch.Tensor
        ``[B, H, M]``, float32.
    """
    parts = components(num_pages, step, layer, heads, seeds, locality.periods)
    moving = torch.einsum("k,kbhm->bhm", torch.tensor(locality.weights, device=parts.device), parts[1:])
    restlessness = (locality.spread * head_normals(layer, heads, seeds.device)).exp()
    return locality.static * parts[0] + restlessness[:, None] * moving


def components(
    num_pages: int, step: int, layer: int, heads: int, seeds: torch.Tensor, periods: tuple[int, ...]
) -> torch.Tensor:
    """The normals ``g`` and ``u_k`` of `synthetic_scores`, ``[1 + K, B, H, M]``, float32."""
    row = mix(_head_keys(layer, heads, seeds.device) ^ mix((seeds.long() + NODE_STRIDE) & MASK)[:, None])
    key = mix((row[:, :, None] + torch.arange(num_pages, device=seeds.device)) & MASK)
    parts = [normal(key, 0, torch.zeros_like(key))]
    for index, period in enumerate(periods):
        time = step + ((key >> PHASE_BITS * index) & (1 << PHASE_BITS) - 1) % period
        node = time // period
        angle = (time % period).float() * (0.5 * math.pi / period)
        part = normal(key, index + 1, node) * angle.cos()
        parts.append(part + normal(key, index + 1, node + 1) * angle.sin())
    return torch.stack(parts)


def head_normals(layer: int, heads: int, device: torch.device) -> torch.Tensor:
    """The normals ``z`` of one layer's KV heads, ``[H]``, float32."""
    keys = _head_keys(layer, heads, device)
    return normal(keys, 0, torch.zeros_like(keys))


def _head_keys(layer: int, heads: int, device: torch.device) -> torch.Tensor:
    return mix(
        mix(torch.tensor(layer + NODE_STRIDE, device=device) & MASK) ^ torch.arange(heads, device=device)
    )


def normal(key: torch.Tensor, component: int, node: torch.Tensor) -> torch.Tensor:
    """Standard normal of a node by Box and Muller, radius and angle from 16 bits of the hash each."""
    bits = mix((key + component * COMPONENT_STRIDE + node * NODE_STRIDE) & MASK)
    radius = (-2 * torch.log(((bits >> 16).float() + 0.5) / 65536)).sqrt()
    return radius * torch.cos((bits & 0xFFFF).float() * (2 * math.pi / 65536))


def mix(value: torch.Tensor) -> torch.Tensor:
    """32-bit finaliser of MurmurHash3 (Appleby, public domain), on 32-bit values held as int64."""
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & MASK
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & MASK
    return value ^ (value >> 16)
