"""The examples: few lines put fastprompt in, the losses and images stay, and work is saved."""

import difflib
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastprompt
from benchmarks.common.timing import count_flops, difference, gate
from fastprompt import load_clip, load_data

pytest.importorskip("torchattacks")  # which one example is of

from benchmarks.ladder.drop_in import Attacks, Loops
from examples import coop_loop, coop_loop_fast, pgd, pgd_fast

pytestmark = pytest.mark.peers

LOOPS = (coop_loop, coop_loop_fast)
EXAMPLES = Path(coop_loop.__file__).parent


@pytest.fixture(scope="module")
def data():
    return load_data("patterns", shots=3)


def models(data, dtype=torch.float32):
    """The same CLIP under both loops, each with a copy of its own."""
    return [m.prompted(load_clip("tiny-shapes").model.to(dtype), data.classnames) for m in LOOPS]


def learning(model):
    (context,) = (p for p in model.parameters() if p.requires_grad)
    return context


def pictures(data, dtype=torch.float32):
    return data.train.images.to(dtype) / 255, data.train.labels


@pytest.mark.parametrize(("name", "lines"), [("coop_loop", 3), ("pgd", 1)])
def test_so_few_lines_are_changed(name, lines):
    plain, fast = (
        (EXAMPLES / file).read_text(encoding="utf-8").splitlines()
        for file in (f"{name}.py", f"{name}_fast.py")
    )
    diff = [line for line in difflib.ndiff(plain, fast) if line[0] in "+-"]
    added = [line for line in diff if line.startswith("+")]
    assert len(added) == len(diff) - len(added) == lines


def test_the_plain_examples_tune_and_attack_without_fastprompt():
    for module in (coop_loop, pgd):
        ours = {
            name: value
            for name, value in vars(module).items()
            if getattr(value, "__module__", "").startswith("fastprompt")
        }
        assert not ours
        assert module.PGD.__module__.startswith("torchattacks")


@pytest.mark.slow
def test_the_losses_are_equal(data, double):
    images, labels = pictures(data, double)
    made = models(data, double)
    found = [
        module.tune(model, images[:16], labels[:16], epochs=3, batch=8)
        for module, model in zip(LOOPS, made, strict=True)
    ]
    plain, fast = (torch.tensor(losses) for losses in found)
    assert len(plain) == 6
    torch.testing.assert_close(fast, plain, rtol=1e-8, atol=0)
    ours, theirs = (learning(m).detach() for m in reversed(made))
    assert difference(ours, theirs) < 1e-8
    # neither stood still
    start = coop_loop.start_context(load_clip("tiny-shapes").model.double())
    assert difference(theirs, start) > 0.1
    assert plain[4:].mean() < plain[:2].mean()


def test_a_step_in_float32_is_equal_up_to_rounding(data):
    images, labels = (t[:8] for t in pictures(data))
    made = models(data)
    adv, ours = (m.attacked(model, images, labels) for m, model in zip(LOOPS, made, strict=True))
    # rounding turns the sign of a gradient that is nearly zero
    assert (adv != ours).float().mean() < 1e-3
    assert (adv != images).float().mean() > 0.9
    losses = [F.cross_entropy(model(adv), labels) for model in made]
    grads = [
        torch.autograd.grad(loss, learning(model))[0]
        for loss, model in zip(losses, made, strict=True)
    ]
    assert difference(losses[1], losses[0]) < 1e-5
    assert grads[0].norm() > 1e-6
    assert difference(grads[1], grads[0]) < 1e-5


def test_the_changed_lines_save_work(data):
    images, labels = (t[:8] for t in pictures(data))
    made = models(data)
    texts = []
    for tower in (made[0].clip.transformer, made[1].text):
        tower.register_forward_hook(lambda tower, *_: texts.append(tower))
    plain, fast = (
        count_flops(lambda m=m, model=model: m.tune(model, images, labels, batch=8))
        for m, model in zip(LOOPS, made, strict=True)
    )
    assert plain > 1.2 * fast
    # in each step of the attack and for the loss; once for the whole attack and for the loss
    counts = [texts.count(tower) for tower in (made[0].clip.transformer, made[1].text)]
    assert counts == [coop_loop.STEPS + 1, 2]


def test_the_attacked_images_are_equal_bit_for_bit(data, bundled_clip):
    images, labels = (t[:16] for t in pictures(data))
    model = bundled_clip.zero_shot(data.classnames, data.templates)
    plain, fast = (module.adversarial(model, images, labels) for module in (pgd, pgd_fast))
    assert torch.equal(plain, fast)
    assert not torch.equal(plain, images)
    assert pgd.accuracy(model, plain, labels) < pgd.accuracy(model, images, labels)


@pytest.mark.parametrize("name", ["coop_loop", "coop_loop_fast", "pgd", "pgd_fast"])
def test_they_run(name, data, monkeypatch, capsys):
    monkeypatch.setattr(fastprompt, "load_data", lambda *_, **__: data)  # 6 classes, not 80
    import_module(f"examples.{name}").main()
    assert ("epoch 2" if "loop" in name else "attacked") in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Loops, Attacks])
def test_what_is_timed_agrees_and_runs(kind):
    case = kind(batch=2)
    found = gate(case.results(), case.baseline)
    assert list(found) == ["fastprompt"]
    assert case.size()["classes"] == 80
    for run in case.rungs().values():
        run()
