"""Trains the bundled CLIP models of photographs, `tiny-photos` and `tiny-photos-robust`.

    python -m pretraining.pretrain_photos --help

Stage ``plain`` trains an open_clip ``CLIP`` from scratch: contrastive loss with captions, and
cross-entropy against the prompts of all class names. Stage ``robust`` fine-tunes only its image
encoder on adversarial images against the frozen text features, following TeCoA (Mao et al.,
"Understanding zero-shot adversarial robustness for large-scale models", ICLR 2023).

A stage stops after ``--minutes``; the same command continues it from its last checkpoint in the
folder ``out``, with the same result as without the stop. `pretraining.export_photos` exports the
results to the package.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastprompt._utils.files import read_tensors, write_bytes, write_json, write_tensors
from fastprompt.attacks.ascent import ascend

from .photo_captions import NAMES, PROMPTS, describe_classes
from .photo_data import Batches, Photos, augment, mix, read_photos
from .photo_model import (
    TEMPLATE,
    image_features,
    make_model,
    text_features,
    zero_shot_accuracy,
)
from .photo_words import CALTECH101, PHOTOS64
from .training import contrastive_loss, make_optimizers, set_rate

_KIND = "pretraining"
_SAVE_SECONDS, _LOG_STEPS, _JUDGE_EPOCHS, _JUDGED = 180, 100, 5, 500
Stage = Literal["plain", "robust"]


@dataclass(frozen=True)
class Settings:
    """What decides a stage's result.

    Attributes:
        epochs: passes through photos64 over which the learning rate falls to 0.
        stop: the pass after which the stage ends; None for the last one.
        whole: the share of the steps, at the end, in which no patch is dropped.
        eps, attack_steps: of PGD, in stage ``robust``.
    """

    stage: Stage
    epochs: int
    stop: int | None
    batch: int
    lr: float
    seed: int
    patch_dropout: float
    whole: float
    eps: float
    attack_steps: int


@dataclass
class Run:
    """The state of a stage: all that a checkpoint holds. ``log`` has what was printed."""

    model: Any
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)


# ---- losses ------------------------------------------------------------------------------------

Loss = Callable[[int, Tensor, Tensor, torch.Generator], Tensor]  # step, uint8 pixels, labels


def plain_loss(model: Any) -> Loss:
    """Return the loss of stage ``plain``: captions and class prompts."""

    def loss(step: int, pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        x, share = mix(augment(pixels, generator), generator)
        captions = describe_classes(labels, generator)
        prompt = PROMPTS[int(torch.randint(len(PROMPTS), (), generator=generator))]
        # one pass of the text tower for both
        text = text_features(model, [*captions.texts, *map(prompt.format, NAMES)])
        image, scale = image_features(model, x), model.logit_scale.exp()
        true = torch.lerp(*(captions.true_of(y).float() for y in (labels.flip(0), labels)), share)
        classes = F.one_hot(labels, len(NAMES)).float()
        wanted = torch.lerp(classes.flip(0), classes, share)
        logits = scale * image @ text[len(labels) :].T
        by_class = F.cross_entropy(logits, wanted, label_smoothing=0.1)
        return by_class + contrastive_loss(image, text[: len(labels)], scale, true)

    return loss


def robust_loss(model: Any, eps: float, steps: int) -> Loss:
    """Return the loss of stage ``robust``: cross-entropy of the class prompts on PGD images."""
    with torch.no_grad():
        prompts = text_features(model, [TEMPLATE.format(name) for name in NAMES])
        scale = model.logit_scale.exp()

    def question(x: Tensor, labels: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)  # the attack and the step drop the same patches
        logits = scale * image_features(model, x) @ prompts.T
        return F.cross_entropy(logits, labels, reduction="sum")

    def loss(step: int, pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        clean = augment(pixels, generator)
        noise = (torch.rand(clean.shape, generator=generator) * 2 - 1) * eps
        model.visual.requires_grad_(False)
        adv = ascend(
            partial(question, labels=labels, seed=step),
            clean,
            (clean + noise).clamp(0, 1),
            alpha=eps / steps * 1.25,
            eps=eps,
            steps=steps,
            counts=torch.zeros(len(clean), 2, dtype=torch.int64),
        )
        model.visual.requires_grad_(True)
        return question(adv, labels, step) / len(labels)

    return loss


# ---- checkpoints -------------------------------------------------------------------------------


def _checkpoint(out: Path, stage: Stage) -> Path:
    return out / f"{stage}.checkpoint.safetensors"


def save_checkpoint(run: Run, out: Path, settings: Settings) -> None:
    """Write weights, optimizers, step and log as one file."""
    tensors = {f"model/{k}": v for k, v in run.model.state_dict().items()}
    for place, optimizer in enumerate(run.optimizers):
        for row, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{place}/{row}/{k}": v for k, v in values.items()}
    facts = {"step": run.step, "log": run.log, "settings": asdict(settings)}
    metadata = {"kind": _KIND} | {k: json.dumps(v) for k, v in facts.items()}
    write_tensors(_checkpoint(out, settings.stage), tensors, metadata)


def resume(run: Run, out: Path, settings: Settings) -> None:
    """Continue from the checkpoint in ``out``, if there is one.

    Raises:
        ValueError: the checkpoint is of other settings.
    """
    file = _checkpoint(out, settings.stage)
    if not file.exists():
        return
    tensors, metadata = read_tensors(file, _KIND)
    if (found := json.loads(metadata["settings"])) != asdict(settings):
        raise ValueError(
            f"{file} was made with {found}; use these settings, or another folder as out"
        )
    run.step, run.log = json.loads(metadata["step"]), json.loads(metadata["log"])
    for place, optimizer in enumerate(run.optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"optimizer/{place}/"):
                row, name = key.split("/")[2:]
                state.setdefault(int(row), {})[name] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    run.model.load_state_dict(
        {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
    )


def load_stage(out: Path, stage: Stage, patch_dropout: float = 0.0) -> Any:
    """Load the model that a stage wrote to ``out``, in eval mode."""
    model = make_model(patch_dropout)
    model.load_state_dict(load_file(out / f"{stage}.safetensors"))
    return model.eval()


# ---- training ----------------------------------------------------------------------------------


def begin(out: Path, settings: Settings) -> tuple[Run, Loss]:
    """Return the state and the loss of a stage that starts."""
    torch.manual_seed(settings.seed)
    if settings.stage == "plain":
        model = make_model(settings.patch_dropout).train()
        run = Run(model, make_optimizers(list(model.named_parameters()), settings.lr))
        return run, plain_loss(model)
    model = load_stage(out, "plain", settings.patch_dropout).requires_grad_(False).train()
    model.visual.requires_grad_(True)
    run = Run(model, make_optimizers(list(model.visual.named_parameters()), settings.lr))
    return run, robust_loss(model, settings.eps, settings.attack_steps)


def update(run: Run, loss: Loss, batches: Batches, settings: Settings, steps: int) -> Tensor:
    """Take one step, which depends on the settings and the step's number alone; return the loss."""
    seed = settings.seed * 10_000_019 + run.step
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of the dropped patches
    if run.step >= steps * (1 - settings.whole):
        run.model.visual.patch_dropout = nn.Identity()
    batch = batches.draw(run.step, generator)
    value = loss(run.step, batch.pixels, batch.labels, generator)
    run.model.zero_grad()
    value.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for optimizer in run.optimizers:
        set_rate(optimizer, run.step, steps, settings.lr)
        optimizer.step()
    with torch.no_grad():
        run.model.logit_scale.clamp_(0, math.log(100))
    run.step += 1
    return value.detach()


