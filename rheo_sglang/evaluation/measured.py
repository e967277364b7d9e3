"""What a server made of all suites' prompts, kept in a folder, and how it differs from dense attention."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from rheo_sglang.evaluation.conversations import ConversationSet
from rheo_sglang.evaluation.divergence import (
    ForcedDecoder,
    Prompt,
    Steps,
    answered,
    compare,
    decode_all,
    interval,
    load_prompts,
    load_steps,
    save_prompts,
    save_steps,
)
from rheo_sglang.evaluation.intervals import paired_difference, score_half_width
from rheo_sglang.evaluation.prompt_files import digest
from rheo_sglang.evaluation.score_summary import differences, summarise
from rheo_sglang.evaluation.server import ConversationServer, ask_all

SUITES = ("divergence", "recall", "ruler", "late")
FORCED_SUITES = ("divergence", "late")
"""Those that decode given text."""
SCORES_FILE = "scores.json"


@dataclass
class Prompts:
    """Prompts of the suites that are run.

    Attributes
    ----------
    texts
        Of the divergence.
    conversations
        Of the suites of conversations, by their names.
    late
        Texts with an answer at their end.
    """

    texts: list[Prompt] = field(default_factory=list)
    conversations: dict[str, ConversationSet] = field(default_factory=dict)
    late: list[Prompt] = field(default_factory=list)

    @property
    def forced(self) -> dict[str, list[Prompt]]:
        """Of the suites that decode given text, by their names."""
        return {"divergence": self.texts, "late": self.late}

    @property
    def suites(self) -> list[str]:
        """Names of the suites that have prompts."""
        have = {suite for suite, prompts in self.forced.items() if prompts} | set(self.conversations)
        return [suite for suite in SUITES if suite in have]

    @staticmethod
    def file(folder: Path, suite: str) -> Path:
        """Where a suite's prompts are."""
        return folder / f"{suite}.jsonl.xz"

    def save(self, folder: Path) -> None:
        """Write a file for each suite."""
        for suite, texts in self.forced.items():
            if texts:
                save_prompts(self.file(folder, suite), texts)
        for suite, asked in self.conversations.items():
            asked.save(self.file(folder, suite))

    @classmethod
    def load(cls, folder: Path, suites: Sequence[str] = SUITES) -> Prompts:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If the folder has no file of these suites.
        """
        there = [suite for suite in suites if cls.file(folder, suite).exists()]
        if not there:
            raise ValueError(f"{folder} has no prompts of {', '.join(suites)}")
        texts, late = (
            load_prompts(cls.file(folder, suite)) if suite in there else [] for suite in FORCED_SUITES
        )
        conversations = {
            suite: ConversationSet.load(cls.file(folder, suite), suite)
            for suite in there
            if suite not in FORCED_SUITES
        }
        return cls(texts, conversations, late)


@dataclass
class Measured:
    """What one server made of prompts; suites that have not run are missing.

    Attributes
    ----------
    forced
        Distributions, by suite and the prompts' keys.
    scores
        Of every conversation, by suite and key.
    confidences
        The same: probability of a reply's tokens, their geometric mean.
    """

    forced: dict[str, dict[str, Steps]] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    confidences: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def steps(self) -> dict[str, Steps]:
        """Distributions over the divergence's texts."""
        return self.forced.get("divergence", {})

    def run(self, suite: str, prompts: Prompts, url: str, concurrency: int, **access: Any) -> None:
        """Run one suite.

        Parameters
        ----------
        suite
            A name of ``prompts.suites``.
        prompts
            What to send.
        url
            The server.
        concurrency
            Requests under way at a time.
        **access
            ``timeout`` in seconds and ``api_key``.
        """
        if suite in FORCED_SUITES:
            decoder = ForcedDecoder(url, **access)
            self.forced[suite] = decode_all(decoder, prompts.forced[suite], concurrency, suite)
            return
        server = ConversationServer(url, log_probabilities=True, **access)
        scores = ask_all(server, prompts.conversations[suite], concurrency, suite)
        self.scores[suite] = {key: score.recall for key, score in scores.items()}
        self.confidences[suite] = {
            key: score.confidence for key, score in scores.items() if score.confidence is not None
        }

    def save(self, folder: Path, prompts: Prompts) -> None:
        """Write what is there; suites that ran before and are not there stay."""
        folder.mkdir(parents=True, exist_ok=True)
        for suite, steps in self.forced.items():
            save_steps(steps_file(folder, suite), steps)
        about = {
            suite: {
                "prompts": conversations_digest(prompts, suite),
                "scores": scores,
                "confidences": self.confidences.get(suite, {}),
            }
            for suite, scores in self.scores.items()
        }
        file = folder / SCORES_FILE
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        file.write_text(json.dumps(kept | about) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, prompts: Prompts) -> Measured:
        """Read what `save` wrote of these prompts' suites.

        Raises
        ------
        ValueError
            If it is of other prompts.
        """
        found = cls()
        for suite, texts in prompts.forced.items():
            if texts and steps_file(folder, suite).exists():
                found.forced[suite] = load_steps(steps_file(folder, suite), texts)
        if (folder / SCORES_FILE).exists():
            about = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
            for suite in prompts.conversations:
                if suite not in about:
                    continue
                if about[suite]["prompts"] != conversations_digest(prompts, suite):
                    raise ValueError(f"{folder} is of other prompts of {suite}")
                found.scores[suite] = about[suite]["scores"]
                if confidences := about[suite].get("confidences"):
                    found.confidences[suite] = confidences
        return found

    @property
    def suites(self) -> list[str]:
        """Names of the suites that have run."""
        return [*self.forced, *self.scores]


