"""pacing: when a stage of the curriculum ends, and which tasks its next questions are about.

Training goes in rounds of a fixed number of steps. What a round trains is planned `AHEAD` rounds before, so that
batches can be made in advance and still depend on nothing but the seed and the losses of finished rounds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from training.curriculum import Curriculum

AHEAD = 2
"""Rounds that are planned at any time: the one in training and the one whose batches are being made."""

THRESHOLD = 0.01
"""Answer loss, in nats a token, under which a task counts as learnt."""

_SMOOTHING = 0.5
_LARGEST_EMPHASIS = 4.0


@dataclass(frozen=True)
class Plan:
    """What one round trains.

    Attributes
    ----------
    stage
        Index of the stage.
    first_step
        Steps of that stage before this round.
    shares
        Weight of each task among the exercises.
    """

    stage: int
    first_step: int
    shares: dict[str, float]


@dataclass
class Pacing:
    """The criterion's state: everything that decides what later rounds train.

    Attributes
    ----------
    planned
        Plans of the rounds from `rounds` on, at most `AHEAD`; empty when the training is over.
    rounds
        Rounds trained.
    stage
        Stage that the next plan will be of.
    stage_steps
        Steps planned of that stage.
    stage_seconds
        Seconds spent training it.
    losses
        Smoothed answer loss of each task, nats a token.
    ended
        Why each finished stage ended: ``"criterion"``, ``"steps"`` or ``"seconds"``.
    """

    planned: list[Plan] = field(default_factory=list)
    rounds: int = 0
    stage: int = 0
    stage_steps: int = 0
    stage_seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, curriculum: Curriculum, threshold: float) -> Pacing:
        """State before the first round."""
        pacing = cls()
        for _ in range(AHEAD):
            pacing._plan(curriculum, threshold)
        return pacing

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Pacing:
        """The state that `state` returned."""
        return cls(**{**state, "planned": [Plan(**plan) for plan in state["planned"]]})

    def state(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dicts, for JSON."""
        return asdict(self)

    def plan(self, number: int) -> Plan | None:
        """Plan of round `number`, None where the training ends before it.

        Raises
        ------
        ValueError
            When the round is over, or depends on rounds that have not been trained.
        """
        index = number - self.rounds
        if not 0 <= index < AHEAD:
            raise ValueError(
                f"round {number} asked for; planned are rounds {self.rounds} to {self.rounds + AHEAD - 1}"
            )
        return self.planned[index] if index < len(self.planned) else None

    def absorb(
        self, curriculum: Curriculum, threshold: float, losses: dict[str, float], seconds: float
    ) -> None:
        """Take note of the next planned round's training, and plan another one.

        Parameters
        ----------
        curriculum
            What is trained.
        threshold
            See `THRESHOLD`.
        losses
            Mean answer loss of each task that the round had answers of, nats a token.
        seconds
            How long the round took.
        """
        trained = self.planned.pop(0)
        self.rounds += 1
        for task, loss in losses.items():
            self.losses[task] = loss + _SMOOTHING * (self.losses.get(task, loss) - loss)
        if trained.stage == self.stage:
            self.stage_seconds += seconds
        self._plan(curriculum, threshold)

    def _plan(self, curriculum: Curriculum, threshold: float) -> None:
        if self.stage < len(curriculum.stages) and (reason := self._reason_to_end(curriculum, threshold)):
            self.ended.append(reason)
            self.stage, self.stage_steps, self.stage_seconds = self.stage + 1, 0, 0.0
        if self.stage < len(curriculum.stages):
            shares = emphasised(curriculum.mixture.tasks, self.losses, threshold)
            self.planned.append(Plan(self.stage, self.stage_steps, shares))
            self.stage_steps += curriculum.round_steps

    def _reason_to_end(self, curriculum: Curriculum, threshold: float) -> str | None:
        stage = curriculum.stages[self.stage]
        if self.stage_steps >= stage.most_steps:
            return "steps"
        if stage.most_seconds is not None and self.stage_seconds >= stage.most_seconds:
            return "seconds"
        if stage.least_steps is not None and self.stage_steps >= stage.least_steps:
            losses = [self.losses.get(task, float("inf")) for task in curriculum.mixture.tasks]
            return "criterion" if max(losses) < threshold else None
        return None


def emphasised(tasks: dict[str, int], losses: dict[str, float], threshold: float) -> dict[str, float]:
    """Weights of tasks, up to four times as large where the loss is above the threshold.

    Parameters
    ----------
    tasks
        Weights of the tasks when all are learnt.
    losses
        Answer losses, nats a token; a task without one keeps its weight.
    threshold
        Loss at which the emphasis begins; it grows with the loss's square root.
    """
    shares = {}
    for task, weight in tasks.items():
        excess = losses.get(task, threshold) / threshold
        shares[task] = round(weight * min(max(excess, 1.0) ** 0.5, _LARGEST_EMPHASIS), 4)
    return shares
