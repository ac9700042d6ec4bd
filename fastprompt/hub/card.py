"""The model card of saved prompts, README.md: how to use them and how far to trust them."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2

from .._utils.checks import some
from .._utils.printable import printable
from ..evaluation import Evaluation
from ..evaluation.result import THREAT_MODEL

# settings of an attack while tuning, which methods without one do not have
_ATTACK = ("eps", "eps_min", "steps", "alpha", "random_start", "clamp", "attack_loss", "objective")


def write_card(
    config: Mapping[str, Any],
    result: Evaluation | None,
    repo: str | None,
    paper: str,
    attacked: bool,
) -> str:
    """Return the card in Markdown, with the Hub's metadata in front.

    Args:
        config: the content of ``prompt_config.json``.
        result: the evaluation of the prompts; without one the card says that there is none.
        repo: the repository, such as ``"org/run"``; None for a folder.
        paper: address of the method's paper; may be empty.
        attacked: whether the method tunes on adversarial images.
    """
    from huggingface_hub import ModelCardData

    method, clip, settings = config["method"], config["clip"], config["config"]
    head = ModelCardData(
        library_name="fastprompt",
        pipeline_tag="image-classification",
        tags=["clip", "prompt-tuning", "adversarial-robustness", method],
        base_model=_hub_id(clip),
    )
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    ).from_string(resources.files(__package__).joinpath("card.md.j2").read_text("utf-8"))
    text = template.render(
        head=head.to_yaml(),
        method=method,
        clip=_plain(clip["name"]),
        fingerprint=clip["fingerprint"],
        source=_json(clip["source"]),
        classes=len(config["classnames"]),
        classnames=_plain(some(config["classnames"])),
        attack=_json(_attack(settings)) if attacked else None,
        data=_data(config.get("data")),
        repo=repo or "path/to/this/folder",
        paper=paper,
        threat=THREAT_MODEL,
        result=None if result is None else _facts(result),
        versions=_json(config.get("versions")),
    )
    return printable(text, keep="\n")


def _attack(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the attack while tuning."""
    keys = (*_ATTACK, "trades_beta") if settings.get("objective") == "trades" else _ATTACK
    return {key: settings[key] for key in keys if settings.get(key) is not None}


def _hub_id(clip: Mapping[str, Any]) -> str | None:
    """Return the base model's repository on the Hub, if it came from there."""
    model = str((clip["source"] or {}).get("model", ""))
    return model.removeprefix("hf-hub:") if model.startswith("hf-hub:") else None


def _facts(result: Evaluation) -> dict[str, Any]:
    """Return what the card says of an evaluation."""
    data, checks = result.data, [check["verdict"] for check in result.sanity]
    attacks = {row["attack"]: row["settings"] for row in result.rows if row["settings"]}
    n = data.get("n") or result.rows[0]["n"]
    return {
        "table": result.table().replace("```", "'''"),
        "trusted": result.trusted,
        "reasons": [_plain(reason) for reason in result.reasons],
        "checks": ", ".join(f"{checks.count(v)} {v}" for v in ("passed", "failed", "skipped")),
        "images": f"{n:,} of {data.get('of') or n:,} test images",
        "name": _plain(str(data.get("name") or "images without a name")),
        "seed": result.how.get("seed"),
        "scoring": result.scoring,
        "attacks": [(_plain(name), _json(settings)) for name, settings in attacks.items()],
        "versions": _json(result.versions),
    }


def _data(data: Mapping[str, Any] | None) -> str:
    """Describe the training images in one line."""
    if not data:
        return "not recorded"
    name = data.get("name") or f"{data.get('type') or 'images'} (not public)"
    facts = {key: data.get(key) for key in ("shots", "seed", "classes", "splits", "few_shots")}
    known = ", ".join(f"{k}={v}" for k, v in facts.items() if v is not None)
    return _plain(f"{name}; {known}" if known else str(name))


def _plain(text: str) -> str:
    """Return a name from a file for the inside of a `code` span on one line."""
    return " ".join(text.replace("`", "'").split())


def _json(value: object) -> str:
    """Return plain values on one line, which can end neither a code span nor a fence."""
    return _plain(json.dumps(value))
