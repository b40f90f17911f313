"""Tests that README and docs/ are up to date: commands compose, links resolve, tables are complete."""

import argparse
import ast
import importlib
import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import command as run_command
from composing import checked
from omegaconf import OmegaConf

from distill.errors import UserError
from distill.evaluation.named import NAME_A_MODEL, as_keys

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = {page: page.relative_to(ROOT).as_posix() for page in PAGES}
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}

# What each verb composes; plan takes train's words.
COMPOSED = (
    "train", "generate", "score", "curate", "evaluate", "export", "similarity", "identity", "tips", "prune",
)  # fmt: skip
HYDRA = {name: name for name in COMPOSED} | {"plan": "train"}
PARSED = ("judge", "report", "results", "tune", "records", "bench", "bottleneck")  # with argparse
BARE = ("presets", "tiny.build", "tiny.steps.build")  # without words
MEASURED = ("planning.big_shapes",)  # what a results page was made with, in minutes or hours
OTHERS = ("pip install", "python -m pytest", "source", "wandb sync", "jupyter lab")  # of other packages

_BLOCK = re.compile(r"^[ ]*```(\w+)\n(.*?)^[ ]*```", flags=re.DOTALL | re.MULTILINE)
_VARIABLE = re.compile(r"^(\w+)=(\".*\"|'.*')$")
_SETTING = re.compile(r"^([A-Z_]+=\S+\s+)+")  # environment variables before a command


def blocks(text: str, language: str) -> list[str]:
    return [block for kind, block in _BLOCK.findall(text) if kind == language]


def commands(text: str) -> list[str]:
    """Every command in the blocks of shell commands: continued lines joined, without comments and environment
    variables, with the block's own variables put in."""
    found: list[str] = []
    for block in blocks(text, "bash"):
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            words = _SETTING.sub("", re.split(r"\s#(?:\s|$)", line.strip())[0].strip())
            if given := _VARIABLE.match(words):
                variables[given[1]] = given[2].strip("\"'")
            elif words and not words.startswith("#"):
                for name, value in variables.items():
                    words = words.replace(f"${name}", value)
                found.append(words)
    return found


def verb_of(command: str) -> tuple[str, list[str]]:
    """A command's verb and its words; `train.py`, `python -m distill.X` and `distill X` alike; or no verb."""
    words = shlex.split(command)
    if words[:2] == ["python", "train.py"]:
        return "train", words[2:]
    if words[:2] == ["python", "-m"] and words[2].startswith("distill."):
        return words[2].removeprefix("distill."), words[3:]
    if words[0] == "distill":
        return words[1], words[2:]
    return "", words


def hydra_commands(text: str) -> list[str]:
    """Those that Hydra reads, as in the notebooks' pages."""
    return [one for one in commands(text) if verb_of(one)[0] in HYDRA]


def everywhere() -> Iterator[tuple[str, str]]:
    """Every command once, with the page that has it first."""
    seen: set[str] = set()
    for page in PAGES:
        for command in commands(TEXTS[page]):
            if command not in seen:
                seen.add(command)
                yield NAMES[page], command


EVERY = list(everywhere())
ASKS_FOR_HELP = {"--help", "--hydra-help"}


def chosen(kind: tuple[str, ...] | dict[str, str]) -> list[tuple[str, str]]:
    return [(page, one) for page, one in EVERY if verb_of(one)[0] in kind]


