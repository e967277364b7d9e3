"""training: the loop over rounds of steps, with the criterion's decisions between them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from rheo_sglang.evaluation.tasks import TASKS
from training.batches import Batch, Batches, load_batches
from training.checkpoint import Progress, drop_state, save_checkpoint, save_state
from training.curriculum import learning_rate_scale
from training.model import ReferenceModel
from training.muon import Muon
from training.pacing import Pacing
from training.rows import ANSWER, ROLES, TEXT

TEXT_LOSS_WEIGHT = 0.1
MATRIX_LEARNING_RATE = 0.02
OTHER_LEARNING_RATE = 2e-3
_SAVE_EVERY_SECONDS = 60.0
_PRINT_EVERY_SECONDS = 3.0


@contextmanager
def fast_attention() -> Iterator[None]:
    """Let attention use cuDNN's kernels before FlashAttention's where both can."""
    kernels = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(kernels, set_priority=True):
        yield


def make_optimizers(model: ReferenceModel, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, with this decay of them, and AdamW for embedding and norms."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [
        Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=weight_decay),
        torch.optim.AdamW(
            others, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=others[0].is_cuda
        ),
    ]


def train(
    model: ReferenceModel,
    optimizers: list[torch.optim.Optimizer],
    batches: Batches,
    progress: Progress,
    tokenizer: Tokenizer,
    folder: Path,
    device: torch.device,
    minutes: float,
    workers: int,
    threshold: float,
) -> bool:
    """Train from `progress` to the end of its curriculum or of the time, and save into `folder`.

    Parameters
    ----------
    model
        On `device`.
    optimizers
        Of `make_optimizers`.
    batches
        Makes what is left of the curriculum.
    progress
        Updated in place.
    tokenizer
        Saved beside the model.
    folder
        Checkpoint folder. The state to go on from is written about every minute and at the end, and removed when
        the curriculum is over.
    device
        Where to train.
    minutes
        Time after which training stops, at the end of a round.
    workers
        Processes that make batches; 0 makes them in this one.
    threshold
        Answer loss under which a task counts as learnt, nats a token.

    Returns
    -------
    bool
        Whether the curriculum is over.
    """
    curriculum = batches.curriculum
    pacing = progress.pacing = progress.pacing or Pacing.begin(curriculum, threshold)
    steps = sum(stage.most_steps for stage in curriculum.stages)
    peaks = [MATRIX_LEARNING_RATE, OTHER_LEARNING_RATE]
    totals = torch.zeros((ROLES, 3), device=device)
    begin = last_round = last_save = last_line = time.monotonic()
    bar = tqdm(total=steps, initial=progress.step, unit="step", smoothing=0.05, mininterval=5.0, disable=None)
    with bar, fast_attention():
        for batch in load_batches(batches, pacing, workers):
            plan, step = batch.order.plan, batch.order.step
            stage = curriculum.stages[plan.stage]
            stage_step = plan.first_step + step % curriculum.round_steps
            scale = learning_rate_scale(stage, stage_step, step - progress.warm_from)
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                optimizer.param_groups[0]["lr"] = peak * scale
            totals += _step(model, batch, optimizers, device)
            bar.update()
            if (step + 1) % curriculum.round_steps:
                continue
            entry = _describe(totals.cpu()) | {"stage": plan.stage, "length": max(stage.lengths)}
            totals.zero_()
            now = time.monotonic()
            progress.step = step + 1
            progress.seconds += now - last_round
            progress.history.append(
                {"step": progress.steps_before + progress.step, **entry, "shares": plan.shares}
            )
            pacing.absorb(curriculum, threshold, entry["losses"], now - last_round)
            last_round = now
            if now - last_line > _PRINT_EVERY_SECONDS or not pacing.planned:
                tqdm.write(_line(progress, pacing, len(curriculum.stages)))
                last_line = now
            if now - begin > 60 * minutes:
                break
            if now - last_save > _SAVE_EVERY_SECONDS:
                save_state(folder, model, optimizers, progress)
                last_save = now
    save_checkpoint(folder, model, tokenizer, progress)
    if pacing.planned:
        save_state(folder, model, optimizers, progress)
    else:
        drop_state(folder)
    return not pacing.planned


def _step(
    model: ReferenceModel, batch: Batch, optimizers: list[torch.optim.Optimizer], device: torch.device
) -> Tensor:
    """One optimiser step; what `ReferenceModel.losses` measured by role, float32 ``[ROLES, 3]`` on the device."""
    tokens, roles, positions = (
        torch.from_numpy(part).to(device, non_blocking=True)
        for part in (batch.tokens, batch.roles, batch.positions)
    )
    tokens = tokens.long()
    by_role, _ = model.losses(
        tokens[:, :-1].contiguous(),
        positions[:, :-1],
        tokens[:, 1:].contiguous(),
        roles[:, 1:].contiguous(),
    )
    answers = by_role[ANSWER:].sum(0)
    text_loss, answer_loss = (part[0] / part[1].clamp(min=1) for part in (by_role[TEXT], answers))
    (answer_loss + TEXT_LOSS_WEIGHT * text_loss).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return by_role.detach()


def _describe(totals: Tensor) -> dict[str, Any]:
    """Mean losses and accuracy of a round from its sums by role, float32 ``[ROLES, 3]``."""
    answers = totals[ANSWER:].sum(0)
    by_task = zip(TASKS, totals[ANSWER:].tolist(), strict=True)
    return {
        "text_loss": round(float(totals[TEXT, 0] / totals[TEXT, 1].clamp(min=1)), 4),
        "answer_loss": round(float(answers[0] / answers[1].clamp(min=1)), 5),
        "answer_accuracy": round(float(answers[2] / answers[1].clamp(min=1)), 5),
        "losses": {task: round(loss / count, 5) for task, (loss, count, _) in by_task if count},
    }


def _line(progress: Progress, pacing: Pacing, stages: int) -> str:
    """The last round in one line, and why stages have ended."""
    entry = progress.history[-1]
    losses = " ".join(f"{task} {loss:.4f}" for task, loss in entry["losses"].items())
    ended = f"; ended: {', '.join(pacing.ended)}" if pacing.ended else ""
    return (
        f"step {entry['step']} ({progress.seconds:.0f} s) stage {entry['stage'] + 1}/{stages}, rows to "
        f"{entry['length']}: text {entry['text_loss']:.3f} {losses}{ended}"
    )
