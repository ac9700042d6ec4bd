"""What the methods share that attack in every step: images, radii, attack, validation."""

import gc

import pytest
import torch
from helpers.models import small_model
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import hflip, resized_crop, to_pil_image, to_tensor

from fastprompt import PGD, load_clip
from fastprompt._utils.run_folder import RunFolder
from fastprompt.attacks.random_start import random_start
from fastprompt.data import ImageTensors
from fastprompt.data.augment import RandomCrops
from fastprompt.methods.ampt import AMPTTuner
from fastprompt.methods.apt import APTTuner
from fastprompt.methods.capt import CAPTTuner
from fastprompt.methods.nap import NAPTuner
from fastprompt.methods.registry import TUNERS as every
from fastprompt.tuning.online import _VAL_DRAW, OnlineTuner

NAMES = ["cat", "very small dog", "red fish"]
SLACK = 1e-7  # what rounding may exceed the ball by
FAST = {"epochs": 2, "batch": 4, "n_ctx": 2, "steps": 2, "lr": 0.05, "warmup_epochs": 0}
TUNERS = {t.method: t for t in (APTTuner, AMPTTuner, CAPTTuner, NAPTuner)}
METHODS = pytest.mark.parametrize("method", TUNERS)


def data(n: int = 10, seed: int = 0) -> ImageTensors:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, 48, 48), generator=generator, dtype=torch.uint8)
    return ImageTensors(images, torch.arange(n) % len(NAMES))


TRAIN, VAL = data(), data(7, 1)


def make(clip, method: str = "apt", names=NAMES, **changes) -> OnlineTuner:
    few = {"n_prompts": 3} if method == "ampt" else {}
    return TUNERS[method](clip, names, FAST | few | changes)


def fit(tuner, folder=None, **options):
    return tuner.fit(TRAIN, VAL, folder, progress=False, **options)


def prompts_of(tuner) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in tuner.prompts.state_dict().items()}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def metrics(folder) -> list[dict]:
    rows = RunFolder(folder).read_metrics()
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def steps_of(tuner, epoch: int = 0, n: int = 10) -> list:
    """An epoch's steps, in the order of the rows."""
    tuner.prepare(data(n), None, None, False)
    return [step for _, step in tuner.batches(torch.arange(n), epoch)]


def by_row(steps, name: str) -> torch.Tensor:
    rows = torch.cat([step.rows for step in steps])
    return torch.cat([getattr(step, name) for step in steps])[rows.argsort()]


# ---- images ---------------------------------------------------------------------------------


class Listed:
    """Images that are no tensors in memory: decoded one by one."""

    def __init__(self, images: ImageTensors) -> None:
        self.images, self.fingerprint = images, images.fingerprint

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index]


@METHODS
def test_resident_and_streamed_images_give_the_same_bits(small_clip, tmp_path, monkeypatch, method):
    folders, resident, real = [], [], OnlineTuner.release

    def release(self):
        resident[:] = [pictures.resident for pictures in self._pictures.values()]
        real(self)
        assert not hasattr(self, "_pictures")  # the images are let go

    monkeypatch.setattr(OnlineTuner, "release", release)
    for name, memory, wrap in (
        ("resident", 2**40, lambda images: images),
        ("streamed", 0, lambda images: images),
        ("listed", 0, Listed),
    ):
        monkeypatch.setattr(
            "fastprompt.data.device_images.total_memory", lambda device, m=memory: m
        )
        tuner, folder = make(small_clip, method), tmp_path / name
        tuner.fit(wrap(TRAIN), wrap(VAL), folder, progress=False)
        assert resident == [memory > 0] * 2
        folders.append((prompts_of(tuner), metrics(folder)))
    (wanted, rows), *others = folders
    for prompts, its_rows in others:
        assert equal(prompts, wanted)
        assert its_rows == rows


def test_labels_that_only_show_when_they_are_read_are_refused(small_clip):
    wrong = Listed(ImageTensors(TRAIN.images, TRAIN.labels + 1))
    with pytest.raises(ValueError, match=r"^labels of train .*0\.\.2"):
        make(small_clip).fit(wrong, progress=False)


