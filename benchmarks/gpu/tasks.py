"""Tasks of `benchmarks.gpu`, the most valuable first."""

from .attack import attack_rate
from .engines import engines_agree
from .kernels import attention, consistency, mixture, pgd_bandwidth, sanitized
from .smoke import hardware, smoke
from .step import SLOW, fill_caches, tuning_step
from .suites import gpu_tests, kernel_tests
from .task import Task
from .text import many_classes, text_tower

STEP = {"classes": 5, "batch": 2, "steps": 1}
TASKS = (
    Task(
        "hardware",
        "versions, attention's kernel, copy bandwidth, bf16 matmul rate",
        60,
        hardware,
        small={"copied": 2**10},
    ),
    Task("smoke", "a step of each method on two layers: captured, and nothing waits", 90, smoke),
    Task(
        "tests-kernels",
        "the kernels against the plain code, graphs, 2^31 entries; steps never wait",
        480,
        kernel_tests,
    ),
    Task(
        "pgd-step",
        "256 pictures: at least 85 % of a copy's bandwidth",
        90,
        pgd_bandwidth,
        small={"batch": 2, "size": 16, "copied": 2**10},
    ),
    Task(
        "mixture",
        "router and mixture against eager and compiled torch code",
        150,
        mixture,
        small={"batch": 4, "classes": 6, "prompts": 2, "width": 16},
    ),
    Task(
        "attention",
        "shared prefix against fused attention over a copied one",
        90,
        attention,
        small={"classes": 5, "heads": 2, "prefix": 3, "d": 16},
    ),
    Task("tests", "every other test marked gpu", 480, gpu_tests),
    Task(
        "attack",
        "PGD-10, ViT-B/16, batch 256, bf16: at least 45 % of the matmul rate, no gaps",
        240,
        attack_rate,
        small={"batch": 2, "steps": 2, "classes": 5},
    ),
    Task(
        "text-1000",
        "text tower, ImageNet's names, against 77 tokens",
        90,
        text_tower,
        small={"classes": 5},
    ),
    Task("step", "tuning step at NAP's published size, all rungs", 480, tuning_step, small=STEP),
    Task(
        "agreement",
        "both engines, float64, float32, bf16",
        90,
        engines_agree,
        small={"classes": 5},
    ),
    Task(
        "text-21000",
        "21,000 classes in chunks",
        120,
        many_classes,
        small={"classes": 20, "chunks": (8, None)},
    ),
    Task(
        "consistency",
        "both consistency losses against compiled torch code",
        120,
        consistency,
        small={
            **{"layers": 2, "batch": 2, "tokens": 5, "width": 16},
            **{"classes": 6, "images": 4, "copied": 2**10},
        },
    ),
    Task("sanitizer", "the kernels under compute-sanitizer, where it is installed", 480, sanitized),
)
# not a result of its own
CACHES = Task(
    "compile",
    "compiles the ViT-B/16 step and the large batch's attack into the caches",
    480,
    fill_caches,
    small={**STEP, "attacked": 2},
)
# where time is short: bfloat16 alone, and one round of what takes a second and more
SHORT = {
    "mixture": {"low": True},
    "attention": {"low": True},
    "step": {"once": SLOW},
    "tests-kernels": {"seconds": 125},
    "tests": {"seconds": 50, "ladder": False},
}
