"""List the packages; all other metadata is in pyproject.toml.

The folder ``kernels`` in the root of the repository is installed as ``fastprompt.kernels``.
"""

from setuptools import find_packages, setup

kernels = find_packages("kernels")
setup(
    packages=[
        *find_packages(include=["fastprompt", "fastprompt.*"], exclude=["fastprompt.kernels*"]),
        "fastprompt.kernels",
        *(f"fastprompt.kernels.{name}" for name in kernels),
    ],
    package_dir={"fastprompt.kernels": "kernels"},
)