def test_augmentation_and_radii_depend_on_seed_epoch_and_image_alone(small_clip):
    def drawn(batch=3, epoch=1, **changes):
        tuner = make(small_clip, batch=batch, eps_min="1/255", **changes)
        steps = steps_of(tuner, epoch)
        assert [step.draw for step in steps] == [epoch] * len(steps)
        return by_row(steps, "images"), by_row(steps, "radius")

    crops, radii = drawn()
    for same in (drawn(batch=5), drawn(batch=10), drawn()):
        assert torch.equal(same[0], crops)
        assert torch.equal(same[1], radii)
    for other in (drawn(epoch=0), drawn(seed=1)):
        assert (other[1] != radii).all()
        assert (other[0] != crops).flatten(1).any(1).all()
    # in whatever order they come
    tuner = make(small_clip, batch=3, eps_min="1/255")
    tuner.prepare(TRAIN, None, None, False)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    steps = [step for _, step in tuner.batches(order, 1)]
    assert torch.equal(torch.cat([step.rows for step in steps]), order)
    assert torch.equal(by_row(steps, "images"), crops)
    assert torch.equal(by_row(steps, "radius"), radii)


def test_a_dropped_batch_leaves_the_other_images_their_crops(small_clip):
    """Ten images in batches of four: an epoch uses eight of them, whichever they are."""
    whole, dropped = (
        make(small_clip, batch=4, eps_min="1/255", drop_last=d) for d in (False, True)
    )
    found = []
    for tuner in (whole, dropped):
        tuner.prepare(TRAIN, None, None, False)
        order = torch.arange(10).flip(0)[: tuner.config.used(10)]
        found.append([step for _, step in tuner.batches(order, 1)])
    assert [len(step.rows) for step in found[1]] == [4, 4]
    for step, wanted in zip(found[1], found[0], strict=False):
        assert torch.equal(step.images, wanted.images)
        assert torch.equal(step.radius, wanted.radius)
    fit(dropped)


def test_without_augmentation_the_images_are_the_data_sets(small_clip):
    steps = steps_of(make(small_clip, augment=False))
    assert torch.equal(by_row(steps, "images"), TRAIN.images.float() / 255)
    assert torch.equal(by_row(steps, "labels"), TRAIN.labels)
    assert not torch.equal(by_row(steps_of(make(small_clip)), "images"), TRAIN.images / 255)


def test_crop_min_bounds_the_crops(small_clip):
    nearly = by_row(steps_of(make(small_clip, crop_min=1.0)), "images")
    clean = TRAIN.images.float() / 255
    # of a square image nothing but the whole fits, mirrored or not
    whole = [(image - other).abs().max() < 1e-5 for image, other in zip(nearly, clean, strict=True)]
    mirrored = [
        (image - other.flip(2)).abs().max() < 1e-5
        for image, other in zip(nearly, clean, strict=True)
    ]
    assert all(a or b for a, b in zip(whole, mirrored, strict=True))
    assert any(whole)
    assert any(mirrored)


# ---- exact crops ----------------------------------------------------------------------------


def test_exact_crops_depend_on_seed_epoch_and_image_alone(small_clip):
    def drawn(batch=3, epoch=1, **changes):
        return by_row(
            steps_of(make(small_clip, batch=batch, crops="exact", **changes), epoch), "images"
        )

    wanted = drawn()
    crops, numbers = RandomCrops(seed=0), RandomCrops(seed=0).numbers(10, 1)
    for row, image in enumerate(wanted):
        top, left, height, width, flip = crops.pixel_box(numbers[row].tolist(), 48, 48)
        picture = to_pil_image(TRAIN.images[row])
        cut = resized_crop(picture, top, left, height, width, [48, 48], InterpolationMode.BICUBIC)
        assert torch.equal(image, to_tensor(hflip(cut) if flip else cut))
    assert torch.equal(drawn(batch=5), wanted)
    for other in (drawn(epoch=0), drawn(seed=1)):
        assert (other != wanted).flatten(1).any(1).all()
    # the fast ones have nearly the same boxes
    fast = by_row(steps_of(make(small_clip, batch=3), 1), "images")
    assert not torch.equal(fast, wanted)


