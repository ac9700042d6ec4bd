"""A classifier as one module of plain operators, traced by `torch.export`."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from .._utils.unpickling import first_line
from ..model.classifier import CLIPClassifier
from ..prompts.mixture import MixtureHead, PlainMixtureHead
from ..towers import ImageTower, make_image_tower
from ..towers.image_prompts import ImagePrompts

_TOLERANCE = 1e-4  # of logits, against rounding: in float32, logits reach 100
_PLAIN = ("aten", "prims", "_operator", "builtins", "math")  # namespaces of operators


class ExportGraph(nn.Module):
    """Pixels to logits, with prompts and class features as constants, in float32 on the CPU.

    The image tower is the fast one, whose products are torch's own; the mixture of prompts is
    written out. The classifier and its model are copied.

    Args:
        classifier: the classifier.
    """

    class_features: Tensor
    visual_prompts: Tensor | None
    logit_scale: Tensor
    logit_bias: Tensor | None

    def __init__(self, classifier: CLIPClassifier) -> None:
        super().__init__()
        clip = copy.deepcopy(classifier.clip).cpu().float()
        layers = getattr(classifier.image_tower, "layers", ())
        self.tower = make_image_tower(clip, layers, precision="fp32")
        self.tower.refresh()
        self.weights = clip.model.visual  # a tower does not own them; here they are registered
        self.refiners = _copied(classifier.refiners)
        head = classifier.head
        self.head = MixtureGraph(head, classifier.text_features) if _mixes(head) else _copied(head)
        constants: dict[str, Tensor | None] = {"class_features": classifier.text_features}
        constants |= {"logit_scale": clip.logit_scale, "logit_bias": clip.logit_bias}
        constants["visual_prompts"] = classifier.visual
        for name, tensor in constants.items():
            plain = None if tensor is None else tensor.detach().cpu().float()
            self.register_buffer(name, plain)
        self._share_prompts()
        self.eval().requires_grad_(False)

    def _share_prompts(self) -> None:
        """Compute what depends on the visual prompts alone, as constants of the graph."""
        self._keys: list[int] | None = None
        if not isinstance(self.tower, ImageTower):
            return
        with torch.no_grad():
            shared = self.tower.share(self.visual_prompts)
        self._keys = [len(pair) for pair in shared.keys]
        for i, (tokens, pair) in enumerate(zip(shared.tokens, shared.keys, strict=True)):
            for k, tensor in enumerate((tokens, *pair)):
                # own memory: saving views of one storage gives a warning
                self.register_buffer(f"prompt{i}_{k}", tensor.clone())
        self.visual_prompts = None

    def _prompts(self) -> Tensor | ImagePrompts | None:
        if self._keys is None:
            return self.visual_prompts
        each = [
            [getattr(self, f"prompt{i}_{k}") for k in range(n + 1)]
            for i, n in enumerate(self._keys)
        ]
        return ImagePrompts(tuple(t[0] for t in each), tuple(tuple(t[1:]) for t in each), ())

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels ``[B, C, H, W]`` in [0, 1] to logits ``[B, classes]``."""
        image = F.normalize(self.tower(pixels, self._prompts(), self.refiners), dim=-1)
        if self.head is None:
            logits = self.logit_scale * (image @ self.class_features.T)
        else:
            logits = self.head(image, self.class_features, self.logit_scale)
        return logits if self.logit_bias is None else logits + self.logit_bias


class MixtureGraph(nn.Module):
    """`MixtureHead` written out: no custom operator, and no features for each image and class.

    Args:
        head: the head.
        text_features: unnormalized, ``[K, C, D]``.
    """

    text: Tensor
    gram: Tensor

    def __init__(self, head: MixtureHead | PlainMixtureHead, text_features: Tensor) -> None:
        super().__init__()
        plain = head.head if isinstance(head, PlainMixtureHead) else head
        self.router, self.temperature = _copied(plain.router), plain.temperature
        text = text_features.detach().cpu().double()
        text = F.normalize(text, dim=-1) if plain.mix == "normalized" else text
        self.register_buffer("text", text.float().contiguous())
        # of the rounded features: the norm is that of the mixture which is multiplied
        text = self.text.double()
        gram = torch.einsum("kcd,lcd->klc", text, text)
        self.register_buffer("gram", gram.float().contiguous())

    def forward(self, image: Tensor, _: Tensor, scale: Tensor) -> Tensor:
        """Compute logits ``[B, C]`` of L2-normalized image features ``[B, D]``."""
        weights = (self.router(image) / self.temperature).softmax(dim=-1)  # [B, K]
        products = (image @ self.text.flatten(0, 1).T).unflatten(1, self.text.shape[:2])
        pairs = (weights[:, :, None] * weights[:, None]).flatten(1)
        squared = pairs @ self.gram.flatten(0, 1)  # of the norm of each image's mixture, [B, C]
        inverse = torch.where(squared > 0, squared.rsqrt(), 0.0)
        return scale * (weights[:, :, None] * products).sum(dim=1) * inverse


def trace(classifier: CLIPClassifier) -> ExportedProgram:
    """Trace the classifier, for batches of any size, and compare it with the classifier.

    Raises:
        ValueError: a module cannot be traced, uses a custom operator, or changes the result when
            traced.
    """
    name = classifier.clip.name
    try:
        graph = ExportGraph(classifier)
        channels, height, width = classifier.clip.pixel_shape
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand(5, channels, height, width, generator=generator, dtype=torch.float32)
        shapes = {"pixels": {0: torch.export.Dim("batch", min=1)}}
        with torch.no_grad():
            program = torch.export.export(graph, (pixels[:2],), dynamic_shapes=shapes)
            traced: Tensor = program.module()(pixels)
    except Exception as error:  # tracing the modules of another library can raise any error
        kind = type(error).__name__
        raise ValueError(
            f"classifier: {name} cannot be exported, torch.export failed: {kind}: "
            f"{first_line(error)}; its class features can, with format='safetensors', where the "
            "prompts are text alone"
        ) from error
    if custom := sorted(_operators(program)):
        raise ValueError(
            f"classifier: {name} cannot be exported: it uses the custom operator {custom[0]}"
        )
    with torch.no_grad():
        single = classifier.precision in ("fp32", "fp64")
        own = classifier if single else classifier.in_precision("fp32")
        wanted = own(pixels.to(own.clip.device)).cpu()
    apart = float((traced.double() - wanted.double()).abs().max())
    if not apart <= _TOLERANCE * max(1.0, float(wanted.abs().max()) / 100):
        raise ValueError(
            f"classifier: {name} cannot be exported: logits of the exported program differ by "
            f"{apart:.1e} from the classifier's; it computes more than its modules show"
        )
    return program


def _mixes(head: object) -> bool:
    return type(head) in (MixtureHead, PlainMixtureHead)


def _copied(module: Any) -> Any:
    return None if module is None else copy.deepcopy(module).cpu().float()


def _operators(program: ExportedProgram) -> set[str]:
    """Return the program's operators that are not torch's own."""
    targets = {n.target for n in program.graph.nodes if n.op == "call_function"}
    spaces = {t: getattr(t, "namespace", getattr(t, "__module__", "")) for t in targets}
    return {str(target) for target, space in spaces.items() if space not in _PLAIN}
