"""Settings that suit the bundled models, whose text tower never saw long captions."""

from typing import Any

# the presets for the bundled models, whose text tower never saw long captions; found on validation
# images: benchmarks/results/cpu-2-cores/method_sweep.json
SMALL: dict[str, Any] = {
    "n_ctx": 4,
    "ctx_init": "a photo of a",
    "eps": 2 / 255,
    "steps": 2,
    "epochs": 6,
    "optimizer": "adamw",
    "lr": 2e-3,
    "weight_decay": 5e-4,
    "warmup_epochs": 0,
    "keep": "last",  # four validation images a class are too few to choose an epoch by
    "augment": False,
}
