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
    compare,
    decode_all,
    interval,
    load_prompts,
    load_steps,
    save_prompts,
    save_steps,
)
from rheo_sglang.evaluation.prompt_files import digest
from rheo_sglang.evaluation.score_summary import differences, summarise
from rheo_sglang.evaluation.server import ConversationServer, ask_all

SUITES = ("divergence", "recall", "ruler")
STEPS_FILE, SCORES_FILE = "steps.jsonl.gz", "scores.json"


@dataclass
class Prompts:
    """Prompts of the suites that are run.

    Attributes
    ----------
    texts
        Of the divergence.
    conversations
        Of the other suites, by their names.
    """

    texts: list[Prompt] = field(default_factory=list)
    conversations: dict[str, ConversationSet] = field(default_factory=dict)

    @property
    def suites(self) -> list[str]:
        """Names of the suites that have prompts."""
        return [*(["divergence"] if self.texts else []), *self.conversations]

    @staticmethod
    def file(folder: Path, suite: str) -> Path:
        """Where a suite's prompts are."""
        return folder / f"{suite}.jsonl.xz"

    def save(self, folder: Path) -> None:
        """Write a file for each suite."""
        if self.texts:
            save_prompts(self.file(folder, "divergence"), self.texts)
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
        texts = load_prompts(cls.file(folder, "divergence")) if "divergence" in there else []
        conversations = {
            suite: ConversationSet.load(cls.file(folder, suite), suite)
            for suite in there
            if suite != "divergence"
        }
        return cls(texts, conversations)


@dataclass
class Measured:
    """What one server made of prompts; suites that have not run are missing.

    Attributes
    ----------
    steps
        Distributions, by the prompts' keys.
    scores
        Of every conversation, by suite and key.
    """

    steps: dict[str, Steps] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

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
        if suite == "divergence":
            self.steps = decode_all(ForcedDecoder(url, **access), prompts.texts, concurrency, suite)
            return
        server = ConversationServer(url, **access)
        scores = ask_all(server, prompts.conversations[suite], concurrency, suite)
        self.scores[suite] = {key: score.recall for key, score in scores.items()}

    def save(self, folder: Path, prompts: Prompts) -> None:
        """Write what is there; suites that ran before and are not there stay."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.steps:
            save_steps(folder / STEPS_FILE, self.steps)
        about = {
            suite: {"prompts": conversations_digest(prompts, suite), "scores": scores}
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
        if prompts.texts and (folder / STEPS_FILE).exists():
            found.steps = load_steps(folder / STEPS_FILE, prompts.texts)
        if (folder / SCORES_FILE).exists():
            about = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
            for suite in prompts.conversations:
                if suite not in about:
                    continue
                if about[suite]["prompts"] != conversations_digest(prompts, suite):
                    raise ValueError(f"{folder} is of other prompts of {suite}")
                found.scores[suite] = about[suite]["scores"]
        return found

    @property
    def suites(self) -> list[str]:
        """Names of the suites that have run."""
        return [*(["divergence"] if self.steps else []), *self.scores]


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
