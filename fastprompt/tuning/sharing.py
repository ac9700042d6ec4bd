"""Tuned prompts to share: a small folder with a model card, and the Hugging Face Hub."""

import logging
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import nn

from .._utils.checks import check_folder
from .._utils.files import write_bytes
from .._utils.hashing import digest, digest_json
from .._utils.run_folder import SAVED_CONFIG, RunFolder
from .._utils.versions import versions
from ..clip.frozen import FrozenCLIP
from ..evaluation import Evaluation
from ..hub import card, remote
from ..hub.shared import parts_of, shareable, shareable_result
from .identity import identity_in, run_facts
from .renamed import renamed_config
from .saving import SavedTuner

log = logging.getLogger(__name__)


class SharedTuner(SavedTuner):
    """The part of `Tuner` that shares tuned prompts."""

    # for the model card: address of the method's paper, whether it tunes on adversarial images
    paper: ClassVar[str] = ""
    attacks_images: ClassVar[bool] = True

    def save_pretrained(
        self, folder: str | Path, *, result: Evaluation | None = None, repo: str | None = None
    ) -> Path:
        """Write a folder to share: ``prompt_config.json``, the prompts, a model card, the result.

        It holds no path of this machine and no weights of the CLIP model, which is recorded by its
        name and fingerprint. Every command that takes a run folder takes it too.

        Args:
            folder: a new folder, or one that has these prompts' earlier version.
            result: evaluation of these prompts; by default the ``result.json`` of the run folder
                that the tuner wrote or was loaded from, else the last in its ``evaluations``.
            repo: the repository that the model card names, such as ``"org/run"``.

        Raises:
            FileExistsError: ``folder`` contains another run or other files.
            BlockingIOError: another process is writing to ``folder``.
        """
        check_folder(folder, "folder")
        result = self._own_result() if result is None else result
        stored = {} if self.folder is None else renamed_config(RunFolder(self.folder).read_config())
        config = shareable({"versions": versions(), **stored, **self._identity()})
        identity = digest_json(run_facts(identity_in(config)))
        run = RunFolder(folder)
        with run.locked("folder"):
            if run.started and _is_other(run, identity):
                raise FileExistsError(
                    f"folder: {run.path} contains another run: choose a new folder"
                )
            text = card.write_card(config, result, repo, self.paper, self.attacks_images)
            run.write_saved_config({**config, "parts": parts_of(self.clip)})
            run.write_prompts(self.prompts.state_dict(), self.method, identity)
            if result is not None:
                shareable_result(result).save(run.path / "result.json")
            else:  # of an earlier version of these prompts
                (run.path / "result.json").unlink(missing_ok=True)
            self._copy_calibration(run)
            write_bytes(run.path / "README.md", text.encode())
        return run.path

    def push_to_hub(
        self,
        repo: str,
        *,
        result: Evaluation | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        message: str = "Tuned prompts",
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub; return the address.

        Args:
            repo: repository such as ``"org/run"``; it is created if it does not exist.
            result: see `save_pretrained`.
            private: whether a new repository is private; None for the owner's default.
            token: by default the one of ``hf auth login`` or ``HF_TOKEN``.
            revision: an existing branch; by default ``main``.
            message: the commit's message.

        Raises:
            ValueError, PermissionError, FileNotFoundError, ConnectionError: see
                `fastprompt.hub.remote.upload`.
        """
        remote.check_repo(repo)
        with tempfile.TemporaryDirectory() as place:
            folder = self.save_pretrained(Path(place) / "saved", result=result, repo=repo)
            return remote.upload(
                folder, repo, private=private, token=token, revision=revision, message=message
            )

    @classmethod
    def from_pretrained(
        cls, name: str | Path, clip: FrozenCLIP | nn.Module | str | None = None, **options: Any
    ) -> Self:
        """Load the tuner that `save_pretrained` or `push_to_hub` wrote; also from a run folder.

        Args:
            name: a folder, or a repository of the Hub, such as ``"org/run"``.
            clip: see `load`.
            **options: of the Hub: ``revision`` (a branch, tag or commit), ``token``,
                ``cache_dir``, ``local_files_only``.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError: see `fastprompt.hub.remote.fetch`.
            ValueError: as `load`; the message says which parts of the model differ.
        """
        return cls.load(remote.fetch(name, **options), clip)

    def _own_result(self) -> Evaluation | None:
        """Return the last evaluation in the tuner's folder, if it is of these prompts."""
        if self.folder is None:
            return None
        numbered = self.folder.glob("evaluations/[0-9]*/result.json")
        newest = sorted(numbered, key=lambda path: int(path.parent.name), reverse=True)
        found = [p for p in (self.folder / "result.json", *newest) if p.exists()]
        if not found:
            return None
        if not self._folder_has_these():
            log.warning(
                "result: %s is of other prompts than these and is left out; pass their evaluation "
                "as result",
                found[0],
            )
            return None
        return Evaluation.load(found[0])

    def _folder_has_these(self) -> bool:
        """Return whether the tuner's folder has the same prompts as the tuner."""
        if self.folder is None:
            return False
        run = RunFolder(self.folder)
        identity = digest_json(run_facts(identity_in(run.read_config())))
        return digest(run.read_prompts(self.method, identity)) == digest(self.prompts.state_dict())

    def _copy_calibration(self, run: RunFolder) -> None:
        """Copy the temperature of ``fastprompt evaluate --calibrate``, or remove an earlier one."""
        folder = self.folder if self._folder_has_these() else None
        found = None if folder is None else RunFolder(folder).read_calibration()
        if found is None:
            (run.path / "calibration.json").unlink(missing_ok=True)
        else:
            run.write_calibration(found)


def _is_other(run: RunFolder, identity: str) -> bool:
    """Whether a folder holds a run of `fit`, or the saved prompts of another run."""
    own = digest_json(run_facts(identity_in(run.read_config())))
    return own != identity or run.config_file.name != SAVED_CONFIG
