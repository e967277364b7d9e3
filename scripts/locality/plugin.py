"""plugin: a benchmark's SGLang plugin that puts synthetic page scores in the place of the model's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ENVIRONMENT = "RHEO_BENCH_LOCALITY"
"""JSON: ``result`` (the fitted parameters' file), ``page_size``, and perhaps ``switch``, a file that says where misses
are attended (fetch, split or auto)."""
ENTRY_POINT = "[sglang.srt.plugins]\nrheo-bench-locality = locality.plugin:register\n"


def install(folder: Path) -> None:
    """Make SGLang find this plugin in processes that have ``folder`` and ``scripts`` on their path."""
    info = folder / "rheo_bench_locality-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rheo-bench-locality\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)


def register() -> None:
    """Wrap the decode path's scoring, where the environment asks for it.

    The model's pages are scored as ever, into a buffer that nobody reads; the synthetic scores, which depend on nothing
    but the step, are made while the layer before runs, so that a step takes no longer for them.
    """
    if ENVIRONMENT not in os.environ:
        return
    from dataclasses import replace

    import torch

    from locality.kernel import locality_scores
    from locality.process import Locality
    from rheo_kernels.cuda.offload import Costs
    from rheo_sglang.decode.costs import NEVER, only_cpu
    from rheo_sglang.decode.gpu_engine import GpuDecodeEngine
    from rheo_sglang.decode.hybrid_miss_path import HybridMissPath
    from rheo_sglang.decode.scoring import EstimateScoring, SummaryScoring
    from rheo_sglang.streams import SideStream

    settings = json.loads(os.environ[ENVIRONMENT])
    switch = Path(settings["switch"]) if "switch" in settings else None
    metrics = json.loads(Path(settings["result"]).read_text())["metrics"]
    locality = Locality.from_json(metrics[f"page{settings['page_size']}"]["parameters"])
    begin_step, sparse = GpuDecodeEngine.begin_step, GpuDecodeEngine._forward_sparse
    ways: dict[str, torch.Tensor] = {}
    written = 0
    seeds: dict[int, torch.Tensor] = {}
    unread: dict[torch.Size, torch.Tensor] = {}
    synthetic: dict[torch.Size, list[torch.Tensor]] = {}
    scoring: list[SideStream] = []

    def begin_step_and_switch(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal written
        begin_step(self, *args, **kwargs)
        hybrid = isinstance(self.miss_path, HybridMissPath) and bool(self.miss_path.services)
        if hybrid and not ways:
            costs = Costs(*self.miss_path.costs.tolist())
            named = {"auto": costs, "fetch": costs._replace(cpu_latency=NEVER), "split": only_cpu(costs)}
            ways.update({name: torch.tensor(values) for name, values in named.items()})
        if hybrid and switch and switch.exists() and switch.stat().st_mtime_ns != written:
            written = switch.stat().st_mtime_ns
            self.miss_path.costs.copy_(ways[switch.read_text()])
        if not self.variant.dense:
            scores = self.step.scores
            seeds.setdefault(len(scores), torch.arange(len(scores), dtype=torch.int32, device=scores.device))
            if scores.shape not in unread:
                unread[scores.shape] = torch.empty_like(scores)
                synthetic[scores.shape] = [torch.empty_like(scores) for _ in range(2)]

    def make_scores(self: Any, layer: int, step: Any) -> None:
        scores = synthetic[step.scores.shape][layer % 2]
        locality_scores(scores, step.batch.num_pages, self.table.step, layer, seeds[len(scores)], locality)

    def sparse_of_synthetic(self: Any, layer: int, step: Any, *args: Any) -> None:
        if layer == 0:
            make_scores(self, layer, step)
        sparse(self, layer, replace(step, scores=synthetic[step.scores.shape][layer % 2]), *args)

    def unread_by(score: Any) -> Any:
        def score_unread(self: Any, layer: int, step: Any, *args: Any) -> None:
            score(self, layer, replace(step, scores=unread[step.scores.shape]), *args)
            if not scoring:
                scoring.append(SideStream(step.scores.device))
            scoring[0].join()
            if layer + 1 < len(self.table.summaries):
                with scoring[0].fork():
                    make_scores(self, layer + 1, step)

        return score_unread

    setattr(GpuDecodeEngine, "begin_step", begin_step_and_switch)  # noqa: B010 - the types are those of any call
    setattr(GpuDecodeEngine, "_forward_sparse", sparse_of_synthetic)  # noqa: B010
    for kind in (SummaryScoring, EstimateScoring):
        setattr(kind, "__call__", unread_by(kind.__call__))  # noqa: B010
