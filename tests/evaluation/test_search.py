"""Attacks that search on a copy in another precision: the model's own predictions count."""

import json
import threading

import pytest
import torch
from torch import nn

from fastprompt import APTTuner, BitDepth, Defended, evaluate, load_data
from fastprompt.attacks import FeaturePGD
from fastprompt.data import ImageTensors
from fastprompt.evaluation import plan, search
from fastprompt.evaluation.record import Record
from fastprompt.evaluation.stages import How

QUIET = {"sanity": "off", "progress": False}


def grays(levels):
    """Gray images; class 1 if the level is above 127."""
    images = torch.stack([torch.full((3, 16, 16), v, dtype=torch.uint8) for v in levels])
    return ImageTensors(images, torch.tensor([int(v > 127) for v in levels]))


# under 4/255, the levels from 124 to 131 fall
DATA = grays([100, 118, 122, 124, 126, 129, 131, 134, 160])


class Planted(nn.Module):
    """Class 1 if the mean pixel is above one half; a twin in another precision sees it wrongly.

    ``"early"``: dark images become class 1 three levels too soon. ``"flat"``: there is no gradient.
    ``"misled"``: the gradient points to images that are classified with more confidence.
    """

    def __init__(self, kind, precision="fp32"):
        super().__init__()
        self.kind, self.precision = kind, precision

    def in_precision(self, precision):
        return Planted(self.kind, precision)

    def forward(self, x):
        own = self.precision == "fp32"
        level = 127.5 if own or self.kind != "early" else 124.5
        margin = 50 * (x.mean(dim=(1, 2, 3)) - level / 255)
        if not own and self.kind != "early":
            margin = margin.detach()
        if not own and self.kind == "misled":
            pull = -(x.mean(dim=(1, 2, 3)) - 0.5).abs()
            margin = margin + margin.sign() * (pull - pull.detach())
        return torch.stack([-margin, margin], dim=1)


def rows_of(model, attacks, data=DATA, eps="4/255", **options):
    """The row of each attack, as evaluated on the model itself, and with a search in bfloat16."""
    own, low, sure = (
        evaluate(model, data, attacks, eps, **QUIET, **options, **how).rows[1:]
        for how in (
            {"search_precision": "own"},
            {"search_precision": "bf16", "confirm": False},
            {"search_precision": "bf16"},
        )
    )
    return zip(own, low, sure, strict=True)


def standing(row):
    return {place for place, flag in enumerate(row["flags"]) if flag == "1"}


@pytest.mark.parametrize(
    ("kind", "stop"), [("early", True), ("flat", True), ("misled", True), ("misled", False)]
)
def test_what_stands_after_the_search_is_confirmed_on_the_model(kind, stop):
    for own, low, sure in rows_of(Planted(kind), ["pgd-9", "cw-9", "apgd-ce-9"], stop=stop):
        assert sure["flags"] == own["flags"]
        assert own["flags"].count("0") == 4
        stand = low["flags"].count("1")
        if kind == "flat":  # an image without a usable gradient does not count as robust
            assert stand == 0 < low["stalled"]
        else:
            assert low["accuracy"] > own["accuracy"]
        assert "confirmed" not in low
        assert sure["confirmed"]["attacked"] == low["flags"].count("1") + low["stalled"]
        assert sure["confirmed"]["fell"] == sum(
            a != b for a, b in zip(own["flags"], low["flags"].replace("?", "1"), strict=True)
        )
        for key in ("forwards", "gradients"):
            assert sure[key] == low[key] + sure["confirmed"][key]
        if stop:
            assert sum(own["fell_at"].values()) == sum(sure["fell_at"].values()) == 4
            assert sum(low["fell_at"].values()) == low["flags"].count("0")


def test_rows_say_both_precisions(tmp_path):
    result = evaluate(
        {"m": Planted("early"), "other": Planted("early")},
        DATA,
        ["pgd-2"],
        "4/255",
        search_precision="bf16",
        **QUIET,
    )
    clean, row = result.row("m", "clean"), result.row("m", "pgd-2", "4/255")
    assert (row["precision"], row["search_precision"]) == ("fp32", "bf16")
    assert "search_precision" not in clean
    assert result.how["search_precision"] == {"m": "bf16", "other": "bf16"}
    assert result.how["confirm"] is True
    assert result.table().endswith("\nm, other: searched in bf16, judged in fp32")
    own = evaluate(Planted("early"), DATA, ["pgd-2"], "4/255", **QUIET)
    assert own.rows[1]["search_precision"] == "own"
    assert "confirm" not in own.how
    assert "searched" not in own.table()


