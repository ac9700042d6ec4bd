"""What must not go unseen: bad numbers, labels, settings, heads, and seeds that meet."""

import pytest
import torch
from helpers.method_checks import NAMES, clip_of, data, first_step, perturb, relative
from helpers.models import small_model
from torch import nn

from fastprompt import (
    AMPTTuner,
    APTTuner,
    CAPTTuner,
    DeepPrompts,
    load_clip,
    load_data,
)
from fastprompt._utils.seeds import stream
from fastprompt.attacks.result import untouched
from fastprompt.data import ImageTensors
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.prompts.mixture import PromptMixture
from fastprompt.prompts.values import PromptValues
from fastprompt.tuning.online import OnlineTuner

FAST = {"epochs": 3, "batch": 3, "n_ctx": 2, "steps": 1, "lr": 0.01, "warmup_epochs": 0}


def tokens(tuner):
    return {k: v.clone() for k, v in tuner.prompts.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ---- precision ------------------------------------------------------------------------------


def test_a_router_learns_in_low_precision_what_it_learns_in_float32():
    """Prompts that start from the same words differ by little: bf16 text features would lose it."""
    clip, pictures = load_clip("tiny-shapes"), load_data("patterns", shots=4).train
    found = []
    for precision in ("fp32", "bf16"):
        options = {"n_ctx": 4, "ctx_init": "a photo of a", "augment": False, "steps": 1}
        names = load_data("patterns").classnames
        tuner = AMPTTuner(clip, names, precision=precision, **options)
        assert tuner.config.precision == precision
        perturb(tuner.prompts.head, 0.05)
        tuner.prepare(pictures, None, None, False)
        (_, step), *_ = tuner.batches(torch.arange(24), 0)
        step.result = untouched(step.images)  # one sign would tell them apart
        wanted = list(tuner.prompts.head.parameters())
        grads = torch.autograd.grad(tuner.loss(step), wanted)
        found.append(torch.cat([g.flatten() for g in grads]))
    assert found[0].norm() > 1e-4
    assert 1e-6 < relative(found[1], found[0]) <= 0.05


# ---- numbers that are not finite ------------------------------------------------------------


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")


@pytest.mark.parametrize("when", [(1, 2), (2, 2), (1, 0)], ids=["last_step", "last_epoch", "first"])
def test_a_gradient_that_is_not_finite_stops_the_run(small_clip, tmp_path, monkeypatch, when):
    """The loss of its own step is fine: without a look at the prompts nobody would see it."""
    real, seen = APTTuner.loss, []

    def loss(self, batch):
        seen.append(1)
        value = real(self, batch)
        epoch, place = divmod(len(seen) - 1, 3)
        return BadGradient.apply(value) if (epoch, place) == when else value

    monkeypatch.setattr(APTTuner, "loss", loss)
    tuner = APTTuner(small_clip, NAMES, FAST)
    with pytest.raises(FloatingPointError, match=rf"epoch {when[0] + 1}\b.*lr.*epoch {when[0]}\b"):
        tuner.fit(data(), data(4), tmp_path / "run", progress=False)
    assert all(v.isfinite().all() for v in tokens(tuner).values())
    assert not (tmp_path / "run" / "prompts.safetensors").exists()
    monkeypatch.undo()
    straight = APTTuner(small_clip, NAMES, FAST).fit(data(), data(4), progress=False)
    again = APTTuner(small_clip, NAMES, FAST)
    again.fit(data(), data(4), tmp_path / "run", resume=True, progress=False)
    assert equal(tokens(again), tokens(straight))


def test_prompts_of_nan_are_right_about_nothing(small_clip):
    tuner = APTTuner(small_clip, NAMES, FAST)
    tuner.prepare(data(), data(5), None, False)
    with torch.no_grad():
        tuner.prompts.tokens.fill_(float("nan"))
    row = tuner.validate()
    assert (row["val_accuracy"], row["val_robust"]) == (0, 0)


def test_an_image_without_a_gradient_is_not_robust(small_clip, monkeypatch):
    tuner = APTTuner(small_clip, NAMES, FAST, random_start=False)
    tuner.prepare(data(), data(5), None, False)
    before = tuner.validate()
    real = tuner.model.attack_loss
    monkeypatch.setattr(tuner.model, "attack_loss", lambda x, *more: real(x.detach(), *more))
    tuner._attack._ascent.loss_of = tuner.model.attack_loss
    after = tuner.validate()
    assert before["val_stalled"] == 0
    assert before["val_accuracy"] == after["val_accuracy"] > 0
    assert (after["val_robust"], after["val_stalled"]) == (0, 1)


def test_a_run_that_is_all_warm_up_says_so(small_clip, caplog):
    APTTuner(small_clip, NAMES, FAST | {"epochs": 2, "warmup_epochs": 2}).fit(
        data(), progress=False
    )
    assert "warmup_epochs" in caplog.text


# ---- data and settings ----------------------------------------------------------------------


@pytest.mark.parametrize("label", [len(NAMES), -100], ids=["beyond", "ignored_by_torch"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_of_streamed_images_are_looked_at(small_clip, monkeypatch, label, split):
    class Listed:
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            image, own = self.images[index]
            return image, label if index == 4 else own

    monkeypatch.setattr("fastprompt.data.device_images.total_memory", lambda device: 0)
    sets = {"train": data(), "val": data(6)}
    sets[split] = Listed(sets[split])
    with pytest.raises(ValueError, match=rf"^labels of {split} .* {label}"):
        APTTuner(small_clip, NAMES, FAST).fit(*sets.values(), progress=False)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (AMPTTuner, {"n_prompts": 65}, "^n_prompts .*64.*65"),
        (CAPTTuner, {"guide_template": "a photo"}, r"^guide_template .*'\{\}'"),
    ],
)
def test_settings_are_refused_before_a_folder_is_claimed(small_clip, kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(small_clip, NAMES, FAST, **options)


def test_contexts_of_other_classes_are_no_start(small_clip, tmp_path, caplog):
    options = FAST | {"class_specific": True}
    APTTuner(small_clip, NAMES, options).fit(data(), out=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"^init_from: .*'dog' instead of 'cat'"):
        APTTuner(small_clip, ["dog", *NAMES[1:]], options, init_from=tmp_path / "run")
    assert "init_from" not in caplog.text
    APTTuner(load_clip(small_model(seed=4)), NAMES, options, init_from=tmp_path / "run")
    assert "init_from" in caplog.text


def test_a_loaded_run_that_started_from_another_goes_on(small_clip, tmp_path):
    APTTuner(small_clip, NAMES, FAST).fit(data(), out=tmp_path / "a", progress=False)
    begun = APTTuner(small_clip, NAMES, FAST, init_from=tmp_path / "a")
    begun.fit(data(), out=tmp_path / "b", progress=False)
    loaded = APTTuner.load(tmp_path / "b", small_clip)
    loaded.fit(data(), out=tmp_path / "b", resume=True, progress=False)
    assert equal(tokens(loaded), tokens(begun))


def test_saving_among_other_files_is_refused(small_clip, tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"^folder: .*new folder"):
        APTTuner(small_clip, NAMES, FAST).save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["keep.txt"]


# ---- heads ----------------------------------------------------------------------------------


class Average(nn.Module):
    """The plain average of the prompts' cosines: a head of a user's own."""

    def prepare(self, text_features):
        return ()

    def forward(self, image_features, text_features, scale):
        text = nn.functional.normalize(text_features, dim=-1).mean(0)
        return scale * image_features @ text.T


class Averaged(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Parameter(0.1 * torch.randn(3, 2, 24, dtype=torch.float64))
        self.head = Average()

    def values(self):
        return PromptValues(self.tokens)


def test_a_head_of_a_users_own_is_taken_by_both_engines():
    prompts = Averaged()
    fast, plain = (PromptedCLIP(clip_of(), NAMES, prompts, engine=e) for e in ("fast", "reference"))
    x = data(3).images.float() / 255
    assert relative(fast(x), plain(x)) <= 1e-10
    assert relative(fast.classifier()(x), plain.classifier()(x)) <= 1e-10


def test_a_classifier_that_is_loaded_makes_its_gram_anew():
    def classifier(seed):
        prompts = perturb(PromptMixture(3, 2, 24, 16, seed=seed), seed=seed).double()
        return PromptedCLIP(clip_of(), NAMES, prompts).classifier()

    one, other = classifier(1), classifier(2)
    x = data(4).images.float() / 255
    assert relative(other(x), one(x)) > 1e-3
    other.load_state_dict(one.state_dict())
    assert relative(other(x), one(x)) <= 1e-12


# ---- seeds ----------------------------------------------------------------------------------


def test_no_two_refiners_of_any_seeds_start_alike():
    firsts = [
        refiner.first.weight
        for seed in range(4)
        for refiner in DeepPrompts(2, 2, 24, 24, refiners=3, text_refiners=3, seed=seed).refiners
    ]
    prompts = DeepPrompts(2, 2, 24, 24, refiners=3, text_refiners=3, seed=0)
    firsts += [refiner.first.weight for refiner in prompts.text_refiners]
    assert len({tuple(w.flatten().tolist()) for w in firsts}) == len(firsts) == 15
    streams = {stream(s, part, i) for s in range(9) for part in ("image", "text") for i in range(9)}
    assert len(streams) == 162


def test_images_are_let_go_after_tuning(small_clip):
    tuner = CAPTTuner(small_clip, NAMES, FAST, augment=False)
    assert isinstance(tuner, OnlineTuner)
    tuner.fit(data(), data(4), progress=False)
    assert not hasattr(tuner, "_pictures")
    assert tuner._known is None


def test_a_step_of_the_guide_is_the_same_with_a_table_and_without(small_clip):
    """Where nothing is augmented the frozen features come from a table made once."""
    x = ImageTensors(data().images, data().labels)
    tuner = CAPTTuner(small_clip, NAMES, FAST, augment=False)
    tuner.prepare(x, None, None, False)
    step = first_step(tuner)
    table = tuner.frozen_logits(step)
    tuner._known = None
    torch.testing.assert_close(table, tuner.frozen_logits(step), rtol=1e-4, atol=1e-4)
