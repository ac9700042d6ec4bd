"""AdvPT: the bank, the loss, the schedule, saving and loading."""

import copy
import json
import math

import open_clip
import pytest
import torch
import torch.nn.functional as F
from helpers.models import small_model

from fastprompt import AdvPTTuner, load_clip, load_data
from fastprompt.attacks import FeaturePGD
from fastprompt.data import ImageTensors
from fastprompt.methods.advpt_bank import bank_key, make_bank
from fastprompt.tuning.optimizers import learning_rate

FAST = {"epochs": 3, "n_ctx": 2, "steps": 2, "eps": "8/255", "batch": 8, "attack_batch": 8}


@pytest.fixture(scope="module")
def data():
    return load_data("patterns", shots=3)


@pytest.fixture
def tuner(small_clip, data):
    return AdvPTTuner(small_clip, data.classnames, **FAST)


# ---- phase 1 --------------------------------------------------------------------------------


def test_bank_holds_the_features_of_the_attacked_images(small_clip, data):
    attack = FeaturePGD(small_clip.encode_image, "8/255", steps=2, seed=4)
    bank = make_bank(small_clip, data.train, attack, batch=8, progress=False)
    images = data.train.images.float() / 255
    # the same images one by one: only rounding may differ
    for i in (0, 7, 8, 17):
        adv = attack.run(images[i : i + 1], indices=torch.tensor([i])).images
        torch.testing.assert_close(
            bank.features[i], small_clip.encode_image(adv)[0], rtol=1e-4, atol=1e-5
        )
    assert torch.equal(bank.labels, data.train.labels)
    assert bank.health.trusted
    clean = small_clip.encode_image(images)
    assert (bank.features - clean).norm(dim=1).min() > 1e-4