def test_autoattack_confirms_each_stage_that_was_misled_and_apgd_t_always(tmp_path, monkeypatch):
    for name, steps in {"apgd-ce": 5, "apgd-t": 5, "fab-t": 2, "square": 5}.items():
        monkeypatch.setitem(plan._STEPS, name, steps)
    options = {**QUIET, "search_precision": "bf16", "out": tmp_path}
    row = evaluate(Planted("early"), DATA, ["autoattack"], "4/255", **options).rows[1]
    lines = (tmp_path / "progress.jsonl").read_text().splitlines()[1:]
    units = {line["unit"][-2]: line["outcome"] for line in map(json.loads, lines)}
    # the twin is fooled by dark images that the model still classifies correctly
    assert units["apgd-ce, confirmed"]["places"] == [2, 4]
    assert units["apgd-ce, confirmed"]["flags"] == "10"
    stand = [0, 1, 2, 7, 8]
    assert units["apgd-t"]["places"] == units["apgd-t, confirmed"]["places"] == stand
    assert units["apgd-t, confirmed"]["flags"] == "11111"
    assert units["fab-t"]["places"] == stand
    assert row["flags"] == "111000011"
    assert row["confirmed"]["attacked"] == len({4, *stand})
    assert row["confirmed"]["fell"] == 1
    assert [part["standing"] for part in row["parts"]] == [5] * 4
    assert [part["flags"] for part in row["parts"]] == [row["flags"]] * 4


def test_the_confirming_stage_is_the_last_that_climbs():
    for name, wanted in (("autoattack", "apgd-t"), ("square", "square"), ("fab-t", "fab-t")):
        assert plan.plan(name, 0.1, How()).confirming.name == wanted


def test_a_transfer_attack_searches_on_the_surrogates_twin():
    model, other = Planted("early"), Planted("misled")
    both = {"surrogates": {"other": other}, "search_precision": "bf16"}
    row = evaluate(model, DATA, ["pgd-9@other"], "4/255", **QUIET, **both).rows[1]
    own = evaluate(
        model, DATA, ["pgd-9@other"], "4/255", surrogates={"other": other}, **QUIET
    ).rows[1]
    assert row["flags"] == own["flags"] == "111000011"
    assert row["confirmed"]["fell"] == 4
    assert row["search_precision"] == "bf16"


# ---- classifiers of this library ----------------------------------------------------------------


@pytest.fixture(scope="module")
def patterns():
    return load_data("patterns", shots=1)


@pytest.fixture(scope="module")
def models(small_clip, patterns):
    tuner = APTTuner(small_clip, patterns.classnames, n_ctx=2)
    zero_shot = small_clip.zero_shot(patterns.classnames, patterns.templates)
    return {"zero-shot": zero_shot, "tuned": tuner.classifier}


def test_own_classifiers_search_in_bfloat16(models, patterns):
    before = {m: {k: v.clone() for k, v in m.state_dict().items()} for m in models.values()}
    attacks = ["pgd-3", "apgd-t-2", "fab-t-2", "square-5", "feature-pgd-2", "pgd-3@zero-shot"]
    options = {**QUIET, "limit": 10, "surrogates": {"zero-shot": models["zero-shot"]}}
    found = (
        evaluate(models, patterns.test, attacks, "4/255", search_precision=p, **options).rows[2:]
        for p in ("own", "bf16")
    )
    for own, sure in zip(*found, strict=True):
        # the same attack on the same images, up to rounding in other batches
        assert len(standing(sure) - standing(own)) <= 1
        assert (sure["search_precision"], own["search_precision"]) == ("bf16", "own")
        assert sure["precision"] == own["precision"] == "fp32"
    for model in models.values():
        assert all(v.dtype == torch.float32 for v in model.state_dict().values())
        assert all(torch.equal(before[model][k], v) for k, v in model.state_dict().items())


