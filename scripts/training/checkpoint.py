"""checkpoint: the model for Hugging Face in bfloat16, and the state that an unfinished training goes on from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from training.corpus import document_token
from training.model import ReferenceModel
from training.pacing import Pacing
from training.tokenizer import DOCUMENT_TOKEN

MAX_POSITION = 131_072
_WEIGHTS = "model.safetensors"
_PROGRESS = "training.json"
_STATE = "training_state.pt"


@dataclass
class Progress:
    """How far a training has come.

    Attributes
    ----------
    curriculum
        Name of the curriculum it is in.
    step
        Steps done of that curriculum.
    steps_before
        Steps done of earlier curricula.
    warm_from
        Step of that curriculum at which the optimisers' state began.
    seconds
        Wall time of all steps.
    pacing
        State of the criterion; None before the curriculum's first step.
    history
        One entry per round: ``step`` (counted from the first curriculum), ``stage``, ``length`` (the stage's
        longest rows), ``text_loss``, ``answer_loss`` (nats a token), ``answer_accuracy`` (share of answer tokens
        predicted), and by task ``losses`` and ``shares``.
    """

    curriculum: str
    step: int = 0
    steps_before: int = 0
    warm_from: int = 0
    seconds: float = 0.0
    pacing: Pacing | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Progress:
        """The progress that `state` returned."""
        pacing = state.get("pacing")
        return cls(**{**state, "pacing": Pacing.restore(pacing) if pacing else None})

    def state(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dicts, for JSON."""
        return {**vars(self), "pacing": self.pacing.state() if self.pacing else None}

    def enter(self, curriculum: str) -> None:
        """Go on with a curriculum: from its first step, unless it is the current one."""
        if curriculum != self.curriculum:
            self.steps_before += self.step
            self.curriculum, self.step, self.pacing = curriculum, 0, None


def save_checkpoint(folder: Path, model: ReferenceModel, tokenizer: Tokenizer, progress: Progress) -> None:
    """Write weights, config, tokenizer and progress into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    _write_json(folder / "config.json", model.shape.config(MAX_POSITION, document_token(tokenizer)))
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": DOCUMENT_TOKEN,
        "eos_token": DOCUMENT_TOKEN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITION,
    }
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    _write_json(folder / _PROGRESS, progress.state())


def load_weights(folder: Path, model: ReferenceModel) -> None:
    """Load a checkpoint's weights into `model`."""
    model.load_state_dict(load_file(folder / _WEIGHTS))


def save_state(
    folder: Path, model: ReferenceModel, optimizers: list[torch.optim.Optimizer], progress: Progress
) -> None:
    """Keep float32 weights, optimiser states and progress in `folder`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "weights": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": progress.state(),
    }
    unfinished = folder / (_STATE + ".part")
    torch.save(state, unfinished)
    unfinished.replace(folder / _STATE)


def drop_state(folder: Path) -> None:
    """Remove what `save_state` wrote, once the training is over."""
    (folder / _STATE).unlink(missing_ok=True)


def resume(
    folder: Path,
    model: ReferenceModel,
    optimizers: list[torch.optim.Optimizer],
    curriculum: str,
    device: torch.device,
) -> Progress:
    """Load what a training left in `folder`, and go on with `curriculum`.

    With the kept state of the same curriculum everything goes on as if it had not stopped. From a checkpoint alone,
    or into another curriculum, the optimisers start anew and warm up again.

    Parameters
    ----------
    folder
        Checkpoint folder.
    model, optimizers
        Loaded in place.
    curriculum
        Name of the curriculum.
    device
        Where the model is.
    """
    kept = folder / _STATE
    if kept.exists():
        state = torch.load(kept, map_location=device, weights_only=True)
        progress = Progress.restore(state["progress"])
        model.load_state_dict(state["weights"])
        if progress.curriculum == curriculum:
            for optimizer, one in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(one)
            return progress
    else:
        progress = Progress.restore(json.loads((folder / _PROGRESS).read_text(encoding="utf-8")))
        load_weights(folder, model)
    progress.enter(curriculum)
    progress.warm_from = progress.step
    return progress


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
