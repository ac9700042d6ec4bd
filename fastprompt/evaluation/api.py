"""Evaluate the clean and robust accuracy of one or several classifiers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

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

from .._utils.checks import (
    MOST_STEPS,
    MOST_WORKERS,
    Fraction,
    check_choice,
    check_count,
    check_flag,
    check_folder,
    check_seed,
    check_text,
    shown,
)
from .._utils.devices import usable_device
from .._utils.types import Model
from ..attacks.ascent import module_device
from ..data.dataset import ImageDataset, ImageTensors, check_dataset, evenly
from ..runners import Runner, runner_of
from .job import Job, Sanity
from .plan import plan_attacks
from .result import Evaluation
from .sampling import Images, draw_rows
from .search import SearchPrecision, check_search, confirms_directly, search_targets
from .stages import How, Planned

Scoring = Literal["strict", "published"]
RANDOM_SAMPLES = 20  # as in AutoAttack's version for randomized models
_READ_TWICE = 8  # number of images read twice to detect random transforms


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
    search_precision: SearchPrecision = "auto",
    confirm: bool = True,
    scoring: Scoring = "strict",
    calibrate: ImageDataset | None = None,
    progress: bool = True,
    runner: Runner | str | None = None,
) -> Evaluation:
    """Evaluate clean and robust accuracy.

    An image counts as robust if it is classified correctly both clean and under attack, and if the
    attack had a usable gradient. An image that survives without a usable gradient counts as
    ``stalled``; a row has ``trusted: false`` if more than 1 % of its attacked images are stalled.

    Each attack runs only on images that are classified correctly when clean. A fooled image leaves
    its batch, and the next image takes its slot. Images are read on demand, so the data set need
    not fit in memory.

    Attacks may search for adversarial images on a copy of the model in a lower precision. Only the
    predictions of the model itself count, on the very images that the attack returns. With
    ``confirm``, each image that stands after a search on such a copy is attacked again on the model
    itself, by the same attack; for AutoAttack, by ``apgd-t``, and by any of its other attacks that
    fooled only the copy or lacked a usable gradient there.

    Args:
        models: one model, or several by name; each maps pixels in [0, 1] to logits.
        data: map-style data set of uint8 images ``[C, H, W]`` and labels that returns the same
            item at each read, or a loader over a whole data set.
        attacks: names, see `fastprompt.evaluation.plan.plan`: ``"pgd-N"``, ``"cw-N"``,
            ``"apgd-ce"``, ``"apgd-t"``, ``"fab-t"``, ``"square"``, ``"autoattack"``,
            ``"feature-pgd-N"``; the suffix ``@NAME`` crafts the adversarial images on that
            surrogate. ``"clean"`` is always evaluated.
        eps: one radius or several, in pixel units or as a string such as ``"4/255"``.
        batch: number of images attacked at once.
        limit: number of images, drawn by ``seed`` (the same for all models); None uses all.
        stop: stop attacking an image once any iterate fools the model; False runs every attack to
            its end and evaluates only the images it returns.
        samples: passes averaged in each gradient, at most 10**6 (as the steps N); by default 20 for
            a model whose ``randomized`` is true, 1 for others.
        surrogates: models by name, on which transfer attacks are crafted.
        sanity: ``"quick"`` checks a few images, ``"full"`` more images more thoroughly, ``"off"``
            none; see `fastprompt.evaluation.sanity`.
        seed: seed of the choice of images and of the attacks.
        name: name of the image set in the result.
        out: folder for ``result.json`` and ``progress.jsonl``; None writes nothing.
        resume: resume the interrupted evaluation in ``out``; on CPU the result equals that of an
            uninterrupted evaluation.
        workers: number of processes that decode images.
        device: device of the models; by default that of the first model.
        search_precision: precision in which attacks search. ``"auto"``: ``"bf16"`` for this
            library's float32 classifiers (and any model that has ``in_precision``, unless it is
            randomized) on a device that multiplies bfloat16 natively, ``"own"`` otherwise; with
            ``confirm`` on a CPU also ``"own"`` for what would be confirmed: all attacks but three
            parts of AutoAttack. ``"own"``: that of each model; ``"fp64"``,
            ``"fp32"``, ``"bf16"``, ``"fp16"``: all models and surrogates are converted, other
            modules as copies. Defenses before a model keep their precision.
        confirm: attack images that stand after a search in another precision again in the model's
            own. Not done for randomized models, as a second random prediction would count too.
        scoring: ``"strict"``, as described above; or ``"published"``, as most published code
            evaluates: PGD, CW, the feature attack, TPGD, MI-, DI- and TI-FGSM run to their ends on
            all images, and the accuracy on their last iterates counts, whether the clean image is
            classified correctly or not, with or without a usable gradient. Other attacks
            (AutoAttack, its parts, those of other packages) and ``stop`` are then as by
            default, ``"auto"`` searches in the model's own precision, and of the sanity checks
            those that attack surviving images again are left out.
        calibrate: validation images of the same classes, on which a temperature for the logits is
            fitted (Guo et al., ICML 2017). The result's ``calibration`` has it and the expected
            calibration error (15 bins, L1) before and after, clean and under PGD with 10 steps at
            the largest radius.
        progress: show a progress bar if the output is a terminal.
        runner: ``"ray"`` or a `fastprompt.runners.Ray` attacks on the workers of a Ray cluster, a
            window of images at a time. On the CPU the result has the same bits as in a process with
            as many threads as each worker has, one by default.

    Returns:
        Rows of ``model``, ``attack``, ``path``, ``eps``, ``scoring``, ``accuracy`` in [0, 1], ``n``
        and more, such as ``precision`` (of the model, if known), ``search_precision`` (``"own"``
        for that of the model or surrogate) and ``confirmed`` (how many images were attacked again,
        how many of them fell, at what cost).

    Raises:
        ValueError: unknown attack (the message suggests the nearest names), radius out of range, no
            images, images that change between reads, labels outside the classes, a loader that
            selects images, a model that returns probabilities or not one logit per class, a
            ``search_precision`` to which a model cannot be converted.
        FileExistsError: ``out`` holds an evaluation and ``resume`` is not set.
        BlockingIOError: another process is writing to ``out``.
        ConnectionError, RuntimeError: Ray cannot be reached, or a worker failed, see
            `fastprompt.runners.Ray`.
        ImportError: Ray is not installed.
    """
    named = _named(models if isinstance(models, Mapping) else {"model": models}, "models")
    if not named:
        raise ValueError("models must not be empty")
    data = _dataset(data)
    check_text(name, "name")
    for flag, value in (("stop", stop), ("resume", resume), ("progress", progress)):
        check_flag(value, flag)
    check_flag(confirm, "confirm")
    check_count(workers, "workers", least=0, most=MOST_WORKERS)
    check_choice(sanity, "sanity", get_args(Sanity))
    others = _named({} if surrogates is None else surrogates, "surrogates")
    check_choice(scoring, "scoring", get_args(Scoring))
    published = scoring == "published"
    where_to_run = runner_of(runner)
    how = How(check_seed(seed), check_count(batch, "batch"), stop, alone=published)
    hows = {name: _how(how, samples, model) for name, model in named.items()}
    plans = {name: plan_attacks(attacks, eps, own, list(others)) for name, own in hows.items()}
    plan = next(iter(plans.values()))
    _check_encoders(plan, named, others)
    folder = None if out is None else check_folder(out, "out")
    if resume and folder is None:
        raise ValueError("resume needs out, the folder of the evaluation")
    first = next(iter(named.values()))
    where = module_device(first, torch.device("cpu")) if device is None else usable_device(device)
    _check_devices({**others, **named}, where)
    single = all(len(attack.stages) == 1 for attack in plan)
    if search_precision == "auto" and (published or (single and confirms_directly(confirm, where))):
        search_precision = "own"
    check_search(search_precision, where)
    val = None
    if calibrate is not None:
        check_dataset(calibrate, "calibrate")
        val = Images(calibrate, range(len(calibrate)), where, workers)
    rows = draw_rows(len(data), limit, seed)
    _check_same_twice(data, rows)
    images = Images(data, rows, where, workers)
    targets = search_targets(named, others, search_precision, confirm, images)
    job = Job(*targets, images, plans, hows, sanity, folder, name, val, where_to_run)
    return job.run(resume=resume, progress=progress)


def _named(models: Mapping[str, Model], name: str) -> dict[str, Model]:
    """Check and return models by name."""
    if not isinstance(models, Mapping):
        raise TypeError(f"{name} must be a mapping of names to models, got {shown(models)}")
    for key, model in models.items():
        check_text(key, name)
        if not callable(model) or isinstance(model, type):
            raise TypeError(f"{name} must be modules or functions, got {shown(model)} as {key!r}")
    return dict(models)


def _how(how: How, samples: int | None, model: Model) -> How:
    """For a randomized model, average gradients over passes and do not stop on one lucky pass."""
    random = bool(getattr(model, "randomized", False))
    several = RANDOM_SAMPLES if random else 1
    samples = several if samples is None else check_count(samples, "samples", most=MOST_STEPS)
    return replace(how, samples=samples, stop=how.stop and not random)


def _dataset(data: ImageDataset | DataLoader[Any]) -> ImageDataset:
    if isinstance(data, DataLoader):
        _check_loader(data)
        data = data.dataset  # type: ignore[assignment]
    check_dataset(data, "data")
    return data  # type: ignore[return-value]


def _check_loader(loader: DataLoader[Any]) -> None:
    """Reject a loader that selects or transforms items: images are read from the data set."""
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
            "data must be a loader that reads every image once, got one with "
            f"{type(chooses).__name__}; pass the data set, or a torch.utils.data.Subset of it"
        )
    if loader.collate_fn not in (default_collate, default_convert):
        raise ValueError(
            "data is a loader with a custom collate_fn, which would not be called; pass a data set "
            "of uint8 images and labels"
        )


def _check_devices(models: Mapping[str, Model], where: torch.device) -> None:
    for name, model in models.items():
        own = module_device(model, where)
        apart = own.index != where.index and None not in (own.index, where.index)
        if own.type != where.type or apart or own.type == "meta":
            raise ValueError(
                f"model {name!r} is on {own}, but the images are on {where}; move the model, or "
                "set device"
            )


def _check_same_twice(data: ImageDataset, rows: Sequence[int]) -> None:
    """Reject random transforms: attacks must see the same images as the clean evaluation."""
    if isinstance(data, ImageTensors):
        return
    for place in evenly(_READ_TWICE, len(rows)):
        (image, label), (again, label_again) = data[rows[place]], data[rows[place]]
        changed = image.shape != again.shape or not torch.equal(image, again)
        if label != label_again or changed:
            raise ValueError(
                f"data returns another image or label each time item {rows[place]} is read; remove "
                "random transforms"
            )


def _check_encoders(
    plan: Sequence[Planned], models: Mapping[str, Model], surrogates: Mapping[str, Model]
) -> None:
    for attack in plan:
        if attack.stages[0].name.startswith("feature-pgd"):
            made_on = surrogates if attack.surrogate else models
            without = [name for name, model in made_on.items() if not hasattr(model, "clip")]
            if without:
                raise ValueError(
                    f"attack {attack.name!r} needs the image encoder of {without[0]!r}, which has "
                    "no attribute .clip"
                )