def test_models_with_one_encoder_share_the_images_of_a_search(models, patterns, monkeypatch):
    attacked = []
    run = FeaturePGD.run

    def counted(self, images, **indices):
        attacked.append(len(images))
        return run(self, images, **indices)

    monkeypatch.setattr(FeaturePGD, "run", counted)
    options = {**QUIET, "limit": 24, "search_precision": "bf16", "confirm": False}
    result = evaluate(models, patterns.test, ["feature-pgd-2"], "8/255", **options)
    assert sum(attacked) == len(standing(result.rows[0]) | standing(result.rows[1]))


def test_visual_prompts_leave_the_feature_attack_in_its_own_precision(small_clip, patterns):
    from fastprompt import NAPTuner

    tuner = NAPTuner(small_clip, patterns.classnames)
    options = {**QUIET, "limit": 6, "search_precision": "bf16"}
    rows = evaluate(tuner.classifier, patterns.test, ["feature-pgd-1", "pgd-1"], **options).rows
    assert [row.get("search_precision") for row in rows] == [None, "own", "bf16"]


@pytest.mark.parametrize("native", [True, False])
def test_auto_converts_only_what_gives_a_twin_of_itself(monkeypatch, small_clip, patterns, native):
    monkeypatch.setattr(search, "multiplies_bf16", lambda device: native)
    names, form = patterns.classnames, patterns.templates
    mine = small_clip.zero_shot(names, form)

    class Other(type(mine)):  # its twin would be a plain classifier
        def forward(self, x):
            return 2 * super().forward(x)

    class Noise(BitDepth):
        randomized = True

    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mine

        def forward(self, x):
            return self.inner(x)

    given = {
        "own": mine,
        "defended": Defended(mine, BitDepth(5)),
        "fp64": small_clip.zero_shot(names, form, precision="fp64"),
        "random": Defended(mine, Noise(5)),
        "subclass": Other(small_clip, mine.text_features, names),
        "foreign": Foreign(),
        "function": lambda x: mine(x),
    }
    result = evaluate(given, patterns.test, "pgd-1", limit=8, samples=1, confirm=False, **QUIET)
    found = {row["model"]: row["search_precision"] for row in result.rows[len(given) :]}
    low = {"own", "defended"} if native else set()
    assert {name for name, precision in found.items() if precision == "bf16"} == low
    assert set(found.values()) <= {"own", "bf16"}


def test_without_native_bfloat16_auto_changes_nothing(monkeypatch, models, patterns):
    monkeypatch.setattr(search, "multiplies_bf16", lambda device: False)
    results = [
        evaluate(models, patterns.test, ["pgd-2"], limit=12, **QUIET, **options).as_dict()
        for options in ({"confirm": False}, {"search_precision": "own"})
    ]
    for result in results:
        for row in result["rows"]:
            row.pop("seconds")
    assert results[0] == results[1]
    assert "search_precision" not in results[0]["how"]


def test_a_classifier_whose_twin_is_wrong_is_searched_itself_under_auto(monkeypatch, caplog):
    monkeypatch.setattr(search, "multiplies_bf16", lambda device: True)

    class Broken(Planted):
        def in_precision(self, precision):
            return Broken(self.kind, precision)

        def forward(self, x):
            logits = super().forward(x)
            return logits if self.precision == "fp32" else logits.flip(1)

    row = evaluate(Broken("early"), DATA, ["pgd-2"], confirm=False, **QUIET).rows[1]
    assert row["search_precision"] == "own"
    assert "spread" in caplog.text