@METHODS
def test_a_run_with_exact_crops_resumes_to_the_same_bits(small_clip, tmp_path, monkeypatch, method):
    options = {"crops": "exact", "epochs": 3, "lr": 0.5}
    whole = fit(make(small_clip, method, **options), tmp_path / "whole")
    assert not hasattr(whole, "_exact")  # the pictures are let go
    part, real = make(small_clip, method, **options), OnlineTuner.validate

    def stop(self):
        found = real(self)
        if stop.epochs == 0:
            raise KeyboardInterrupt
        stop.epochs -= 1
        return found

    stop.epochs = 1
    monkeypatch.setattr(OnlineTuner, "validate", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(part, tmp_path / "part")
    monkeypatch.setattr(OnlineTuner, "validate", real)
    # on a host whose memory does not hold the pictures
    monkeypatch.setattr("fastprompt.data.picture_crops.total_memory", lambda device: 0)
    resumed = fit(make(small_clip, method, **options), tmp_path / "part", resume=True)
    assert equal(prompts_of(resumed), prompts_of(whole))
    assert metrics(tmp_path / "part") == metrics(tmp_path / "whole")
    plain = fit(make(small_clip, method, **{**options, "crops": "fast"}))
    assert not equal(prompts_of(plain), prompts_of(whole))


def test_published_settings_have_exact_crops():
    for method in ("apt", "nap", "coop"):
        assert every[method].Config.published().crops == "exact"
        assert every[method].Config().crops == "fast"


# ---- radii ----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [True, False])
def test_each_image_stays_within_its_own_radius(small_clip, start):
    tuner = make(small_clip, eps="8/255", eps_min="1/255", alpha="8/255", random_start=start)
    steps = steps_of(tuner)
    moved = (by_row(steps, "adv") - by_row(steps, "images")).abs().amax(dim=(1, 2, 3))
    radii = by_row(steps, "radius")
    assert (moved <= radii + SLACK).all()
    assert (moved > 0.99 * radii).all()  # and not within a smaller one


def test_radii_spread_over_their_range(small_clip):
    tuner = make(small_clip, eps="8/255", eps_min="2/255")
    radii = tuner._radii(4000, 0) * 255
    assert 2 - 1e-4 <= radii.min() < 2.05
    assert 7.95 < radii.max() <= 8 + 1e-4
    quarters = torch.histc(radii, 4, 2, 8) / 4000
    assert (quarters - 0.25).abs().max() < 0.03
    assert make(small_clip, eps="8/255")._radii(4000, 0) is None
    # neither the order's draws nor the other epochs' nor the other seed's
    for other in (tuner._radii(4000, 1), make(small_clip, eps_min=0, seed=1)._radii(4000, 0)):
        assert abs(torch.corrcoef(torch.stack([radii, other]))[0, 1]) < 0.1


def test_a_range_of_one_radius_is_that_radius(small_clip):
    one, fixed = (
        steps_of(make(small_clip, eps="4/255", eps_min=least)) for least in ("4/255", None)
    )
    assert (by_row(one, "radius") == torch.tensor(4 / 255)).all()
    far = (by_row(one, "adv") - by_row(fixed, "adv")).abs()
    assert (far > 1e-6).float().mean() < 0.01  # a sign may turn by the step size's last bit


# ---- the attack -----------------------------------------------------------------------------


@METHODS
def test_each_step_attacks_the_prompts_as_they_are(small_clip, monkeypatch, method):
    """In the first epoch the random starts are those of `PGD`: the bits are the same."""
    tuner = make(small_clip, method, epochs=1, **({"schedule": "fixed"} if method == "nap" else {}))
    inner, classifiers = type(tuner).loss, []

    def looking(self, batch):
        config = self.config
        classifiers.append(self.classifier)
        pgd = PGD(classifiers[-1], config.eps, config.step_size, config.steps, seed=config.seed)
        wanted = pgd.run(batch.images, batch.labels, indices=batch.rows).images
        loss = inner(self, batch)
        assert torch.equal(batch.adv, wanted)
        if len(classifiers) > 1:  # the prompts of the step before are other ones
            pgd.model = classifiers[0]
            before = pgd.run(batch.images, batch.labels, indices=batch.rows).images
            assert not torch.equal(batch.adv, before)
        return loss

    monkeypatch.setattr(type(tuner), "loss", looking)
    tuner.fit(TRAIN, progress=False)
    assert len(classifiers) == 3


@pytest.mark.parametrize("engine", ["fast", "reference"])
@METHODS
def test_validation_is_pgd_on_the_classifier(method, engine):
    """The images' own starts, in a draw that is no epoch's; robust is right both times."""
    clip = load_clip(small_model().double())
    tuner = make(clip, method, engine=engine, seed=3, eps="2/255", batch=3)
    tuner.prepare(TRAIN, VAL, None, False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in tuner.prompts.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    config, classifier = tuner.config, tuner.classifier
    x, y = VAL.images.float() / 255, VAL.labels
    start = random_start(
        x, config.eps, torch.arange(7), seed=3, restart=_VAL_DRAW, sides="two-sided"
    )
    pgd = PGD(classifier, config.eps, config.step_size, config.steps, random_start=False)
    pgd.start = lambda x, indices, restart: start[indices]
    adv = pgd(x, y)
    attack, made = tuner._attack, []

    def looking(*given, **options):
        made.append(attack(*given, **options))
        return made[-1]

    tuner._attack = looking
    clean, attacked = (classifier(z).argmax(1) for z in (x, adv))
    right = clean == y
    # labels such that something is right, and something of it falls
    labels = torch.where(torch.arange(7) % 2 == 0, clean, (clean + 1) % 3)
    assert tuner.validate() == {
        "val_accuracy": float(right.sum()) / 7,
        "val_robust": float((right & (attacked == y)).sum()) / 7,
        "val_stalled": 0.0,
    }
    assert torch.equal(torch.cat([result.images for result in made]), adv)
    tuner.prepare(TRAIN, ImageTensors(VAL.images, labels), None, False)
    adv = pgd(x, labels)
    stays = (classifier(adv).argmax(1) == labels) & (clean == labels)
    assert tuner.validate() == {
        "val_accuracy": 4 / 7,
        "val_robust": float(stays.sum()) / 7,
        "val_stalled": 0.0,
    }


def test_an_image_that_is_wrong_when_clean_is_not_robust(small_clip, monkeypatch):
    tuner = make(small_clip)
    tuner.prepare(TRAIN, VAL, None, False)
    right, wrong = torch.nn.functional.one_hot(VAL.labels, 3), torch.zeros(7, 3)
    wrong[:, 0] = 1
    labels = VAL.labels
    # clean: class 0 for all; attacked: all right
    turns = iter([(wrong[:4], right[:4]), (wrong[4:], right[4:])])
    monkeypatch.setattr(type(tuner.model), "pair", lambda *_: next(turns))
    share = float((labels == 0).sum()) / 7
    assert tuner.validate() == {"val_accuracy": share, "val_robust": share, "val_stalled": 0.0}


@METHODS
def test_rows_hold_the_terms_and_validation(small_clip, tmp_path, method):
    fit(make(small_clip, method, epochs=2), tmp_path)
    terms = {
        "capt": {"ce", "kl_train", "kl_frozen", "alpha"},
        "nap": {"loss_clean", "loss_adv", "loss_layers"},
    }.get(method, set())
    row = metrics(tmp_path)[-1]
    assert row.keys() >= {"epoch", "loss", "lr", "stalled", "val_accuracy", "val_robust"} | terms
    assert all(0 <= row[name] <= 1 for name in ("stalled", "val_accuracy", "val_robust"))
    if method == "capt":
        mixed = (1 - row["alpha"]) * row["kl_train"] + row["alpha"] * row["kl_frozen"]
        # equal up to the spread of alpha over the batches
        assert row["loss"] == pytest.approx(row["ce"] + mixed, rel=1e-2)
    if method == "nap":  # in the second of two epochs the adversarial share is a half
        halves = 0.5 * (row["loss_clean"] + row["loss_adv"] + row["loss_layers"])
        assert row["loss"] == pytest.approx(halves, rel=1e-4)


def test_stalled_attacks_show_in_the_rows(small_clip, tmp_path):
    """Classes with the same tokens have the same logits everywhere: no image has a gradient."""
    one = ImageTensors(TRAIN.images, torch.zeros(10, dtype=torch.int64))
    APTTuner(small_clip, ["cat", "Cat"], FAST).fit(one, out=tmp_path, progress=False)
    assert [row["stalled"] for row in metrics(tmp_path)] == [1.0, 1.0]


# ---- the run as a whole ---------------------------------------------------------------------


@METHODS
def test_the_same_seed_gives_the_same_bits_and_another_none_of_them(small_clip, tmp_path, method):
    runs = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        tuner = fit(make(small_clip, method, seed=seed), tmp_path / name)
        runs.append((prompts_of(tuner), metrics(tmp_path / name)))
    (one, rows), (again, same), (other, others) = runs
    assert equal(one, again)
    assert rows == same
    moving = [k for k in one if one[k].is_floating_point() and one[k].any()]
    assert moving
    # norms and scales start alike under each seed, tokens and maps do not
    assert not torch.equal(one["tokens"], other["tokens"])
    assert rows[0]["loss"] != others[0]["loss"]


@METHODS
def test_a_tuner_may_be_fitted_twice_and_leaves_the_clip_alone(method):
    clip = load_clip(small_model())
    state = {k: v.clone() for k, v in clip.model.state_dict().items()}
    before, training = clip.fingerprint, clip.model.training
    tuner = make(clip, method)
    start = prompts_of(tuner)
    first = prompts_of(fit(tuner))
    assert not equal(first, start)
    assert equal(prompts_of(fit(tuner)), first)
    assert clip.fingerprint == before
    assert clip.model.training == training
    assert all(torch.equal(v, state[k]) for k, v in clip.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in clip.parameters())


@METHODS
def test_every_prompt_learns(small_clip, method):
    tuner = make(small_clip, method, epochs=3)
    start = prompts_of(tuner)
    end = prompts_of(fit(tuner))
    for name, parameter in tuner.prompts.named_parameters():
        assert parameter.requires_grad
        assert (end[name] - start[name]).norm() > 1e-6, name


@METHODS
def test_the_words_give_the_length_of_the_context(small_clip, method):
    for settings, n_ctx in (
        ({"ctx_init": "a photo of a"}, 4),
        ({"ctx_init": "a photo of a", "n_ctx": 2}, 2),
        ({"ctx_init": "a photo", "n_ctx": 3}, 3),
        ({"n_ctx": None}, {"ampt": 4}.get(method, 16)),
    ):
        tuner = make(small_clip, method, **{"n_ctx": None, **settings})
        assert tuner.config.n_ctx == tuner.n_ctx == n_ctx
        assert tuner.prompts.tokens.shape[-2] == n_ctx


@METHODS
def test_the_context_starts_from_words_and_noise_behind(small_clip, method):
    words = make(small_clip, method, n_ctx=4, ctx_init="a photo").prompts.tokens
    noise = make(small_clip, method, n_ctx=4).prompts.tokens
    wanted = small_clip.text_parts.token_embedding(small_clip.tokenizer(["a photo"])[0, 1:3])
    if method == "apt":
        assert torch.equal(words[:2], wanted)
        assert torch.equal(words[2:], noise[2:])
    elif method == "ampt":  # each of the others with its noise on top
        assert torch.equal(words[0, :2], wanted)
        torch.testing.assert_close(words[1:, :2], wanted + noise[1:, :2], rtol=0, atol=1e-6)
        assert torch.equal(words[:, 2:], noise[:, 2:])
    else:
        assert torch.equal(words[0, :2], wanted)
        assert torch.equal(words[0, 2:], noise[0, 2:])
        assert torch.equal(words[1:], noise[1:])


@METHODS
def test_memory_is_flat_over_the_epochs(small_clip, tmp_path, monkeypatch, method):
    alive = {}

    def validate(self, validate=OnlineTuner.validate):
        turns.append(1)
        if len(turns) in (2, 5):
            gc.collect()
            kinds = (torch.Tensor, torch.nn.Parameter)  # isinstance would wake lazy modules
            tensors = [t for t in gc.get_objects() if type(t) in kinds]
            alive[len(turns)] = len(tensors), sum(t.numel() for t in tensors)
        return validate(self)

    turns = []
    monkeypatch.setattr(OnlineTuner, "validate", validate)
    tuner = make(small_clip, method, epochs=5, eps_min="1/255", keep="best")
    tuner.score = "epoch"  # each epoch is the best so far: its prompts are copied
    fit(tuner, tmp_path)
    # what other tests left behind may go meanwhile: nothing may come
    assert all(late <= early for early, late in zip(alive[2], alive[5], strict=True))


# ---- other classes --------------------------------------------------------------------------


@METHODS
def test_the_classifier_for_other_classes_is_that_of_a_tuner_on_them(small_clip, method):
    others = ["a bird", "ship", "tall green tree", "car"]
    tuner = fit(make(small_clip, method))
    twin = make(small_clip, method, others)
    twin.prompts.load_state_dict(tuner.prompts.state_dict())
    x = VAL.images.float() / 255
    found = tuner.classifier_for(others)
    assert found.classnames == others
    assert found(x).shape == (7, 4)
    assert torch.equal(found(x), twin.classifier(x))
    assert torch.equal(tuner.classifier_for(NAMES)(x), tuner.classifier(x))
    before = found(x)
    with torch.no_grad():  # what is tuned later leaves it alone
        tuner.prompts.tokens.add_(1.0)
    assert torch.equal(found(x), before)


def test_contexts_of_single_classes_fit_no_others(small_clip):
    tuner = fit(make(small_clip, class_specific=True))
    assert tuner.prompts.tokens.shape == (3, 2, 24)
    for names in (["a bird", "ship"], ["a bird", "ship", "car"], NAMES[::-1]):
        with pytest.raises(ValueError, match=r"^classnames .*context"):
            tuner.classifier_for(names)
    x = VAL.images.float() / 255
    assert torch.equal(tuner.classifier_for(NAMES)(x), tuner.classifier(x))


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ([], ValueError, "^classnames .*empty"),
        (["a", "a"], ValueError, "^classnames .*'a'"),
        ("cat", TypeError, "^classnames .*'cat'"),
    ],
)
def test_bad_class_lists_are_refused(small_clip, names, error, message):
    with pytest.raises(error, match=message):
        make(small_clip).classifier_for(names)


