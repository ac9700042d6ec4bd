"""`predict`, its command, and the files that they take."""

from typing import Any

import torch
from torch import nn

from fastprompt import predict
from fastprompt.inference.sources import find_pictures

from .rows import CHOICES, COUNTS, FLAGS, NUMBERS, PATHS, World, each, line, row


def _predict(w: World, images: Any = None, **options: Any) -> Any:
    classifier = w.clip.zero_shot(["cat", "dog"])
    return predict(classifier, w.images if images is None else images, **options)


def _with(name: str) -> Any:
    return lambda w, value: _predict(w, **{name: value})


def _command(*more: str, **files: bytes | str) -> Any:
    """The command with files that it names by ``{name}``; the run and ``picture.png`` are there."""

    def arguments(w: World) -> list[str]:
        made = {name: str(w.file(name.replace("_", "."), own)) for name, own in files.items()}
        picture = str(w.file("picture.png", b"x"))
        filled = [part.format(**made, out=w.folder) for part in more]
        return ["predict", str(w.runs / "tuned"), picture, *filled]

    return arguments


_TAR_GZ = b"\x1f\x8b" + bytes(600)
ROWS = [
    *each("predict", "batch", _with("batch"), COUNTS),
    *each("predict", "workers", _with("workers"), COUNTS),
    *each("predict", "embeddings", _with("embeddings"), FLAGS),
    *each("predict", "progress", _with("progress"), FLAGS),
    *each("predict", "runner", _with("runner"), CHOICES, "'ray'"),
    *each("predict", "temperature", _with("temperature"), NUMBERS, without=("1e308",)),
    row("predict-temperature-zero", lambda w: _predict(w, temperature=0), "temperature"),
    row("predict-a-model", lambda w: predict(nn.Identity(), w.images), "classifier"),
    row("predict-a-function", lambda w: predict(w.model, w.images), "classifier"),
    row("predict-none", lambda w: _predict(w, images=3), "images"),
    row("predict-mixed", lambda w: _predict(w, images=[3]), "images"),
    row("predict-bytes", lambda w: _predict(w, images=b"a.png"), "images"),
    row("predict-empty-list", lambda w: _predict(w, images=[]), "images", "empty"),
    row("predict-no-rows", lambda w: _predict(w, images=w.images[:0]), "images", "empty"),
    row("predict-uint8", lambda w: _predict(w, images=w.data.images), "images", "255"),
    row("predict-normalized", lambda w: _predict(w, images=w.images * 4), "images", "[0, 1]"),
    row("predict-one-image", lambda w: _predict(w, images=w.images[0]), "images"),
    row("predict-size", lambda w: _predict(w, images=torch.zeros(1, 3, 64, 64)), "images", "48"),
    row("predict-missing", lambda w: _predict(w, images="no.png"), "path", "no.png"),
    row("predict-missing-of-list", lambda w: _predict(w, images=["no/a.png"]), "path", "no/a.png"),
    row("predict-pattern", lambda w: _predict(w, images="no/*.png"), "path", "no/*.png"),
    row("predict-empty-folder", lambda w: _predict(w, images=w.folder), "path", "no pictures"),
    row("predict-tar-gz", lambda w: _predict(w, images=w.file("a.tar.gz", _TAR_GZ)), "path"),
    row("predict-tar", lambda w: _predict(w, images=w.file("a.tar", bytes(9))), "path", "a.tar"),
    row("predict-empty-csv", lambda w: _predict(w, images=w.file("a.csv")), "path", "a.csv"),
    row("predict-csv", lambda w: _predict(w, images=w.file("a.csv", "file\na.png\n")), "path"),
    *each("find_pictures", "path", lambda w, value: find_pictures([value]), PATHS),
    row("find_pictures-nothing", lambda w: find_pictures([]), "path", "no pictures"),
    line("predict-nothing", ["predict"], "run"),
    line("predict-no-paths", ["predict", "run"], "paths"),
    line("predict-no-run", ["predict", "no-run", "a.png"], "no-run"),
    line("predict-unknown-option", _command("--topk", "3"), "--topk", "--top"),
    line("predict-no-picture", lambda w: ["predict", str(w.runs / "tuned"), "a.png"], "path"),
    *(line(f"predict-top-{v}", _command(f"--top={v}"), "top") for v in ("0", "-1", "1_0", "x")),
    *(line(f"predict-batch-{v}", _command(f"--batch={v}"), "batch") for v in ("0", "0x10")),
    *(line(f"predict-workers-{v}", _command(f"--workers={v}"), "workers") for v in ("0", "-1")),
    *(
        line(f"predict-temperature-{v}", _command(f"--temperature={v}"), "temperature")
        for v in ("0", "-1", "nan", "inf", "warm")
    ),
    line("predict-device", _command("--device=tpu"), "device"),
    line("predict-out", _command("--out=a.xls"), "out", ".csv"),
    line("predict-out-without-ending", _command("--out=predictions"), "out", ".csv"),
    line("predict-embeddings-alone", _command("--embeddings=a.npz"), "embeddings", "--out"),
    line("predict-embeddings", _command("--out=a.csv", "--embeddings=a.pt"), "embeddings", ".npz"),
    line("predict-classes-missing", _command("--classes=no.txt"), "classes", "no.txt"),
    line("predict-classes-empty", _command("--classes={a_txt}", a_txt="\n \n"), "classes", "empty"),
    line("predict-classes-one", _command("--classes={a_txt}", a_txt="cat\n"), "classes", "two"),
    line("predict-classes-binary", _command("--classes={a_txt}", a_txt=b"\xff\xfe"), "classes"),
    line("predict-classes-control", _command("--classes={a_txt}", a_txt="a\x01\nb"), "classnames"),
    line(
        "predict-classes-twice",
        _command("--classes={a_txt}", a_txt="red kite\ncat\n\nred_kite\n"),
        *("classes", "line 4", "line 1", "red kite"),
    ),
]
