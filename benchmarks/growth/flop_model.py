"""Closed formulas for the FLOPs of a tuning step of CoOp and of the methods that attack in it.

A product of ``[m, k]`` and ``[k, n]`` has ``2 m k n`` FLOPs; other operations are not counted. With
W the width of an encoder, a token has ``24 W^2`` in each block: ``6 W^2`` for query, key and value,
``2 W^2`` for the projection after attention, ``16 W^2`` in the MLP; attention of q queries over k
keys has ``4 q k W``.

A backward pass to the inputs has as many FLOPs as the forward pass, in attention twice as many.
Frozen weights add nothing to that; trainable weights (refiners, maps, router) add as many again.

Not covered: image encoders with average pooling, text encoders without a causal mask, text
refiners, AMPT's load-balancing loss, CAPT's frozen model.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 24  # FLOPs of one token in one block, in W^2
# parts of it: query, key and value; key and value; all after query, key and value
_QKV, _KV, _BEHIND = 6, 4, 18
_REFINER = 8

# the library's own ops: a count on tensors without values does not include these terms
OWN_OPS = ("suffix attention", "mixture")


@dataclass(frozen=True)
class Work:
    """FLOPs of a forward pass.

    Attributes:
        frozen: products with frozen weights.
        attention: its two products.
        learned: products with trainable weights.
    """

    frozen: float
    attention: float = 0.0
    learned: float = 0.0

    @property
    def forward(self) -> float:
        """FLOPs of the forward pass."""
        return self.frozen + self.attention + self.learned

    @property
    def backward(self) -> float:
        """FLOPs of the backward pass to the inputs."""
        return self.frozen + 2 * self.attention + self.learned

    @property
    def trained(self) -> float:
        """FLOPs of forward and backward, with the gradients of the trainable weights."""
        return self.forward + self.backward + self.learned


@dataclass(frozen=True)
class Sizes:
    """All sizes in the formula.

    Attributes:
        eager: True for the reference engine, False for the fast one.
        classes, batch, steps: C, B, and steps of PGD.
        prompts: K, prompts of a mixture; else 1.
        n_ctx: M, context tokens, and as many visual prompts where there are any.
        depth: layers with separate visual (and text) prompts; 0 for none.
        passes: batches of images in the loss: 2 for clean and adversarial ones.
        keeps_layers: the loss uses the outputs of all layers.
        refined: the image encoder has refiners, before the blocks with deep prompts.
        router: hidden width of the mixture's router; 0 for none.
        features: D, width of the features.
        text_width, text_layers, text_length: of the text encoder; tokens of a padded prompt.
        prefix, suffixes: tokens of the shared prefix; of all class names after it.
        chunked: classes are computed in chunks, each again in the backward pass.
        image_width, image_layers, patches, pixels: of the image encoder; values of a patch.
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
        """V, visual prompts per layer."""
        return self.n_ctx if self.depth else 0

    @property
    def tokens(self) -> int:
        """Tokens of an image without prompts: class token and patches."""
        return self.patches + 1


def whole_text(s: Sizes) -> Work:
    """FLOPs of all classes at full length: C K sequences of 77 tokens, and D outputs each."""
    w, length, rows = s.text_width, s.text_length, s.prompts * s.classes
    return Work(
        rows * (s.text_layers * length * BLOCK * w**2 + 2 * w * s.features),
        rows * s.text_layers * 4 * length**2 * w,
    )


def text_prefix(s: Sizes) -> Work:
    """FLOPs of the P tokens before all class names, in each of K prompts.

    With deep prompts only of the M context tokens: the tokens before them depend on no prompt, so
    their keys and values are computed once for the weights. Context tokens that the next layer
    replaces and the tokens of the last layer need only key and value; others attend to P tokens.
    """
    w, p = s.text_width, s.prefix
    replaced = max(s.depth, 1) - 1
    computed = s.n_ctx if replaced else p
    flowing = s.text_layers - 1 - replaced
    rows = ((replaced + 1) * _KV + flowing * BLOCK) * computed
    return Work(s.prompts * rows * w**2, s.prompts * flowing * 4 * computed * p * w)


def text_suffixes(s: Sizes) -> tuple[float, float]:
    """FLOPs (forward, backward) of the N tokens after the prefix, without their attention.

    The first layer's query, key and value are equal in all K prompts, and no prompt gets gradients
    through them. In the last layer all N tokens need key and value, only the C end tokens the rest.
    """
    w, k, n = s.text_width, s.prompts, s.suffixes
    between = (s.text_layers - 2) * n * BLOCK + n * _BEHIND
    last = n * _KV + s.classes * (BLOCK - _KV)
    learning = k * ((between + last) * w**2 + 2 * s.classes * w * s.features)
    return learning + n * _QKV * w**2, learning


def suffix_attention(s: Sizes) -> tuple[float, float]:
    """FLOPs (forward, backward) of the suffixes' attention over the prefix and over themselves.

    The backward pass has five products for the forward pass's two: it recomputes the scores. In the
    first layer only the prefix gets gradients: four products, over the prefix.
    """
    w, k, n = s.text_width, s.prompts, s.suffixes
    keys = s.prefix + n / s.classes
    rows = (s.text_layers - 2) * n + s.classes  # after the first layer
    forward = 4 * (rows + n) * keys * w * k
    return forward, 2 * w * k * (5 * rows * keys + 4 * n * s.prefix)