def test_on_a_cpu_auto_attacks_no_image_twice_by_the_attack_that_confirms(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "multiplies_bf16", lambda device: True)
    for name, steps in {"apgd-ce": 5, "apgd-t": 5, "fab-t": 2, "square": 5}.items():
        monkeypatch.setitem(plan._STEPS, name, steps)
    model = Planted("flat")
    single = evaluate(model, DATA, ["pgd-9", "apgd-t-9", "square-5"], "4/255", **QUIET)
    assert {row["search_precision"] for row in single.rows[1:]} == {"own"}
    assert "search_precision" not in single.how
    both = evaluate(model, DATA, ["pgd-9", "autoattack"], "4/255", out=tmp_path, **QUIET)
    assert [row["search_precision"] for row in both.rows[1:]] == ["own", "bf16"]
    lines = (tmp_path / "progress.jsonl").read_text().splitlines()[1:]
    done = {"/".join(line["unit"][1:-1]): line["outcome"] for line in map(json.loads, lines)}
    twins = {name.split("/")[-1] for name, outcome in done.items() if "fooled_twin" in outcome}
    assert twins == {"apgd-ce", "fab-t", "square"}
    assert not [name for name in done if name.endswith("apgd-t, confirmed")]
    assert both.rows[1]["flags"] == both.rows[2]["flags"] == single.rows[1]["flags"]


# ---- other modules, and what cannot be converted ------------------------------------------------


