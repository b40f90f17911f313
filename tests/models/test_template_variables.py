"""Tests of `model.chat_template_kwargs`: they reach every prompt, request and key."""

import shutil
from typing import Any

import pytest
from chat_stub import Stub
from omegaconf import open_dict

from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG
from distill.errors import UserError
from distill.evaluation.benchmark import benchmarks_of
from distill.evaluation.run import ask
from distill.generation.sampling import Sampling
from distill.models.find import check_template_variables, find, find_model, variables_of
from distill.teacher.completions import writer_key
from distill.teacher.write_traces import WriteSetup
from distill.tiny.build import make_tokenizer
from distill.training.setup import Setup

# In the embedded tokenizer's characters: 0 stands for thinking that is off.
TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '0' if enable_thinking is defined and not enable_thinking else '9' }}{% endif %}"
)
OFF = "model.chat_template_kwargs.enable_thinking=false"
FEW = ["data.limit=3", "trainer.max_steps=1", "benchmark=none"]


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded teacher with a chat template that knows `enable_thinking`."""
    folder = tmp_path_factory.mktemp("thinks") / "teacher"
    found = find_model("package:distill/tiny/teacher", key="model")
    shutil.copytree(found.location, folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


def written(folder: str, *words: str) -> WriteSetup:
    cfg: Any = check_overrides(CONFIG, "generate", ["model=tiny", "data=arithmetic", "data.limit=3", *words])
    cfg.model.teacher, cfg.out = folder, "nowhere"
    with open_dict(cfg):
        cfg.pop("hydra")
    return WriteSetup.from_config(cfg)


@pytest.mark.slow
def test_a_teacher_writes_without_thinking_and_its_set_is_another(thinker: str, stub: Stub) -> None:
    plain, off = written(thinker), written(thinker, OFF)
    decode = off.teacher.source.tokenizer.decode
    assert {decode(prompt)[-1] for prompt in off.prompts} == {"0"}
    assert {decode(prompt)[-1] for prompt in plain.prompts} == {"9"}
    assert off.template != plain.template
    assert off.key != plain.key

    def asked(*words: str) -> dict[str, Any]:
        setup = written(thinker, "engine=server", f"engine.url={stub.url}", *words)
        list(setup.engine.write(setup.requests[:1], Sampling(max_new_tokens=9)))
        return {**stub.seen[-1], "key": setup.key}

    with_it, without = asked(OFF), asked()
    assert with_it["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in without
    assert with_it["key"] != without["key"]


@pytest.mark.slow
def test_a_student_is_trained_and_evaluated_without_thinking(thinker: str) -> None:
    models = [f"model.student={thinker}", f"model.teacher={thinker}"]
    setup = Setup.from_overrides([*FEW, "loss=sft", *models, OFF])
    source, plain = setup.student, Setup.from_overrides([*FEW, "loss=sft", *models]).student
    trace = setup.recipe.tokenize(setup.recipe.source()[:1], source)[0]
    assert source.tokenizer.decode(trace.prompt_ids)[-1] == "0"
    assert writer_key(source) != writer_key(plain)
    assert writer_key(plain).keys() == writer_key(source).keys()
    cfg: Any = check_overrides(CONFIG, "evaluate", ["benchmark=arithmetic", "benchmark.limit=3", OFF])
    benchmark = benchmarks_of(cfg.benchmark)[0]
    prompts = [ask(benchmark, one).requests[0].prompt_ids for one in (source, plain)]
    assert [source.tokenizer.decode(prompt)[-1] for prompt in prompts] == ["0", "9"]


@pytest.mark.slow
def test_a_teacher_may_think_where_its_student_does_not(thinker: str) -> None:
    words = [OFF, "model.teacher_chat_template_kwargs.enable_thinking=true"]
    cfg: Any = check_overrides(CONFIG, "train", ["model=tiny", *words])
    cfg.model.student = cfg.model.teacher = thinker
    found = {role: find(cfg.model, role, "float32").chat_template_kwargs for role in ("student", "teacher")}
    assert found == {"student": {"enable_thinking": False}, "teacher": {"enable_thinking": True}}
    del cfg.model.chat_template_kwargs, cfg.model.teacher_chat_template_kwargs  # a run of an earlier version
    assert find(cfg.model, "teacher", "float32").chat_template_kwargs is None


def test_a_variable_that_no_template_reads_is_named(thinker: str) -> None:
    def sources(*models: str, **variables: Any) -> list[Any]:
        return [find_model(one, key="model", chat_template_kwargs=variables) for one in models]

    tiny = "package:distill/tiny/student"
    check_template_variables(sources(tiny, thinker, enable_thinking=False))
    check_template_variables(sources(tiny, **variables_of({"enable_thinking": None})))
    with pytest.raises(UserError, match=r"enable_thinking=false: the chat template of package:.* does not"):
        check_template_variables(sources(tiny, enable_thinking=False))
    with pytest.raises(UserError, match=r"chat_template_kwargs.enable_thinkin=true: .*does not read it"):
        check_template_variables(sources(thinker, enable_thinkin=True))
    with pytest.raises(UserError, match=r"chat_template_kwargs.tokenize cannot be set"):
        variables_of({"tokenize": True})
    with pytest.raises(UserError, match=r"model.chat_template_kwargs='false' is no list of variables"):
        variables_of("false")
