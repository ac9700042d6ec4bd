"""Phase 1 of AdvPT: computes one adversarial embedding per image, once before tuning."""

import contextlib
import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._utils.distributed import (
    from_first,
    gather_tensors,
    is_first,
    processes,
    rank,
    tensors_from_first,
)
from .._utils.dtypes import at_least_float32
from .._utils.files import read_tensors, remove_temporaries, write_tensors
from .._utils.hashing import digest_json
from .._utils.locks import holding
from .._utils.progress import Progress
from ..attacks import FeaturePGD, GradientHealth
from ..clip.frozen import FrozenCLIP
from ..data.dataset import ImageDataset, batches, content_of, fingerprint
from ..evaluation.scoring import Counted
from ..evaluation.units import describe
from ..runners import HERE, Runner

_KIND = "bank"
_SHARD_BATCHES = 4  # batches per shard: an interruption loses at most this much work


@dataclass(frozen=True)
class Bank:
    """Adversarial image embeddings of a data set.

    Attributes:
        features: unnormalized adversarial image features, at least float32, ``[N, D]``.
        labels: class indices, int64 ``[N]``.
        health: gradient health of the attack.
    """

    features: Tensor
    labels: Tensor
    health: GradientHealth


def bank_key(
    clip: FrozenCLIP, data: ImageDataset, attack: FeaturePGD, batch: int, towers: str = ""
) -> str:
    """Return a hash of everything a bank depends on: weights, images, attack, batches, engine."""
    facts = {
        "weights": clip.fingerprint,
        "towers": towers,
        "data": fingerprint(data),
        "images": len(data),
        "eps": attack.eps.hex(),
        "alpha": attack.alpha.hex(),
        "steps": attack.steps,
        "start": attack.start,
        "clamp": attack.clamp,
        "seed": attack.seed,
        "batch": batch,
    }
    return digest_json(facts)


def make_bank(
    clip: FrozenCLIP,
    data: ImageDataset,
    attack: FeaturePGD,
    *,
    batch: int,
    towers: str = "",
    folder: Path | None = None,
    workers: int = 0,
    title: str = "bank",
    progress: bool = True,
    runner: Runner = HERE,
) -> Bank:
    """Return the bank of ``data`` under ``attack``, read from ``folder`` if it is stored there.

    The bank is written in shards while it is computed. After an interruption, the next call resumes
    after the last shard; its result is bit-identical to that of an uninterrupted call. Of several
    processes that need the same bank, one computes it and the others wait. Processes that tune
    together compute one shard each at a time, with the same bits as a single process; the first of
    them reads and writes ``folder``.

    Args:
        clip: frozen model whose image encoder is attacked.
        attack: attack on the image encoder.
        batch: images per batch of the attack.
        towers: engine and precision of the encoder that the attack uses.
        folder: folder of the banks, one file per key; None keeps the bank in memory only.
        runner: computes shards, each by one worker.

    Raises:
        ValueError: a file of the bank is damaged.
        OSError: the disk is full, or ``folder`` is on a file system without locks; existing files
            are unchanged.
    """
    key = bank_key(clip, data, attack, batch, towers)
    size = batch * _SHARD_BATCHES

    def compute(parts: Path | None) -> dict[str, Tensor]:
        """Attack all images, in parts of ``size``; finished parts are read from ``parts``."""
        if is_first():
            computed.append(from_first(lambda: True))
        rows = [range(start, min(start + size, len(data))) for start in range(0, len(data), size)]
        with Progress(len(data), title, "img", show=progress and is_first()) as bar:
            work = _Shards(clip, data, attack, batch, workers, title, bar)
            if processes() > 1:
                return _join(_together(work, rows, parts, key))
            return _join(_by(runner, work, rows, parts, key))

    computed: list[bool] = []
    if not is_first():
        together = from_first(lambda: True)
        return _unpack(compute(None) if together else tensors_from_first(None))
    whole = compute(None) if folder is None else _stored(folder, key, len(data), compute)
    if not computed:
        from_first(lambda: False)
        tensors_from_first(whole)
    return _unpack(whole)


class _Shards:
    """Attacks the images of a shard; sent to workers with the model and the images."""

    def __init__(
        self,
        clip: FrozenCLIP,
        data: ImageDataset,
        attack: FeaturePGD,
        batch: int,
        workers: int,
        name: str,
        bar: Progress | None,
    ) -> None:
        self.clip, self.data, self.attack, self.batch = clip, data, attack, batch
        self.workers, self.name, self.bar = workers, name, bar

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "bar": None}

    def title(self, rows: range) -> str:
        """Return the shard in words."""
        return f"images {rows.start} to {rows.stop - 1} of the {self.name}"

    def facts(self) -> dict[str, str]:
        """Return hashes of the model and of some of the images, and the attack."""
        attack = {k: v for k, v in vars(self.attack).items() if k != "encode"}
        return {
            "model": digest_json(describe(self.clip.model)),
            "settings": digest_json([attack, self.batch]),
            "images": content_of(self.data),
        }

    def __call__(self, rows: range) -> Mapping[str, Tensor]:
        return _attack_rows(
            self.clip, self.data, self.attack, rows, self.batch, self.workers, self.bar
        )