class Net(nn.Module):
    """A small network without any relation to this library."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.GELU(), nn.Flatten())
        self.head = nn.Linear(64, 2)
        self.scale, self.seen = scale, []

    def forward(self, x):
        self.seen.append(x.dtype)
        return self.scale * self.head(self.body(x))


def net(kind=Net, **options):
    torch.manual_seed(0)
    return kind(**options)


def test_another_module_is_attacked_as_a_converted_copy():
    model = net()
    with torch.no_grad():
        labels = model(DATA.images / 255).argmax(1)
    data = ImageTensors(DATA.images, labels)
    model.seen.clear()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    given = {"plain": model, "defended": Defended(model, BitDepth(6))}
    result = evaluate(given, data, ["pgd-2"], search_precision="bf16", **QUIET)
    for name in given:
        row = result.row(name, "pgd-2", "4/255")
        assert (row["precision"], row["search_precision"]) == ("fp32", "bf16")
    assert set(model.seen) == {torch.float32}  # its copy saw the others
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    same = evaluate(model, data, ["pgd-2"], search_precision="fp32", **QUIET).rows[1]
    assert same["search_precision"] == "own"


def test_a_random_model_is_not_attacked_twice():
    class Noisy(Planted):
        randomized = True

        def in_precision(self, precision):
            return Noisy(self.kind, precision)

    row = evaluate(Noisy("early"), DATA, ["pgd-2"], search_precision="bf16", samples=2, **QUIET)
    assert row.rows[1]["search_precision"] == "bf16"
    assert "confirmed" not in row.rows[1]


class Locked(Net):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Shared(Net):
    def __deepcopy__(self, memo):
        return self


class Fixed(Net):
    def __init__(self):
        super().__init__()
        self.table = torch.ones(4, 3, 4, 4)  # neither parameter nor buffer

    def forward(self, x):
        return super().forward(x) + nn.functional.conv2d(x, self.table).mean(dim=(1, 2, 3))[:, None]


class Moody(Net):
    def forward(self, x):
        logits = super().forward(x)
        return logits if x.dtype == torch.float32 else logits.flip(1)


class Wide(Net):
    def forward(self, x):
        logits = super().forward(x)
        return logits if x.dtype == torch.float32 else logits.repeat(1, 2)


REFUSED = {
    "function": (lambda: net().forward, "bf16", "function"),
    "defended function": (lambda: Defended(net().forward, BitDepth(5)), "bf16", "function"),
    "not copied": (lambda: net(Locked), "bf16", "lock"),
    "not a copy": (lambda: net(Shared), "bf16", "shares"),
    "not converted": (lambda: net(Fixed), "bf16", "dtype|type"),
    "overflow": (lambda: net(scale=1e7), "fp16", "finite"),
    "other logits": (lambda: net(Moody), "bf16", "spread"),
    "other shape": (lambda: net(Wide), "bf16", "instead of"),
}


@pytest.mark.parametrize(("make", "precision", "why"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_converted_is_refused_by_name(make, precision, why):
    options = {**QUIET, "search_precision": precision}
    match = rf"^search_precision .*'own'.* {{}} .*'{precision}'.*({why})"
    with pytest.raises(ValueError, match=match.format("model 'mine',")):
        evaluate({"mine": make()}, DATA, ["pgd-1"], **options)
    if why == "function":
        others = {"surrogates": {"s": make()}, **options}
        with pytest.raises(ValueError, match=match.format("surrogate 's',")):
            evaluate(net(), DATA, ["pgd-1@s"], **others)


def test_a_device_without_the_precision_is_refused(monkeypatch):
    def lacking(precision, device):
        raise ValueError(f"precision: {device} does not support bfloat16; use 'fp32'")

    monkeypatch.setattr(search, "check_precision", lacking)
    with pytest.raises(ValueError, match=r"^search_precision: cpu .*bfloat16"):
        evaluate(net(), DATA, ["pgd-1"], search_precision="bf16", **QUIET)


# ---- a stop in the middle -----------------------------------------------------------------------


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [2, 3, 4, 5, 7])
def test_a_stopped_search_goes_on_to_the_same_bits(tmp_path, monkeypatch, after):
    from fastprompt.evaluation import model_run

    monkeypatch.setattr(model_run, "WINDOW", 2)
    monkeypatch.setitem(plan._STEPS, "apgd-ce", 2)
    data = grays(range(116, 140))
    options = {**QUIET, "batch": 6, "search_precision": "bf16"}
    whole = evaluate(Planted("early"), data, ["pgd-3", "cw-3"], out=tmp_path / "whole", **options)
    real, count = Record.add, [0]

    def stop(self, *arguments):
        real(self, *arguments)
        count[0] += 1
        if count[0] == after:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Record, "add", stop)
        with pytest.raises(Stopped):
            evaluate(Planted("early"), data, ["pgd-3", "cw-3"], out=tmp_path / "part", **options)
    options |= {"out": tmp_path / "part", "resume": True}
    again = evaluate(Planted("early"), data, ["pgd-3", "cw-3"], **options)

    def timeless(result):
        found = json.loads(json.dumps(result.as_dict()))
        for row in found["rows"]:
            row.pop("seconds")
            row.get("confirmed", {}).pop("seconds", None)
        return found

    assert timeless(again) == timeless(whole)
    files = [(tmp_path / k / "examples.safetensors").read_bytes() for k in ("whole", "part")]
    assert files[0] == files[1]


def test_another_precision_is_another_evaluation(tmp_path):
    options = {**QUIET, "out": tmp_path}
    evaluate(Planted("early"), DATA, ["pgd-2"], search_precision="bf16", **options)
    for other in (
        {"search_precision": "own"},
        {"search_precision": "fp16"},
        {"search_precision": "bf16", "confirm": False},
    ):
        with pytest.raises(ValueError, match=r"^resume.*another evaluation"):
            evaluate(Planted("early"), DATA, ["pgd-2"], resume=True, **options, **other)


def test_auto_and_bfloat16_are_different_evaluations_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "multiplies_bf16", lambda device: True)
    for name in ("apgd-ce", "apgd-t", "fab-t", "square"):
        monkeypatch.setitem(plan._STEPS, name, 2)
    options = {**QUIET, "out": tmp_path}
    result = evaluate(Planted("early"), DATA, "autoattack", **options)
    assert result.how["direct"] is True
    with pytest.raises(ValueError, match=r"^resume.*another evaluation"):
        evaluate(
            Planted("early"), DATA, "autoattack", resume=True, search_precision="bf16", **options
        )


def test_a_record_without_what_the_twin_claimed_is_refused(tmp_path, monkeypatch):
    options = {**QUIET, "out": tmp_path, "search_precision": "bf16"}
    evaluate(Planted("early"), DATA, ["pgd-2"], **options)
    (tmp_path / "result.json").unlink()
    path = tmp_path / "progress.jsonl"
    lines = path.read_bytes().splitlines()
    row = json.loads(lines[2])
    row["outcome"]["fooled_twin"] = [0]
    path.write_bytes(b"\n".join([*lines[:2], json.dumps(row).encode()]) + b"\n")
    real = Record._digest
    same = lambda self, number, *rest: (  # noqa: E731
        row["digest"] if number == 3 else real(self, number, *rest)
    )
    monkeypatch.setattr(Record, "_digest", same)
    with pytest.raises(ValueError, match=r"^resume: .*model/pgd-2/.* fooled_twin\b"):
        evaluate(Planted("early"), DATA, ["pgd-2"], resume=True, **options)
