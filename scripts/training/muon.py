"""Muon (Jordan et al., 2024): momentum whose matrix updates are orthogonalised, batched over equal shapes."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices near 1 by a quintic Newton-Schulz iteration.

    Parameters
    ----------
    matrices
        ``[count, rows, columns]``; on a GPU the iteration runs in bfloat16.

    Returns
    -------
    Tensor
        Same shape; singular values between about 0.7 and 1.2.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum; equal shapes are updated together.

    Parameters
    ----------
    parameters
        Matrices.
    lr
        Learning rate: the spectral size of an update of a square matrix.
    weight_decay
        Share of the learning rate by which parameters shrink each step.
    momentum
        Decay of the running gradient.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one update."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                gradients = [p.grad for p in parameters if p.grad is not None]
                running = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
                torch._foreach_lerp_(running, gradients, 1 - group["momentum"])
                torch._foreach_lerp_(gradients, running, group["momentum"])
                updates = orthogonalise(torch.stack(gradients)).unbind()
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_add_(parameters, updates, alpha=-group["lr"] * scale)
