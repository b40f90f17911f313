"""The packages of a wheel: those below distill/, and conf/ as distill.conf; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["distill", "distill.*"]), "distill.conf"],
    package_dir={"distill.conf": "conf"},
)
