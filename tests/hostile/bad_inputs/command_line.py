"""All commands of ``fastprompt``."""

import json
from typing import Any

import torch

from .models import FILES, saved
from .rows import World, line

_TUNE = ["tune", "apt", "--data", "shapes", "--epochs", "1"]
_EVALUATE = ["evaluate", "--data", "shapes", "--out", "new"]


def _option(command: list[str], option: str, value: str, *words: str) -> Any:
    shown = repr(value[:20]).strip("'")
    arguments = [*command, f"--{option}={value}"]
    # an unknown attack or defense is named in the singular
    return line(f"{command[0]}-{option}-{shown}", arguments, *(words or [option.rstrip("s")]))


_EXPORT = ["export", "missing", "--out", "model.pt2"]
_WHOLE = ("0x10", "1_0", "010", "1:30", "1e3", "1.5", "three", "9" * 5000, "-1", "[1]")
_ONE = ("0x10", "three", "nan", "inf", "-1", "1e308", "1_0.5")
ROWS = [
    *(_option(_TUNE, "shots", value) for value in (*_WHOLE, "0")),
    *(_option(_TUNE, "epochs", value) for value in (*_WHOLE, "0", "null")),
    *(_option(_TUNE, "batch", value) for value in ("0x10", "1_0", "0")),
    *(_option(_TUNE, "seed", value) for value in ("0x10", "1_0", "-1", str(2**32), "null")),
    *(_option(_TUNE, "data_seed", value) for value in ("0x10", "-1", str(2**64))),
    *(_option(_TUNE, "eval_limit", value) for value in ("0", "-1", "0x10", str(10**30))),
    *(_option(_TUNE, "eval_batch", value) for value in ("0", "-1", "1_0")),
    *(_option(_TUNE, "seeds", value) for value in ("0x10", "-1", "a")),
    *(_option(_TUNE, "lr", value) for value in (*_ONE, "0")),
    *(_option(_TUNE, "momentum", value) for value in ("2", "nan", "-0.1")),
    *(_option(_TUNE, "eps", value) for value in ("four", "4/0", "1_0/255", "300", "nan", "-1/255")),
    *(_option(_TUNE, "eval_eps", value) for value in ("four", "0x1", "1/255,2", "[[1]]")),
    *(_option(_TUNE, "attacks", value) for value in ("gpd-2", "", "pgd-0", "[" * 99)),
    _option(_TUNE, "attacks", "pgd-1@x", "surrogate"),
    *(_option(_TUNE, "optimizer", value) for value in ("adam", "", "3")),
    *(_option(_TUNE, "classes", value) for value in ("bas", "3")),
    *(_option(_TUNE, "sanity", value) for value in ("slow", "true")),
    *(_option(_TUNE, "search_precision", value) for value in ("fp8", "64", "true")),
    *(_option(_TUNE, "confirm", value) for value in ("maybe", "3")),
    *(_option(_TUNE, "track", value) for value in ("maybe", "3", "tensorboard,maybe", ",", "")),
    line("push-without-repo", ["push", "run"], "repo"),
    line("push-no-org", ["push", "run", "mine"], "repo", "org/run"),
    line("push-missing", ["push", "missing", "org/run"], "missing", "config.json"),
    line("push-nothing", ["push"], "run"),
    *(_option(_TUNE, "template", value) for value in ("[ctx].", "{}", "[ctx] {", "a\0b")),
    *(_option(_TUNE, "device", value) for value in ("meta", "cuda:99", "mps", "tpu", "")),
    *(_option(_TUNE, "precision", value) for value in ("fp8", "64")),
    *(_option(_TUNE, "n_ctx", value) for value in ("0", "1_0", str(10**9))),
    *(_option(_TUNE, "config", value) for value in ("missing.yaml", "", ".")),
    *(_option(_TUNE, "resume", value) for value in ("missing", "")),
    *(_option(_EXPORT, "limit", value) for value in ("0", "-1", "0x10", "1_0", str(10**30))),
    *(_option(_EXPORT, "format", value) for value in ("tflite", "3", "")),
    *(_option(_EXPORT, "out", value, "path") for value in ("", "model.bin", "a\0.onnx")),
    *(_option(_EXPORT, "opset", value) for value in ("three", "1_8", "1.5")),
    _option(_EXPORT, "int8", "true", "int8"),
    *(_option(_EVALUATE, "eps", value) for value in ("four", "4/0", "0x1", "300", "nan")),
    *(_option(_EVALUATE, "limit", value) for value in ("0", "-1", "0x10", "1_0", str(10**30))),
    *(_option(_EVALUATE, "batch", value) for value in ("0", "-1", "0x10", "null")),
    *(_option(_EVALUATE, "samples", value) for value in ("0", "-1", "1_0", str(10**30))),
    *(_option(_EVALUATE, "seeds", value) for value in ("-1", "0x10", "a", str(2**32))),
    *(_option(_EVALUATE, "attacks", value) for value in ("gpd-2", "", f"pgd-{10**30}")),
    _option(_EVALUATE, "attacks", "pgd-1@x", "surrogate"),
    *(_option(_EVALUATE, "defenses", value) for value in ("jpg", "jpeg-0", "jpeg-1_0", "smooth")),
    *(_option(_EVALUATE, "device", value) for value in ("meta", "cuda:99", "mps", "tpu")),
    *(_option(_EVALUATE, "sanity", value) for value in ("slow", "false")),
    *(_option(_EVALUATE, "search_precision", value) for value in ("fp8", "", "null")),
    *(_option(_EVALUATE, "confirm", value) for value in ("maybe", "null")),
    line("no-command", [], "usage"),
    line("unknown-command", ["tuna"], "tune"),
    line("tune-without-method", ["tune"], "usage"),
    line("tune-unknown-method", ["tune", "nab"], "nap"),
    line("tune-unknown-option", [*_TUNE, "--epoch", "3"], "--epoch", "--epochs"),
    line("tune-unknown-data", ["tune", "apt", "--data", "shape"], "data", "shapes"),
    line("tune-unknown-clip", [*_TUNE, "--clip", "tiny"], "model", "tiny-shapes"),
    line("tune-no-such-folder", ["tune", "apt", "--data", "./no"], "data", "./no"),
    line("tune-option-without-value", [*_TUNE, "--lr"], "lr"),
    line("tune-resume-with-more", ["tune", "apt", "--resume", "a", "--lr", "1"], "--resume"),
    line("tune-seeds-and-seed", [*_TUNE, "--seeds", "1", "--seed", "2"], "--seeds"),
    line("tune-seeds-twice", [*_TUNE, "--seeds", "1", "1"], "seeds", "distinct"),
    line("tune-published-of-ampt", ["tune", "ampt", "--published"], "AMPTConfig", "published"),
    line("evaluate-nothing", ["evaluate"], "run"),
    line("evaluate-missing-run", ["evaluate", "no-run"], "no-run"),
    line("evaluate-without-out", ["evaluate", "--data", "shapes"], "run", "--out"),
    line("evaluate-unknown-option", [*_EVALUATE, "--epsilon", "3"], "--epsilon", "--eps"),
    line("evaluate-seeds-twice", [*_EVALUATE, "--seeds", "1", "1"], "seeds", "distinct"),
    line("evaluate-unknown-data", ["evaluate", "--data", "shape", "--out", "new"], "data"),
    line("evaluate-unknown-clip", [*_EVALUATE, "--clip", "tiny"], "model"),
    line("evaluate-ray-nonsense", [*_EVALUATE, "--ray", "nonsense"], "--ray", "HOST:PORT"),
    line("predict-ray-nonsense", ["predict", "a", "b", "--ray=a:b"], "--ray", "HOST:PORT"),
    line("tune-ray-of-apt", ["tune", "apt", "--ray"], "--ray"),
    line("tune-ray-nonsense", ["tune", "advpt", "--ray", "nonsense"], "--ray", "HOST:PORT"),
    line("evaluate-resume-with-more", ["evaluate", "--resume", "a", "--eps", "1"], "--resume"),
    line("report-nothing", ["report"], "runs"),
    line("report-missing", ["report", "no-run"], "runs", "no-run"),
    line("report-out", lambda w: ["report", str(w.runs / "nap"), "--out", "a.txt"], "out", ".html"),
    line("report-unknown-option", lambda w: ["report", str(w.runs), "--format", "x"], "--format"),
    line("import-nothing", ["import"], "checkpoint"),
    line("import-without-out", ["import", "a.pt"], "--out"),
    line("import-missing", ["import", "a.pt", "--out", "new"], "path", "a.pt"),
    line("data-unknown", ["data", "chek", "."], "'chek'", "check"),
    line("data-check-nowhere", ["data", "check", "no/such"], "root", "folder"),
    line("data-check-option", ["data", "check", ".", "--fast"], "--fast"),
    line("data-check-nothing", ["data", "check"], "root"),
    line("tune-data-coop", [*_TUNE[:2], "--data", "coop:DTDs"], "data", "DTD"),
    line("tune-data-coop-absent", [*_TUNE[:2], "--data", "coop:DTD"], "data", "root"),
    line("doctor-option", ["doctor", "--fast"], "--fast"),
    line("doctor-argument", ["doctor", "now"], "now"),
]


