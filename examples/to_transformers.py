"""A tuned classifier in transformers: zero-shot classification with tuned class features."""

import torch
import torch.nn.functional as F
from torch import Tensor

import fastprompt
from fastprompt.model import CLIPClassifier


@torch.no_grad()
def logits(classifier: CLIPClassifier, pixels: Tensor) -> Tensor:
    """Compute logits ``[B, C]`` of pixels ``[B, 3, H, W]`` in [0, 1] with a `CLIPModel`."""
    model, text_embeds, _ = classifier.to_transformers()
    normal = (pixels - classifier.clip.mean) / classifier.clip.std
    vision = model.vision_model(pixel_values=normal)
    image_embeds = F.normalize(model.visual_projection(vision.pooler_output), dim=-1)
    return model.logit_scale.exp() * image_embeds @ text_embeds.T


def main() -> None:
    """Tune a context for an epoch, then classify four images in both libraries."""
    data = fastprompt.load_data("patterns", shots=1)
    tuner = fastprompt.APTTuner("tiny-shapes", data.classnames, epochs=1, precision="fp32")
    tuner.fit(data.train, progress=False)
    pixels = data.test.images[:4].float() / 255
    print("fastprompt  ", tuner.classifier(pixels).argmax(dim=1).tolist())
    print("transformers", logits(tuner.classifier, pixels).argmax(dim=1).tolist())


if __name__ == "__main__":
    main()
