"""Tests that a wheel installed into an empty folder trains and evaluates without the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY = ["model=tiny", "data.limit=16", "data.batch_size=8", "trainer.max_steps=1", "benchmark.limit=4"]


def python(*words: str, cwd: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site or "")}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=300, env=environment, cwd=cwd
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed; built of a copy, so that no build/ stays in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("distill", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = python(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", "./source", cwd=folder)
    assert built.returncode == 0, built.stderr
    wheel = next(folder.glob("dist/*.whl"))
    installed = python(*pip, "install", "--no-deps", "--target", "site", str(wheel), cwd=folder)
    assert installed.returncode == 0, installed.stderr
    shutil.rmtree(source)
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_carries_the_configuration_and_what_the_package_reads(site: Path) -> None:
    packaged = {
        path.relative_to(site / "distill") for path in (site / "distill").rglob("*") if path.is_file()
    }
    ours = {path.relative_to(ROOT) for path in (ROOT / "conf").rglob("*.yaml")}
    ours |= {
        path.relative_to(ROOT / "distill")
        for path in (ROOT / "distill").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours - packaged == set()


@pytest.mark.slow
def test_the_installed_package_trains_evaluates_and_finds_the_users_own_yaml(
    site: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own" / "loss"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("defaults:\n  - dcod\n  - _self_\ntoken_weight:\n  bias: 0.25\n")
    words = ["--config-dir", "own", "loss=mine", *TINY, "logger=csv", "dir=run"]
    trained = python("-m", "distill", "train", *words, cwd=tmp_path, site=site)
    assert trained.returncode == 0, trained.stderr
    assert "bias: 0.25" in (tmp_path / "run" / "config.yaml").read_text()
    asked = ["model=run", "benchmark=arithmetic", "benchmark.limit=4", "out=asked"]
    evaluated = python(str(site / "bin" / "distill"), "evaluate", *asked, cwd=tmp_path, site=site)
    assert evaluated.returncode == 0, evaluated.stderr
    assert (tmp_path / "asked" / "results.html").is_file()


@pytest.mark.slow
def test_the_installed_command_tells_its_verbs_and_the_nearest_name(site: Path, tmp_path: Path) -> None:
    helped = python("-m", "distill", "--help", cwd=tmp_path, site=site)
    assert "\n  train " in helped.stdout
    refused = python("-m", "distill", "trian", cwd=tmp_path, site=site)
    assert refused.returncode == 1
    assert "did you mean train?" in refused.stderr
    words = ["--config-dir", str(tmp_path / "nowhere"), "loss=mine"]
    refused = python("-m", "distill", "train", *words, cwd=tmp_path, site=site)
    assert refused.stderr == f"error: --config-dir {tmp_path / 'nowhere'}: there is no such folder\n"
    refused = python("-m", "distill", "train", "sede=1", cwd=tmp_path, site=site)
    assert refused.stderr.endswith("did you mean seed or lr_scheduler?; distill train --cfg job shows all\n")
    assert not list(tmp_path.iterdir())
