"""Trainable modules: text context, deep text and visual prompts, prompt mixtures, refiners."""

from .context import TextContext
from .deep import DeepPrompts, why_no_deep_prompts
from .mixture import Head, MixtureHead, PlainMixtureHead, PromptMixture, PromptRouter
from .refiners import RefinerStart, TokenRefiner
from .values import Prompts, PromptValues

__all__ = [
    "DeepPrompts",
    "Head",
    "MixtureHead",
    "PlainMixtureHead",
    "PromptMixture",
    "PromptRouter",
    "PromptValues",
    "Prompts",
    "RefinerStart",
    "TextContext",
    "TokenRefiner",
    "why_no_deep_prompts",
]
