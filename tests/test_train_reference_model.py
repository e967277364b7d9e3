"""The reference model's training: rows, optimiser, architecture, and a few steps from start to resumed."""

import inspect
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from rheo_sglang.evaluation.haystack import Haystack, documentation_text, token_counter
from rheo_sglang.evaluation.tasks import TASKS
from training import corpus as corpus_module
from training import train_reference_model
from training.accuracy import measure_accuracy
from training.batches import Batches, Order, load_batches
from training.checkpoint import Progress, load_weights, save_checkpoint
from training.corpus import Corpus, load_corpus
from training.curriculum import CURRICULA, FULL, SMOKE, Curriculum, Stage, learning_rate_scale
from training.model import ReferenceModel
from training.muon import Muon, orthogonalise
from training.pacing import AHEAD, Pacing, Plan, emphasised
from training.rows import ANSWER, TEXT, RowMaker, RowShape

SHIPPED = Path(__file__).parent.parent / "models" / "rheo-reference"
TINY = train_reference_model.SHAPES["tiny"]
EVENLY = dict.fromkeys(TASKS, 1.0)


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
        row = rows.make(RowShape(length, (0.1, 0.8), 0), EVENLY, random.Random(seed))
        assert len(row.tokens) == len(row.roles) == len(row.positions) == length + 1
        starts = np.flatnonzero((row.roles[1:] >= ANSWER) & (row.roles[:-1] < ANSWER)) + 1
        for start in starts:
            end = start + int(np.argmin(np.append(row.roles[start:], TEXT) >= ANSWER))
            before, answer = (
                corpus.tokenizer.decode(part.tolist()) for part in (row.tokens[:start], row.tokens[start:end])
            )
            assert before.endswith((" is", " are", " ->"))
            for item in answer.strip(" .\n").split(", "):
                assert item in before
                answers += 1
    assert answers > 10


@pytest.mark.parametrize(
    ("curriculum", "task"), [(name, task) for name in CURRICULA for task in CURRICULA[name].mixture.tasks]
)
def test_rows_with_room_for_more_facts_than_there_are_names_are_made(
    curriculum: str, task: str, corpus: Corpus
) -> None:
    rows = RowMaker(corpus, CURRICULA[curriculum].mixture)
    for seed in range(8):
        row = rows.make(RowShape(16384, (0.7, 0.8), 0), {task: 1.0}, random.Random(seed))
        assert len(row.tokens) == 16385
        assert (row.roles >= ANSWER).any()


def test_stretched_positions_rise_and_stay_in_bounds(rows: RowMaker) -> None:
    stretched = 0
    for seed in range(20):
        positions = rows.make(RowShape(256, (0.3, 0.6), 5000), EVENLY, random.Random(seed)).positions
        assert positions[0] == 0 and (np.diff(positions) >= 1).all() and positions[-1] < 5000
        stretched += positions[-1] > 256
    assert 0 < stretched < 20


def test_answers_carry_their_task(rows: RowMaker, corpus: Corpus) -> None:
    wording = {"multivalue": "The parcels for", "vartrack": "The variables that hold", "dictionary": "* "}
    for task, answered in wording.items():
        row = rows.make(RowShape(512, (0.6, 0.8), 0), {task: 1.0}, random.Random(1))
        role = ANSWER + list(TASKS).index(task)
        assert role in row.roles
        for start in np.flatnonzero((row.roles[1:] == role) & (row.roles[:-1] != role)) + 1:
            line = corpus.tokenizer.decode(row.tokens[:start].tolist()).rsplit("Answer: ", 1)[1]
            assert line.startswith((answered, "The access code"))


def test_shares_decide_what_is_asked(rows: RowMaker) -> None:
    shape = RowShape(1024, (0.5, 0.8), 0)
    for task in TASKS:
        roles = set(rows.make(shape, {task: 1.0}, random.Random(0)).roles.tolist())
        assert roles - {0, TEXT} == {ANSWER + list(TASKS).index(task)}


def test_batches_depend_on_seed_and_order_alone(rows: RowMaker) -> None:
    batches = Batches(rows, SMOKE, 512, seed=1)
    order = Order(5, Plan(1, 0, EVENLY))
    first, again = batches[order], Batches(rows, SMOKE, 512, seed=1)[order]
    assert (first.tokens == again.tokens).all() and (first.positions == again.positions).all()
    assert not np.array_equal(batches[Order(6, order.plan)].tokens, first.tokens)


LEARNT = dict.fromkeys(TASKS, 0.004)


def paced(losses: list[dict[str, float]], curriculum: Curriculum, seconds: float = 1.0) -> Pacing:
    """The criterion's state after rounds with these losses."""
    pacing = Pacing.begin(curriculum, 0.01)
    for one in losses:
        pacing.absorb(curriculum, 0.01, one, seconds)
    return pacing