def image(s: Sizes, *, whole: bool) -> Work:
    """FLOPs of the image encoder's blocks and features, for one image.

    ``whole``: all n + V tokens in every layer, as on the reference engine and in a loss that uses
    the layers' outputs. Otherwise prompts that the next layer replaces need only key and value (see
    `prompt_keys`), and the last layer computes only the class token.
    """
    w, n, v, layers = s.image_width, s.tokens, s.visual, s.image_layers
    learned = (s.depth - 1) * n * _REFINER * w**2 if s.refined else 0
    project = 2 * w * s.features
    if whole:
        rows, keys = layers * (n + v) * BLOCK, layers * (n + v) ** 2
        return Work(rows * w**2 + project, 4 * keys * w, learned)
    follow = layers - s.depth if v else 0  # layers whose prompts pass to the next layer
    alone = layers - 1 - follow
    shown = n + v if follow else n  # tokens whose key and value the last layer computes
    rows = (follow * (n + v) + alone * n) * BLOCK + shown * _KV + (BLOCK - _KV)
    pairs = follow * (n + v) ** 2 + (alone * n + 1) * (n + v)
    return Work(rows * w**2 + project, 4 * pairs * w, learned)


def prompt_keys(s: Sizes) -> float:
    """FLOPs of key and value of visual prompts that the next layer replaces, for all images."""
    layers = s.depth if s.depth == s.image_layers else s.depth - 1
    return max(0, layers) * s.visual * _KV * s.image_width**2


def unlearned(s: Sizes) -> float:
    """FLOPs that the backward pass of a loss saves in the first layer, for one image.

    Its tokens depend on no prompt: their query, key and value, and the queries of the attention,
    get no gradients. `image` counts them.
    """
    w, n = s.image_width, s.tokens
    return n * _QKV * w**2 + 2 * n * (n + s.visual) * w


def attack(s: Sizes) -> dict[str, float]:
    """FLOPs of PGD: forward, and backward to the pixels (eager code: also to the prompts)."""
    one, b = image(s, whole=s.eager), s.batch * s.steps
    patches = 2 * s.patches * s.pixels * s.image_width
    images = b * (one.trained if s.eager else one.forward + one.backward)
    images += 2 * b * patches
    if not s.eager:
        images += prompt_keys(s)  # once: the prompts do not change
    return {"attack's images": images, "attack's logits": s.steps * logits(s, attacked=True)}


def loss(s: Sizes) -> dict[str, float]:
    """FLOPs of the loss; backward through the image encoder only if it has prompts.

    The attack has computed the keys and values of its prompts, with a graph for this backward pass.
    """
    b = s.batch * s.passes
    whole = s.eager or s.keeps_layers
    one = image(s, whole=whole)
    images = b * (one.trained if s.visual else one.forward)
    images += b * 2 * s.patches * s.pixels * s.image_width
    if not whole:
        images += prompt_keys(s)
        if s.depth > 1:
            images -= b * unlearned(s)
    return {"loss's images": images, "loss's logits": s.passes * logits(s, attacked=False)}


def logits(s: Sizes, *, attacked: bool) -> float:
    """FLOPs of a batch's logits, forward and backward: cosines, or router and (eager) mixture.

    The eager mixture computes a feature for each image and class, ``[B, C, D]``, from K prompts.
    """
    cosines = 2 * s.batch * s.classes * s.features
    # gradients of the image features, of the text features
    both = (attacked or s.visual > 0) + (s.eager or not attacked)
    if not s.router:
        return cosines * (1 + both)
    first = 2 * s.batch * s.features * s.router
    second = 2 * s.batch * s.router * s.prompts
    trained = s.eager or not attacked  # gradients of the router's weights
    router = first * (1 + attacked + trained) + second * (2 + trained)
    return router + (cosines * (3 * s.prompts + 1 + both) if s.eager else 0)


def mixture(s: Sizes) -> float:
    """FLOPs of the fast mixture, without ``[B, C, D]``: Gram matrices, one product per prompt."""
    k, c, d = s.prompts, s.classes, s.features
    gram = 2 * c * k**2 * d
    product, pairs = 2 * s.batch * k * c * d, 2 * s.batch * k**2 * c
    one = product + pairs  # forward; as many for the gradients of image and router, and of the text
    return gram + s.steps * 2 * one + s.passes * 3 * one + gram


def maps(s: Sizes) -> float:
    """FLOPs of mapping text to visual prompts, with the gradients of tokens and maps."""
    times = s.steps + s.passes if s.eager else 1
    return 3 * times * 2 * s.depth * s.n_ctx * s.text_width * s.image_width


def terms(s: Sizes) -> dict[str, float]:
    """Return the FLOPs of a step by term."""
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
    """Return the FLOPs of a step; without own ops, those that `TunerStep.flops` counts."""
    return sum(n for name, n in terms(s).items() if own_ops or name not in OWN_OPS)
