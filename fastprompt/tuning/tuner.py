"""What the methods share: settings, prompts in their towers, tuning, evaluation."""

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from .._utils.checks import Fraction, check_classnames
from .._utils.run_folder import RunFolder
from ..clip.frozen import TEMPLATES, FrozenCLIP
from ..clip.load import load_clip
from ..data.dataset import ImageDataset, check_dataset, check_same_classes
from ..evaluation import Evaluation, evaluate
from ..model.classifier import CLIPClassifier
from ..model.prompted import PromptedCLIP
from ..towers.text_layout import word_context
from .config import TunerConfig, build
from .identity import EXECUTION
from .loop import Loop
from .saving import SavedTuner
from .tracking import Tracker


class Tuner(SavedTuner):
    """Tunes the prompts of a frozen CLIP.

    Args:
        clip: a `FrozenCLIP`, an open_clip model (copied, left as it was), or a name for
            `load_clip`.
        classnames: C distinct names.
        config: settings: the method's dataclass, a mapping, or a YAML or JSON file.
        **overrides: single settings; they win over ``config``, which wins over the preset for a
            bundled model, which wins over the dataclass's defaults.

    Raises:
        ValueError: the method does not fit the model (the reason is given), a bad class list, an
            unknown or bad setting.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # what `fastprompt tune` takes by default
    job: ClassVar[Mapping[str, Any]] = {
        "data": "patterns",
        "shots": "all",
        "attacks": "clean,feature-pgd-40,pgd-20",
    }
    score: ClassVar[str]  # which of the validation's numbers says what prompts are the best

    def __init__(
        self,
        clip: FrozenCLIP | nn.Module | str,
        classnames: Sequence[str],
        config: TunerConfig | Mapping[str, Any] | str | Path | None = None,
        **overrides: Any,
    ) -> None:
        self.clip = clip if isinstance(clip, FrozenCLIP) else load_clip(clip)
        if reason := self.unfit(self.clip):
            raise ValueError(f"clip: {self.method} does not fit {self.clip.name}: {reason}")
        self.classnames = check_classnames(classnames)
        self.config = build(self.Config, self.preset, config, overrides)
        self._given = {key: getattr(self.config, key) for key in EXECUTION}
        self._start()

    # ---- what a method defines -------------------------------------------------------------

    @classmethod
    def unfit(cls, clip: FrozenCLIP) -> str:
        """Why the method does not fit ``clip``; empty if it does. By default: text prompts."""
        return clip.why_no_text_prompts()

    @abstractmethod
    def build_prompts(self) -> nn.Module:
        """What learns; its state dict is what is saved."""

    @abstractmethod
    def prepare(
        self, train: ImageDataset, val: ImageDataset | None, out: Path | None, progress: bool
    ) -> int:
        """Get ready to tune; the number of training examples."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The scalar loss of a batch, a mean over its examples."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Accuracies to log after an epoch, by name."""

    def batches(self, order: Tensor, epoch: int) -> Iterator[tuple[int, Any]]:
        """An epoch's batches, each with its number of examples; by default the examples' rows.

        Args:
            order: the training examples' rows in this epoch's order, int64 ``[N]``, on the CPU.
            epoch: from 0.
        """
        for rows in order.to(self.clip.device).split(self.config.batch):
            yield len(rows), rows

    def release(self) -> None:  # most methods hold nothing
        """Let go of what only tuning needs."""

    # ---- what all share --------------------------------------------------------------------

    @property
    def preset(self) -> Mapping[str, Any]:
        """The settings whose defaults are others for this bundled model; empty for any other."""
        return self.presets.get((self.clip.source or {}).get("model", ""), {})

    def _start(self) -> None:
        """New prompts, in towers that run as the settings say; what they left open is filled in."""
        config = self.config
        prompts = self.build_prompts().to(self.clip.device)
        # prompts of a float64 model learn in float64
        self.prompts = prompts.double() if self.clip.dtype == torch.float64 else prompts
        if config.init_from is not None:
            self.prompts.load_state_dict(self._start_values(), strict=False)
        self.model = self._prompted(self.classnames, config.class_chunk)
        self.config = dataclasses.replace(
            config,
            precision=cast(Any, self.model.precision),
            compile=self.model.compiled,
            class_chunk=self.model.class_chunk,
        )
        self.totals: dict[str, Tensor] = {}

    def _prompted(
        self, classnames: Sequence[str], class_chunk: int | None, **changes: Any
    ) -> PromptedCLIP:
        config = self.config
        options: dict[str, Any] = {
            "engine": config.engine,
            "precision": config.precision,
            "class_specific": config.class_specific,
            "compile": config.compile,
            "class_chunk": class_chunk,
        }
        return PromptedCLIP(self.clip, classnames, self.prompts, **{**options, **changes})

    def text_width(self) -> int:
        """Width of a context token."""
        return self.clip.text_parts.width

    def context_start(self, words: str | None, n_ctx: int) -> Tensor | None:
        """The embeddings of the first ``n_ctx`` tokens of some words; None for no words."""
        return None if words is None else word_context(self.clip, words, n_ctx)

    def log(self, examples: int, **terms: Tensor) -> None:
        """Note means over a batch of so many examples; ``metrics.jsonl`` gets the epoch's."""
        for name, value in terms.items():
            value = value.detach() * examples
            self.totals[name] = self.totals[name] + value if name in self.totals else value

    @property
    def classifier(self) -> CLIPClassifier:
        """The tuned classifier: pixels ``[B, 3, H, W]`` in [0, 1] to logits ``[B, C]``."""
        self.prompts.to(self.clip.device)  # the clip may have been moved since it was tuned
        return self.model.classifier()

    def classifier_for(
        self, classnames: Sequence[str] | None = None, *, precision: str | None = None
    ) -> CLIPClassifier:
        """The tuned prompts' classifier for other classes, or in another precision.

        Args:
            classnames: as for base-to-new, or of another data set; by default the tuner's.
            precision: see `CLIPClassifier`; by default that of the tuning.

        Raises:
            ValueError: a bad class list, or prompts that belong to the classes they were tuned on;
                a precision that the device lacks.
        """
        names = self.classnames if classnames is None else check_classnames(classnames)
        if self.config.class_specific and names != self.classnames:
            raise ValueError(
                "classnames: each tuned class has a context of its own, there is none for others"
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
        track: bool = False,
        progress: bool = True,
    ) -> Self:
        """Tune the prompts.

        Args:
            train: map-style data set of uint8 images ``[3, S, S]`` and labels.
            val: likewise; judged after each epoch. See ``keep`` and ``patience`` in the settings.
            out: the run folder to write; None writes nothing.
            resume: go on with the run that stopped in ``out``; on CPU it ends with the same bits
                as one that was never stopped.
            job: what else ``config.json`` should hold, such as the data's arguments.
            track: also write TensorBoard curves into ``out`` (extra ``track``).
            progress: show bars, where the output is a terminal.

        Raises:
            ValueError, TypeError: data that does not fit the model or the class list.
            FileExistsError: ``out`` holds a run and ``resume`` is not set.
            FloatingPointError: the loss is not finite; the last good state stays in ``out`` and in
                the prompts. The message says in which step, and on which images.
        """
        for name, data in (("train", train), ("val", val)):
            if data is not None:
                check_dataset(data, name, self.clip.image_size, len(self.classnames))
                check_same_classes(data, name, self.classnames)
        if val is None and self.config.patience is not None:
            raise ValueError("patience needs val: images to judge the prompts on")
        run = None if out is None else RunFolder(out)
        if run is None and (track or resume):
            raise ValueError(
                f"out is needed with {'track' if track else 'resume'}: the run's folder"
            )
        key = self._key(train, val)
        if run is not None:
            self._open(run, key, resume, job)
        tracker = Tracker(run.path) if run is not None and track else None
        # from the start values, whatever was tuned before: config.json must be the whole story
        self._start()
        examples = self.prepare(train, val, None if run is None else run.path, progress)
        best = Loop(self, run, key, examples, tracker, progress).run()
        if run is not None and best is not None:
            for name, tensors in (("best", best), ("last", self.prompts.state_dict())):
                run.write_prompts(tensors, self.method, self._hash(), name)
        if best is not None and self.config.keep == "best":
            self.prompts.load_state_dict(best)
        if run is not None:
            self._write_prompts(run)
        self.release()
        return self

    def evaluate(
        self,
        test: ImageDataset,
        attacks: Sequence[str] = ("clean", "pgd-20"),
        eps: Fraction | Sequence[Fraction] = "4/255",
        *,
        templates: Sequence[str] = TEMPLATES,
        **options: Any,
    ) -> Evaluation:
        """Accuracies of the zero-shot classifier and of the tuned one, side by side.

        Args:
            test: data set as in `fit`.
            attacks: names such as ``"pgd-20"``, ``"autoattack"``, ``"feature-pgd-40"``;
                ``"clean"`` is always done.
            eps: one radius or several.
            templates: of the zero-shot classifier.
            **options: see `fastprompt.evaluate`.

        Raises:
            ValueError: as `fastprompt.evaluate`, or images of other classes.
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
