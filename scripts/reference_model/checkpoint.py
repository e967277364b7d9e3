"""The model as a Hugging Face checkpoint in bfloat16, with the training's progress beside it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from reference_model.corpus import document_token
from reference_model.model import ReferenceModel
from reference_model.tokenizer import DOCUMENT_TOKEN

MAX_POSITION = 131_072
_WEIGHTS = "model.safetensors"
_PROGRESS = "training.json"


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
    seconds
        Wall time of all steps.
    history
        One entry per logged step: ``step`` (counted from the first curriculum), ``length``, ``text_loss``,
        ``answer_loss`` (nats a token) and ``answer_accuracy`` (share of answer tokens predicted).
    """

    curriculum: str
    step: int = 0
    steps_before: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def enter(self, curriculum: str) -> None:
        """Go on with a curriculum: from its first step, unless it is the current one."""
        if curriculum != self.curriculum:
            self.steps_before += self.step
            self.curriculum, self.step = curriculum, 0


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
    _write_json(folder / _PROGRESS, vars(progress))


def load_checkpoint(folder: Path, model: ReferenceModel) -> Progress:
    """Load weights into `model` and return the progress they were saved with.

    Optimiser states are not kept: a resumed training warms up again.
    """
    model.load_state_dict(load_file(folder / _WEIGHTS))
    return Progress(**json.loads((folder / _PROGRESS).read_text(encoding="utf-8")))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
