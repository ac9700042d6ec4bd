"""Input defenses: what they do to pixels, their gradients, and that attacks go through them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck

from fastprompt import PGD, load_data
from fastprompt.attacks.ascent import mean_gradient
from fastprompt.defenses import (
    JPEG,
    BitDepth,
    Defended,
    Defense,
    GaussianSmoothing,
    RandomResizePad,
    parse_defenses,
)
from fastprompt.defenses.smooth_jpeg import smooth_jpeg, soft_round
from fastprompt.model.classifier import CLIPClassifier

ALL = [
    JPEG(),
    JPEG(gradient="identity"),
    BitDepth(),
    RandomResizePad(),
    RandomResizePad(0.5, 1.3),
    GaussianSmoothing(0.8),
    GaussianSmoothing(5.0),
]
ids = {"argvalues": ALL, "ids": str}


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)


class Brightness(nn.Module):
    """Class 1 if the mean pixel is above one half."""

    def forward(self, x):
        margin = 50 * (x.mean(dim=(1, 2, 3)) - 0.5)
        return torch.stack([-margin, margin], dim=1)


# ---- every defense ----------------------------------------------------------------------------


@pytest.mark.parametrize("defense", **ids)
@pytest.mark.parametrize("shape", [(2, 3, 33, 47), (1, 1, 9, 4), (3, 3, 8, 5), (0, 3, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_shape_dtype_and_box_are_kept(defense, shape, dtype):
    x = noise(*shape, dtype=dtype)
    given = x.clone()
    out = defense(x)
    assert (out.shape, out.dtype) == (x.shape, dtype)
    assert ((out >= 0) & (out <= 1)).all()
    assert torch.equal(x, given)


@pytest.mark.parametrize("defense", **ids)
def test_white_stays_in_the_box_and_keeps_its_gradient(defense):
    """Rounding takes means of ones beyond 1: a plain clamp would cut the gradient there."""
    x = torch.ones(4, 3, 31, 31, requires_grad=True)
    out = defense(x)
    assert out.max() == 1
    (grad,) = torch.autograd.grad(out.sum(), x)
    # a whole number's rounding has the slope 1/10 where it is softened; of a picture that is made
    # smaller the weights add up to its share, here of the smallest, but for the edges' rounding
    softened = getattr(defense, "gradient", "identity") == "smooth"
    share = 1.0
    if defense.randomized:
        share = 0.9 * (defense.low / defense.high) ** 2
    assert grad.sum() >= (0.08 if softened else 0.99) * share * x.numel()
    if not defense.randomized and not softened:
        torch.testing.assert_close(grad.sum(), torch.tensor(float(x.numel())))


@pytest.mark.parametrize("defense", **ids)
def test_a_nan_is_not_hidden(defense):
    x = noise(1, 3, 9, 9)
    x[0, 1, 4, 4] = torch.nan
    assert defense(x).isnan().any()


@pytest.mark.parametrize("defense", **ids)
def test_a_seed_gives_the_same_bits_and_only_random_ones_need_it(defense):
    x = noise(4, 3, 32, 32)
    defense.eval()
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(defense(x))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2]) != defense.randomized


@pytest.mark.parametrize(
    ("images", "error", "got"),
    [
        (torch.zeros(3, 8, 8), ValueError, r"\[3, 8, 8\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "uint8"),
        ([0.5], TypeError, "list"),
    ],
)
def test_other_than_images_are_refused(images, error, got):
    with pytest.raises(error, match=f"^images .*{got}"):
        BitDepth()(images)


def test_jpeg_takes_gray_or_rgb_images():
    with pytest.raises(ValueError, match=r"^images .*1 or 3 channels.*\[1, 2, 8, 8\]"):
        JPEG()(torch.zeros(1, 2, 8, 8))


def test_names_say_the_settings():
    assert str(JPEG(quality=50)) == "JPEG(quality=50)"
    assert str(JPEG(50, gradient="identity")) == "JPEG(quality=50, gradient='identity')"
    with pytest.raises(ValueError, match=r"^gradient .*'smooth'.*'none'"):
        JPEG(gradient="none")
    assert str(BitDepth(3)) == "BitDepth(bits=3)"
    assert str(RandomResizePad()) == "RandomResizePad(low=0.9, high=1)"
    assert str(GaussianSmoothing(0.8)) == "GaussianSmoothing(sigma=0.8, kernel_size=7)"


# ---- those without a derivative ---------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
@pytest.mark.parametrize("quality", [5, 50, 75, 100])
def test_jpeg_is_torchvisions(quality):
    coder = pytest.importorskip("torchvision.io")
    if not hasattr(coder, "encode_jpeg"):
        pytest.skip("this torchvision has no JPEG coder")
    x = F.interpolate(noise(3, 3, 5, 7), size=(33, 47), mode="bilinear")
    out = JPEG(quality)(x)
    # rounded to the nearest of 256 levels: truncation would give others
    levels = (x * 255 + 0.5).floor().to(torch.uint8)
    for image, ours in zip(levels, out, strict=True):
        theirs = coder.decode_jpeg(coder.encode_jpeg(image, quality))
        off = (ours * 255 - theirs).abs()
        # two builds of libjpeg may round otherwise
        assert off.max() <= 2.01
        assert off.mean() < 0.1


def test_jpeg_loses_less_at_higher_quality_and_no_plain_color():
    x = noise(2, 3, 32, 32)
    lost = [float((JPEG(quality)(x) - x).abs().mean()) for quality in (5, 30, 75, 95)]
    assert lost == sorted(lost, reverse=True)
    # all of an 8 x 8 block in its mean: a channel or axis that is swapped would show
    plain = torch.tensor([0.8, 0.4, 0.2])[:, None, None].expand(1, 3, 16, 24)
    torch.testing.assert_close(JPEG(95)(plain), plain.clone(), rtol=0, atol=3 / 255)


def test_jpeg_gives_whole_levels_and_loses_something():
    x = noise(2, 3, 32, 32)
    out = JPEG(75)(x)
    assert torch.equal((out * 255).round() / 255, out)
    assert (out - x).abs().mean() > 0.01


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bit_depth_is_the_formula(bits):
    x = noise(2, 3, 9, 9)
    top = 2**bits - 1
    expected = np.round(x.double().numpy() * top) / top
    np.testing.assert_allclose(BitDepth(bits)(x).numpy(), expected, rtol=0, atol=1e-7)
    assert len(BitDepth(bits)(torch.linspace(0, 1, 3072).view(1, 3, 32, 32)).unique()) == 2**bits


def test_eight_bits_leave_eight_bit_images_alone():
    x = torch.arange(768, dtype=torch.float32).remainder(256).view(1, 3, 16, 16) / 255
    assert torch.equal(BitDepth(8)(x), x)


@pytest.mark.parametrize("defense", [JPEG(30, gradient="identity"), BitDepth(2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_passes_straight_through_exactly(defense, dtype):
    x = noise(2, 3, 17, 9, dtype=dtype).requires_grad_(True)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = defense(x)
    with torch.no_grad():
        assert torch.equal(out.detach(), defense(x))  # the value, not one rounded beside it
    top = 255 if isinstance(defense, JPEG) else 3
    assert torch.equal(out.detach(), (out.detach() * top).round() / top)
    (grad,) = torch.autograd.grad((out * weight).sum(), x)
    assert torch.equal(grad, weight)


@pytest.mark.parametrize("shape", [(2, 3, 48, 32), (2, 3, 33, 41), (1, 3, 1, 1), (2, 1, 33, 41)])
@pytest.mark.parametrize("quality", [30, 75, 95])
def test_the_smooth_jpeg_is_the_codec_but_for_the_rounding(shape, quality):
    x = F.interpolate(noise(*shape[:2], 5, 7), size=shape[2:], mode="bilinear")
    x = (x * 255).round() / 255
    off = (smooth_jpeg(x, quality, rounding=torch.round).clamp(0, 1) - JPEG(quality)(x)).abs()
    # the codec's whole numbers make some coefficients round the other way: few are off by much.
    # A transposed table, the quality beside it, or colors doubled plainly take the median past 1.1
    assert off.median() < 1.1 / 255
    assert off.mean() < 1.6 / 255
    assert (smooth_jpeg(x, quality) - x).abs().mean() < 0.1


def test_the_smooth_jpegs_rounding():
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    off = x - x.round()
    torch.testing.assert_close(soft_round(x), x.round() + off**3 + off / 10)
    x.requires_grad_(True)
    (slope,) = torch.autograd.grad(soft_round(x).sum(), x)
    torch.testing.assert_close(slope, 3 * off**2 + 0.1)


def test_smooth_jpeg_has_its_own_gradient():
    x = noise(1, 3, 17, 5, dtype=torch.float64).requires_grad_(True)
    assert gradcheck(lambda x: smooth_jpeg(x, 75), (x,), fast_mode=True)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    (expected,) = torch.autograd.grad((smooth_jpeg(x, 75) * weight).sum(), x)
    out = JPEG(75)(x)
    assert torch.equal(out.detach(), JPEG(75, gradient="identity")(x).detach())
    (grad,) = torch.autograd.grad((out * weight).sum(), x)
    assert torch.equal(grad, expected)


def test_the_smooth_gradient_finds_what_the_identity_misses(bundled_clip):
    """At 4/255 JPEG protects little: an attack with the identity's gradient says otherwise."""
    data = load_data("patterns", shots=1)
    some = [data.test[i] for i in range(0, len(data.test), len(data.test) // 16)]
    x = torch.stack([image for image, _ in some]).float() / 255
    labels = torch.tensor([label for _, label in some])
    standing = {}
    for gradient in ("identity", "smooth"):
        model = Defended(bundled_clip.zero_shot(data.classnames), JPEG(75, gradient=gradient))
        adv = PGD(model, "4/255", "1/255", 10)(x, labels)
        standing[gradient] = int((model(adv).argmax(dim=1) == labels).sum())
    assert standing["identity"] > 2 * standing["smooth"]


# ---- smooth ones ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "defense",
    [
        GaussianSmoothing(1.2),
        GaussianSmoothing(3.0, 3),
        RandomResizePad(0.6, 1.0),
        RandomResizePad(0.8, 1.4),
    ],
    ids=str,
)
def test_gradients_are_their_own(defense):
    def same_draws(x):
        torch.manual_seed(5)
        return defense(x)

    x = (0.1 + 0.8 * noise(2, 3, 6, 5, dtype=torch.float64)).requires_grad_(True)
    assert gradcheck(same_draws, (x,))


@pytest.mark.parametrize(("sigma", "size"), [(0.8, None), (1.5, 5), (4.0, None), (0.01, None)])
@pytest.mark.parametrize("shape", [(2, 3, 13, 8), (1, 3, 1, 4)])
def test_smoothing_is_a_convolution(sigma, size, shape):
    x = noise(*shape, dtype=torch.float64)
    defense = GaussianSmoothing(sigma, size)
    reach = defense.kernel_size // 2
    assert size is not None or reach - 1 < 3 * sigma <= reach
    along = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-(along[:, None] ** 2 + along**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1, -1)
    padded = F.pad(x, [reach] * 4, mode="replicate")
    expected = F.conv2d(padded, kernel, groups=3)
    torch.testing.assert_close(defense(x), expected, rtol=0, atol=1e-12)


def placements(image: Tensor, low: int, high: int):
    """All that `RandomResizePad` may make of a square image, by (size, top, left)."""
    n = image.shape[-1]
    for size in range(low, high + 1):
        small = F.interpolate(image[None], size=(size, size), mode="bilinear")
        for top in range(high - size + 1):
            for left in range(high - size + 1):
                canvas = torch.zeros(1, 3, high, high, dtype=image.dtype)
                canvas[..., top : top + size, left : left + size] = small
                full = F.interpolate(canvas, size=(n, n), mode="bilinear") if high != n else canvas
                yield (size, top, left), full[0]


@pytest.mark.parametrize(("low", "high"), [(0.8, 1.0), (1.0, 1.2), (0.7, 0.9)])
def test_resize_pad_is_one_of_all_that_there_are_each_image_its_own(low, high):
    n, count = 10, 300
    image = noise(3, n, n, dtype=torch.float64)
    known = dict(placements(image, round(low * n), round(high * n)))
    torch.manual_seed(0)
    out = RandomResizePad(low, high)(image.expand(count, 3, n, n))
    off = torch.stack([(out - one).abs().amax(dim=(1, 2, 3)) for one in known.values()])
    best, which = off.min(dim=0)
    assert best.max() < 1e-12
    drawn = [list(known)[i] for i in which.tolist()]
    assert set(drawn) == set(known)  # 1 + 4 + 9: each one is drawn
    sizes = [size for size, _, _ in drawn]
    assert all(70 < sizes.count(size) < 130 for size in set(sizes))


def test_resize_pad_keeps_the_aspect():
    torch.manual_seed(0)
    out = RandomResizePad(0.5, 1.0)(torch.ones(50, 3, 40, 20))
    heights = (out[:, 0].amax(dim=2) > 0).sum(dim=1)
    widths = (out[:, 0].amax(dim=1) > 0).sum(dim=1)
    assert heights.unique().numel() > 10
    assert ((heights - 2 * widths).abs() <= 2).all()


# ---- in front of a classifier -----------------------------------------------------------------


def test_defenses_are_met_in_order():
    class Seen(Defense):
        def __init__(self, name, log):
            super().__init__()
            self.name, self.log = name, log

        def defend(self, images):
            self.log.append(self.name)
            return images

    log = []
    inner = Defended(Brightness(), Seen("c", log))
    model = Defended(inner, Seen("a", log), Seen("b", log))
    model(noise(2, 3, 4, 4))
    assert log == ["a", "b", "c"]
    assert len(model.defenses) == 3  # a report names those of the inner one, too
    plain = Defended(Defended(lambda x: x, JPEG()), BitDepth())  # any callable will do
    assert [str(d) for d in plain.defenses] == ["BitDepth(bits=4)", "JPEG(quality=75)"]
    x = noise(2, 3, 16, 16)
    first = Defended(Brightness(), BitDepth(1), GaussianSmoothing(2.0))
    assert torch.equal(first(x), Brightness()(GaussianSmoothing(2.0)(BitDepth(1)(x))))
    assert not torch.equal(first(x), Brightness()(BitDepth(1)(GaussianSmoothing(2.0)(x))))


def test_it_says_whether_it_is_random():
    assert not Defended(Brightness(), JPEG(), BitDepth(), GaussianSmoothing(1.0)).randomized
    assert Defended(Brightness(), JPEG(), RandomResizePad()).randomized
    noisy = Brightness()
    noisy.randomized = True
    assert Defended(noisy, JPEG()).randomized


def test_it_passes_on_what_the_classifier_says_but_not_the_way_round(small_clip):
    inner = small_clip.zero_shot(["cat", "dog"])
    model = Defended(inner, BitDepth(3))
    assert isinstance(inner, CLIPClassifier)
    assert model.classnames == ["cat", "dog"]
    assert (model.engine, model.precision) == (inner.engine, inner.precision)
    for hidden in ("clip", "encode_image", "logits", "image_tower"):
        assert not hasattr(model, hidden)
    assert not hasattr(Defended(Brightness()), "engine")
    narrow, x = model.in_precision("bf16"), noise(2, 3, 48, 48)
    assert narrow.precision == "bf16"
    assert torch.equal(narrow(x), inner.in_precision("bf16")(BitDepth(3)(x)))


def test_bad_parts_are_refused():
    with pytest.raises(TypeError, match=r"^classifier .*None"):
        Defended(None)
    with pytest.raises(TypeError, match=r"^defenses .*\[JPEG"):
        Defended(Brightness(), [JPEG()])
    with pytest.raises(TypeError, match=r"^defenses .*JPEG'>"):
        Defended(Brightness(), JPEG)


@pytest.mark.parametrize(
    "defenses",
    [[JPEG(75)], [BitDepth(4)], [JPEG(50), BitDepth(5), GaussianSmoothing(0.8)]],
    ids=str,
)
def test_pgd_goes_through_what_has_no_derivative(defenses):
    x = (0.52 + 0.2 * (noise(8, 3, 16, 16) - 0.5)).clamp(0, 1)
    model = Defended(Brightness(), *defenses)
    labels = model(x).argmax(dim=1)
    assert (labels == 1).all()
    result = PGD(model, "16/255", "4/255", 5, random_start=False).run(x, labels)
    assert (result.images - x).abs().max() > 15 / 255
    assert (model(result.images).argmax(dim=1) != labels).all()

    def cut(images):
        for defense in defenses:
            images = defense(images.detach())
        return Brightness()(images)

    standing = PGD(cut, "16/255", "4/255", 5, random_start=False).run(x, labels)
    assert torch.equal(standing.images, x)


def test_the_mean_of_several_gradients_is_nearer_to_the_expectation():
    x = noise(2, 3, 12, 12)
    model = Defended(Brightness(), RandomResizePad(0.4, 1.0))

    def loss_of(images):
        return F.cross_entropy(model(images), torch.tensor([0, 1]), reduction="sum")

    torch.manual_seed(1)
    expected = mean_gradient(500)(loss_of, x)
    torch.manual_seed(0)
    off = [float((mean_gradient(samples)(loss_of, x) - expected).norm()) for samples in (1, 40)]
    assert off[1] < 0.5 * off[0]


# ---- by name ----------------------------------------------------------------------------------


def test_names_are_parsed():
    given = parse_defenses("jpeg-75, bits-4,resize-pad,smooth-0.8")
    assert [str(d) for d in given] == [
        "JPEG(quality=75)",
        "BitDepth(bits=4)",
        "RandomResizePad(low=0.9, high=1)",
        "GaussianSmoothing(sigma=0.8, kernel_size=7)",
    ]
    given = parse_defenses(["jpeg", "bits", "resize-pad-0.8", "resize-pad-1-1.1", "smooth-2-5"])
    assert [str(d) for d in given] == [
        "JPEG(quality=75)",
        "BitDepth(bits=4)",
        "RandomResizePad(low=0.8, high=1)",
        "RandomResizePad(low=1, high=1.1)",
        "GaussianSmoothing(sigma=2, kernel_size=5)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jpg-75", "'jpg'.*'jpeg'"),
        ("bit-4", "'bit'.*'bits'"),
        ("resizepad", "'resizepad'.*'resize-pad'"),
        ("jpeg-75,", "defense ''"),
        ("", "^defenses .*''.*'jpeg-75,bits-4'"),
        ("jpeg-0", "quality .*1.*0"),
        ("jpeg-101", "quality .*100.*101"),
        ("jpeg-4.5", "quality .*'4.5'"),
        ("jpeg-", "quality .*''"),
        ("jpeg-75-80", "'jpeg-75-80'.*quality.*'jpeg-75'"),
        ("bits-9", "bits .*8.*9"),
        ("resize-pad-1", "low .*high.*1.0.*1.0"),
        ("resize-pad-0", "low .*0.0"),
        ("smooth", "sigma.*kernel_size.*'smooth-0.8'"),
        ("smooth-0", "sigma .*0.0"),
        ("smooth-1000", "sigma .*0.01.*100.*1000"),
        ("smooth-1-4", "kernel_size .*odd.*4"),
    ],
)
def test_bad_names_and_values_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_defenses(text)


@pytest.mark.gpu
@pytest.mark.parametrize("defense", **ids)
def test_on_a_gpu_the_same_as_on_the_cpu(defense):
    x = noise(3, 3, 33, 47)
    torch.manual_seed(0)
    out = defense(x.cuda())
    assert out.is_cuda
    if not defense.randomized:
        torch.testing.assert_close(out.cpu(), defense(x), rtol=0, atol=1e-6)
