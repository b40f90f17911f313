"""Tests of what is said about a command line's words: options, blanks, several values."""

import re
from pathlib import Path

import pytest

from distill.config.command_line import check_words
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.errors import UserError

GROUPS = ["benchmark", "loss", "logger"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--loss dcod", "--loss: there is no such option; settings have no dashes: say loss=dcod"),
        ("--loss=dcod", "say loss=dcod"),
        ("-loss dcod", "say loss=dcod"),
        ("--optimizer.lr 1e-3", "say optimizer.lr=1e-3"),
        ("--batch-size 4", "say batch_size=4"),
        ("--loss", "say loss=VALUE"),
        ("--multirunn loss=sft", "there is no such option; did you mean --multirun?"),
        ("--verbose", "there is no such option; --help and --hydra-help list them"),
        ("loss = sft", "no blanks around =: say loss=sft"),
        ("loss= sft", "no blanks around =: say loss=sft"),
        ("loss =sft", "no blanks around =: say loss=sft"),
        ("loss dcod", "loss: a setting is written key=value: say loss=dcod"),
        ("dcod", "dcod: a setting is written key=value"),
        ("loss=dcod -m seed=0,1", "settings stand next to each other, behind options such as -m"),
        ("--cfg jobb", "the command line does not parse: argument --cfg/-c: invalid choice"),
    ],
)
def test_a_word_that_is_no_setting_is_answered_with_how_it_is_written(line: str, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_words(line.split(), GROUPS)


@pytest.mark.parametrize(
    "line",
    [
        "loss=dcod",
        "-m loss=sft,dcod",
        "--cfg job",
        "--config-dir mine loss=sft",
        "~logger",
        "+trainer.x=1",
        "name=",
        "a=b= c=d",
    ],
)
def test_what_hydra_takes_is_let_through(line: str) -> None:
    check_words(line.split(), GROUPS)


@pytest.mark.parametrize(
    ("command", "word", "sentence"),
    [
        ("train", "seed=0,1", "add -m (python train.py -m seed=0,1); a list is written seed=[0,1]"),
        ("evaluate", "benchmark=gsm8k,svamp", "say benchmark=[gsm8k,svamp]"),
        ("train", "loss=[sft,dcod]", "loss=[sft,dcod]: name one loss (options"),
        ("score", "trainer=[]", "trainer=[]: name one trainer (options: cpu, ddp, deepspeed, fsdp, gpu)"),
        ("score", "smoke.overrides=true", "smoke.overrides=true must be a list of settings, such as ["),
        ("score", "smoke.overrides=[[1]]", "smoke.overrides=[[1]] must be a list of settings, such as ["),
        ("train", "loss=DCOD", "loss=DCOD: there is no such loss; did you mean dcod? (options"),
    ],
)
def test_several_values_or_another_case_are_answered_with_the_remedy(
    command: str, word: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_overrides(CONFIG, command, [word])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "word", "sentence"),
    [
        ("generate", "check=-1", "check=-1 must be a section of keys: set one of them, check.answer="),
        (
            "train",
            "validation=null",
            "validation=null must be a section of keys: set one of them",
        ),
        ("evaluate", "drift=true", "drift=true must be a section of keys: set one of them, drift."),
        ("score", "++sampling=x", "sampling='x' must be a section of keys: set one of them, sampling."),
        (
            "train",
            "checkpoint=3",
            "checkpoint=3 must be a section of keys: set one of them",
        ),
    ],
)
def test_a_section_of_keys_is_not_set_to_a_value(command: str, word: str, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_overrides(CONFIG, command, [word])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("data.limit='${seed.a}'", "it refers to seed.a, and seed=0 has no keys below it"),
        ("seed='${oc.env:NOT_SET_ANYWHERE}'", ": its reference has no value"),
        ("seed='${seed}'", ": its reference has no value (Recursive interpolation detected)"),
        ("seed='${nothing:1}'", ": its reference has no value (Unsupported interpolation type nothing)"),
    ],
)
def test_a_reference_without_a_value_is_refused(word: str, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_overrides(CONFIG, "train", [word])


@pytest.mark.parametrize("word", ["check={answer:math}", "model.source=x", "drift.samples=2", "teacher=x"])
def test_sections_and_plain_keys_are_let_through(word: str, tmp_path: Path) -> None:
    command = "generate" if word.startswith("check") else "evaluate"
    check_overrides(CONFIG, command, [word, f"out={tmp_path}"])