def two_stages(**bounds: float) -> Curriculum:
    first = Stage({128: 1}, (0.5, 0.9), 0, **({"most_steps": 1000, "least_steps": 8} | bounds))
    return Curriculum(
        (first, Stage({256: 1}, (0.5, 0.9), 0, 4, decays=True)), FULL.mixture, 0.0, round_steps=2
    )


def test_stage_ends_when_every_task_is_below_the_threshold() -> None:
    pacing = paced([LEARNT] * 2, two_stages())
    assert pacing.ended == [] and pacing.planned[-1].stage == 0
    pacing = paced([LEARNT] * 3, two_stages())
    assert pacing.ended == ["criterion"]
    assert [plan.stage for plan in pacing.planned] == [0, 1]


@pytest.mark.parametrize("task", TASKS)
def test_one_task_above_the_threshold_holds_the_stage(task: str) -> None:
    assert paced([LEARNT | {task: 0.02}] * 50, two_stages()).stage == 0


def test_task_without_answers_yet_holds_the_stage() -> None:
    assert paced([{task: 0.001 for task in TASKS if task != "vartrack"}] * 50, two_stages()).stage == 0


def test_one_lucky_round_does_not_end_a_stage() -> None:
    assert paced([LEARNT | {"vartrack": 0.5}] * 9 + [LEARNT], two_stages()).stage == 0


def test_stage_ends_after_its_most_steps_and_seconds() -> None:
    unlearnt = dict.fromkeys(TASKS, 1.0)
    pacing = paced([unlearnt] * 8, two_stages(most_steps=20))
    assert pacing.ended == [] and pacing.stage_steps == 20
    assert paced([unlearnt] * 9, two_stages(most_steps=20)).ended == ["steps"]
    assert paced([unlearnt] * 3, two_stages(most_seconds=5.0), seconds=2.0).ended == ["seconds"]


def test_training_ends_after_the_last_stage() -> None:
    curriculum = two_stages()
    pacing = paced([LEARNT] * 3, curriculum)
    for _ in range(3):
        assert pacing.planned
        pacing.absorb(curriculum, 0.01, LEARNT, 1.0)
    assert not pacing.planned and pacing.ended == ["criterion", "steps"]
    assert pacing.plan(pacing.rounds) is None


def test_plans_of_rounds_too_far_ahead_are_refused() -> None:
    pacing = Pacing.begin(two_stages(), 0.01)
    with pytest.raises(ValueError, match=f"round {AHEAD} asked for"):
        pacing.plan(AHEAD)


def test_tasks_above_the_threshold_get_more_questions() -> None:
    tasks = {"needle": 2, "vartrack": 5, "multivalue": 5}
    shares = emphasised(tasks, {"needle": 0.001, "vartrack": 0.09, "multivalue": 2.0}, 0.01)
    assert shares == {"needle": 2.0, "vartrack": 15.0, "multivalue": 20.0}
    assert emphasised(tasks, {}, 0.01) == tasks


def test_planned_shares_follow_the_losses(rows: RowMaker) -> None:
    pacing = paced([LEARNT | {"vartrack": 0.16}] * 4, two_stages())
    shares = pacing.planned[-1].shares
    assert shares["vartrack"] == 4 * FULL.mixture.tasks["vartrack"]
    assert shares["multivalue"] == FULL.mixture.tasks["multivalue"]


def test_restored_pacing_is_the_same() -> None:
    pacing = paced([LEARNT | {"vartrack": 0.2}] * 3, two_stages(), seconds=0.7)
    assert Pacing.restore(json.loads(json.dumps(pacing.state()))) == pacing


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_order_and_follow_the_criterion(workers: int, rows: RowMaker) -> None:
    curriculum = two_stages()
    pacing = Pacing.begin(curriculum, 0.01)
    seen = []
    for batch in load_batches(Batches(rows, curriculum, 512, seed=1), pacing, workers):
        seen.append((batch.order.step, batch.order.plan.stage, batch.tokens.shape[1] - 1))
        if batch.order.step % 2:
            pacing.absorb(curriculum, 0.01, LEARNT, 1.0)
    assert seen == [(step, int(step >= 8), 256 if step >= 8 else 128) for step in range(12)]


@pytest.mark.parametrize("curriculum", CURRICULA.values(), ids=list(CURRICULA))
def test_stages_consist_of_whole_rounds(curriculum: Curriculum) -> None:
    for stage in curriculum.stages:
        assert stage.most_steps % curriculum.round_steps == 0
        assert not stage.decays or stage.least_steps is None