def judge(model: Any, photos: Photos) -> dict[str, float]:
    """Return the zero-shot accuracy on held-out pictures of both sources."""
    parts = {"photos64": (photos.held, PHOTOS64), "caltech101": (photos.val, CALTECH101)}
    return {
        name: round(zero_shot_accuracy(model, part.some(_JUDGED), list(names)), 4)
        for name, (part, names) in parts.items()
    }


def train(run: Run, loss: Loss, photos: Photos, settings: Settings, out: Path, end: float) -> bool:
    """Train until the last step or the time ``end``; return whether the stage is finished."""
    batches = Batches(photos, settings.batch, settings.seed)
    steps = settings.epochs * batches.per_epoch
    end_step = steps if settings.stop is None else settings.stop * batches.per_epoch
    saved = since = time.monotonic()
    first, total = run.step, torch.zeros(())
    while run.step < end_step:
        total += update(run, loss, batches, settings, steps)
        last = run.step == end_step
        if run.step % _LOG_STEPS == 0 or last:
            now, n = time.monotonic(), run.step - first
            row = {"step": run.step, "of": steps, "loss": round(total.item() / n, 4)}
            row["images/s"] = round(n * settings.batch / (now - since), 1)
            _log(run, row)
            first, since, total = run.step, now, torch.zeros(())
        if run.step % (_JUDGE_EPOCHS * batches.per_epoch) == 0 or last:
            begun = time.monotonic()
            _log(run, {"step": run.step, **judge(run.model, photos)})
            since += time.monotonic() - begun
        if (over := time.monotonic() > end) or time.monotonic() - saved > _SAVE_SECONDS or last:
            save_checkpoint(run, out, settings)
            saved = time.monotonic()
            if over:
                break
    return run.step >= end_step


def _log(run: Run, row: dict[str, float]) -> None:
    run.log.append(row)
    print(json.dumps(row), flush=True)


def main(
    stage: Stage,
    out: Path,
    data: Path = Path("../shared/data"),
    minutes: float = 100,
    epochs: int = 30,
    stop: int | None = None,
    batch: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    patch_dropout: float = 0.5,
    whole: float = 0.1,
    eps: float = 2 / 255,
    attack_steps: int = 2,
    threads: int = 2,
) -> None:
    """Run or continue one stage; ``robust`` starts from the result of ``plain`` in ``out``."""
    end = time.monotonic() + 60 * minutes
    torch.set_num_threads(threads)
    settings = Settings(
        stage, epochs, stop, batch, lr, seed, patch_dropout, whole, eps, attack_steps
    )
    run, loss = begin(out, settings)
    resume(run, out, settings)
    # on a CPU, plain attention's backward is several times faster than the fused one's at 65 tokens
    with sdpa_kernel(SDPBackend.MATH):
        finished = train(run, loss, read_photos(data), settings, out, end)
    if not finished:
        print(f"stopped after {run.step} steps: run the same command again", flush=True)
        return
    state = {k: v.contiguous() for k, v in run.model.state_dict().items()}
    write_bytes(out / f"{stage}.safetensors", save(state))
    write_json(out / f"{stage}.json", {"settings": asdict(settings), "log": run.log})


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
