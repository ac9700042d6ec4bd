"""PGD-10 on the bundled CLIP: `torchattacks.PGD` against `fastprompt.PGD`, equal images."""

import pytest
import torch
import torchattacks

from fastprompt import PGD, load_clip, load_data

OPTIONS = {"eps": 4 / 255, "alpha": 1 / 255, "steps": 10, "random_start": False}


@pytest.fixture(scope="module")
def setting():
    data = load_data("shapes")
    model = load_clip("tiny-shapes").zero_shot(data.classnames, data.templates)
    images, labels = data.test.images[:64].float() / 255, data.test.labels[:64]
    peer = torchattacks.PGD(model, **OPTIONS)
    ours = PGD(model, **OPTIONS)
    assert torch.equal(peer(images, labels), ours(images, labels))  # the gate before any timing
    return {"torchattacks": peer, "fastprompt": ours}, images, labels


@pytest.mark.benchmark(group="attack/pgd-10/tiny-shapes-b64")
@pytest.mark.parametrize("rung", ["torchattacks", "fastprompt"])
def test_pgd(benchmark, setting, rung):
    attacks, images, labels = setting
    benchmark.extra_info |= {"rung": rung, "images": len(images)}
    benchmark.pedantic(attacks[rung], (images, labels), rounds=5, warmup_rounds=1)
