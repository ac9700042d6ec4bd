"""What a tuning step costs, as a closed formula in its sizes: FLOPs of NAP's and of AMPT's.

A product of ``[m, k]`` and ``[k, n]`` is ``2 m k n`` FLOPs; all else is free. With W a tower's
width, a token costs in each block ``24 W^2``: ``6 W^2`` for query, key and value, ``2 W^2`` behind
the attention, ``16 W^2`` in the MLP; attention of q queries over k keys costs ``4 q k W``.

A backward pass into the inputs costs as much as the forward pass, in attention twice as much.
Frozen weights cost no more than that; weights that learn (refiners, maps, router) once more.

What is left out: an image tower that pools by average, a text tower without a causal mask, text
refiners, AMPT's load balance.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 24  # of a token in a block, in W^2
_QKV, _KV, _BEHIND = 6, 4, 18  # what it is made of
_REFINER = 8

# the package's own ops: a count on tensors without values does not see these terms
OWN_OPS = ("suffix attention", "mixture")


@dataclass(frozen=True)
class Work:
    """A forward pass, in FLOPs.

    Attributes:
        frozen: products with frozen weights.
        attention: its two products.
        learned: products with weights that learn.
    """

    frozen: float
    attention: float = 0.0
    learned: float = 0.0

    @property
    def forward(self) -> float:
        """As it is."""
        return self.frozen + self.attention + self.learned

    @property
    def backward(self) -> float:
        """Into the inputs."""
        return self.frozen + 2 * self.attention + self.learned

    @property
    def trained(self) -> float:
        """Forward, backward, and the gradients of the weights that learn."""
        return self.forward + self.backward + self.learned


@dataclass(frozen=True)
class Sizes:
    """All that the formula reads.

    Attributes:
        eager: the reference engine; else the fast one.
        classes, batch, steps: C, B, of PGD.
        prompts: K, of a mixture; 1 else.
        n_ctx: M, context tokens; as many visual prompts where there are some.
        depth: layers with visual prompts (and text prompts) of their own; 0 for none.
        passes: images of the loss, in batches: 2 for clean and adversarial ones.
        keeps_layers: the loss reads all layers' outputs.
        refined: refiners in the image tower.
        router: inner width of the mixture's router; 0 for none.
        features: D.
        text_width, text_layers, text_length: of the text tower, and of a padded prompt.
        prefix, suffixes: tokens of the shared prefix; of all class names behind it.
        chunked: classes are computed in chunks, each once more in the backward pass.
        image_width, image_layers, patches, pixels: of the image tower; values of a patch.
    """

    eager: bool
    classes: int
    batch: int
    steps: int
    prompts: int
    n_ctx: int
    depth: int
    passes: int
    keeps_layers: bool
    refined: bool
    router: int
    features: int
    text_width: int
    text_layers: int
    text_length: int
    prefix: int
    suffixes: int
    chunked: bool
    image_width: int
    image_layers: int
    patches: int
    pixels: int

    @property
    def visual(self) -> int:
        """V, visual prompts of a layer."""
        return self.n_ctx if self.depth else 0

    @property
    def tokens(self) -> int:
        """Of an image, without prompts: class and patches."""
        return self.patches + 1


def whole_text(s: Sizes) -> Work:
    """Every class of every prompt at full length: C K sequences of 77 tokens, and D outputs."""
    w, length, rows = s.text_width, s.text_length, s.prompts * s.classes
    return Work(
        rows * (s.text_layers * length * BLOCK * w**2 + 2 * w * s.features),
        rows * s.text_layers * 4 * length**2 * w,
    )


def text_prefix(s: Sizes) -> Work:
    """The P tokens in front of all classes, in each of K prompts.

    Tokens that the next layer replaces need query, key and value alone; the last layer's key and
    value.
    """
    w, p = s.text_width, s.prefix
    replaced = max(s.depth, 1) - 1
    flowing = s.text_layers - 1 - replaced
    rows = replaced * (_QKV * p + _BEHIND) + flowing * BLOCK * p + _KV * p
    return Work(s.prompts * rows * w**2, s.prompts * flowing * 4 * p**2 * w)


def text_suffixes(s: Sizes) -> tuple[float, float]:
    """Forward and backward of the N tokens behind the prefix, without their attention.

    The first layer's query, key and value are alike in all K prompts, and no prompt learns through
    them. In the last layer all N give key and value, the C end tokens the rest.
    """
    w, k, n = s.text_width, s.prompts, s.suffixes
    between = (s.text_layers - 2) * n * BLOCK + n * _BEHIND
    last = n * _KV + s.classes * (BLOCK - _KV)
    learning = k * ((between + last) * w**2 + 2 * s.classes * w * s.features)
    return learning + n * _QKV * w**2, learning


def suffix_attention(s: Sizes) -> tuple[float, float]:
    """Forward and backward of their attention, over the prefix and the names' own tokens.

    The backward pass has five products for the forward's two: it computes the scores again. In the
    first layer the prefix alone learns: four, over the prefix.
    """
    w, k, n = s.text_width, s.prompts, s.suffixes
    keys = s.prefix + n / s.classes
    rows = (s.text_layers - 2) * n + s.classes  # behind the first layer
    forward = 4 * (rows + n) * keys * w * k
    return forward, 2 * w * k * (5 * rows * keys + 4 * n * s.prefix)


def image(s: Sizes, *, whole: bool) -> Work:
    """The tower's blocks on one image, its features behind them.

    ``whole``: all n + V tokens in every layer, as the reference engine has it, and a loss that
    reads the layers. Else prompts that the next layer replaces give key and value (see
    `prompt_keys`), and the last layer is that of the class token.
    """
    w, n, v, layers = s.image_width, s.tokens, s.visual, s.image_layers
    learned = (layers - 1) * n * _REFINER * w**2 if s.refined else 0
    project = 2 * w * s.features
    if whole:
        rows, keys = layers * (n + v) * BLOCK, layers * (n + v) ** 2
        return Work(rows * w**2 + project, 4 * keys * w, learned)
    follow = layers - s.depth if v else 0  # layers whose prompts go on
    alone = layers - 1 - follow
    shown = n + v if follow else n  # what the last layer sees for itself
    rows = (follow * (n + v) + alone * n) * BLOCK + shown * _KV + (BLOCK - _KV)
    pairs = follow * (n + v) ** 2 + (alone * n + 1) * (n + v)
    return Work(rows * w**2 + project, 4 * pairs * w, learned)


def prompt_keys(s: Sizes) -> float:
    """Keys and values of the visual prompts that go no further, once for the whole batch."""
    layers = s.depth if s.depth == s.image_layers else s.depth - 1
    return max(0, layers) * s.visual * _KV * s.image_width**2


def attack(s: Sizes) -> dict[str, float]:
    """Steps of PGD: forward, and backward into the pixels; eager code's into the prompts, too."""
    one, b = image(s, whole=s.eager), s.batch * s.steps
    patches = 2 * s.patches * s.pixels * s.image_width
    images = b * (one.trained if s.eager else one.forward + one.backward)
    images += 2 * b * patches
    if not s.eager:
        images += s.steps * prompt_keys(s)
    return {"attack's images": images, "attack's logits": s.steps * logits(s, attacked=True)}


