"""Tables of docs/quality.md on answers: the default, without corrections and conservative, and KV of 8 bits."""

from __future__ import annotations

from typing import Any

from rendering.quality_tables import figure, load, rows_of

SERVERS = {"default": "default", "uncalibrated": "`calibrate` off", "conservative": "`conservative` on"}
OTHERS = {
    "fixed4": "4 %, `budget_min_pages` 4, `calibrate` off",
    "calibrate4": "4 %, `budget_min_pages` 4",
    "bonus05": "`residency_bonus` 0.5, `calibrate` off",
    "bonus1": "`residency_bonus` 1, `calibrate` off",
}
LOST = 10.0
"""Tasks that lose as many points of 100 are shown."""
EIGHT_BITS = {
    "every_page": "rheo, every page, bfloat16",
    "default": "rheo, default, bfloat16",
    "fa3_fp8": "fa3, 8 bits",
    "default_fp8": "rheo, default, 8 bits",
}


def differences() -> list[list[str]]:
    """Rows of what is compared with dense attention."""
    scores = load("selection_accuracy")["metrics"]
    floor = load("eight_bits_coder")["metrics"]
    rows = []
    for figures, words, digits in (("kl", "KL", 4), ("top1", "same first choice", 3)):
        for length in ("8k", "32k"):
            cells = [figure(scores, f"{figures}_{name}_{length}", digits=digits) for name in SERVERS]
            every = figure(floor, f"{figures}_every_page_{length}", digits=digits)
            rows.append([f"{words}, {length.upper()}", "-", every, *cells])
    for suite, words in (("recall", "recall"), ("ruler", "RULER"), ("late", "late answers")):
        cells = [figure(scores, f"{suite}_{name}_difference", 100, 1) for name in SERVERS]
        dense = f"{figure(scores, f'{suite}_dense', 100, 1)} of 100"
        rows.append([f"{words}, points from dense", dense, "-", *cells])
    return rows


def default() -> str:
    """The settings that a server has without any, and conservative mode."""
    result = load("budget_accuracy")
    metrics = result["metrics"]
    lines = [
        ["", "fa3", "rheo, every page", *SERVERS.values()],
        [
            "pages selected, mean",
            "all",
            "all",
            *(f"{metrics[f'{name}_mean_budget']:.1%}" for name in SERVERS),
        ],
        *differences(),
        [
            f"wrong, of {metrics['right_dense']} that dense attention has right",
            "-",
            "-",
            *(str(metrics[f"failures_{name}"]) for name in SERVERS),
        ],
        [
            "of these as sure as the upper half of those",
            "-",
            "-",
            *(str(metrics[f"silent_failures_{name}"]) for name in SERVERS),
        ],
        [
            "confidence ranks right above wrong",
            f"{metrics['confidence_dense']['auc']:.2f}",
            "-",
            *(f"{metrics[f'confidence_{name}']['auc']:.2f}" for name in SERVERS),
        ],
        [
            "confidence ranks right above these wrong ones",
            "-",
            "-",
            *(f"{metrics[f'failure_auc_{name}']:.2f}" for name in SERVERS),
        ],
        [
            "right answers less sure than the surest of these",
            "-",
            "-",
            *(f"{metrics[f'flagged_{name}']:.0%}" for name in SERVERS),
        ],
    ]
    about = f"{metrics['prompts']} prompts of recall and RULER, {metrics['prompts_late']} late answers."
    return f"{rows_of(lines)}\n\n{about} {where(result)}"


def lost() -> str:
    """Tasks and lengths that lose most in either server."""
    metrics = load("budget_accuracy")["metrics"]
    dense = metrics["tasks_dense"]
    lines = [["task, length", "fa3", *SERVERS.values()]]
    for task, score in dense.items():
        ours = [metrics[f"tasks_{name}"][task] for name in SERVERS]
        if score - min(ours) >= LOST:
            lines.append([words(task), *(f"{one:.0f}" for one in (score, *ours))])
    return rows_of(lines)


def others() -> str:
    """Other settings: divergences, RULER and hits."""
    result, first = load("selection_settings"), load("selection_accuracy")["metrics"]
    lines = [["", "pages", "hits", "KL 8K", "KL 32K", "RULER, points from dense"]]
    rows = [(name, first, SERVERS[name]) for name in ("default", "uncalibrated")]
    rows += [(name, result["metrics"], label) for name, label in OTHERS.items()]
    for name, metrics, label in rows:
        kl = [figure(metrics, f"kl_{name}_{length}", digits=4) for length in ("8k", "32k")]
        shares = [f"{metrics[f'{key}_{name}']:.1%}" for key in ("selected_share", "hit_rate")]
        lines.append([label, *shares, *kl, figure(metrics, f"ruler_{name}_difference", 100, 1)])
    return f"{rows_of(lines)}\n\n{where(result)}"


def words(task: str) -> str:
    """A task and length as the page writes them."""
    name, length = task.split()
    return f"`{name}` {length.upper()}"


def eight_bits() -> str:
    """Divergences of KV in 8 bits from dense attention in bfloat16."""
    result = load("eight_bits_coder")
    metrics = result["metrics"]
    lines = [["from fa3 in bfloat16", "KL 8K", "KL 32K", "same first choice 8K", "32K", "loss, nats a token"]]
    lines.append(["fa3, bfloat16", "0", "0", "1", "1", f"{metrics['loss_dense']:.2f}"])
    for name, label in EIGHT_BITS.items():
        kl = [figure(metrics, f"kl_{name}_{length}", digits=4) for length in ("8k", "32k")]
        top = [figure(metrics, f"top1_{name}_{length}") for length in ("8k", "32k")]
        lines.append([label, *kl, *top, f"{metrics[f'loss_{name}']:.2f}"])
    return f"{rows_of(lines)}\n\n{metrics['prompts']} texts. {where(result)}"


def where(result: dict[str, Any]) -> str:
    """Where a result comes from."""
    return f"`{result['command']}` on {result['machine']}; {result['date']}."