# --- commands


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), chosen(HYDRA))
def test_every_command_composes(
    page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    verb, words = verb_of(command)
    if ASKS_FOR_HELP & set(words):
        return
    # What lr_from names is made by the command before.
    words = [word for word in words if not word.startswith("lr_from=")]
    sweeps = (
        "experiment=compare",
        "experiment=tune",
        "experiment=paper",
        "experiment=table5",
        "experiment=proxy",
    )
    if any(word.startswith(sweeps) for word in words):
        # one method's jobs: tests of the experiments look at all
        weighted = "experiment=paper_tune" in words or any("token_weight" in word for word in words)
        words.append("loss=dcod" if weighted else "loss=sft")
    try:
        checked(HYDRA[verb], *(as_keys(words) if verb in NAME_A_MODEL else words))
    except UserError as error:  # the extra is not installed in every environment
        if not str(error).endswith('pip install "distill[sweeps]"'):
            raise


class _Parsed(Exception):
    pass


@pytest.mark.parametrize(("page", "command"), chosen(PARSED))
def test_every_option_of_a_command_exists(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verb, words = verb_of(command)
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser: argparse.ArgumentParser, *_: object) -> None:
        parse(parser, words)
        raise _Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    package = (
        importlib.util.find_spec(f"distill.{verb}.__main__") if (ROOT / "distill" / verb).is_dir() else None
    )
    module = importlib.import_module(package.name if package else f"distill.{verb}")
    with pytest.raises((_Parsed, SystemExit)) as left:
        module.main()
    assert left.type is _Parsed or left.value.code == 0, f"{page}: {command}"


@pytest.mark.parametrize("command", ["python train.py --help", "python train.py --cfg job loss=dcod"])
def test_a_command_that_only_prints_prints(command: str) -> None:
    assert command in [one for _, one in EVERY]
    place, *words = shlex.split(command)[1:]
    done = run_command(place, *words)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 20


def test_every_other_command_is_known() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for page, command in EVERY:
        verb, words = verb_of(command)
        if verb:
            known = verb in (*HYDRA, *PARSED, *BARE, *MEASURED) or (words == [] and verb == "--help")
        elif words[0] == "make":
            known = words[1] in targets
        elif words[0] == "python" and words[1].startswith("tests/"):
            known = (ROOT / words[1]).is_file()
        elif words[:2] == ["python", "-m"] and words[2].startswith("tests."):
            known = (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file()
        else:
            known = command.startswith(OTHERS)
        assert known, f"{page}: {command}: no test knows this command"
        for extra in re.findall(r"\[(\w+)\]\"", command if "pip install" in command else ""):
            assert f"\n{extra} = [" in project, f"{page}: {command}"


@pytest.mark.parametrize("verb", [*HYDRA, *PARSED, *BARE])
def test_every_command_is_in_the_reference_and_is_there(verb: str) -> None:
    shown = "`python train.py`" if verb == "train" else f"`python -m distill.{verb}`"
    assert shown in TEXTS[ROOT / "docs" / "reference" / "commands.md"]
    assert verb == "train" or importlib.util.find_spec(f"distill.{verb}")


# Small enough to run in a test, by what a command of the quickstart has.
SMALL = {
    "generate": {"data.limit": "8", "samples": "2"},
    "curate": {},
    "train": {"trainer.max_steps": "2", "benchmark.limit": "4", "data.batch_size": "4", "logger": "csv"},
    "evaluate": {"benchmark.limit": "4"},
}


@pytest.mark.slow
def test_the_quickstarts_chain_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = TEXTS[ROOT / "docs" / "quickstart.md"].split("## From traces to a report")[1].split("\n## ")[0]
    verbs = []
    for command in commands(text):
        verb, words = verb_of(command)
        settings = dict(word.split("=", 1) for word in words) | SMALL[verb]
        place = "train.py" if verb == "train" else f"distill/{verb}.py"
        done = run_command(place, *(f"{key}={value}" for key, value in settings.items()))
        assert done.returncode == 0, f"{command}: {done.stderr}"
        verbs.append(verb)
    assert verbs == ["generate", "curate", "train", "evaluate"]
    done = run_command("distill/results.py", "outputs/runs")
    assert "dcod" in done.stdout, done.stderr


# --- blocks in other languages


def test_what_the_pages_import_is_there() -> None:
    lacking = []
    for page in PAGES:
        for block in blocks(TEXTS[page], "python"):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "distill":
                    code = f"from {node.module} import {', '.join(one.name for one in node.names)}"
                    try:
                        exec(code, {})  # also imports submodules
                    except ImportError as error:
                        lacking.append(f"{NAMES[page]}: {error}")
    assert not lacking


def test_every_yaml_block_parses() -> None:
    for page in PAGES:
        for block in blocks(TEXTS[page], "yaml"):
            assert yaml.safe_load(block), NAMES[page]


# --- pages


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= 10_000


def test_the_pages_show_commands() -> None:
    assert len(hydra_commands(TEXTS[README])) >= 7
    assert {verb_of(one)[0] for _, one in EVERY} >= {*HYDRA, *PARSED}


def anchors(text: str) -> set[str]:
    """The ids of a page's headings, as Python-Markdown makes them."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", text), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", TEXTS[page])):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), f"{NAMES[page]}: {target}"
        if anchor and "<!-- generated:" not in TEXTS.get(file, ""):
            assert anchor in anchors(TEXTS[file]), f"{NAMES[page]}: {target}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != README and "results" not in page.parts], ids=NAMES.get
)
def test_figures_with_a_date_are_in_the_results_alone(page: Path) -> None:
    dates = re.findall(r"\b20\d\d-\d\d-\d\d\b", TEXTS[page])
    assert not dates, f"{NAMES[page]}: move what is dated to docs/results"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'"([\w/-]+\.md)"', text))
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page != README}


# --- tables that are written by hand


def options(group: str) -> set[str]:
    return {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}


def first_column(page: str, heading: str) -> set[str]:
    rows = TEXTS[ROOT / "docs" / page].split(heading, 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_the_guide_lists_every_curation_step() -> None:
    assert first_column("guides/curate.md", "| step | paper |") == options("curation") - {"none"}


def test_the_guide_lists_every_benchmark() -> None:
    page = TEXTS[ROOT / "docs" / "guides" / "evaluate.md"]
    suites = {name for name in options("benchmark") if f"`benchmark={name}`" in page}
    papers = {f"paper_{data}{told}" for data in ("math", "gsm8k") for told in ("", "_instructed")}
    assert suites == {"suite", *papers}
    assert (
        first_column("guides/evaluate.md", "| benchmark | problems |")
        == options("benchmark") - {"none"} - suites
    )


def test_the_guide_lists_every_experiment() -> None:
    suggestions = options("model")  # of a model, named after it
    named = first_column("guides/sweeps.md", "| experiment | pair and problems |")
    assert named == options("experiment") - {"none"} - suggestions


@pytest.mark.parametrize("page", ["methods.md", "which-loss.md"])
def test_every_loss_is_described(page: str) -> None:
    text = TEXTS[ROOT / "docs" / page]
    controls = (
        {"dcod_shuffled", "dcod_inverted", "dcod_by_position", "seqkd"} if page == "which-loss.md" else set()
    )
    assert {name for name in options("loss") - controls if f"`{name}`" not in text} == set()


def test_every_metric_is_described() -> None:
    """By the literals in the code, such as "train/loss"."""
    text = TEXTS[ROOT / "docs" / "reference" / "metrics.md"]
    literal = re.compile(r"\"((?:train|val|weights|rollouts|steps)/[a-z_]+)\"")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "distill").rglob("*.py"))
    assert {name for name in literal.findall(sources) if f"`{name}`" not in text} == set()


# --- what is generated


@pytest.fixture(scope="module")
def generate() -> Any:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_pages_ask_for_what_can_be_generated(generate: Any) -> None:
    asked = [name for page in PAGES for name in generate.MARK.findall(TEXTS[page])]
    assert sorted(asked) == sorted(generate.GENERATED)


@pytest.mark.slow
def test_the_table_of_methods_has_a_row_for_each_preset(generate: Any, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    for path in (tmp_path / "conf" / "loss").glob("*.yaml"):
        if path.stem not in ("sft", "dcod", "on_policy_kd"):  # all of them take long; make docs has them
            path.unlink()
    rows = generate.methods_table(tmp_path).splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["`dcod`", "`on_policy_kd`", "`sft`"]
    assert "cross_entropy × support_ratio | teacher's log-probs, cached |" in rows[2]


@pytest.mark.slow
def test_the_record_columns_are_found(generate: Any) -> None:
    assert "| `teacher_logprobs` |" in generate.record_columns(ROOT)


def test_the_python_api_is_found(generate: Any) -> None:
    import distill

    text = generate.python_api(ROOT)
    assert all(
        f"### `{name}`" in text for name in getattr(distill, "__all__", []) if not name.startswith("__")
    )


def leaves(node: object, prefix: str) -> Iterator[str]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            if not str(key).startswith("_") and f"{prefix}{key}" not in ("defaults", "hydra"):
                yield from leaves(value, f"{prefix}{key}.")
    else:
        yield prefix.rstrip(".")


@pytest.mark.slow
def test_the_key_reference_has_every_key(generate: Any) -> None:
    conf = ROOT / "conf"
    text = generate.config_reference(ROOT)
    assert [name for name in generate.groups(conf) if f"## `{name}=`" not in text] == []
    lacking = []
    for path in sorted(conf.rglob("*.yaml")):
        group = path.parent.name
        if group in ("experiment", "help"):
            continue
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        for key in leaves({k: v for k, v in dict(node or {}).items() if k not in ("defaults", "hydra")}, ""):
            own = re.sub(rf"^{re.escape(path.stem)}\b", "NAME", key) if group == "benchmark" else key
            if (
                key
                and f".{own}` |" not in text
                and f"`{own}` |" not in text
                and not own.startswith("recipe.")
            ):
                lacking.append(f"{path.relative_to(conf)}: {key}")
    assert lacking == []


def test_the_key_reference_takes_comments_beside_and_above(generate: Any) -> None:
    text = (
        "# What the file is.\ndefaults: [x]\n\n"
        "# Above,\n# in two lines.\na: null  # and beside\nb:\n  c: '#1'  # C\n  _d: 1\n"
    )
    keys = [(key.name, key.default, key.comment) for key in generate.keys_of(text, "g.")]
    assert keys == [("g.a", "null", "Above, in two lines. and beside"), ("g.b.c", "'#1'", "C")]
    assert generate.description(text) == "What the file is."


def test_nothing_generated_is_in_the_sources(generate: Any) -> None:
    assert generate.sources(ROOT) == [page for page in PAGES if page != README]
    assert "| `akl` | [2404.02657]" not in "".join(TEXTS.values())
