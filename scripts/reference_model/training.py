"""The training loop."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm import tqdm

from reference_model.checkpoint import Progress, save_checkpoint
from reference_model.corpus import Corpus
from reference_model.curriculum import Batch, Batches, learning_rate_scale
from reference_model.model import ReferenceModel
from reference_model.muon import Muon
from reference_model.rows import ANSWER

TEXT_LOSS_WEIGHT = 0.1
MATRIX_LEARNING_RATE = 0.02
OTHER_LEARNING_RATE = 2e-3
_LOG_EVERY = 10
_SAVE_EVERY_SECONDS = 60.0


@contextmanager
def fast_attention() -> Iterator[None]:
    """Let attention use cuDNN's kernels before FlashAttention's where both can."""
    kernels = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(kernels, set_priority=True):
        yield


def train(
    model: ReferenceModel,
    corpus: Corpus,
    batches: Batches,
    progress: Progress,
    folder: Path,
    device: torch.device,
    time_limit: float,
    workers: int,
    weight_decay: float,
) -> None:
    """Train from `progress` to the end of its curriculum or the time limit, and save into `folder`.

    Parameters
    ----------
    model
        On `device`.
    corpus
        Where the tokenizer to save comes from.
    batches
        What is left of the curriculum.
    progress
        Updated in place.
    folder
        Checkpoint folder, written about every minute and at the end.
    device
        Where to train.
    time_limit
        Seconds after which training stops.
    workers
        Processes that make batches; 0 makes them in this one.
    weight_decay
        Decay of the matrices, a share of the learning rate.
    """
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=weight_decay),
        torch.optim.AdamW(
            others, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=device.type == "cuda"
        ),
    ]
    peaks = [MATRIX_LEARNING_RATE, OTHER_LEARNING_RATE]
    steps = progress.step + len(batches)
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        collate_fn=lambda batch: batch,
    )
    begin = last_save = time.monotonic()
    before = progress.seconds
    pending: list[tuple[int, int, Tensor]] = []
    bar = tqdm(total=steps, initial=progress.step, unit="step", smoothing=0.05, mininterval=5.0)
    with bar, fast_attention():
        for batch in loader:
            scale = learning_rate_scale(batch.step, steps, first_step=steps - len(batches))
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                optimizer.param_groups[0]["lr"] = peak * scale
            measured = _step(model, batch, optimizers, device)
            if batch.step % _LOG_EVERY == 0:
                pending.append((progress.steps_before + batch.step, batch.tokens.shape[1] - 1, measured))
            now = time.monotonic()
            progress.step, progress.seconds = batch.step + 1, before + now - begin
            bar.update()
            if len(pending) == 10:
                _log(progress, pending, bar)
            if now - begin > time_limit:
                break
            if now - last_save > _SAVE_EVERY_SECONDS:
                save_checkpoint(folder, model, corpus.tokenizer, progress)
                last_save = now
        _log(progress, pending, bar)
    save_checkpoint(folder, model, corpus.tokenizer, progress)


def _step(
    model: ReferenceModel, batch: Batch, optimizers: list[torch.optim.Optimizer], device: torch.device
) -> Tensor:
    """One optimiser step; text loss, answer loss and answer accuracy as float32 ``[3]`` on the device."""
    tokens, roles, positions = (
        torch.from_numpy(part).to(device, non_blocking=True)
        for part in (batch.tokens, batch.roles, batch.positions)
    )
    tokens, targets_roles = tokens.long(), roles[:, 1:].contiguous()
    text_loss, answer_loss, correct = model.losses(
        tokens[:, :-1].contiguous(), positions[:, :-1], tokens[:, 1:].contiguous(), targets_roles
    )
    (answer_loss + TEXT_LOSS_WEIGHT * text_loss).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    answers = targets_roles == ANSWER
    accuracy = (correct & answers).sum() / answers.sum().clamp(min=1)
    return torch.stack([text_loss.detach(), answer_loss.detach(), accuracy])


def _log(progress: Progress, pending: list[tuple[int, int, Tensor]], bar: tqdm) -> None:
    for step, length, measured in pending:
        text_loss, answer_loss, accuracy = (round(value, 4) for value in measured.tolist())
        progress.history.append(
            {
                "step": step,
                "length": length,
                "text_loss": text_loss,
                "answer_loss": answer_loss,
                "answer_accuracy": accuracy,
            }
        )
    if pending:
        bar.set_postfix(
            {key: value for key, value in progress.history[-1].items() if key != "step"}, refresh=False
        )
    pending.clear()
