"""NAP, APT and AdvPT against the outputs of the authors' code, on both engines, in float64."""

import pytest
import torch
import torch.nn.functional as F
from helpers import golden
from helpers.golden import NAMES, assert_near, outputs, probes, prompt

from fastprompt.attacks.feature import FeaturePGD
from fastprompt.interop import import_prompts, read_prompts
from fastprompt.methods.nap import compared, distance
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.prompts import DeepPrompts, TextContext
from fastprompt.tuning.online_pgd import OnlinePGD

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


@ENGINES
@pytest.mark.parametrize("depth", [4, 2])
def test_nap(clip, depth, engine):
    wanted, prompts = outputs(f"nap-depth{depth}"), deep_prompts(clip, depth)
    model = PromptedCLIP(clip, NAMES, prompts, engine=engine, class_chunk=None)
    images, labels = golden.images()
    pixels = images.clone().requires_grad_()
    clean = model.see(pixels, keep_layers=True)
    assert_near(clean.logits, wanted["logits"], "logits")
    assert_near(clean.features, wanted["image_features"], "image features")
    assert_near(model.class_features(), wanted["text_features"], "text features")
    layers = compared(clean.layers, depth)
    assert len(layers) == sum(key.endswith(".shape") for key in wanted)
    for i, layer in enumerate(layers):
        assert list(layer.shape) == wanted[f"layer.{i}.shape"].tolist()
        assert_near(probes(f"layer.{i}", layer), wanted[f"layer.{i}.probes"], f"layer {i}")
    loss = F.cross_entropy(clean.logits, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, pixels)
    assert_near(gradient, wanted["first_pixel_gradient"], "first pixel gradient")

    eps = 4 / 255
    attack = OnlinePGD(model, eps, 0.3 * eps, 5, random_start=False)
    adv = attack(images, labels, torch.arange(4)).images
    assert (adv - wanted["adv"]).abs().max() <= 1e-12

    w = 0.5
    clean, attacked = model.see_both(images, wanted["adv"], keep_layers=True)
    loss = (1 - w) * F.cross_entropy(clean.logits, labels)
    loss = loss + w * F.cross_entropy(attacked.logits, labels)
    layers = (compared(seen.layers, depth) for seen in (clean, attacked))
    loss = loss + w * distance(*layers, "cosine").mean()
    assert_near(loss, wanted["loss"], "loss")
    loss.backward()
    found = gradients_by_name(prompts)
    probed = {k for k in wanted if k.startswith("grad.") and k.endswith(".probes")}
    for key in probed:
        name = key.removeprefix("grad.").removesuffix(".probes")
        assert_near(probes(name, found.pop(name)), wanted[key], name)
    assert not found  # what is absent in theirs is absent in ours


@ENGINES
@pytest.mark.parametrize("name", ["apt", "apt-class-specific"])
def test_apt(clip, name, engine):
    wanted, own = outputs(name), name != "apt"
    context = prompt("context.csc", len(NAMES), M, TEXT) if own else prompt("context", M, TEXT)
    prompts = TextContext(M, TEXT, classes=len(NAMES) if own else None).double()
    with torch.no_grad():
        prompts.tokens.copy_(context)
    model = PromptedCLIP(clip, NAMES, prompts, engine=engine, class_specific=own)
    images, labels = golden.images()
    assert_near(model(images), wanted["logits"], "logits")
    adv = images + wanted["start_delta"]
    for _ in range(3):  # PGD from their start: ours draws its own
        adv.requires_grad_()
        loss = F.cross_entropy(model(adv), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adv)
        moved = adv.detach() + 2.67 / 255 * gradient.sign()
        adv = (images + (moved - images).clamp(-4 / 255, 4 / 255)).clamp(0, 1)
    assert (adv - wanted["adv"]).abs().max() <= 1e-12
    loss = F.cross_entropy(model(wanted["adv"]), labels)
    assert_near(loss, wanted["loss"], "loss")
    (gradient,) = torch.autograd.grad(loss, prompts.tokens)
    assert_near(gradient, wanted["grad.context"], "gradient of the context")


@ENGINES
def test_advpt(clip, engine, monkeypatch):
    wanted = outputs("advpt")
    prompts = TextContext(M, TEXT).double()
    with torch.no_grad():
        prompts.tokens.copy_(prompt("context", M, TEXT))
    model = PromptedCLIP(clip, NAMES, prompts, engine=engine)
    images, labels = golden.images()
    monkeypatch.setattr(
        "fastprompt.attacks.feature.random_start", lambda x, *_, **__: x + wanted["start_delta"]
    )
    result = FeaturePGD(model.image_features, 8 / 255, 10).run(images, indices=torch.arange(4))
    assert (result.images - wanted["adv"]).abs().max() <= 1e-12
    assert_near(model.image_features(wanted["adv"]), wanted["embeddings"], "embeddings")
    logits = model.logits(wanted["embeddings"], model.class_features())
    assert_near(logits, wanted["logits"], "logits")
    loss = F.cross_entropy(logits, labels)
    assert_near(loss, wanted["loss"], "loss")
    (gradient,) = torch.autograd.grad(loss, prompts.tokens)
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