def test_bank_key_changes_with_all_it_depends_on(small_clip, data):
    def key(clip=small_clip, train=data.train, batch=8, **options):
        settings = {"eps": "8/255", "steps": 2} | options
        return bank_key(clip, train, FeaturePGD(clip.encode_image, **settings), batch)

    other = copy.deepcopy(small_clip.model)
    with torch.no_grad():
        other.visual.proj[0, 0] += 1e-3
    keys = [
        key(),
        key(eps=8 / 255 + 1e-12),
        key(steps=3),
        key(alpha="1/255"),
        key(start="one-sided"),
        key(clamp="steps"),
        key(seed=1),
        key(batch=4),
        key(train=load_data("patterns", shots=3, seed=1).train),
        key(train=ImageTensors(data.train.images, data.train.labels.flip(0))),
        key(clip=load_clip(other)),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


def test_bank_is_read_back_and_never_mixed_up(small_clip, data, tmp_path, monkeypatch):
    def make(eps):
        attack = FeaturePGD(small_clip.encode_image, eps, steps=2)
        return make_bank(small_clip, data.train, attack, batch=8, folder=tmp_path, progress=False)

    first = make("8/255")
    assert len(list(tmp_path.iterdir())) == 1
    other = make("4/255")
    assert len(list(tmp_path.iterdir())) == 2
    assert not torch.equal(first.features, other.features)
    monkeypatch.setattr(FeaturePGD, "run", None)  # from here on nothing may be attacked
    assert torch.equal(make("8/255").features, first.features)
    files = sorted(tmp_path.iterdir())
    files[0].write_bytes(files[1].read_bytes())
    with pytest.raises(ValueError, match=r"\.safetensors .*bank .*remove"):
        make("8/255"), make("4/255")


def test_the_bank_of_a_model_with_a_hook_is_another(data, tmp_path):
    for changes in (lambda out: out, lambda out: out * torch.linspace(-1, 1, 16), torch.tanh):
        model = small_model()
        model.visual.register_forward_hook(lambda m, a, out, change=changes: change(out))
        tuner = AdvPTTuner(load_clip(model), data.classnames, steps=1, bank_dir=tmp_path, epochs=1)
        tuner.prepare(data.train, None, None, False)
    assert len(list(tmp_path.iterdir())) == 3


def test_an_interrupted_bank_goes_on_with_the_same_bits(small_clip, data, tmp_path, monkeypatch):
    attack = FeaturePGD(small_clip.encode_image, "8/255", steps=2)
    whole = make_bank(small_clip, data.train, attack, batch=1, progress=False)
    real, calls = FeaturePGD.run, []

    def failing(self, images, **options):
        calls.append(len(images))
        if len(calls) == 13:  # three shards of four batches are written
            raise KeyboardInterrupt
        return real(self, images, **options)

    monkeypatch.setattr(FeaturePGD, "run", failing)
    options = {"batch": 1, "folder": tmp_path, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        make_bank(small_clip, data.train, attack, **options)
    assert len(list(tmp_path.glob("*.parts/*"))) == 3
    resumed = make_bank(small_clip, data.train, attack, **options)
    assert sum(calls) == len(data.train) + 1  # only the batch that was cut off was made twice
    assert torch.equal(resumed.features, whole.features)
    assert torch.equal(resumed.labels, whole.labels)
    assert not list(tmp_path.glob("*.parts"))


# ---- phase 2 --------------------------------------------------------------------------------


def test_loss_equals_its_definition(tuner, data):
    tuner.fit(data.train, progress=False)
    rows = torch.tensor([0, 5, 11])
    features, labels = tuner._banks["train"]
    text = tuner.model.class_features().detach().double()
    slow = 0.0
    for i in rows.tolist():
        cosines = [torch.dot(features[i].double(), t) / features[i].double().norm() for t in text]
        scores = [float(tuner.clip.logit_scale) * float(c) for c in cosines]
        top = max(scores)
        log_sum = top + math.log(sum(math.exp(s - top) for s in scores))
        slow += (log_sum - scores[int(labels[i])]) / 3
    assert tuner.loss(rows).item() == pytest.approx(slow, rel=1e-5)


def test_phase_2_equals_a_plain_loop(small_clip, data):
    tuner = AdvPTTuner(small_clip, data.classnames, **FAST).fit(data.train, progress=False)
    twin = AdvPTTuner(small_clip, data.classnames, **FAST)
    twin.prepare(data.train, None, None, False)
    features, labels = twin._banks["train"]
    context = twin.prompts.tokens.detach().clone().requires_grad_()
    momentum = torch.zeros_like(context)
    for epoch in range(3):
        rate = 1e-5 if epoch == 0 else 0.002 * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / 3))
        order = torch.randperm(18, generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(8):
            text = F.normalize(twin.model.text(context), dim=-1)
            logits = small_clip.logit_scale * F.normalize(features[rows], dim=-1) @ text.T
            (grad,) = torch.autograd.grad(F.cross_entropy(logits, labels[rows]), context)
            momentum = 0.9 * momentum + grad + 5e-4 * context.detach()
            context = (context.detach() - rate * momentum).requires_grad_()
    torch.testing.assert_close(tuner.prompts.tokens, context, rtol=0, atol=1e-6)
    assert (tuner.prompts.tokens - twin.prompts.tokens).norm() > 1e-3


def test_tuning_lowers_the_loss_and_touches_no_weight(small_clip, data, tmp_path):
    before = small_clip.fingerprint
    state = {k: v.clone() for k, v in small_clip.model.state_dict().items()}
    options = FAST | {"epochs": 12, "lr": 0.05}
    AdvPTTuner(small_clip, data.classnames, **options).fit(
        data.train, data.val, tmp_path / "run", progress=False
    )
    rows = [json.loads(r) for r in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(0 <= r["val_accuracy"] <= 1 for r in rows)
    assert small_clip.fingerprint == before
    assert all(torch.equal(v, state[k]) for k, v in small_clip.model.state_dict().items())
    assert all(p.grad is None for p in small_clip.parameters())


def test_no_image_is_attacked_in_phase_2(tuner, data, monkeypatch):
    tuner.prepare(data.train, None, None, False)
    monkeypatch.setattr(type(tuner.clip), "encode_image", None)
    tuner.loss(torch.tensor([0, 1])).backward()
    assert tuner.prompts.tokens.grad.norm() > 1e-6


def test_schedule(small_clip, data):
    tuner = AdvPTTuner(small_clip, data.classnames, epochs=10, lr=0.1, warmup_epochs=2)
    rates = [learning_rate(tuner.config, e) for e in range(10)]
    assert rates[:2] == [1e-5, 1e-5]
    assert rates[7] == pytest.approx(0.05)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_seeds_matter_and_repeat(small_clip, data):
    def tokens(seed):
        tuner = AdvPTTuner(small_clip, data.classnames, **FAST, seed=seed)
        return tuner.fit(data.train, progress=False).prompts.tokens

    assert torch.equal(tokens(1), tokens(1))
    assert not torch.equal(tokens(1), tokens(2))


def test_context_starts_from_words_and_noise_behind(small_clip):
    noise = AdvPTTuner(small_clip, ["a", "b"], n_ctx=6).prompts.tokens
    words = AdvPTTuner(small_clip, ["a", "b"], n_ctx=6, ctx_init="a photo of a").prompts.tokens
    embedding = small_clip.text_parts.token_embedding
    tokens = small_clip.tokenizer(["a photo of a"])[0, 1:5]
    assert torch.equal(words[:4], embedding(tokens))
    assert torch.equal(words[4:], noise[4:])


def test_word_context_starts_at_zero_shot(small_clip):
    names = ["cat", "dog"]
    tuner = AdvPTTuner(small_clip, names, n_ctx=4, ctx_init="a photo of a")
    zero_shot = small_clip.zero_shot(names, ["a photo of a {}."])
    torch.testing.assert_close(
        tuner.classifier.text_features, zero_shot.text_features, rtol=0, atol=1e-5
    )


def test_fitting_twice_starts_anew(small_clip, data):
    tuner = AdvPTTuner(small_clip, data.classnames, **FAST)
    first = tuner.fit(data.train, progress=False).prompts.tokens.detach().clone()
    assert torch.equal(tuner.fit(data.train, progress=False).prompts.tokens, first)


def test_a_run_stopped_in_its_first_epoch_resumes_on_the_same_object(
    small_clip, data, tmp_path, monkeypatch
):
    straight = AdvPTTuner(small_clip, data.classnames, **FAST).fit(data.train, progress=False)
    tuner = AdvPTTuner(small_clip, data.classnames, **FAST)
    real, calls = AdvPTTuner.loss, []

    def stopping(self, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(AdvPTTuner, "loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        tuner.fit(data.train, out=tmp_path / "run", progress=False)
    monkeypatch.undo()
    tuner.fit(data.train, out=tmp_path / "run", resume=True, progress=False)
    assert torch.equal(tuner.prompts.tokens, straight.prompts.tokens)


def test_a_model_in_float64_stays_in_float64(data):
    clip = load_clip(small_model().double())
    tuner = AdvPTTuner(clip, data.classnames, **FAST).fit(data.train, progress=False)
    assert tuner._banks["train"][0].dtype == torch.float64
    assert tuner.classifier(data.test.images[:2].float() / 255).dtype == torch.float64


def test_a_model_with_its_own_normalization_is_saved_twice(data, tmp_path):
    clip = load_clip("tiny-shapes", mean=(0.5, 0.4, 0.3), std=torch.tensor([0.2, 0.2, 0.2]))
    tuner = AdvPTTuner(clip, data.classnames, n_ctx=2)
    tuner.save(tmp_path)
    tuner.save(tmp_path)
    assert torch.equal(AdvPTTuner.load(tmp_path).clip.mean, clip.mean)


# ---- the tuner's face -----------------------------------------------------------------------


def test_save_and_load(tuner, data, tmp_path):
    tuner.fit(data.train, progress=False).save(tmp_path / "kept")
    again = AdvPTTuner.load(tmp_path / "kept", tuner.clip)
    x = data.test.images[:5].float() / 255
    assert torch.equal(again.classifier(x), tuner.classifier(x))
    assert again.config == tuner.config
    tuner.save(tmp_path / "kept")  # the same run may be saved again
    other = AdvPTTuner(tuner.clip, data.classnames, **FAST | {"seed": 9})
    with pytest.raises(FileExistsError, match=r"^folder.*kept .*run"):
        other.save(tmp_path / "kept")


def test_load_refuses_other_weights_and_methods(tuner, tmp_path):
    tuner.save(tmp_path)
    with pytest.raises(ValueError, match=r"^clip.*CLIP .*weights"):
        AdvPTTuner.load(tmp_path, load_clip(small_model(seed=5)))
    with pytest.raises(ValueError, match=r"^clip.*model object"):
        AdvPTTuner.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"method": "nap"}))
    with pytest.raises(ValueError, match=r"'nap'.*'advpt'"):
        AdvPTTuner.load(tmp_path, tuner.clip)


def test_load_refuses_settings_that_were_changed(tuner, tmp_path):
    tuner.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["n_ctx"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"prompts\.safetensors .*config\.json"):
        AdvPTTuner.load(tmp_path, tuner.clip)


def test_a_bare_open_clip_model_is_accepted_and_left_alone(data):
    model = small_model().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    AdvPTTuner(model, data.classnames, **FAST).fit(data.train, progress=False)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_classifier_is_a_module_of_pixels_to_logits(tuner, data):
    x = (data.test.images[:3].float() / 255).requires_grad_()
    logits = tuner.classifier(x)
    assert logits.shape == (3, 6)
    (grad,) = torch.autograd.grad(logits.sum(), x)
    assert grad.norm() > 0
    assert not any(p.requires_grad for p in tuner.classifier.parameters())


def test_refuses_what_does_not_fit(small_clip, data, tuner, tmp_path):
    with pytest.raises(ValueError, match=r"^clip.*advpt .*first token"):
        AdvPTTuner(small_model(open_clip.CustomTextCLIP, pool_type="first"), ["a", "b"])
    for names, match in (([], "empty"), (["a", "a"], "'a'")):
        with pytest.raises(ValueError, match=f"^classnames .*{match}"):
            AdvPTTuner(small_clip, names)
    with pytest.raises(ValueError, match=r"^classnames.*'wor"):
        AdvPTTuner(small_clip, [" ".join(["word"] * 60), "a"])
    with pytest.raises(ValueError, match=r"config.* 'epoch'.*'epochs'"):
        AdvPTTuner(small_clip, data.classnames, epoch=3)
    big = load_data("patterns", shots=1, image_size=64)
    with pytest.raises(ValueError, match="image_size=48"):
        tuner.fit(big.train)
    with pytest.raises(ValueError, match=r"^labels of train .*\b0\b.*\b5"):
        tuner.fit(ImageTensors(data.train.images, data.train.labels + 1))
    with pytest.raises(ValueError, match="train is empty"):
        tuner.fit(ImageTensors(data.train.images[:0], data.train.labels[:0]))
    with pytest.raises(TypeError, match=r"^train .*map-style"):
        tuner.fit(iter(data.train))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match=r"^out.*other files"):
        tuner.fit(data.train, out=tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_is_not_overwritten_and_not_mixed_up(small_clip, data, tuner, tmp_path):
    tuner.fit(data.train, out=tmp_path / "run", progress=False)
    with pytest.raises(FileExistsError, match=r"^out.*resume"):
        tuner.fit(data.train, out=tmp_path / "run")
    other = AdvPTTuner(small_clip, data.classnames, **FAST | {"eps": "4/255"})
    with pytest.raises(ValueError, match=r"^resume.*settings.* data"):
        other.fit(data.train, out=tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(
    small_clip, data, tmp_path, monkeypatch
):
    tuner = AdvPTTuner(small_clip, data.classnames, **FAST)
    real, calls = AdvPTTuner.loss, []

    def broken(self, batch):
        calls.append(batch)
        return real(self, batch) * (float("nan") if len(calls) > 6 else 1.0)

    monkeypatch.setattr(AdvPTTuner, "loss", broken)
    with pytest.raises(FloatingPointError, match=r"loss .*epoch 3.* lr"):
        tuner.fit(data.train, out=tmp_path / "run", progress=False)
    monkeypatch.undo()
    again = AdvPTTuner(small_clip, data.classnames, **FAST)
    again.fit(data.train, out=tmp_path / "run", resume=True, progress=False)
    straight = AdvPTTuner(small_clip, data.classnames, **FAST).fit(data.train, progress=False)
    assert torch.equal(again.prompts.tokens, straight.prompts.tokens)


def test_evaluate_compares_with_zero_shot(tuner, data):
    tuner.fit(data.train, progress=False)
    result = tuner.evaluate(
        data.test,
        ["clean", "pgd-2"],
        ["1/255", "4/255"],
        templates=data.templates,
        limit=12,
        progress=False,
    )
    assert [(r["model"], r["attack"]) for r in result.rows[:2]] == [
        ("zero-shot", "clean"),
        ("tuned", "clean"),
    ]
    assert len(result.rows) == 6