def _import(content: bytes, *more: str) -> Any:
    return lambda w: ["import", str(w.file("model.pt", content)), "--out", "new", *more]


ROWS += [
    line(f"import-{kind}", lambda w, c=content: _import(c())(w), "path", word)
    for kind, (content, word) in FILES.items()
]
_CTX = saved({"ctx": torch.zeros(2, 99)})
ROWS += [
    line("import-other-width", _import(_CTX), "clip", "99"),
    line("import-method", _import(_CTX, "--method", "nap"), "method"),
    line("import-device", _import(_CTX, "--device", "meta"), "device"),
    line("import-missing-names", _import(_CTX, "--classnames", "no.txt"), "classnames"),
    line(
        "import-empty-names",
        lambda w: _import(_CTX, "--classnames", str(w.file("names.txt", "\n")))(w),
        "classnames",
    ),
    line(
        "import-binary-names",
        lambda w: _import(_CTX, "--classnames", str(w.file("names.txt", b"\xff\xfe\0")))(w),
        "classnames",
    ),
    line("import-unknown-data", _import(_CTX, "--data", "shape"), "data"),
]


def _resumed(w: World, change: Any) -> list[str]:
    config = json.loads((w.runs / "tuned" / "config.json").read_text())
    change(config)
    return ["tune", "apt", "--resume", str(w.file("run/config.json", json.dumps(config)).parent)]