# ---- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"eps_min": "5/255"}, ValueError, "^eps_min .*eps.*0.0156.*0.0196"),
        ({"eps_min": -0.1}, ValueError, "^eps_min .*-0.1"),
        ({"eps": 0}, ValueError, "^eps .*0.*0"),
        ({"eps": 8}, ValueError, "^eps .*8/255"),
        ({"alpha": 0}, ValueError, "^alpha .*0.*0"),
        ({"steps": 0}, ValueError, "^steps .*1.*0"),
        ({"n_ctx": 0}, ValueError, "^n_ctx .*1.*0"),
        ({"workers": -1}, ValueError, "^workers .*-1"),
        ({"crop_min": 0}, ValueError, "^crop_min .*0.*0"),
        ({"clamp": "never"}, ValueError, "^clamp .*'always'.*'never'"),
        ({"crop_min": 1.5}, ValueError, "^crop_min .*1.*1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        APTTuner.Config(**settings)


def test_the_step_size_follows_the_radius():
    assert APTTuner.Config(eps="6/255").step_size == pytest.approx(4 / 255)
    assert NAPTuner.Config(eps="6/255").step_size == pytest.approx(1.8 / 255)
    assert NAPTuner.Config(eps="6/255", alpha="1/255").step_size == 1 / 255