def loss(s: Sizes) -> dict[str, float]:
    """Forward; backward into the prompts: through the image tower only where it has some."""
    b = s.batch * s.passes
    whole = s.eager or s.keeps_layers
    one = image(s, whole=whole)
    images = b * (one.trained if s.visual else one.forward)
    images += b * 2 * s.patches * s.pixels * s.image_width
    if not whole:
        images += 2 * prompt_keys(s)
    return {"loss's images": images, "loss's logits": s.passes * logits(s, attacked=False)}


def logits(s: Sizes, *, attacked: bool) -> float:
    """Of a batch, forward and backward: cosines, or the router and (eager) the mixture.

    Eager code's mixture makes a feature for each image and class, ``[B, C, D]``, of K prompts'.
    """
    cosines = 2 * s.batch * s.classes * s.features
    # into the image features, into the text's
    both = (attacked or s.visual > 0) + (s.eager or not attacked)
    if not s.router:
        return cosines * (1 + both)
    first = 2 * s.batch * s.features * s.router
    second = 2 * s.batch * s.router * s.prompts
    trained = s.eager or not attacked  # the router's weights
    router = first * (1 + attacked + trained) + second * (2 + trained)
    return router + (cosines * (3 * s.prompts + 1 + both) if s.eager else 0)


def mixture(s: Sizes) -> float:
    """The fast engine's, without ``[B, C, D]``: Gram matrices once, then one product a prompt."""
    k, c, d = s.prompts, s.classes, s.features
    gram = 2 * c * k**2 * d
    product, pairs = 2 * s.batch * k * c * d, 2 * s.batch * k**2 * c
    one = product + pairs  # forward, and likewise into image and router, and into the text
    return gram + s.steps * 2 * one + s.passes * 3 * one + gram


def maps(s: Sizes) -> float:
    """Visual prompts of text prompts, and their gradients in tokens and maps."""
    times = s.steps + s.passes if s.eager else 1
    return 3 * times * 2 * s.depth * s.n_ctx * s.text_width * s.image_width


def terms(s: Sizes) -> dict[str, float]:
    """FLOPs of a step, term by term."""
    shared = {**attack(s), **loss(s), "prompt maps": maps(s)}
    if s.eager:
        # forward and backward in every step of the attack, and in every pass of the loss
        one = whole_text(s)
        return {"text": (s.steps + s.passes) * (one.forward + one.backward), **shared}
    again = 2 if s.chunked else 1
    prefix = text_prefix(s)
    forward, backward = text_suffixes(s)
    mixing, unmixing = suffix_attention(s)
    return {
        "text": again * forward + backward + prefix.forward + prefix.backward,
        "suffix attention": again * mixing + unmixing,
        **shared,
        **({"mixture": mixture(s)} if s.router else {}),
    }


def flops(s: Sizes, *, own_ops: bool = True) -> float:
    """All of a step; without the package's own ops it is what
    `TunerStep.flops` sees."""
    return sum(n for name, n in terms(s).items() if own_ops or name not in OWN_OPS)
