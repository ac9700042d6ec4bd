"""Small packages with entry points, as an installer would leave them in a folder."""

from collections.abc import Mapping
from pathlib import Path

TOY = '''
import dataclasses
from pathlib import Path

from fastprompt.attacks import PGD
from fastprompt.methods.apt import APTConfig, APTTuner


@dataclasses.dataclass(frozen=True)
class ToyConfig(APTConfig):
    """Settings of toy.

    Attributes:
        gain: factor of the loss.
    """

    gain: float = 2.0


class ToyTuner(APTTuner):
    """Tunes a text context with APT's loss times a factor."""

    method = "toy"
    Config = ToyConfig
    config: ToyConfig

    def loss(self, batch):
        return self.config.gain * super().loss(batch)


class HalfSteps(PGD):
    def __init__(self, model, eps, steps=3, **options):
        super().__init__(model, eps, eps / 2, steps, **options)


class Outside(PGD):
    def __init__(self, model, eps, steps, **options):
        super().__init__(model, 2 * eps, eps, steps, **options)


def pictures(name, *, root, download):
    return Path(root or ".") / name
'''
ENTRIES = {
    "fastprompt.methods": {"toy": "toy_plugin:ToyTuner"},
    "fastprompt.attacks": {"half-steps": "toy_plugin:HalfSteps", "outside": "toy_plugin:Outside"},
    "fastprompt.data": {"toys": "toy_plugin:pictures"},
}


def package(
    folder: Path,
    name: str = "toy-plugin",
    code: str = TOY,
    entries: Mapping[str, Mapping[str, str]] = ENTRIES,
) -> Path:
    """Write a package of one module and its dist-info into a folder, and return the folder."""
    folder.mkdir(exist_ok=True)
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in names.items())
        for group, names in entries.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder
