"""yacs configurations of the public codes: what each key becomes, and what is refused."""

import dataclasses

import pytest

from fastprompt.evaluation.plan import plan_attacks
from fastprompt.interop import translate_yacs
from fastprompt.methods.registry import TUNERS

# the files of the public codes, as they are published
INPUT = """
INPUT:
  SIZE: (224, 224)
  INTERPOLATION: "bicubic"
  PIXEL_MEAN: [0.48145466, 0.4578275, 0.40821073]
  PIXEL_STD: [0.26862954, 0.26130258, 0.27577711]
  TRANSFORMS: ["random_resized_crop", "random_flip", "normalize"]
"""
OPTIM = """
OPTIM:
  NAME: "sgd"
  LR: 0.002
  MAX_EPOCH: 50
  LR_SCHEDULER: "cosine"
  WARMUP_EPOCH: 1
  WARMUP_TYPE: "constant"
  WARMUP_CONS_LR: 1e-5
  WEIGHT_DECAY: 5e-4
TRAIN:
  PRINT_FREQ: 5
"""
LOADER = """
DATALOADER:
  TRAIN_X:
    BATCH_SIZE: 32
  TEST:
    BATCH_SIZE: 100
  NUM_WORKERS: 8
"""
VIT_B32 = 'MODEL:\n  BACKBONE:\n    NAME: "ViT-B/32"\n'
DATASET = "DATASET:\n  NAME: OxfordFlowers\n  ROOT: /data\n  NUM_SHOTS: 16\n"
COMMON = INPUT + OPTIM + LOADER + VIT_B32

SETTINGS = {
    **{"optimizer": "sgd", "lr": 0.002, "epochs": 50, "warmup_epochs": 1, "warmup_lr": 1e-5},
    **{"weight_decay": 5e-4, "batch": 32, "workers": 8, "augment": True},
    "crops": "exact",
}
MODEL = {"clip": "ViT-B-32", "pretrained": "openai", "image_size": 224, "eval_batch": 100}


@pytest.fixture
def write(tmp_path):
    def written(text, name="config.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return written


@pytest.fixture
def translate(write):
    def translated(method, text, **options):
        return translate_yacs(method, write(text), **options)

    return translated


# ---- the trainers ------------------------------------------------------------------------------


CASES = {
    "apt": (
        COMMON + "TRAINER:\n  COOP:\n    N_CTX: 16\n    CSC: True\n    CTX_INIT: ''\n"
        "    CLASS_TOKEN_POSITION: middle\n    PREC: fp16\n"
        "AT:\n  EPS: 0.01568627450980392\n  ALPHA: 2.67\n  STEPS: 3\n  PROMPT: onfly\n"
        "  PALPHA: 0\n",
        {
            **SETTINGS,
            **{"n_ctx": 16, "ctx_init": None, "class_specific": True, "precision": "fp16"},
            **{"template": "[ctx] {} [ctx].", "eps": 0.01568627450980392, "alpha": "2.67/255"},
            "steps": 3,
        },
        MODEL,
    ),
    "coop": (
        COMMON + "TRAINER:\n  NAME: CoOp\n  COOP:\n    N_CTX: 16\n    CSC: True\n"
        "    CTX_INIT: ''\n    CLASS_TOKEN_POSITION: end\n    PREC: fp16\n",
        {
            **SETTINGS,
            **{"n_ctx": 16, "ctx_init": None, "class_specific": True, "precision": "fp16"},
            "template": "[ctx] {}.",
        },
        MODEL,
    ),
    "ampt": (
        COMMON + "TRAINER:\n  NAME: CoOp\n  COOP:\n    N_CTX: 4\n    CLASS_TOKEN_POSITION: end\n"
        "    CSC: False\nAT:\n  EPS: 4/255\n",
        {**SETTINGS, "n_ctx": 4, "template": "[ctx] {}.", "eps": "4/255"},
        MODEL,
    ),
    "advpt": (
        COMMON + "TRAINER:\n  ADV:\n    N_CTX: 32\n    CSC: False\n    CTX_INIT: ''\n"
        "    CLASS_TOKEN_POSITION: front\n    PREC: fp32\n"
        "DATASET:\n  TRAIN_EPS: 8\n  TEST_EPS: 16\n",
        {
            **{k: v for k, v in SETTINGS.items() if k not in ("augment", "crops")},
            **{"n_ctx": 32, "ctx_init": None, "template": "{} [ctx].", "precision": "fp32"},
            "eps": "8/255",
        },
        {**MODEL, "eval_eps": "16/255"},
    ),
    "nap": (
        COMMON + "TRAINER:\n  MAPLE:\n    N_CTX: 2\n    CTX_INIT: a photo of a\n    PREC: fp32\n"
        "    PROMPT_DEPTH: 9\n    EPSILON: 0.00392156862745098\n    ADV_STEPS: 5\n"
        "    TEST_EPSILON: 4/255\n    TEST_STEPS: 100\n",
        {
            **SETTINGS,
            **{"n_ctx": 2, "ctx_init": "a photo", "template": "[ctx] of a {}.", "depth": 9},
            **{"precision": "fp32", "eps": 0.00392156862745098, "steps": 5},
        },
        {**MODEL, "eval_eps": "4/255", "attacks": "clean,pgd-100"},
    ),
    "capt": (
        COMMON + "TRAINER:\n  FAP:\n    N_CTX: 2\n    CTX_INIT: a photo of a\n    PROMPT_DEPTH: 9\n"
        "ATTACK:\n  PGD:\n    EPS: 1\n    ALPHA: 1\n    TRAIN_ITER: 2\n    TEST_ITER: 100\n"
        "    LAMBDA_1: 1.5\n",
        {
            **SETTINGS,
            **{"n_ctx": 2, "ctx_init": "a photo", "template": "[ctx] of a {}.", "depth": 9},
            **{"eps": "1/255", "alpha": "1/255", "steps": 2, "lam": 1.5},
        },
        {**MODEL, "eval_eps": "1/255", "attacks": "clean,pgd-100:1/255"},
    ),
}


@pytest.mark.parametrize("method", CASES)
def test_the_files_of_each_trainer(translate, method):
    text, settings, job = CASES[method]
    found = translate(method, text)
    assert found.settings == settings
    assert found.job == job
    config = TUNERS[method].Config(**{**found.base, **found.settings})
    if method in ("apt", "advpt", "coop", "nap"):  # the rest is that of the authors' code
        published = dataclasses.asdict(TUNERS[method].Config.published())
        rest = {k: v for k, v in dataclasses.asdict(config).items() if k not in settings}
        assert rest == {k: v for k, v in published.items() if k not in settings}
        assert str(found).endswith(f"all other settings: the published settings of {method}")
    else:
        assert str(found).endswith(f"all other settings: the defaults of {method}")
    keys = [line.partition(" = ")[0] for line in found.lines]
    assert len(keys) == len(set(keys))
    assert {"INPUT.SIZE", "OPTIM.LR", "TRAIN.PRINT_FREQ", "INPUT.PIXEL_STD"} <= set(keys)


def test_data_and_seed(translate):
    text = DATASET + "  SUBSAMPLE_CLASSES: base\nSEED: 2\nTEST:\n  FINAL_MODEL: best_val\n"
    found = translate("nap", text)
    assert found.job == {
        **{"data": "coop:Flowers102", "root": "/data", "shots": 16, "classes": "base"},
        "data_seed": 2,
    }
    assert found.settings == {"seed": 2, "keep": "best"}
    assert translate("nap", "DATASET: {NUM_SHOTS: -1, ROOT: ''}\nSEED: -1\n").job == {
        "shots": "all"
    }
    assert "~" not in translate("nap", "DATASET: {ROOT: ~/data}").job["root"]


def test_the_file_of_the_trainer_wins(write):
    one = write(DATASET + OPTIM)
    two = write("OPTIM:\n  LR: 0.1\nTRAINER:\n  COOP:\n    N_CTX: 3\n", "trainer.yaml")
    found = translate_yacs("apt", one, two)
    assert (found.settings["lr"], found.settings["epochs"], found.job["shots"]) == (0.1, 50, 16)
    assert found.settings["n_ctx"] == 3
    with pytest.raises(ValueError, match=r"yacs: .*trainer\.yaml: OPTIM\.NAME = 'adam'"):
        translate_yacs("apt", one, write("OPTIM: {NAME: adam}", "trainer.yaml"))


@pytest.mark.parametrize(
    ("alpha", "size"),
    [(0.00392156862745098, "1/255"), ("2/255", "2/255"), (0.67 / 255, "0.67/255")],
)
def test_the_step_size_of_fap_is_that_of_its_test(translate, alpha, size):
    found = translate("capt", f"ATTACK: {{PGD: {{ALPHA: {alpha}, TEST_ITER: 3}}}}")
    assert found.job["attacks"] == f"clean,pgd-3:{size}"
    (plan,) = plan_attacks(found.job["attacks"], "1/255")
    tuning = TUNERS["capt"].Config(**found.settings).step_size
    assert plan.settings["alpha"] == pytest.approx(tuning, rel=1e-11)
    attacks = translate("capt", "ATTACK: {PGD: {TEST_ITER: 3}}").job["attacks"]
    assert attacks == "clean,pgd-3"


def test_words_of_coop_give_the_number_of_tokens(translate):
    text = "TRAINER:\n  COOP:\n    N_CTX: 16\n    CTX_INIT: a_photo_of_a\n    CSC: True\n"
    found = translate("apt", text)
    assert found.settings == {"ctx_init": "a photo of a"}
    assert "TRAINER.COOP.N_CTX = 16: no effect: the context has the 4 tokens of CTX_INIT" in (
        found.lines
    )
    assert any("CSC = True: no effect with CTX_INIT" in line for line in found.lines)


def test_maple_draws_more_than_four_tokens_at_random(translate):
    text = "TRAINER:\n  MAPLE:\n    N_CTX: 16\n    CTX_INIT: a photo of a\n"
    assert translate("nap", text).settings == {"n_ctx": 16, "ctx_init": None}
    text = "TRAINER:\n  MAPLE:\n    CTX_INIT: a photo of a\n"  # MaPLe's default of N_CTX is 2
    assert translate("nap", text).settings["n_ctx"] == 2
    text = "TRAINER:\n  MAPLE:\n    N_CTX: 4\n    CTX_INIT: a photo of a\n"
    assert translate("nap", text).settings["template"] == "[ctx] {}."


# ---- overridden --------------------------------------------------------------------------------


def test_what_is_given_elsewhere_wins_is_said_and_is_not_refused(translate):
    text = OPTIM.replace("sgd", "adam") + VIT_B32 + "    ROBUST: true\n" + DATASET
    text += "AT: {EPS: 0.5}\nTRAINER: {COOP: {PREC: amp}}\nSEED: 3\n"
    given = {name: f"--{name}" for name in ("optimizer", "lr", "clip", "eps", "precision", "data")}
    found = translate("apt", text, given=given | {"seed": "--seeds"})
    assert not {"optimizer", "lr", "eps", "precision", "seed"} & found.settings.keys()
    assert not {"clip", "pretrained", "data"} & found.job.keys()
    assert (found.job["root"], found.job["data_seed"]) == ("/data", 3)
    for line in (
        "OPTIM.NAME = 'adam': overridden by --optimizer",
        "OPTIM.LR = 0.002: lr overridden by --lr",
        "MODEL.BACKBONE.ROBUST = True: overridden by --clip",
        "AT.EPS = 0.5: overridden by --eps",
        "TRAINER.COOP.PREC = 'amp': overridden by --precision",
        "SEED = 3: seed overridden by --seeds, data_seed = 3",
    ):
        assert line in found.lines


# ---- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "text", "message"),
    [
        ("apt", "OPTIM: {NAME: adam}", "OPTIM.NAME = 'adam' cannot .*sgd, adamw; pass --optimizer"),
        ("apt", "OPTIM: {LR_SCHEDULER: single_step}", "LR_SCHEDULER = 'single_step' .*remove it"),
        ("apt", "OPTIM: {WARMUP_TYPE: linear}", "WARMUP_TYPE = 'linear' cannot .*constant"),
        ("apt", "OPTIM: {MAX_EPOCH: 2.5}", "MAX_EPOCH = 2.5 is not a whole number from 1"),
        ("apt", "OPTIM: {LR: fast}", "OPTIM.LR = 'fast' .*lr"),
        ("apt", "OPTIM: {LRR: 1}", "OPTIM.LRR = 1 is no known key of apt: .*'OPTIM.LR'.*remove"),
        ("apt", "INPUT: {SIZE: (224, 256)}", r"SIZE = .*224.*square; pass --image_size"),
        ("apt", "INPUT: {INTERPOLATION: bilinear}", "INTERPOLATION = 'bilinear' .*bicubic; remove"),
        ("apt", "INPUT: {PIXEL_MEAN: [0.5, 0.5, 0.5]}", "PIXEL_MEAN = .* not OpenAI's .*remove it"),
        ("apt", "INPUT: {TRANSFORMS: [colorjitter]}", "TRANSFORMS = .*colorjitter.*pass --augment"),
        ("apt", "INPUT: {TRANSFORMS: [random_flip]}", "TRANSFORMS = .*random_flip.*--augment"),
        ("apt", "INPUT: {TRANSFORMS: [normalize]}", "TRANSFORMS = .*Dassl stretches .*--augment="),
        ("nap", "INPUT: {TRANSFORMS: center_crop}", "TRANSFORMS = 'center_crop' .*--augment=false"),
        ("apt", "MODEL: {BACKBONE: {NAME: resnet18}}", "'resnet18' is none of RN50.*pass --clip"),
        ("apt", "MODEL: {BACKBONE: {ROBUST: true}}", "ROBUST = True needs .*--image_weights"),
        ("apt", "DATASET: {NAME: CIFAR10}", "DATASET.NAME = 'CIFAR10' is no data set .*--data"),
        ("apt", "DATASET: {SUBSAMPLE_CLASSES: half}", "'half' cannot .*all, base, new"),
        ("apt", "TRAINER: {COOP: {PREC: amp}}", "PREC = 'amp' .*fp16 and fp32; pass --precision"),
        ("apt", "TRAINER: {COOP: {CSC: maybe}}", "CSC = 'maybe' is not True or False"),
        ("apt", "TRAINER: {COOP: {CTX_INIT: photorealism}}", "words of several tokens"),
        ("apt", "TRAINER: {COOP: {CLASS_TOKEN_POSITION: top}}", "'top' is none of end, middle"),
        ("apt", "TRAINER: {COOP: {PROMPT_DEPTH: 9}}", "PROMPT_DEPTH = 9 is no known key of apt"),
        ("apt", "TRAINER: {NAME: MaPLe}", "NAME = 'MaPLe' cannot .*APT; choose the method"),
        ("apt", "AT: {PROMPT: optimized}", "AT.PROMPT = 'optimized' cannot .*onfly; remove it"),
        ("apt", "AT: {ALPHA: 0.67}", "AT.ALPHA = 0.67 may be .*write it as '4/255'"),
        ("advpt", "TRAINER: {ADV: {CSC: true}}", "CSC = True cannot .*only apt"),
        ("nap", "TRAINER: {COOP: {N_CTX: 4}}", "COOP.N_CTX = 4 is no known .*TRAINER.MAPLE.N_CTX"),
        ("nap", "TRAINER: {MAPLE: {ADV_TRAIN: false}}", "ADV_TRAIN = False cannot"),
        ("nap", "TRAINER: {MAPLE: {N_CTX: 3, CTX_INIT: a photo}}", "fewer words than the 3 tokens"),
        ("nap", "TRAINER: {MAPLE: {PROMPT_HIDDEN_DIM: 64}}", "PROMPT_HIDDEN_DIM = 64 is no known"),
        ("coop", "AT: {EPS: 4/255}", "AT.EPS = '4/255' is no known key of coop"),
        ("coop", "TRAINER: {NAME: APT}", "NAME = 'APT' cannot .*CoOp; choose the method"),
        ("capt", "ATTACK: {PGD: {TEST_ITER: 9, ALPHA: x}}", "TEST_ITER = 9 has steps of .*ALPHA ="),
        ("capt", "ATTACK: {PGD: {ADV_TERM: cos}}", "ADV_TERM = 'cos' is a factor of FAP's loss"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(translate, method, text, message):
    with pytest.raises(ValueError, match=rf"^yacs: .*config\.yaml: .*{message}"):
        translate(method, text)


def test_all_refused_keys_are_named(translate):
    with pytest.raises(ValueError, match=r"OPTIM\.NAME = 'adam' .*; likewise OPTIM\.LRR, X$"):
        translate("apt", "OPTIM: {NAME: adam, LRR: 1}\nX: 1\n")


@pytest.mark.parametrize("text", ["a: [1", "- 1", "a: &x 1\nb: *x", "!!python/object:os.system {}"])
def test_a_file_that_is_no_yacs_file_is_told(translate, text):
    with pytest.raises(ValueError, match=r"^yacs: .*config\.yaml (is not valid|must contain)"):
        translate("apt", text)


def test_a_missing_file_and_an_unknown_method_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^yacs: file .*none\.yaml does not exist"):
        translate_yacs("apt", tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="unknown method 'maple'"):
        translate_yacs("maple", tmp_path / "none.yaml")


def test_a_method_of_another_package_is_refused(translate, monkeypatch):
    monkeypatch.setitem(TUNERS, "mine", TUNERS["apt"])
    with pytest.raises(ValueError, match=r"^yacs: .* for mine, only for advpt, .*--config"):
        translate("mine", COMMON)


def test_every_method_has_a_translation():
    assert set(CASES) == {n for n, tuner in TUNERS.items() if "fastprompt." in tuner.__module__}
