"""The base class of all tuners: settings, prompts in a frozen CLIP, tuning, evaluation."""

import contextlib
import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from .._utils.checks import (
    Fraction,
    check_classnames,
    check_flag,
    check_folder,
    first_difference,
)
from .._utils.distributed import check_same, from_first, is_first, total
from .._utils.dtypes import AUTO, PRECISIONS
from .._utils.hashing import digest
from .._utils.run_folder import RunFolder
from ..clip.frozen import TEMPLATES, FrozenCLIP
from ..clip.load import load_clip
from ..data.dataset import ImageDataset, check_dataset, check_same_classes, files_of, source_of
from ..evaluation import Evaluation, evaluate
from ..model.classifier import CLIPClassifier
from ..model.prompted import PromptedCLIP
from ..runners import HERE, Runner
from ..towers.text_layout import word_context
from .callbacks import Callback, Callbacks, check_callbacks
from .config import TunerConfig, as_dict, build
from .identity import EXECUTION
from .init_from import check_template
from .loop import Loop
from .parts import Part, check_processes, checked_runner, own_batch
from .sharing import SharedTuner
from .tracking import check_tracker, with_trackers


class Tuner(SharedTuner):
    """Tunes prompts of a frozen CLIP model; base class of all methods.

    Args:
        clip: a `FrozenCLIP`, an open_clip model (it is copied and not modified), or a model name
            for `load_clip`.
        classnames: C distinct class names, at least two.
        config: settings as the method's dataclass, a mapping, or the path of a YAML or JSON file.
        **overrides: individual settings. They take precedence over ``config``, which takes
            precedence over the preset of a bundled model, and this over the dataclass's defaults.

    Raises:
        ValueError: the method does not support the model (the message gives the reason), the class
            names are invalid, or a setting is unknown or invalid.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    shots: ClassVar[int | Literal["all"]] = "all"  # images per class, if --data is given
    # defaults of the options of `fastprompt tune`: a job of a minute or two
    job: ClassVar[Mapping[str, Any]] = {
        "data": "photos",
        "shots": 4,
        "attacks": "clean,feature-pgd-20,pgd-20",
        "eval_eps": "1/255",
    }
    takes_runner: ClassVar[bool] = False  # whether a runner may compute a part of the tuning
    runner: Runner = HERE
    score: ClassVar[str]  # validation metric that selects the best prompts

    def __init__(
        self,
        clip: FrozenCLIP | nn.Module | str,
        classnames: Sequence[str],
        config: TunerConfig | Mapping[str, Any] | str | Path | None = None,
        **overrides: Any,
    ) -> None:
        self.clip = clip if isinstance(clip, FrozenCLIP) else load_clip(clip)
        if reason := self.unfit(self.clip):
            raise ValueError(f"clip: {self.method} does not support {self.clip.name}: {reason}")
        self.classnames = check_classnames(classnames)
        if len(self.classnames) < 2:
            raise ValueError(
                f"classnames must have at least two classes to tell apart, got {self.classnames}"
            )
        self.config = build(self.Config, self.preset, config, overrides)
        self.config = self._with_n_ctx(self.config)
        self._given = {key: getattr(self.config, key) for key in EXECUTION}
        self._given["precision"] = None if self.config.precision == AUTO else self.config.precision
        self._start()

    # ---- defined by each method ------------------------------------------------------------

    @classmethod
    def unfit(cls, clip: FrozenCLIP) -> str:
        """Return why the method does not support ``clip``; empty if it does.

        By default, a method needs a text encoder that accepts prompts.
        """
        return clip.why_no_text_prompts()

    @classmethod
    def settings_from(cls, templates: Sequence[str]) -> dict[str, Any]:
        """Return settings that follow from a data set's zero-shot templates; by default none.

        `fastprompt tune` and protocols use them where the user gives no value.
        """
        return {}

    @abstractmethod
    def build_prompts(self) -> nn.Module:
        """Return the module of trainable parameters; its state dict is saved."""

    @abstractmethod
    def prepare(
        self, train: ImageDataset, val: ImageDataset | None, out: Path | None, progress: bool
    ) -> int:
        """Prepare the tuning; return the number of training examples."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Return the scalar loss of a batch, the mean over its examples.

        A function of the batch's mean that is not linear takes the mean from `whole`.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Return the accuracies to log after an epoch, by name."""

    def batches(self, order: Tensor, epoch: int) -> Iterator[tuple[int, Any]]:
        """Yield an epoch's batches with their numbers of examples; by default batches of indices.

        Args:
            order: indices of the training examples in the epoch's order, int64 ``[N]``, on the CPU;
                with several processes, those of this process. Each batch takes the next
                ``own_batch`` of them.
            epoch: the epoch, counted from 0.
        """
        for rows in order.to(self.clip.device).split(self.own_batch):
            yield len(rows), rows

    def release(self) -> None:  # optional
        """Release the resources that only tuning needs."""

    # ---- shared by all methods -------------------------------------------------------------

    @property
    def preset(self) -> Mapping[str, Any]:
        """The bundled model's settings that replace defaults; empty for any other model."""
        return self.presets.get((self.clip.source or {}).get("model", ""), {})

    def _start(self) -> None:
        """Create new prompts and the model with them; fill in the settings that were None."""
        config = self.config
        prompts = self.build_prompts().to(self.clip.device)
        double = torch.float64 in (self.clip.dtype, PRECISIONS.get(config.precision))
        self.prompts = prompts.double() if double else prompts
        if config.init_from is not None:
            self.prompts.load_state_dict(self._start_values(), strict=False)
            check_template(config.init_from, config.template)
        shards = {"class_shards": config.class_shards}
        self.model = self._prompted(self.classnames, config.class_chunk, **shards)
        self.config = dataclasses.replace(
            config,
            precision=cast(Any, self.model.precision),
            compile=self.model.compiled,
            class_chunk=self.model.class_chunk,
        )
        self.totals: dict[str, Tensor] = {}
        self.part: Part | None = None

    def _prompted(
        self, classnames: Sequence[str], class_chunk: int | None, **changes: Any
    ) -> PromptedCLIP:
        config = self.config
        options: dict[str, Any] = {
            "engine": config.engine,
            "precision": config.precision,
            "class_specific": config.class_specific,
            "template": config.template,
            "compile": config.compile,
            "class_chunk": class_chunk,
        }
        return PromptedCLIP(self.clip, classnames, self.prompts, **{**options, **changes})

    def text_width(self) -> int:
        """Return the width of a context token."""
        return self.clip.text_parts.width

    @property
    def n_ctx(self) -> int:
        """Number of context tokens, M."""
        assert self.config.n_ctx is not None
        return self.config.n_ctx

    def _with_n_ctx(self, config: TunerConfig) -> TunerConfig:
        """Fill in the number of context tokens that the words or the method give."""
        if config.n_ctx is not None:
            return config
        words = config.ctx_init
        n_ctx = config.default_n_ctx if words is None else len(word_context(self.clip, words))
        return dataclasses.replace(config, n_ctx=n_ctx)

    def context_start(self) -> Tensor | None:
        """Return the initial values of the first context tokens that ``ctx_init`` gives.

        They are at most M token embeddings, ``[tokens, text_width]``; None without ``ctx_init``.
        """
        words = self.config.ctx_init
        return None if words is None else word_context(self.clip, words)[: self.n_ctx]

    @property
    def own_batch(self) -> int:
        """Number of examples of a batch that this process computes; ``batch`` if it is alone."""
        return own_batch(self.config.batch)

    def whole(self, mean: Tensor) -> Tensor:
        """Return the mean over the batch, given the mean over this process's examples of it.

        It is differentiable. In a single process, it returns ``mean``.
        """
        return mean if self.part is None else total(mean * self.part.share)

    def log(self, examples: int, **terms: Tensor) -> None:
        """Log means over ``examples`` examples; ``metrics.jsonl`` contains the epoch's means."""
        if self.part is not None and not self.part.size:
            examples = 0
        for name, value in terms.items():
            value = value.detach() * examples
            self.totals[name] = self.totals[name] + value if name in self.totals else value

    @property
    def classifier(self) -> CLIPClassifier:
        """The tuned classifier; it maps pixels ``[B, C, H, W]`` in [0, 1] to logits ``[B, C]``."""
        self.prompts.to(self.clip.device)  # the model may have been moved since tuning
        if self.model.class_shards > 1:  # which needs all processes
            return self._prompted(self.classnames, None).classifier()
        return self.model.classifier()

    def classifier_for(
        self, classnames: Sequence[str] | None = None, *, precision: str | None = None
    ) -> CLIPClassifier:
        """Return the classifier of the tuned prompts for other classes or in another precision.

        Args:
            classnames: class names, such as the new classes of a base-to-new evaluation, or those
                of another data set; by default the tuner's.
            precision: see `PromptedCLIP`; by default the precision of tuning.

        Raises:
            ValueError: the class names are invalid, the prompts are class-specific and the classes
                differ, or the device does not support the precision.
        """
        names = self.classnames if classnames is None else check_classnames(classnames)
        if self.config.class_specific and names != self.classnames:
            raise ValueError(
                "classnames must be those of tuning, in the same order: each of them has a "
                "separate context, other classes have none; "
                f"{first_difference(names, self.classnames)}"
            )
        self.prompts.to(self.clip.device)
        changes = {} if precision is None else {"precision": precision}
        return self._prompted(names, None, **changes).classifier()

    def fit(
        self,
        train: ImageDataset,
        val: ImageDataset | None = None,
        out: str | Path | None = None,
        *,
        resume: bool = False,
        job: Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback | str] = (),
        progress: bool = True,
        runner: Runner | str | None = None,
    ) -> Self:
        """Tune the prompts and return the tuner.

        If `torch.distributed` is initialized, the processes of its default group tune together;
        all of them must call this method with the same arguments. The first process writes ``out``.

        Args:
            train: map-style data set of uint8 images ``[C, H, W]`` and labels.
            val: validation data set of the same form, evaluated after each epoch; see the settings
                ``keep`` and ``patience``.
            out: run folder to write; None writes nothing.
            resume: resume the stopped run in ``out``. On CPU, the result is bit-identical to that
                of an uninterrupted run. With ``precision="auto"``, the precision is that of the
                run, also where ``"auto"`` would give another one.
            job: further entries of ``config.json``, which also records the arguments of
                `load_data` if ``train`` comes from there.
            callbacks: called after each step, after each epoch and at the end, see `Callback`. A
                name, ``"tensorboard"``, ``"wandb"`` or ``"mlflow"``, is a tracker that writes
                the lines of ``metrics.jsonl``, by default into ``out``; see
                `fastprompt.tuning.tracking`. Of several processes, only the first calls them.
            progress: show progress bars if the output is a terminal.
            runner: ``"ray"`` or a `fastprompt.runners.Ray` computes AdvPT's banks on the workers of
                a Ray cluster; other methods take none.

        Raises:
            ValueError, TypeError: the data does not match the model or the class names, the
                device does not support the precision of the run in ``out``, or the processes have
                different settings, data or versions, or are more than a batch has examples.
            FileExistsError: ``out`` contains a run and ``resume`` is False.
            BlockingIOError: another process is writing to ``out``.
            FloatingPointError: the loss or the prompts are not finite. The state after the last
                completed epoch stays in ``out`` and in the prompts. For a loss, the message gives
                the step and the images.
            RuntimeError: a callback failed (the message names it; the state is kept likewise), or
                a tracker's package is not installed.
        """
        called = check_callbacks(callbacks)
        for flag, given in (("resume", resume), ("progress", progress)):
            check_flag(given, flag)
        for name, data in (("train", train), ("val", val)):
            if data is not None:
                check_dataset(data, name, self.clip.pixel_shape, len(self.classnames))
                check_same_classes(data, name, self.classnames)
        if val is None and self.config.patience is not None:
            raise ValueError("patience needs val: pass validation images")
        check_processes(self.config.batch)
        self.runner = checked_runner(runner, self.method, self.takes_runner)
        folder = check_folder(out, "out")
        trackers = [check_tracker(name) for name in called if isinstance(name, str)]
        if folder is None and (trackers or resume):
            needs = "resume" if resume else f"callbacks={trackers}"
            raise ValueError(f"out is needed with {needs}: pass a run folder")
        check_same(self._settings)
        run = RunFolder(folder) if folder is not None and is_first() else None
        key = self._key(train, val, from_first(lambda: self._precision_of(run, resume)))
        check_same(lambda: {"the content of train, val and init_from": key})
        with contextlib.nullcontext() if run is None else run.locked("out"):
            facts = {"data": source_of(train), **(job or {})}
            self._adopt(from_first(lambda: self._open(run, key, resume, facts)))
            if run is not None:
                files = {"train": files_of(train), "val": files_of(val)}
                if any(files.values()):
                    run.write_images({part: names for part, names in files.items() if names})
            # restart from the initial prompts: config.json must describe the run completely
            self._start()
            check_same(lambda: {"the prompts at the start": digest(self.prompts.state_dict())})
            self.folder = None
            settings = {"method": self.method, **as_dict(self.config)}
            calls = Callbacks(self)
            try:
                if is_first():
                    calls.extend(with_trackers(called, folder, settings))
                self._tune(run, key, self.prepare(train, val, folder, progress), calls, progress)
            except BaseException as error:
                calls.on_end(error)
                raise
            calls.on_end(None)
        self.release()
        return self

    def _tune(
        self, run: RunFolder | None, key: str, examples: int, calls: Callbacks, progress: bool
    ) -> None:
        """Run the loop, and write the prompts."""
        best = Loop(self, run, key, examples, calls, progress).run()
        if run is not None and best is not None:
            for name, tensors in (("best", best), ("last", self.prompts.state_dict())):
                run.write_prompts(tensors, self.method, self._hash(), name)
        if best is not None and self.config.keep == "best":
            self.prompts.load_state_dict(best)
        if run is not None:
            self._write_prompts(run)
            self.folder = run.path

    def evaluate(
        self,
        test: ImageDataset,
        attacks: Sequence[str] = ("clean", "pgd-20"),
        eps: Fraction | Sequence[Fraction] = "4/255",
        *,
        templates: Sequence[str] = TEMPLATES,
        **options: Any,
    ) -> Evaluation:
        """Evaluate the zero-shot and the tuned classifier under the same attacks.

        Both run in the precision of tuning; `classifier_for` gives a classifier in another one.

        Args:
            test: test data set, of the same form as in `fit`.
            attacks: attack names such as ``"pgd-20"``, ``"autoattack"``, ``"feature-pgd-40"``;
                ``"clean"`` is always included.
            eps: one radius or several, in pixel units.
            templates: prompt templates of the zero-shot classifier.
            **options: see `fastprompt.evaluate`.

        Raises:
            ValueError: see `fastprompt.evaluate`; or the test images have other classes.
        """
        check_same_classes(test, "test", self.classnames)
        models = {
            "zero-shot": self.clip.zero_shot(
                self.classnames,
                templates,
                engine=self.config.engine,
                precision=self.config.precision,
            ),
            "tuned": self.classifier,
        }
        return evaluate(models, test, attacks=attacks, eps=eps, **options)
