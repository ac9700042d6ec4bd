"""Clean and robust accuracy of one classifier or of several side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)

from .._utils.checks import Fraction, check_choice, check_count
from .._utils.types import Model
from ..attacks.ascent import module_device
from ..data.dataset import ImageDataset, ImageTensors, check_dataset
from .job import Job, Sanity
from .model_run import Images
from .plan import How, Planned, plan_attacks
from .result import Evaluation
from .sampling import draw_rows, evenly

RANDOM_SAMPLES = 20  # of AutoAttack's version for random models
_READ_TWICE = 8  # images, to find a random transform


def evaluate(
    models: nn.Module | Model | Mapping[str, Model],
    data: ImageDataset | DataLoader[Any],
    attacks: str | Sequence[str] = ("clean", "pgd-20"),
    eps: Fraction | Sequence[Fraction] = "4/255",
    *,
    batch: int = 128,
    limit: int | None = None,
    stop: bool = True,
    samples: int | None = None,
    surrogates: Mapping[str, Model] | None = None,
    sanity: Sanity = "quick",
    seed: int = 0,
    name: str = "",
    out: str | Path | None = None,
    resume: bool = False,
    workers: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Evaluation:
    """Clean and robust accuracy.

    An image counts as robust if it is classified rightly both clean and attacked, and the attack on
    it had a gradient to follow: one that stood still shows nothing. Such images are counted as
    ``stalled``, and more than one in a hundred make the row ``trusted: false``.

    Each attack is run on the images that are right clean; one that falls leaves its batch, and the
    next takes its place. Images are read when they are needed: the data set need not fit in memory.

    Args:
        models: pixels in [0, 1] to logits: one, or several by name.
        data: map-style data set of uint8 images ``[3, H, W]`` and labels, the same each time they
            are read; or a loader of all of one.
        attacks: names, see `fastprompt.evaluation.plan.plan`: ``"pgd-N"``, ``"cw-N"``,
            ``"apgd-ce"``, ``"apgd-t"``, ``"fab-t"``, ``"square"``, ``"autoattack"``,
            ``"feature-pgd-N"``; with ``@NAME`` made on that surrogate. ``"clean"`` is always done.
        eps: one radius or several, in pixel units or such as ``"4/255"``.
        batch: images attacked at once.
        limit: so many images, drawn by ``seed`` (the same for all); None takes all.
        stop: an image that is fooled takes no more steps, and any iterate counts; False runs every
            attack to its end and judges what it hands back.
        samples: passes averaged in each gradient; by default 20 for a model whose ``randomized``
            is true, 1 for others.
        surrogates: models that transfer attacks are made on, by name.
        sanity: ``"quick"`` checks a few images, ``"full"`` more of them and more thoroughly: see
            `fastprompt.evaluation.sanity`.
        seed: of the draw of the images and of the attacks.
        name: what to call the images in the result.
        out: folder for ``result.json`` and ``progress.jsonl``; None writes nothing.
        resume: go on with the evaluation that stopped in ``out``; on CPU it ends with the same
            result as one that was never stopped.
        workers: processes that decode images.
        device: where the models are; by default where the first one's buffers are.
        progress: show a bar, where the output is a terminal.

    Returns:
        Rows of ``model``, ``attack``, ``path``, ``eps``, ``accuracy`` in [0, 1], ``n`` and more.

    Raises:
        ValueError: an unknown attack (the nearest are offered), a radius out of range, no images,
            images that change, labels without a class, a loader that chooses its images, a model
            that gives probabilities or other than one logit a class.
        FileExistsError: ``out`` holds an evaluation and ``resume`` is not set.
    """
    named = dict(models) if isinstance(models, Mapping) else {"model": models}
    if not named:
        raise ValueError("models must not be empty")
    data = _dataset(data)
    check_choice(sanity, "sanity", get_args(Sanity))
    others = dict(surrogates or {})
    how = How(check_count(seed, "seed", least=0), check_count(batch, "batch"), stop)
    hows = {name: _how(how, samples, model) for name, model in named.items()}
    plans = {name: plan_attacks(attacks, eps, own, list(others)) for name, own in hows.items()}
    _check_encoders(next(iter(plans.values())), named, others)
    if resume and out is None:
        raise ValueError("resume needs out: the evaluation's folder")
    first = next(iter(named.values()))
    where = module_device(first, torch.device("cpu")) if device is None else torch.device(device)
    _check_devices({**others, **named}, where)
    rows = draw_rows(len(data), limit, seed)
    _check_same_twice(data, rows)
    images = Images(data, rows, where, workers)
    folder = None if out is None else Path(out)
    job = Job(named, others, images, plans, hows, sanity, folder, name)
    return job.run(resume=resume, progress=progress)


def _how(how: How, samples: int | None, model: Model) -> How:
    """For a model that is random: several passes a gradient, and a lucky one ends no attack."""
    random = bool(getattr(model, "randomized", False))
    several = RANDOM_SAMPLES if random else 1
    samples = several if samples is None else check_count(samples, "samples")
    return replace(how, samples=samples, stop=how.stop and not random)


def _dataset(data: ImageDataset | DataLoader[Any]) -> ImageDataset:
    if isinstance(data, DataLoader):
        _check_loader(data)
        data = data.dataset  # type: ignore[assignment]
    check_dataset(data, "data")
    return data  # type: ignore[return-value]


def _check_loader(loader: DataLoader[Any]) -> None:
    """Images are read by their places: what a loader leaves out or makes of them would be lost."""
    chooses: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if type(chooses) is BatchSampler:
        chooses = chooses.sampler
    every = type(chooses) is SequentialSampler or (
        type(chooses) is RandomSampler
        and not chooses.replacement
        and chooses.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    if not every:
        raise ValueError(
            f"data is a loader whose images {type(chooses).__name__} chooses: hand in the data "
            "set, or a torch.utils.data.Subset of it"
        )
    if loader.collate_fn not in (default_collate, default_convert):
        raise ValueError(
            "data is a loader with a collate_fn of its own, which would not be called: hand in a "
            "data set of uint8 images and labels"
        )


def _check_devices(models: Mapping[str, Model], where: torch.device) -> None:
    for name, model in models.items():
        own = module_device(model, where)
        apart = own.index != where.index and None not in (own.index, where.index)
        if own.type != where.type or apart or own.type == "meta":
            raise ValueError(
                f"model {name!r} is on {own}, the images go to {where}: move it, or name a device"
            )


def _check_same_twice(data: ImageDataset, rows: Sequence[int]) -> None:
    """An attack is on the image that was judged clean: a random transform would show another."""
    if isinstance(data, ImageTensors):
        return
    for place in evenly(_READ_TWICE, len(rows)):
        (image, label), (again, label_again) = data[rows[place]], data[rows[place]]
        if label != label_again or not torch.equal(image, again):
            raise ValueError(
                f"data gives another image or label each time that item {rows[place]} is read: "
                "leave random transforms out"
            )


def _check_encoders(
    plan: Sequence[Planned], models: Mapping[str, Model], surrogates: Mapping[str, Model]
) -> None:
    for attack in plan:
        if attack.stages[0].name.startswith("feature"):
            made_on = surrogates if attack.surrogate else models
            without = [name for name, model in made_on.items() if not hasattr(model, "clip")]
            if without:
                raise ValueError(
                    f"attack {attack.name!r} needs the image encoder of {without[0]!r}: it has no "
                    ".clip"
                )