def _by(
    runner: Runner, work: _Shards, rows: Sequence[range], parts: Path | None, key: str
) -> list[Mapping[str, Tensor]]:
    """Return the shards, in their order; those that are not in ``parts`` are computed."""
    paths = [None if parts is None else _part(parts, each) for each in rows]
    found = [path is not None and path.exists() for path in paths]
    shards = []
    with runner.team(work, work.clip.device) as team:
        left = [each for each, there in zip(rows, found, strict=True) if not there]
        coming = team.each(left, work.bar)
        for each, path, there in zip(rows, paths, found, strict=True):
            shard = _read(path, key, len(each)) if path and there else next(coming)
            if path is not None and not there:
                write_tensors(path, shard, {"kind": _KIND, "key": key})
            shards.append(shard)
            if work.bar is not None:  # in this process the attack has advanced it
                work.bar.update(each.stop - work.bar.done)
    return shards


def _together(
    work: _Shards, rows: Sequence[range], parts: Path | None, key: str
) -> list[Mapping[str, Tensor]]:
    """Return the shards; each process that tunes computes one at a time."""
    shards: list[Mapping[str, Tensor]] = []
    for start in range(0, len(rows), processes()):
        now = rows[start : start + processes()]
        paths = [None if parts is None else _part(parts, each) for each in now]
        found = _found(paths)
        shard: Mapping[str, Tensor] = {}
        if rank() < len(now) and not found[rank()]:
            shard = work(now[rank()])
        each_shard = zip(now, paths, found, gather_tensors(shard), strict=False)
        for number, (each, path, there, shard) in enumerate(each_shard):
            if there:
                own = None if path is None else _read(path, key, len(each))
                shard = tensors_from_first(own)
            elif path is not None:
                write_tensors(path, shard, {"kind": _KIND, "key": key})
            if work.bar is not None and (there or number != rank()):
                work.bar.update(len(each))
            shards.append(shard)
    return shards


def _part(parts: Path, rows: range) -> Path:
    return parts / f"{rows.start:09d}.safetensors"


def _found(paths: Sequence[Path | None]) -> list[bool]:
    """Return which parts the first process has on its disk."""
    return from_first(lambda: [path is not None and path.exists() for path in paths])


def _stored(
    folder: Path, key: str, rows: int, compute: Callable[[Path], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Read the bank of ``rows`` images from ``folder``, or compute and write it."""
    name = key[:32]
    file, parts, lock = (
        folder / each for each in (f"{name}.safetensors", f"{name}.parts", f".{name}.lock")
    )
    if file.exists() and not parts.exists() and not lock.exists():
        return _read(file, key, rows)
    folder.mkdir(parents=True, exist_ok=True)
    with holding(lock, "bank_dir", wait=True):
        remove_temporaries(folder, file.name)
        if file.exists():
            whole = _read(file, key, rows)
        else:
            whole = compute(parts)
            write_tensors(file, whole, {"kind": _KIND, "key": key})
        shutil.rmtree(parts, ignore_errors=True)
        with contextlib.suppress(OSError):  # Windows removes it when it is released
            lock.unlink()  # whoever locks it from now on finds the whole bank
    return whole


def _join(shards: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    whole = {name: torch.cat([s[name] for s in shards]) for name in shards[0] if name != "entries"}
    return {**whole, "entries": shards[0]["entries"]}


def _attack_rows(
    clip: FrozenCLIP,
    data: ImageDataset,
    attack: FeaturePGD,
    rows: range,
    batch: int,
    workers: int,
    bar: Progress | None,
) -> dict[str, Tensor]:
    features, labels, health = [], [], []
    if bar is not None:
        attack = copy.copy(attack)  # whose passes are shown, since a batch may take a minute
        passes = len(rows) * (2 * attack.steps + 2)
        attack.encode = Counted(attack.encode, partial(bar.passes, "attack", total=passes))
    for indices, images, targets in batches(data, rows, batch, workers):
        result = attack.run(images.to(clip.device), indices=indices.to(clip.device))
        with torch.no_grad():
            features.append(at_least_float32(attack.encode(result.images)).cpu())
        labels.append(targets)
        health.append(result.health)
        if bar is not None:
            bar.update(len(indices))
    joined = GradientHealth.join(health)
    return {
        "features": torch.cat(features),
        "labels": torch.cat(labels),
        "zero": joined.zero.cpu(),
        "nonfinite": joined.nonfinite.cpu(),
        "entries": torch.tensor([joined.entries]),
    }


def _read(path: Path, key: str, rows: int) -> dict[str, Tensor]:
    """Read the part of a bank for ``rows`` images; see `make_bank` for the errors."""
    tensors, metadata = read_tensors(path, _KIND)
    if metadata.get("key") != key:
        raise ValueError(f"{path} holds a bank that does not match its name: remove it and rerun")
    whole = {"labels": [rows], "zero": [rows], "nonfinite": [rows], "entries": [1]}
    found = {
        name: list(tensor.shape) for name, tensor in tensors.items() if tensor.dtype == torch.int64
    }
    features = tensors.get("features", torch.empty(0))
    sound = features.is_floating_point() and features.ndim == 2 and len(features) == rows
    if found != whole or not sound or len(tensors) != len(whole) + 1:
        shown = {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors.items()}
        raise ValueError(f"{path} holds {shown}, not a bank of {rows} images: remove it and rerun")
    return tensors


def _unpack(tensors: Mapping[str, Tensor]) -> Bank:
    health = GradientHealth(tensors["zero"], tensors["nonfinite"], int(tensors["entries"][0]))
    return Bank(tensors["features"], tensors["labels"], health)
