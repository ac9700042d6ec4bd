"""Keys of the prompts in the public codes' yacs configurations, which depend on each other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from open_clip.tokenizer import SimpleTokenizer

from ..towers.template import POSITIONS
from .yacs_keys import Found, Refused

# the sections of each method, the first that a file has is read
SECTIONS = {
    "advpt": ("ADV", "COOP"),
    "apt": ("COOP",),
    "ampt": ("COOP",),
    "coop": ("COOP",),
    "capt": ("FAP", "MAPLE"),
    "nap": ("MAPLE",),
}
_DEEP = ("capt", "nap")
_PER_CLASS = ("apt", "coop")
_FEW = 4  # MaPLe and FAP ignore CTX_INIT for more tokens
_PRECISIONS = ("fp16", "fp32")
_NO_EFFECT = "no effect"


def prompts(
    method: str, values: Mapping[str, Any], given: Mapping[str, str]
) -> tuple[dict[str, Found], dict[str, str]]:
    """Translate a section of the trainer.

    Args:
        values: its keys and values; those of the attack are left to `rules_of`.
        given: as for `translate_yacs`.

    Returns:
        What the keys stand for, and why others are refused.
    """
    found: dict[str, Found] = {}
    refused: dict[str, str] = {}
    for name, read in _READ.items():
        if name not in values or (name in ("CSC", "CLASS_TOKEN_POSITION") and method in _DEEP):
            continue
        if name == "PROMPT_DEPTH" and method not in _DEEP:
            continue
        try:
            found[name] = read(method, values)
        except Refused as why:
            if name == "PREC" and "precision" in given:
                found[name] = Found(note=f"overridden by {given['precision']}")
            else:
                refused[name] = str(why)
    return found, refused


def _words(method: str, values: Mapping[str, Any]) -> list[str]:
    """Return the words that the code initializes the context with; none if it draws them."""
    init = values.get("CTX_INIT")
    if not init:
        return []
    if not isinstance(init, str):
        raise Refused("is not a text; write words, or '' for random tokens")
    if method in _DEEP and _count(values) > _FEW:
        return []
    words = init.replace("_", " ").split()
    if _tokens(" ".join(words)) != len(words):
        raise Refused("has words of several tokens, which the code cuts; use words of one token")
    return words


def _tokens(text: str) -> int:
    return len(_tokenizer().encode(text))


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()  # reads the vocabulary, which few files need


def _count(values: Mapping[str, Any]) -> int:
    count = values.get("N_CTX", 2)  # MaPLe's default
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise Refused("is not a whole number from 1")
    return count


def _n_ctx(method: str, values: Mapping[str, Any]) -> Found:
    count = _count(values)
    words = [] if method in _DEEP else _quietly(method, values)
    if words:
        return Found(note=f"{_NO_EFFECT}: the context has the {len(words)} tokens of CTX_INIT")
    return Found({"n_ctx": count})


def _quietly(method: str, values: Mapping[str, Any]) -> list[str]:
    try:
        return _words(method, values)
    except Refused:  # told for CTX_INIT
        return []


def _ctx_init(method: str, values: Mapping[str, Any]) -> Found:
    words = _words(method, values)
    if not words:
        drawn = "random tokens"
        if values["CTX_INIT"]:
            drawn = f"{_NO_EFFECT} with more than {_FEW} tokens: {drawn}"
        return Found({"ctx_init": None}, drawn)
    text = " ".join(words)
    if method not in _DEEP:
        return Found({"ctx_init": text})
    count = _count(values)
    if count > len(words):
        raise Refused(f"has fewer words than the {count} tokens of N_CTX; add words")
    learned, fixed = words[:count], words[count:]
    settings: dict[str, Any] = {
        "ctx_init": " ".join(learned),
        "template": " ".join(["[ctx]", *fixed, "{}."]),
    }
    if "N_CTX" not in values:
        settings["n_ctx"] = count
    return Found(settings, f"the words {' '.join(fixed)!r} stay fixed" if fixed else "")


def _class_specific(method: str, values: Mapping[str, Any]) -> Found:
    if not isinstance(values["CSC"], bool):
        raise Refused("is not True or False")
    if values["CSC"] and _quietly(method, values):
        return Found(note=f"{_NO_EFFECT} with CTX_INIT: one context for all classes")
    if method not in _PER_CLASS:
        if values["CSC"]:
            raise Refused(
                f"cannot be expressed by {method}: only {' and '.join(_PER_CLASS)} have "
                "class-specific contexts"
            )
        return Found(note="one context for all classes")
    return Found({"class_specific": values["CSC"]})


def _position(method: str, values: Mapping[str, Any]) -> Found:
    value = values["CLASS_TOKEN_POSITION"]
    if value not in POSITIONS:
        raise Refused(f"is none of {', '.join(POSITIONS)}")
    return Found({"template": POSITIONS[value]})


def _precision(method: str, values: Mapping[str, Any]) -> Found:
    if values["PREC"] not in _PRECISIONS:
        raise Refused(
            f"cannot be expressed, only {' and '.join(_PRECISIONS)}; pass --precision, such as bf16"
        )
    return Found({"precision": values["PREC"]})


def _depth(method: str, values: Mapping[str, Any]) -> Found:
    depth = values["PROMPT_DEPTH"]
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise Refused("is not a whole number from 1")
    return Found({"depth": depth})


_READ = {
    "N_CTX": _n_ctx,
    "CTX_INIT": _ctx_init,
    "CSC": _class_specific,
    "CLASS_TOKEN_POSITION": _position,
    "PREC": _precision,
    "PROMPT_DEPTH": _depth,
}
KEYS = tuple(_READ)
