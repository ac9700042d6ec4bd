"""NAP, APT and AdvPT against the outputs of the authors' code, on both engines, in float64.

Each runs through its tuner with the published settings.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers import golden
from helpers.golden import NAMES, assert_near, outputs, probes, prompt

from fastprompt.data import ImageTensors
from fastprompt.interop import import_prompts, read_prompts
from fastprompt.methods.advpt import AdvPTConfig, AdvPTTuner
from fastprompt.methods.advpt_bank import Bank
from fastprompt.methods.apt import APTConfig, APTTuner
from fastprompt.methods.nap import NAPConfig, NAPTuner, compared
from fastprompt.prompts import DeepPrompts
from fastprompt.tuning.step import Step

pytestmark = pytest.mark.slow
ENGINES = pytest.mark.parametrize("engine", ["fast", "reference"])
WIDTH, TEXT, M = 768, 512, 16


@pytest.fixture(scope="module")
def clip():
    return golden.clip()


def deep_prompts(clip, depth):
    """NAP's prompts and refiners, each parameter under the name that the file has for it."""
    prompts = DeepPrompts.for_clip(clip, M, depth=depth, refiners=True).double()
    named = {"context": prompt("context", M, TEXT)}
    named |= {f"deep.{i}": prompt(f"deep.{i}", M, TEXT) for i in range(1, depth)}
    for i in range(depth):
        named[f"map.{i}.weight"] = prompt(f"map.{i}.weight", WIDTH, TEXT)
        named[f"map.{i}.bias"] = prompt(f"map.{i}.bias", WIDTH)
    with torch.no_grad():
        prompts.tokens.copy_(torch.stack([named["context"], *list(named.values())[1:depth]]))
        for i in range(depth):
            prompts.map_weight[i] = named[f"map.{i}.weight"]
            prompts.map_bias[i, 0] = named[f"map.{i}.bias"]
        for i, refiner in enumerate(prompts.refiners, start=1):
            for part in ("first", "second"):
                layer = getattr(refiner, part)
                for kind in ("weight", "bias"):
                    value = getattr(layer, kind)
                    value.copy_(prompt(f"refiner.{i}.{part}.{kind}", *value.shape))
    return prompts


def gradients_by_name(prompts):
    """As the file names them."""
    depth = len(prompts.tokens)
    found = {"context": prompts.tokens.grad[0]}
    for i in range(depth):
        found[f"map.{i}.weight"] = prompts.map_weight.grad[i]
        found[f"map.{i}.bias"] = prompts.map_bias.grad[i, 0]
        if i:
            found[f"deep.{i}"] = prompts.tokens.grad[i]
    for i, refiner in enumerate(prompts.refiners, start=1):
        for name, p in refiner.named_parameters():
            found[f"refiner.{i}.{name}"] = p.grad
    return found


def step_of(tuner, progress=0.0):
    """A step on the golden images, with the attack of the tuner's settings."""
    tuner.prepare(
        ImageTensors(torch.zeros(4, 3, 64, 64).byte(), torch.arange(4)), None, None, False
    )
    images, labels = golden.images()
    return Step(
        tuner.model, tuner._attack, images, labels, torch.arange(4), progress, draw=0, radius=None
    )


@ENGINES
@pytest.mark.parametrize("depth", [4, 2])
def test_nap(clip, depth, engine):
    """The model's outputs, then the attack, loss and gradients of the published settings."""
    wanted, prompts = outputs(f"nap-depth{depth}"), deep_prompts(clip, depth)
    config = NAPConfig.published(depth=depth, engine=engine, precision="fp64")
    tuner = NAPTuner(clip, NAMES, config)
    tuner.prompts.load_state_dict(prompts.state_dict())
    images, labels = golden.images()
    pixels = images.clone().requires_grad_()
    clean = tuner.model.see(pixels, keep_layers=True)
    assert_near(clean.logits, wanted["logits"], "logits")
    assert_near(clean.features, wanted["image_features"], "image features")
    assert_near(tuner.model.class_features(), wanted["text_features"], "text features")
    layers = compared(clean.layers, depth)
    assert len(layers) == sum(key.endswith(".shape") for key in wanted)
    for i, layer in enumerate(layers):
        assert list(layer.shape) == wanted[f"layer.{i}.shape"].tolist()
        assert_near(probes(f"layer.{i}", layer), wanted[f"layer.{i}.probes"], f"layer {i}")
    loss = F.cross_entropy(clean.logits, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, pixels)
    assert_near(gradient, wanted["first_pixel_gradient"], "first pixel gradient")

    step = step_of(tuner, progress=0.5)
    loss = tuner.loss(step)
    assert_near(step.adv, wanted["adv"], "adversarial images")
    assert_near(loss, wanted["loss"], "loss")
    loss.backward()
    found = gradients_by_name(tuner.prompts)
    probed = {k for k in wanted if k.startswith("grad.") and k.endswith(".probes")}
    for key in probed:
        name = key.removeprefix("grad.").removesuffix(".probes")
        assert_near(probes(name, found.pop(name)), wanted[key], name)
    assert not found  # what is absent in theirs is absent in ours