def test_learning_rate_warms_up_stays_and_decays_in_the_last_stage() -> None:
    constant, last = FULL.stages[0], FULL.stages[-1]
    assert learning_rate_scale(constant, 0, 0) == pytest.approx(1 / 50)
    assert learning_rate_scale(constant, 4000, 4000) == 1.0
    assert learning_rate_scale(constant, 4000, 9) == pytest.approx(10 / 50)
    scales = [learning_rate_scale(last, step, 9000 + step) for step in range(last.most_steps)]
    assert scales[0] == 1.0 and scales[-1] < 0.03 and scales == sorted(scales, reverse=True)


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
    load_weights(tmp_path, model)
    other = qwen3.Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(0, 4096, (2, 65))
    positions = torch.arange(64).expand(2, -1) + torch.tensor([[0], [50_000]])
    roles = torch.full((2, 64), TEXT, dtype=torch.uint8)
    by_role, correct = model.losses(tokens[:, :-1], positions, tokens[:, 1:], roles)
    logits = other(tokens[:, :-1], position_ids=positions).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert by_role[TEXT, 1] == roles.numel() and by_role.sum(0)[1] == roles.numel()
    assert (by_role[TEXT, 0] / by_role[TEXT, 1]).item() == pytest.approx(expected.item(), rel=1e-5)
    assert by_role[TEXT, 2] == correct.sum()
    assert (correct == (logits.argmax(-1) == tokens[:, 1:])).all()


def test_shipped_checkpoint_retrieves() -> None:
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    model = ReferenceModel(train_reference_model.SHAPES["reference"], dtype=torch.float32, compiled=False)
    load_weights(SHIPPED, model)
    haystack = Haystack(documentation_text(held_out=True), token_counter(tokenizer))
    with torch.no_grad():
        accuracy = measure_accuracy(model, tokenizer, haystack, 512, 4, 2048, torch.device("cpu"))
    for task in TASKS:
        assert accuracy[f"{task}_512"] > 0.9


def smoke(folder: Path, model: Path, *more: str) -> int:
    """Run the smoke curriculum."""
    arguments = ["--corpus", str(folder), "--out", str(model), "--curriculum", "smoke", "--shape", "tiny"]
    arguments += ["--batch-tokens", "2048", "--workers", "0", "--lengths", "1024", "--samples", "1"]
    return train_reference_model.main([*arguments, *more])


def test_training_runs_saves_evaluates_and_plots(folder: Path, tmp_path: Path) -> None:
    model, result = tmp_path / "model", tmp_path / "result.json"
    assert smoke(folder, model, "--result", str(result)) == 0
    metrics = json.loads(result.read_text())["metrics"]
    assert metrics["training_steps"] == 12
    assert 0.0 <= metrics["needle_1k"] <= 1.0
    assert json.loads((model / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    assert Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab_size() == 4096
    progress = Progress.restore(json.loads((model / "training.json").read_text()))
    assert [entry["stage"] for entry in progress.history] == [0, 0, 0, 0, 1, 1]
    assert all(0 < loss < 20 for loss in progress.history[0]["losses"].values())
    assert not (model / "training_state.pt").exists()
    trained = (model / "model.safetensors").read_bytes()
    pytest.importorskip("matplotlib")
    plot = tmp_path / "curve.png"
    assert smoke(folder, model, "--resume", "--plot", str(plot)) == 0
    assert plot.stat().st_size > 1000
    assert (model / "model.safetensors").read_bytes() == trained


def test_training_in_many_runs_gives_the_weights_of_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert smoke(folder, whole) == 0
    runs = ["--minutes", "0"]
    capsys.readouterr()
    assert smoke(folder, parts, *runs) == 0
    count = 1
    while "go on with --resume" in capsys.readouterr().out:
        assert (parts / "training_state.pt").exists()
        assert smoke(folder, parts, "--resume", *runs) == 0
        count += 1
    assert count == 6
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    histories = [json.loads((one / "training.json").read_text())["history"] for one in (whole, parts)]
    assert histories[0] == histories[1]


def test_checkpoint_without_state_goes_on_with_a_new_warm_up(folder: Path, tmp_path: Path) -> None:
    assert smoke(folder, tmp_path, "--minutes", "0") == 0
    (tmp_path / "training_state.pt").unlink()
    assert smoke(folder, tmp_path, "--minutes", "0", "--resume") == 0
    progress = Progress.restore(json.loads((tmp_path / "training.json").read_text()))
    assert (progress.step, progress.warm_from) == (4, 2)


def test_shipped_checkpoint_is_trained_and_can_be_trained_on() -> None:
    progress = Progress.restore(json.loads((SHIPPED / "training.json").read_text()))
    before = progress.step + progress.steps_before
    progress.enter("full")
    assert progress.pacing is not None and not progress.pacing.planned
    progress.enter("smoke")
    assert (progress.step, progress.steps_before) == (0, before) and progress.pacing is None


def test_batch_that_rows_do_not_divide_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--corpus", str(folder), "--out", str(tmp_path), "--shape", "tiny", "--batch-tokens", "1000"]
    assert train_reference_model.main(arguments) == 1
    assert "multiple of every row length" in capsys.readouterr().err