def steps_file(folder: Path, suite: str) -> Path:
    """Where the distributions of a suite are."""
    return folder / ("steps.jsonl.gz" if suite == "divergence" else f"{suite}_steps.jsonl.gz")


def conversations_digest(prompts: Prompts, suite: str) -> str:
    """Names a suite's prompts."""
    return digest(one.to_json() for one in prompts.conversations[suite].conversations)


def length_name(length: int) -> str:
    """A length in K tokens, the nearest: what leaves room for a reply is called by its whole."""
    return f"{round(length / 1024)}k" if length >= 1024 else str(length)


def divergence_figures(
    prompts: Sequence[Prompt], dense: Mapping[str, Steps], other: Mapping[str, Steps]
) -> dict[str, float]:
    """``kl_8k``, ``top1_8k`` and their ``_ci``: means over prompts, by length."""
    figures: dict[str, float] = {}
    for length in sorted({len(prompt.tokens) for prompt in prompts}):
        keys = [prompt.key for prompt in prompts if len(prompt.tokens) == length]
        found = [compare(dense[key], other[key]) for key in keys]
        for name, values in (("kl", [one.kl for one in found]), ("top1", [one.same_top for one in found])):
            figures[f"{name}_{length_name(length)}"] = round(fmean(values), 5)
            if len(values) > 1:
                figures[f"{name}_{length_name(length)}_ci"] = round(interval(values), 5)
    return figures


def score_figures(prompts: Prompts, measured: Measured, dense: Measured | None = None) -> dict[str, float]:
    """Means of the suites of conversations, as ``recall`` and ``recall_8k``, with ``_ci``, beside dense ones.

    With ``dense`` also ``recall_difference`` (positive: above dense) and its ``_ci``, prompt by prompt.
    """
    figures: dict[str, float] = {}
    for suite, scores in measured.scores.items():
        conversations = prompts.conversations[suite].conversations
        found = summarise(conversations, scores)
        if dense is not None and suite in dense.scores:
            against = differences(conversations, scores, dense.scores[suite])
            found |= {name: value for name, value in against.items() if "_compared" not in name}
        figures |= {
            suite + name.removeprefix("mean"): value
            for name, value in found.items()
            if name.split("_")[0] == "mean"
        }
    return figures


def late_figures(prompts: Prompts, measured: Measured, dense: Measured | None = None) -> dict[str, float]:
    """``late``: share of the answers at the ends of long texts, with ``late_ci``, and the difference from dense."""
    if "late" not in measured.forced:
        return {}

    def right(of: Measured) -> list[float]:
        return [float(answered(prompt, of.forced["late"][prompt.key])) for prompt in prompts.late]

    scores = right(measured)
    figures = {"late": round(fmean(scores), 5), "late_ci": round(score_half_width(scores), 5)}
    if dense is not None and "late" in dense.forced:
        difference, half = paired_difference(scores, right(dense))
        figures |= {"late_difference": round(difference, 5), "late_difference_ci": round(half, 5)}
    return figures
