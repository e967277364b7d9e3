"""The reference model's training: rows, optimiser, architecture, and a few steps from start to resumed."""

import inspect
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import reference_model.corpus as corpus_module
import train_reference_model
from reference_model.accuracy import measure_accuracy
from reference_model.checkpoint import Progress, load_checkpoint, save_checkpoint
from reference_model.corpus import Corpus, load_corpus
from reference_model.curriculum import FULL, SMOKE, Batches, learning_rate_scale
from reference_model.model import ReferenceModel
from reference_model.muon import Muon, orthogonalise
from reference_model.rows import ANSWER, TEXT, RowMaker, RowShape
from tokenizers import Tokenizer

from rheo_sglang.evaluation.haystack import Haystack, documentation_text, token_counter

SHIPPED = Path(__file__).parent.parent / "models" / "rheo-reference"
TINY = train_reference_model.SHAPES["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus folder with documentation in the place of novels and one library module."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "novels").mkdir()
    text = documentation_text(held_out=True)
    (folder / "novels" / "emma.txt").write_text(text[:100_000])
    (folder / "novels" / f"{corpus_module.HELD_OUT_NOVEL}.txt").write_text(text[100_000:200_000])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "library_sources", lambda: inspect.getsource(inspect))
        load_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return load_corpus(folder)


@pytest.fixture(scope="module")
def rows(corpus: Corpus) -> RowMaker:
    return RowMaker(corpus, FULL.mixture)


def test_pieces_tokenise_like_the_whole(rows: RowMaker, corpus: Corpus) -> None:
    text = "VAR elm = 482913\n\n    def f(a_b, __x):  # é ²\n\t\t* elm -> 1\n"
    assert rows.encode(text) == corpus.tokenizer.encode(text, add_special_tokens=False).ids
    assert corpus.tokenizer.decode(rows.encode(text)) == text


@pytest.mark.parametrize("length", [128, 1024, 4096])
def test_rows_have_their_length_and_only_answers_that_the_text_before_them_gives(
    length: int, rows: RowMaker, corpus: Corpus
) -> None:
    answers = 0
    for seed in range(10):
        row = rows.make(RowShape(length, (0.1, 0.8), 0), random.Random(seed))
        assert len(row.tokens) == len(row.roles) == len(row.positions) == length + 1
        starts = np.flatnonzero((row.roles[1:] == ANSWER) & (row.roles[:-1] != ANSWER)) + 1
        for start in starts:
            end = start + int(np.argmin(np.append(row.roles[start:], TEXT) == ANSWER))
            before, answer = (
                corpus.tokenizer.decode(part.tolist()) for part in (row.tokens[:start], row.tokens[start:end])
            )
            assert before.endswith((" is", " are", " ->"))
            for item in answer.strip(" .\n").split(", "):
                assert item in before
                answers += 1
    assert answers > 10


def test_stretched_positions_rise_and_stay_in_bounds(rows: RowMaker) -> None:
    stretched = 0
    for seed in range(20):
        positions = rows.make(RowShape(256, (0.3, 0.6), 5000), random.Random(seed)).positions
        assert positions[0] == 0 and (np.diff(positions) >= 1).all() and positions[-1] < 5000
        stretched += positions[-1] > 256
    assert 0 < stretched < 20


def test_batches_depend_on_seed_and_step_alone(rows: RowMaker) -> None:
    whole = list(Batches(rows, SMOKE.stages, 512, 0, seed=1))
    resumed = list(Batches(rows, SMOKE.stages, 512, 5, seed=1))
    assert [batch.step for batch in resumed] == [5, 6, 7]
    for late, same in zip(resumed, whole[5:], strict=True):
        assert (late.tokens == same.tokens).all() and (late.positions == same.positions).all()


def test_learning_rate_warms_up_again_after_a_resume_and_ends_low() -> None:
    scales = [learning_rate_scale(step, 1000, first_step=400) for step in range(400, 1000)]
    assert scales[0] == pytest.approx(1 / 50)
    assert max(scales) == 1.0
    assert scales[-1] < 0.03


@pytest.mark.parametrize("shape", [(3, 24, 64), (2, 64, 24), (1, 32, 32)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    singular = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert singular.min() > 0.3 and singular.max() < 1.3


def test_muon_lowers_the_loss_of_a_linear_map() -> None:
    target, x = torch.randn(16, 16), torch.randn(256, 16)
    weight = torch.nn.Parameter(torch.zeros(16, 16))
    optimizer = Muon([weight], lr=0.05, weight_decay=0.0)
    losses = []
    for _ in range(100):
        loss = (x @ weight.T - x @ target.T).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.1 * losses[0]


def test_model_equals_hugging_face_qwen3_on_its_own_checkpoint(corpus: Corpus, tmp_path: Path) -> None:
    qwen3 = pytest.importorskip("transformers.models.qwen3.modeling_qwen3", exc_type=ImportError)
    model = ReferenceModel(TINY, dtype=torch.float32, compiled=False)
    save_checkpoint(tmp_path, model, corpus.tokenizer, Progress("smoke"))
    load_checkpoint(tmp_path, model)
    other = qwen3.Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(0, 4096, (2, 65))
    positions = torch.arange(64).expand(2, -1) + torch.tensor([[0], [50_000]])
    roles = torch.full((2, 64), TEXT, dtype=torch.uint8)
    text_loss, _, correct = model.losses(tokens[:, :-1], positions, tokens[:, 1:], roles)
    logits = other(tokens[:, :-1], position_ids=positions).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert text_loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (correct == (logits.argmax(-1) == tokens[:, 1:])).all()


def test_shipped_checkpoint_retrieves() -> None:
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    model = ReferenceModel(train_reference_model.SHAPES["reference"], dtype=torch.float32, compiled=False)
    load_checkpoint(SHIPPED, model)
    haystack = Haystack(documentation_text(held_out=True), token_counter(tokenizer))
    with torch.no_grad():
        accuracy = measure_accuracy(model, tokenizer, haystack, 512, 4, 2048, torch.device("cpu"))
    for task in ("needle", "multikey", "dictionary", "repeated"):
        assert accuracy[f"{task}_512"] > 0.9


def test_training_runs_saves_evaluates_and_resumes(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    arguments = ["--corpus", str(folder), "--out", str(model), "--curriculum", "smoke", "--shape", "tiny"]
    arguments += ["--batch-tokens", "2048", "--workers", "0", "--lengths", "1024", "--samples", "1"]
    result, plot = tmp_path / "result.json", tmp_path / "curve.png"
    assert train_reference_model.main([*arguments, "--result", str(result), "--plot", str(plot)]) == 0
    metrics = json.loads(result.read_text())["metrics"]
    assert metrics["training_steps"] == 8
    assert 0.0 <= metrics["needle_1k"] <= 1.0
    assert plot.stat().st_size > 1000
    assert json.loads((model / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    assert Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab_size() == 4096
    trained = (model / "model.safetensors").read_bytes()
    assert train_reference_model.main([*arguments, "--resume"]) == 0
    assert (model / "model.safetensors").read_bytes() == trained


def test_batch_that_rows_do_not_divide_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--corpus", str(folder), "--out", str(tmp_path), "--shape", "tiny", "--batch-tokens", "1000"]
    assert train_reference_model.main(arguments) == 1
    assert "multiple of every row length" in capsys.readouterr().err
