"""Published scoring: the accuracy on the last iterates of all images, against a plain loop."""

import pytest
import torch
from torch.nn import functional as F

from fastprompt import evaluate
from fastprompt.attacks import DIFGSM, MIFGSM, TIFGSM, TPGD
from fastprompt.attacks.random_start import random_start
from fastprompt.data.dataset import ImageTensors
from fastprompt.evaluation import Evaluation
from fastprompt.evaluation.plan import has_last_iterates, plan_attacks

N, EPS = 40, 4 / 255


def toy(seed=0, classes=5):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(3 * 16 * 16, 24),
        torch.nn.Tanh(),
        torch.nn.Linear(24, classes),
    )
    return model.double().eval()


class Doubled(torch.nn.Module):
    """The float64 model on the pixels of the evaluation."""

    def __init__(self):
        super().__init__()
        self.model = toy()

    def forward(self, x):
        return self.model(x.double())


@pytest.fixture(scope="module")
def data():
    gen = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (N, 3, 16, 16), generator=gen, dtype=torch.uint8)
    with torch.no_grad():
        labels = Doubled()(images.float() / 255).argmax(1)
    labels[::4] = (labels[::4] + 1) % 5  # a quarter is wrong when clean
    return ImageTensors(images, labels)


def last_iterate(model, data, steps, alpha, loss=F.cross_entropy):
    """The accuracy on the last iterates of plain PGD."""
    x = data.images.float() / 255
    adv = random_start(x, EPS, torch.arange(N), seed=0, restart=0, sides="two-sided")
    for _ in range(steps):
        adv.requires_grad_()
        (grad,) = torch.autograd.grad(loss(model(adv), data.labels, reduction="sum"), adv)
        adv = (x + (adv.detach() + alpha * grad.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
    with torch.no_grad():
        return (model(adv).argmax(1) == data.labels).double().mean().item()


def judged(data, attacks, scoring, **options):
    return evaluate(Doubled(), data, attacks, EPS, scoring=scoring, batch=16, **options)


@pytest.mark.parametrize(
    ("attack", "steps", "alpha"),
    [("pgd-3", 3, EPS / 4), ("pgd-3:1/255", 3, 1 / 255), ("pgd-2:4/255", 2, EPS)],
)
def test_published_is_the_plain_loop(data, attack, steps, alpha):
    result = judged(data, attack, "published", sanity="off")
    row = result.row("model", attack, EPS)
    assert row["accuracy"] == last_iterate(Doubled(), data, steps, alpha)
    assert (row["scoring"], row["settings"]["counts"]) == ("published", "last iterate")
    assert row["settings"]["alpha"] == pytest.approx(alpha)
    assert row["n"] == N == row["gradients"] // steps
    assert result.scoring == "published"


STEPS = 3
OTHERS = {  # the attacks that transfer, with evaluate's step sizes
    f"tpgd-{STEPS}": lambda model: TPGD(model, EPS, EPS / 4, STEPS),
    f"mi-fgsm-{STEPS}": lambda model: MIFGSM(model, EPS, EPS / STEPS, STEPS),
    f"di-fgsm-{STEPS}": lambda model: DIFGSM(model, EPS, EPS / STEPS, STEPS),
    f"ti-fgsm-{STEPS}": lambda model: TIFGSM(model, EPS, EPS / STEPS, STEPS),
}


@pytest.mark.parametrize("attack", OTHERS)
def test_published_counts_the_images_that_the_attack_returns(data, attack):
    row = judged(data, attack, "published", sanity="off").row("model", attack, EPS)
    made = OTHERS[attack](Doubled()).run(data.images.float() / 255, data.labels)
    with torch.no_grad():
        right = (Doubled()(made.images).argmax(1) == data.labels).double().mean().item()
    assert row["accuracy"] == right
    assert row["settings"]["counts"] == "last iterate"
    assert row["n"] == N == row["gradients"] // STEPS


def test_only_our_attacks_with_fixed_steps_have_last_iterates():
    names = ("pgd-20", "cw-9:1/255", "feature-pgd-40", "pgd-3@zero-shot", *OTHERS)
    assert all(has_last_iterates(name) for name in names)
    for name in ("clean", "autoattack", "apgd-ce", "fab-t-9", "square", "pgd2", "pgd-like-3"):
        assert not has_last_iterates(name)


def test_strict_is_lower_and_stays_the_default(data):
    strict = judged(data, "pgd-3", "strict", sanity="off")
    default = evaluate(Doubled(), data, "pgd-3", EPS, batch=16, sanity="off")
    flags = [row["flags"] for row in default.rows]
    assert [row["flags"] for row in strict.rows] == flags
    assert {row["scoring"] for row in strict.rows} == {"strict"} == {default.scoring}
    published = judged(data, "pgd-3", "published", sanity="off")
    clean, *_ = ({i for i, f in enumerate(row["flags"]) if f == "1"} for row in published.rows)
    mine = {i for i, f in enumerate(published.rows[1]["flags"]) if f == "1"}
    assert {i for i, f in enumerate(flags[1]) if f == "1"} <= mine & clean


def test_an_image_that_is_wrong_clean_may_count_right(data):
    """A model that is right only off the clean images."""
    pixels = data.images.float() / 255

    class Shy(Doubled):
        def forward(self, x):
            same = torch.stack([(x_[None] == pixels).flatten(1).all(1).any() for x_ in x])
            logits = super().forward(x)
            return torch.where(same[:, None], -logits, logits)

    found = {
        s: evaluate(Shy(), data, "pgd-1", EPS, scoring=s, sanity="off")
        for s in ("strict", "published")
    }
    clean = found["strict"].accuracy("model", "clean")
    assert found["strict"].accuracy("model", "pgd-1", EPS) <= clean
    assert found["published"].accuracy("model", "pgd-1", EPS) > clean


def test_an_image_without_a_gradient_counts_by_its_prediction(data):
    class Flat(Doubled):
        def forward(self, x):
            return (
                super().forward(x) + 0 * x.sum()
                if not x.requires_grad
                else (super().forward(x.detach()) + 0 * x.double().sum())
            )

    for scoring in ("strict", "published"):
        row = evaluate(Flat(), data, "pgd-1", EPS, scoring=scoring, sanity="off").rows[1]
        right = row["flags"].count("1") + row["flags"].count("?") * (scoring == "published")
        assert row["correct"] == right
        assert row["stalled"] > 0
        assert not row["trusted"]


def test_autoattack_and_its_parts_are_as_by_default(data):
    strict, published = (
        judged(data, "apgd-ce-3", s, sanity="off") for s in ("strict", "published")
    )
    assert [r["flags"] for r in strict.rows] == [r["flags"] for r in published.rows]


def test_the_checks_that_do_not_apply_are_left_out(data):
    names = {
        s: {c["check"] for c in judged(data, "pgd-3", s).sanity} for s in ("strict", "published")
    }
    assert names["strict"] - names["published"] == {"attacked again", "another loss"}


def test_a_stopped_evaluation_resumes_in_its_scoring(data, tmp_path):
    whole = judged(data, "pgd-3", "published", out=tmp_path / "a", sanity="off")
    again = judged(data, "pgd-3", "published", out=tmp_path / "a", resume=True, sanity="off")
    assert [r["flags"] for r in whole.rows] == [r["flags"] for r in again.rows]
    assert Evaluation.load(tmp_path / "a" / "result.json").scoring == "published"
    with pytest.raises(ValueError, match=r"^resume: .* belongs to another evaluation"):
        judged(data, "pgd-3", "strict", out=tmp_path / "a", resume=True, sanity="off")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("apgd-ce-3:1/255", "only pgd-N and cw-N take a step size"),
        ("pgd-3:0", "alpha must be above 0"),
        ("pgd-3:1/0", "alpha must be a number"),
        ("pgd-3:", "unknown attack"),
        ("pgd:1/255", "unknown attack"),
    ],
)
def test_bad_step_sizes_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        plan_attacks(name, EPS)


def test_bad_scorings_are_refused(data):
    with pytest.raises(ValueError, match=r"^scoring must be"):
        judged(data, "pgd-1", "lenient")
