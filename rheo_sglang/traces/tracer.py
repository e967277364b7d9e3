"""Tracer: collects the events of an engine and hands them to the thread that writes them, without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rheo_kernels.types import DecodeBatch, Selected
from rheo_sglang.prefill.batch import PrefillBatch
from rheo_sglang.traces.copies import ALIGNMENT, Later, Ring, copy
from rheo_sglang.traces.events import Integers, Noted, Prompts, Step
from rheo_sglang.traces.step_buffers import StepArrays, StepBuffers
from rheo_sglang.traces.writer import TraceWriter

Note = tuple[str, tuple[torch.Tensor, ...]]
KINDS = {"release": "free"}
NOT_TRACED = ("restore",)
"""A page from storage is a new page in a replay: pages are worth there what the trace's steps make them."""
"""Notes of the page table that have another name in a trace."""
NO_PAGES: Integers = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class Begun:
    """A decode step that runs."""

    number: int
    rids: list[str]
    tokens: Integers
    pages: torch.Tensor
    arrays: StepArrays | None


def slot_bytes(step: int, batch: int, columns: int) -> int:
    """Pinned bytes that the copy of a step of ``step`` bytes takes: with its page lists, each part aligned."""
    return step + 4 * batch * columns + 4 * ALIGNMENT


class Tracer:
    """An engine's side of a trace.

    A step is `settle`, `begin_step`, `layer` for every layer. What `layer` copies stays where the step runs; the next
    `settle` has it copied to pinned memory on the stream that runs the steps, and the writer's thread waits for that.
    On a CPU the last layer hands it over. Where the thread is behind, steps are dropped and counted. Copies within a
    step are part of its graph.

    Parameters
    ----------
    writer
        Writes the trace.
    layers, kv_heads
        ``L`` and ``H`` of this rank.
    device
        Where steps run.
    """

    def __init__(self, writer: TraceWriter, layers: int, kv_heads: int, device: torch.device) -> None:
        self.writer = writer
        self.layers = layers
        self.buffers = StepBuffers(layers, kv_heads, device)
        self.ring = Ring(device)
        self._arrays: StepArrays | None = None
        self._begun: Begun | None = None
        self._rids: list[str] = []
        self._mass: list[torch.Tensor] = []

    def reserve(self, batch: int, columns: int, width: int) -> None:
        """Allocate what steps of up to ``batch`` requests need, before graphs that name it are captured."""
        self.buffers.reserve(batch, columns, width)
        arrays = self.buffers.views(batch, columns, width)
        if arrays is not None:
            self.ring.reserve(slot_bytes(arrays.nbytes, batch, columns), self.writer.waiting_bytes)

    def settle(self, notes: Sequence[Note]) -> None:
        """Hand over the step that ran last and what the scheduler noted since, before anything is overwritten."""
        self._hand_over()
        for action, operands in notes:
            if action in NOT_TRACED:
                continue
            copied = copy(operands)

            def event(kind: str = KINDS.get(action, action), copied: Later = copied) -> Noted:
                pages, survivors, *_ = [*copied(), NO_PAGES, NO_PAGES]
                return Noted(kind, pages.astype(np.int32), survivors.astype(np.int32))

            self.writer.offer(event, sum(operand.nbytes for operand in operands))

    def begin_prompts(self, rids: Sequence[str]) -> None:
        """Begin a prefill pass of these requests."""
        self._rids, self._mass = list(rids), []

    def prompts(self, mass: torch.Tensor | None, batch: PrefillBatch, caps: torch.Tensor) -> None:
        """Note one layer of a prefill pass; the last one hands it over, or the first if no prompt ends.

        Parameters
        ----------
        mass
            What the last tokens of ended prompts attended, ``[E, H, M]``; None if no prompt ends.
        batch
            The pass.
        caps
            Most pages that a decode step of each ended prompt may select, ``[E]``.
        """
        if not self._rids:
            return
        if mass is not None:
            self._mass.append(mass)
            if len(self._mass) < self.layers:
                return
        rids, self._rids = self._rids, []
        masses, self._mass = self._mass, []
        tokens = np.diff(np.array(batch.key_starts)).astype(np.int32)
        operands = (batch.pages, batch.offered, caps, *masses)
        size = sum(operand.nbytes for operand in operands)
        if not self.writer.has_room(size):
            self.writer.drop_prompts()
            return
        copied, ended, heads = copy(operands), batch.ending, self.buffers.kv_heads

        def event() -> Prompts:
            pages, offered, caps, *mass = copied()
            nothing = np.zeros((0, ended, heads, pages.shape[1]), dtype=np.float32)
            kept = np.stack(mass) if mass else nothing
            return Prompts(rids, tokens, pages, kept, caps, offered.astype(np.int32))

        self.writer.offer(event, size)

    def begin_step(
        self, number: int, rids: Sequence[str] | None, tokens: torch.Tensor, batch: DecodeBatch, width: int
    ) -> None:
        """Begin a decode step, outside its graph.

        Parameters
        ----------
        number
            Decode steps so far.
        rids
            Its requests; None or empty where a graph is captured.
        tokens
            Of each request, on the host.
        batch
            The described batch, padded rows included.
        width
            ``S``; 0 in a step without a selection.
        """
        rows, columns = batch.pages.shape
        self._arrays = self.buffers.views(rows, columns, width) if width else None
        self._begun = None
        if not rids:
            return
        size = batch.pages.nbytes + (0 if self._arrays is None else self._arrays.nbytes)
        if (width and self._arrays is None) or not self.writer.has_room(size):
            self.writer.drop_step()
            return
        lengths = np.array(tokens[: len(rids)].numpy(), dtype=np.int32)
        self._begun = Begun(number, list(rids), lengths, batch.pages, self._arrays)

    def layer(self, layer: int, scores: torch.Tensor, selected: Selected) -> None:
        """Keep what one layer selected, from scores ``[B, H, M]``; part of the step's graph."""
        if self._arrays is None:
            return
        self.buffers.keep(self._arrays, layer, scores, selected)
        if layer == self.layers - 1 and self.buffers.device.type == "cpu":
            self._hand_over()

    def join(self) -> None:
        """Have the current stream wait for what `layer` copies: scores and lists are about to be overwritten."""
        self.buffers.stream.join()

    def close(self) -> None:
        """Hand over what there is, and write it."""
        self._hand_over()
        self.writer.close()

    def _hand_over(self) -> None:
        begun, self._begun = self._begun, None
        if begun is None:
            return
        operands = (begun.pages, *(begun.arrays or ()))
        copied = self.ring.copy(operands)
        if copied is None:
            self.writer.drop_step()
            return

        def event() -> Step:
            pages, *arrays = copied()
            live = len(begun.rids)
            if not arrays:
                return Step(begun.number, begun.rids, begun.tokens, pages[:live])
            scores, selected, counts = arrays
            return Step(
                begun.number,
                begun.rids,
                begun.tokens,
                pages[:live],
                scores[:, :live],
                selected[:, :live],
                counts[:, 0, :live],
                counts[:, 1, :live],
            )

        self.writer.offer(event, sum(operand.nbytes for operand in operands), steps=1)
