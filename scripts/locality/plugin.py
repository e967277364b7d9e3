"""plugin: a benchmark's SGLang plugin that puts synthetic page scores in the place of the model's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ENVIRONMENT = "RHEO_BENCH_LOCALITY"
"""JSON: ``result`` (the fitted parameters' file), ``page_size``, and ``switch``, a file: scores are synthetic while it
exists, and it says where misses are attended (fetch, split or auto)."""
ENTRY_POINT = "[sglang.srt.plugins]\nrheo-bench-locality = locality.plugin:register\n"


def install(folder: Path) -> None:
    """Make SGLang find this plugin in processes that have ``folder`` and ``scripts`` on their path."""
    info = folder / "rheo_bench_locality-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rheo-bench-locality\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)


def register() -> None:
    """Wrap the decode path's scoring, where the environment asks for it."""
    if ENVIRONMENT not in os.environ:
        return
    import torch

    from locality.kernel import locality_scores
    from locality.process import Locality
    from rheo_kernels.cuda.share import Costs
    from rheo_sglang.cuda.costs import NEVER, only_cpu
    from rheo_sglang.cuda.decode import CudaDecode

    settings = json.loads(os.environ[ENVIRONMENT])
    switch = Path(settings["switch"])
    metrics = json.loads(Path(settings["result"]).read_text())["metrics"]
    locality = Locality.from_json(metrics[f"page{settings['page_size']}"]["parameters"])
    prepare, score = CudaDecode.prepare, CudaDecode._score
    ways: dict[str, torch.Tensor] = {}
    written = 0
    active: dict[int, torch.Tensor] = {}
    seeds: dict[int, torch.Tensor] = {}

    def prepare_and_switch(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal written
        variant = prepare(self, *args, **kwargs)
        synthetic = switch.exists()
        if self.costs is not None and not ways:
            costs = Costs(*self.costs.tolist())
            named = {"auto": costs, "fetch": costs._replace(cpu_begin=NEVER), "split": only_cpu(costs)}
            ways.update({name: torch.tensor(values) for name, values in named.items()})
        if synthetic and self.costs is not None and switch.stat().st_mtime_ns != written:
            written = switch.stat().st_mtime_ns
            self.costs.copy_(ways[switch.read_text()])
        pages = self.step.batch.num_pages
        count = pages.shape[0]
        if count not in active:
            active[count] = torch.zeros_like(pages)
            seeds[count] = torch.arange(count, dtype=torch.int32, device=pages.device)
        active[count].copy_(pages).mul_(int(synthetic))
        return variant

    def score_and_replace(self: Any, layer: int, step: Any, *args: Any) -> None:
        score(self, layer, step, *args)
        count = step.batch.num_pages.shape[0]
        locality_scores(step.scores, active[count], self.table.step, layer, seeds[count], locality)

    setattr(CudaDecode, "prepare", prepare_and_switch)  # noqa: B010 - the types are those of any call
    setattr(CudaDecode, "_score", score_and_replace)  # noqa: B010
