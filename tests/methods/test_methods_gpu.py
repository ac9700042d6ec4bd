"""What only a GPU can show of the methods: nothing waits, graphs follow, the engines agree."""

import pytest
import torch
from helpers.models import small_model

from fastprompt import load_clip
from fastprompt.attacks.result import untouched
from fastprompt.data import ImageTensors
from fastprompt.methods.registry import TUNERS
from fastprompt.tuning import optimizers

METHODS = pytest.mark.parametrize("method", ["apt", "ampt", "capt", "nap"])
NAMES = ["cat", "very small dog", "red circle", "fish", "bird"]
SMALL = {"n_ctx": 2, "epochs": 4, "batch": 4, "steps": 2, "warmup_epochs": 0, "eps_min": "1/255"}


def data(n: int = 12) -> ImageTensors:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(256, (n, 3, 48, 48), generator=generator, dtype=torch.uint8)
    return ImageTensors(images, torch.arange(n) % len(NAMES))


def ready(method, **options):
    tuner = TUNERS[method](load_clip(small_model(), device="cuda"), NAMES, SMALL, **options)
    tuner.prepare(data(), None, None, False)
    return tuner, optimizers.make_optimizer(tuner.config, tuner.prompts.parameters())


def one_epoch(tuner, optimizer, epoch: int) -> None:
    for _, step in tuner.batches(torch.arange(12), epoch):
        loss = tuner.loss(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


@pytest.mark.gpu
@METHODS
def test_a_step_never_waits_for_the_device(method):
    tuner, optimizer = ready(method)
    one_epoch(tuner, optimizer, 1)  # captures and compilations wait
    batches = tuner.batches(torch.arange(12), 2)
    first = next(batches)[1]  # an epoch begins with a copy of its order
    torch.cuda.set_sync_debug_mode("error")
    try:
        tuner.loss(first).backward()
        for _, step in batches:
            tuner.loss(step).backward()
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@METHODS
def test_the_engines_agree_on_a_gpu(method, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = []
    for engine in ("fast", "reference"):
        options = {"engine": engine, "precision": "fp32"}
        tuner, _ = ready(method, **options)
        _, step = next(iter(tuner.batches(torch.arange(12), 2)))
        # one sign would tell them apart
        step.result = untouched((step.images + 1 / 255).clamp(0, 1))
        loss = tuner.loss(step)
        found.append((loss, torch.autograd.grad(loss, list(tuner.prompts.parameters()))))
    (loss, grads), (wanted, wanted_grads) = found
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
    for grad, other in zip(grads, wanted_grads, strict=True):
        assert (grad - other).norm() <= 1e-4 * max(other.norm(), 1e-3)


@pytest.mark.gpu
@METHODS
def test_a_run_goes_through_in_bfloat16(method, tmp_path):
    clip = load_clip(small_model(), device="cuda")
    tuner = TUNERS[method](clip, NAMES, SMALL).fit(data(), data(5), tmp_path, progress=False)
    assert tuner.config.precision == "bf16"
    assert tuner.classifier(torch.rand(2, 3, 48, 48, device="cuda")).isfinite().all()
    again = TUNERS[method].load(tmp_path, clip)
    for name, value in again.prompts.state_dict().items():
        assert torch.equal(value, tuner.prompts.state_dict()[name])
