"""Train the long-context reference model from scratch, evaluate it, save it for Hugging Face and SGLang.

    export PYTHONPATH=scripts MODEL=models/rheo-reference
    python -m training.train_reference_model --corpus corpus/ --out $MODEL --minutes 25
    python -m training.train_reference_model --corpus corpus/ --out $MODEL --resume --result accuracy.json

One GPU with 80 GB. ``--minutes`` stops a training in good order, and ``--resume`` goes on as if it had not stopped, as
often as need be. With nothing left to train, ``--resume`` evaluates and plots only.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch

from rheo_sglang.evaluation.haystack import Haystack, token_counter
from rheo_sglang.evaluation.report import result_document, write_result
from training.accuracy import measure_accuracy, measure_text_loss
from training.batches import Batches
from training.checkpoint import Progress, drop_state, resume
from training.corpus import load_corpus
from training.curriculum import CURRICULA
from training.loop import fast_attention, make_optimizers, train
from training.model import ModelShape, ReferenceModel
from training.pacing import THRESHOLD
from training.rows import RowMaker

SHAPES = {
    "reference": ModelShape(),
    "tiny": ModelShape(layers=2, hidden=64, intermediate=96, query_heads=4, kv_heads=1, head=16),
}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="folder of the prepared corpus; built if empty"
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--result", type=Path, help="JSON file for the accuracy by task and length")
    parser.add_argument("--plot", type=Path, help="picture of the training curve; needs matplotlib")
    parser.add_argument("--curriculum", choices=CURRICULA, default="full", help="stages of the training")
    parser.add_argument("--shape", choices=SHAPES, default="reference", help="size of the model")
    parser.add_argument("--batch-tokens", type=int, default=65_536, help="tokens an optimiser step")
    parser.add_argument("--minutes", type=float, default=25.0, help="time to train in this run, at most")
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        help="answer loss (nats a token) under which a task counts as learnt; rows grow when all are",
    )
    parser.add_argument(
        "--lengths", default="1024,4096,8192,16384,32768,65536", help="evaluated lengths in tokens"
    )
    parser.add_argument("--samples", type=int, default=100, help="evaluated samples a task and length")
    parser.add_argument("--workers", type=int, default=14, help="processes that make batches")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train, evaluate, save."""
    options = parse_arguments(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    curriculum = CURRICULA[options.curriculum]
    try:
        lengths = [int(length) for length in options.lengths.split(",")]
        if options.threshold <= 0:
            raise ValueError(f"--threshold {options.threshold} is too small; allowed: more than 0")
        corpus = load_corpus(options.corpus)
        torch.manual_seed(options.seed)
        model = ReferenceModel(
            SHAPES[options.shape], dtype=torch.bfloat16 if on_gpu else torch.float32, compiled=on_gpu
        ).to(device)
        optimizers = make_optimizers(model, curriculum.weight_decay)
        if options.resume:
            progress = resume(options.out, model, optimizers, options.curriculum, device)
        else:
            drop_state(options.out)
            progress = Progress(options.curriculum)
        batches = Batches(
            RowMaker(corpus, curriculum.mixture), curriculum, options.batch_tokens, options.seed
        )
    except (OSError, RuntimeError, ValueError) as error:
        print(f"train_reference_model: {error}", file=sys.stderr)
        return 1
    if progress.pacing is None or progress.pacing.planned:
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}; step {progress.step}")
        over = train(
            model,
            optimizers,
            batches,
            progress,
            corpus.tokenizer,
            options.out,
            device,
            options.minutes,
            options.workers,
            options.threshold,
        )
        print("the curriculum is over" if over else "stopped in time; go on with --resume")
    if options.plot:
        from training.plot import plot_history

        plot_history(progress.history, options.plot, options.threshold)
    if options.result:
        haystack = Haystack(corpus.held_out, token_counter(corpus.tokenizer))
        metrics: dict[str, float] = {
            "training_steps": progress.steps_before + progress.step,
            "training_seconds": round(progress.seconds),
            "samples": options.samples,
        }
        command = shlex.join(["python", "-m", "training.train_reference_model", *(arguments or sys.argv[1:])])
        accelerator = torch.cuda.get_device_name(device) if on_gpu else None
        with torch.no_grad(), fast_attention():
            metrics["held_out_text_loss"] = measure_text_loss(
                model, corpus.tokenizer, corpus.held_out, min(lengths), options.batch_tokens, device
            )
            for length in lengths:
                metrics |= measure_accuracy(
                    model, corpus.tokenizer, haystack, length, options.samples, options.batch_tokens, device
                )
                document = result_document("reference_model", command, metrics, ["torch"], accelerator)
                write_result(document, options.result)
        for name, value in metrics.items():
            print(f"{name:20} {value:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
