"""call_after_logits calls with the logits of every forward pass, and leaves them alone."""

from __future__ import annotations

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput

from rheo_sglang.backend import call_after_logits


class Logits(LogitsProcessor):
    """SGLang's, as far as a hook sees it: without the parallel groups that it is made with."""

    def __init__(self, calls: list[str]) -> None:
        torch.nn.Module.__init__(self)
        self.calls = calls

    def forward(self, hidden: torch.Tensor) -> LogitsProcessorOutput:
        self.calls.append("logits")
        return LogitsProcessorOutput(next_token_logits=hidden + 1)


class Model(torch.nn.Module):
    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        self.layer = torch.nn.Identity()
        self.logits_processor = Logits(calls)


def test_the_call_follows_the_logits_and_does_not_change_them() -> None:
    calls: list[str] = []
    seen: list[torch.Tensor | None] = []

    def call(logits: torch.Tensor | None) -> None:
        calls.append("end")
        seen.append(logits)

    model = Model(calls)
    assert call_after_logits(model, call)
    for _ in range(2):
        hidden = torch.zeros(3)
        found = model.logits_processor(model.layer(hidden)).next_token_logits
        assert torch.equal(found, hidden + 1)
        assert seen[-1] is found
    assert calls == ["logits", "end"] * 2


def test_a_model_without_logits_is_told_apart() -> None:
    assert not call_after_logits(torch.nn.Identity(), lambda logits: None)
