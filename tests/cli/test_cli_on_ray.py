"""Commands with --ray on a running cluster write the files that they write without it."""

import pytest
import torch
from helpers.kills import contents
from helpers.models import small_model
from helpers.ray_cluster import cluster
from torchvision.transforms.functional import to_pil_image

from fastprompt.cli.main import main
from fastprompt.clip import bundled
from fastprompt.runners import team as teams

pytest.importorskip("ray", reason="needs Ray, which the extra ray brings")
pytestmark = pytest.mark.slow

JUDGED = ["--eval_eps=8/255", "--eval_limit=6", "--eval_batch=1", "--sanity=off"]
# workers see a processor's bfloat16 units, which the tests hide from this process
OWN = "--search_precision=own"
LITTLE = ["--epochs=1", "--steps=1", "--n_ctx=2", "--warmup_epochs=0", "--precision=fp32"]
TUNE = [
    *("tune", "advpt", "--device=cpu", "--data=patterns", "--shots=1", "--attack_batch=1"),
    *("--attacks=clean,pgd-1", "--eps=8/255", *LITTLE, *JUDGED, OWN),
]
EVALUATE = ["--attacks=pgd-1,apgd-ce-2", "--eps=8/255", "--limit=20", "--batch=2", "--sanity=off"]
PROTOCOL = [
    *("protocol", "few-shot", "--methods=zero-shot,coop", "--data=patterns", "--device=cpu"),
    *("--shots", "1", "--seeds", "1", "--eps=8/255", "--attacks=pgd-1", "--limit=8"),
    *("--sanity=off", "--scoring=published"),
]


@pytest.fixture(scope="module")
def address():
    with cluster(1, connect=False) as found:
        yield found.address


@pytest.fixture
def items(monkeypatch):
    """The numbers of items of each team of workers, in the order in which they ended."""
    counts = []

    class Counting(teams.RayTeam):
        def each(self, items, bar=None):
            counts.append(0)
            for result in super().each(items, bar):
                counts[-1] += 1
                yield result

    monkeypatch.setattr(teams, "RayTeam", Counting)
    return counts


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(bundled, "load", lambda name: small_model())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of AdvPT, tuned without Ray."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "load", lambda name: small_model())
        torch.set_num_threads(1)
        assert main([*TUNE, f"--out={folder}"]) == 0
    return folder


def files(folder):
    return {k: v for k, v in contents(folder).items() if not k.endswith(".lock")}


def test_tune_advpt(address, items, run, tmp_path):
    assert main([*TUNE, f"--out={tmp_path / 'run'}", f"--ray={address}"]) == 0
    assert files(tmp_path / "run") == files(run)
    assert len(items) > 1  # the bank, and the evaluation
    assert all(items)


def test_evaluate(address, items, run, tmp_path):
    line = ["evaluate", str(run), *EVALUATE, OWN]
    assert main([*line, f"--out={tmp_path / 'one'}"]) == 0
    assert not items
    assert main([*line, f"--out={tmp_path / 'many'}", f"--ray={address}"]) == 0
    assert files(tmp_path / "many") == files(tmp_path / "one")
    assert sum(items) > 3


def test_predict(address, items, run, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    draw = torch.Generator().manual_seed(0)
    for i in range(11):
        pixels = torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8, generator=draw)
        to_pil_image(pixels).save(pictures / f"{i:02d}.png")
    (pictures / "05.png").write_bytes(b"no picture")
    line = ["predict", str(run), str(pictures), "--batch=2", "--device=cpu"]
    for name, more in (("one", []), ("many", [f"--ray={address}"])):
        out = tmp_path / name / "found.csv"
        assert main([*line, f"--out={out}", *more]) == 0
    assert files(tmp_path / "many") == files(tmp_path / "one")
    assert items == [2]


def test_protocol(address, items, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text("all: {epochs: 1, steps: 1, n_ctx: 2, warmup_epochs: 0, precision: fp32}\n")
    line = [*PROTOCOL, f"--config={settings}"]
    assert main([*line, f"--out={tmp_path / 'one'}"]) == 0
    assert not items
    assert main([*line, f"--out={tmp_path / 'many'}", f"--ray={address}"]) == 0
    assert files(tmp_path / "many") == files(tmp_path / "one")
    assert items == [2]