@ENGINES
@pytest.mark.parametrize("name", ["apt", "apt-class-specific"])
def test_apt(clip, name, engine, monkeypatch):
    """Logits, attack, loss and gradient of the published settings, from the authors' start."""
    wanted, own = outputs(name), name != "apt"
    context = prompt("context.csc", len(NAMES), M, TEXT) if own else prompt("context", M, TEXT)
    tuner = APTTuner(clip, NAMES, APTConfig.published(class_specific=own, engine=engine))
    with torch.no_grad():
        tuner.prompts.tokens.copy_(context)
    monkeypatch.setattr(
        "fastprompt.tuning.online_pgd.draw_start", lambda x, *_, **__: x + wanted["start_delta"]
    )
    step = step_of(tuner)
    assert_near(tuner.model(step.images), wanted["logits"], "logits")
    loss = tuner.loss(step)
    assert_near(step.adv, wanted["adv"], "adversarial images")
    assert_near(loss, wanted["loss"], "loss")
    (gradient,) = torch.autograd.grad(loss, tuner.prompts.tokens)
    assert_near(gradient, wanted["grad.context"], "gradient of the context")


@ENGINES
def test_advpt(clip, engine, monkeypatch):
    """Both phases of the published settings, from the authors' start."""
    wanted = outputs("advpt")
    tuner = AdvPTTuner(clip, NAMES, AdvPTConfig.published(n_ctx=M, engine=engine))
    with torch.no_grad():
        tuner.prompts.tokens.copy_(prompt("context", M, TEXT))
    images, labels = golden.images()
    monkeypatch.setattr(
        "fastprompt.attacks.feature.random_start", lambda x, *_, **__: x + wanted["start_delta"]
    )

    def make_bank(clip, data, attack, **_):
        """Of the golden images, which are no whole numbers of 255ths."""
        result = attack.run(images)
        assert_near(result.images, wanted["adv"], "adversarial images")
        return Bank(attack.encode(result.images).detach(), labels, result.health)

    monkeypatch.setattr("fastprompt.methods.advpt.make_bank", make_bank)
    tuner.prepare(ImageTensors(torch.zeros(4, 3, 64, 64).byte(), labels), None, None, False)
    (features, _) = tuner._banks["train"]
    assert_near(features, wanted["embeddings"], "embeddings")
    logits = tuner.model.logits(wanted["embeddings"], tuner.model.class_features())
    assert_near(logits, wanted["logits"], "logits")
    loss = tuner.loss(torch.arange(4))
    assert_near(loss, wanted["loss"], "loss")
    (gradient,) = torch.autograd.grad(loss, tuner.prompts.tokens)
    assert_near(gradient, wanted["grad.context"], "gradient of the context")


# ---- imports of checkpoints, with the words that only `token_suffix` holds -----------------------

GOLDEN_IMPORTS = {
    "maple-fixed-words": ("text", "[ctx] of a {}.", "MaPLe"),
    "fap": ("image", "[ctx] of a {{}}, a type of pet . {}.", "FAP"),
    "fap-advmaple": ("image", "[ctx] of a {{}}, a type of pet . {}.", "FAP"),
}


def checkpoint(name, side):
    """A checkpoint of theirs, with the prompts that the file's logits were computed with."""
    depth, m, stored = 3, 2, outputs(name)
    learner = {
        "ctx": prompt("context.prompt_learner.ctx", m, TEXT),
        "proj.weight": prompt("prompt_learner.proj.weight", WIDTH, TEXT),
        "proj.bias": prompt("prompt_learner.proj.bias", WIDTH),
    }
    here, there = (TEXT, WIDTH) if side == "text" else (WIDTH, TEXT)
    for i in range(depth - 1):
        tokens = f"compound_prompts_{side}.{i}"
        learner[tokens] = prompt(f"context.prompt_learner.{tokens}", m, here)
        for part, shape in (("weight", (there, here)), ("bias", (there,))):
            at = f"compound_prompt_projections.{i}.{part}"
            learner[at] = prompt(f"prompt_learner.{at}", *shape)
    state = {f"prompt_learner.{key}": value for key, value in learner.items()}
    state |= {k.removeprefix("state."): v for k, v in stored.items() if k.startswith("state.")}
    return {"state_dict": state, "epoch": 5}


@ENGINES
@pytest.mark.parametrize("name", GOLDEN_IMPORTS)
def test_imports(clip, name, engine, tmp_path):
    side, template, layout = GOLDEN_IMPORTS[name]
    path = tmp_path / "model.pth.tar-5"
    torch.save(checkpoint(name, side), path)
    assert read_prompts(path).layout == layout
    tuner = import_prompts(path, clip, engine=engine)
    assert tuner.config.template == template
    assert tuner.classnames == NAMES
    images, _ = golden.images()
    assert_near(tuner.model(images), outputs(name)["logits"], "logits")
