"""Names the packages; all metadata is in pyproject.toml.

The kernels live at the top of the repository and are imported as ``fastprompt.kernels``.
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
