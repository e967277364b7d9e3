"""call_after_logits calls after the logits of every forward pass, and leaves them alone."""

from __future__ import annotations

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor

from rheo_sglang.backend import call_after_logits


class Logits(LogitsProcessor):
    """SGLang's, as far as a hook sees it: without the parallel groups that it is made with."""

    def __init__(self, calls: list[str]) -> None:
        torch.nn.Module.__init__(self)
        self.calls = calls

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.calls.append("logits")
        return hidden + 1


class Model(torch.nn.Module):
    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        self.layer = torch.nn.Identity()
        self.logits_processor = Logits(calls)


def test_the_call_follows_the_logits_and_does_not_change_them() -> None:
    calls: list[str] = []
    model = Model(calls)
    assert call_after_logits(model, lambda: calls.append("end"))
    for _ in range(2):
        hidden = torch.zeros(3)
        assert torch.equal(model.logits_processor(model.layer(hidden)), hidden + 1)
    assert calls == ["logits", "end"] * 2


def test_a_model_without_logits_is_told_apart() -> None:
    assert not call_after_logits(torch.nn.Identity(), lambda: None)