def _job(**changes: Any) -> Any:
    def change(config: dict[str, Any]) -> None:
        config["job"] = {**config["job"], **changes}

    return change


_JOBS = {
    "job-missing": (lambda c: c.pop("job"), "--resume"),
    "job-list": (lambda c: c.update(job=[]), "--resume"),
    "job-empty": (lambda c: c.update(job={}), "lacks"),
    "job-shots": (_job(shots="x"), "shots"),
    "job-device": (_job(device="meta"), "device"),
    "job-attacks": (_job(attacks="gpd-1"), "attack"),
    "job-attacks-number": (_job(attacks=3), "attacks"),
    "job-data": (_job(data="shape"), "data"),
    "threads-missing": (lambda c: c.pop("threads", None), "threads"),
    "threads-0": (lambda c: c.update(threads=0), "threads"),
    "threads-True": (lambda c: c.update(threads=True), "threads"),
    "threads-1e9": (lambda c: c.update(threads=10**9), "threads"),
    "method": (lambda c: c.update(method="nap"), "nap"),
    "epochs": (lambda c: c["config"].update(epochs=0), "epochs"),
}
ROWS += [
    line(f"tune-resume-{kind}", lambda w, c=change: _resumed(w, c), word)
    for kind, (change, word) in _JOBS.items()
]
_EVALUATIONS = {
    "missing": (None, "job.json"),
    "empty": ("", "job.json"),
    "a list": ("[]", "job.json"),
    "nested": ("[" * 100_000, "job.json"),
    "an unknown key": ('{"zeal": 1}', "zeal"),
    "a batch in words": ('{"batch": "many"}', "batch"),
    "an empty job": ("{}", "run"),
}


def _evaluated(w: World, content: str | None) -> list[str]:
    folder = w.folder / "evaluation"
    folder.mkdir(exist_ok=True)
    if content is not None:
        w.file("evaluation/job.json", content)
    return ["evaluate", "--resume", str(folder)]


ROWS += [
    line(f"evaluate-resume-{kind}", lambda w, c=content: _evaluated(w, c), word)
    for kind, (content, word) in _EVALUATIONS.items()
]
