"""Prompts out of the checkpoints of CoOp, AdvPT, APT, MaPLe, FAP and NAP."""

import os
import pickle
import re
import sys
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from helpers.models import SMALL, small_model
from safetensors.torch import save_file
from torch import Tensor

from fastprompt import FrozenCLIP, load_clip
from fastprompt.data import ImageTensors
from fastprompt.interop.checkpoints import ForeignPrompts, read_prompts
from fastprompt.interop.importing import _models, import_prompts
from fastprompt.methods.registry import TUNERS
from fastprompt.towers.reference import ReferenceImageTower, ReferenceTextTower
from fastprompt.tuning.config import as_dict

NAMES = ["cat", "very_small dog", "red circle"]
TEXT, IMAGE = 24, 32  # the small model's widths
EXACT, VISIBLE = 1e-10, 1e-5

State = dict[str, Tensor]


# ---- files as the original code writes them ------------------------------------------------------


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype)


@cache
def model() -> FrozenCLIP:
    """The CLIP that the prompts were tuned on."""
    return load_clip(small_model())


def learner(ctx: Tensor, names: Sequence[str] = NAMES, words: str = "") -> State:
    """What CoOp's prompt learner has: the context, and buffers of the tokens around it."""
    m, width = ctx.shape[-2:]
    stand_ins = " ".join(["X"] * m)
    prompts = [f"{stand_ins} {words} {name.replace('_', ' ')}." for name in names]
    table: Any = model().text_parts.token_embedding
    embedding = table.weight.detach()[model().tokenizer(prompts)].to(ctx.dtype)
    if width != TEXT:  # of another model
        embedding = random(91, len(names), 77, width, dtype=ctx.dtype)
    return OrderedDict(
        ctx=ctx, token_prefix=embedding[:, :1].clone(), token_suffix=embedding[:, 1 + m :].clone()
    )


def coop(dtype: torch.dtype = torch.float32) -> State:
    return learner(random(1, 4, TEXT, dtype=dtype))


def advpt() -> State:
    return learner(random(2, 32, TEXT))


def apt(dtype: torch.dtype = torch.float32) -> State:
    return learner(random(3, len(NAMES), 3, TEXT, dtype=dtype))


def multi_modal(
    depth: int = 2, dtype: torch.dtype = torch.float32, m: int = 3, words: str = ""
) -> State:
    """A prompt learner of MaPLe's."""
    state = learner(random(4, m, TEXT, dtype=dtype), words=words)
    state["proj.weight"] = random(5, IMAGE, TEXT, dtype=dtype)
    state["proj.bias"] = random(6, IMAGE, dtype=dtype)
    for i in range(depth - 1):  # MaPLe keeps these in float32 in fp16 runs, too
        state[f"compound_prompts_text.{i}"] = random(10 + i, m, TEXT)
        state[f"compound_prompt_projections.{i}.weight"] = random(30 + i, IMAGE, TEXT, dtype=dtype)
        state[f"compound_prompt_projections.{i}.bias"] = random(50 + i, IMAGE, dtype=dtype)
    return state


def learner_of(names: Sequence[str], words: str) -> State:
    """MaPLe's learner with these names."""
    state = multi_modal(m=2)
    return state | learner(state["ctx"], names, words)


def within(state: Mapping[str, Tensor], **others: Tensor) -> State:
    """The whole model: its prompt learner, and the CLIP that it is built on."""
    out = OrderedDict({f"prompt_learner.{k}": v for k, v in state.items()})
    visual: Any = model().model.visual
    frozen = {
        "image_encoder.class_embedding": visual.class_embedding.detach(),
        "image_encoder.transformer.resblocks.0.attn.in_proj_weight": visual.transformer.resblocks[
            0
        ].attn.in_proj_weight.detach(),
        "logit_scale": model().model.logit_scale.detach(),
        "text_encoder.positional_embedding": model().model.positional_embedding.detach(),
    }
    return out | frozen | others


def maple(dtype: torch.dtype = torch.float32) -> State:
    return within(multi_modal(dtype=dtype))


ZERO_SHOT = {"ZS_image_encoder.conv1.weight": random(9, IMAGE, 3, 16, 16)}


def maple_words() -> State:
    """MaPLe's default: two of the four words of "a photo of a" are trained."""
    return within(multi_modal(m=2, words="of a"))


def fap(depth: int = 2, words: str = "of a {}, a type of pet.") -> State:
    """FAP's prompts of later layers are trained on the image side; its template keeps braces."""
    state = multi_modal(depth=1, m=2, words=words)
    for i in range(depth - 1):
        state[f"compound_prompts_image.{i}"] = random(10 + i, 2, IMAGE)
        state[f"compound_prompt_projections.{i}.weight"] = random(30 + i, TEXT, IMAGE)
        state[f"compound_prompt_projections.{i}.bias"] = random(50 + i, TEXT)
    return within(state, **ZERO_SHOT)


def nap(depth: int = 2) -> State:
    """MaPLe's prompts, and a refiner in every block of both encoders, used or not."""
    state = within(multi_modal(depth=depth))
    for encoder, width in (("image", IMAGE), ("text", TEXT)):
        for block in range(2):
            at = f"{encoder}_encoder.transformer.resblocks.{block}.token_refiner.refiner"
            for layer, shape in (("0", (2 * width, width)), ("2", (width, 2 * width))):
                state[f"{at}.{layer}.weight"] = random(70 + block, *shape)
                state[f"{at}.{layer}.bias"] = random(80 + block, shape[0])
    return state


def parallel(state: Mapping[str, Tensor]) -> State:
    return OrderedDict({f"module.{k}": v for k, v in state.items()})


def schedule() -> dict[str, Any]:
    """The state of Dassl's warm-up scheduler and its optimizer: it holds the next one whole."""
    p = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    after = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    p.sum().backward()
    optimizer.step()
    after.step()
    warm_up = {"successor": after, "warmup_epoch": 1, "last_epoch": 50, "cons_lr": 1e-5}
    return {"optimizer": optimizer.state_dict(), "scheduler": warm_up | {"base_lrs": [0.1]}}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(state: object, **others: object) -> Path:
        path = tmp_path / "model.pth.tar-50"
        whole = {"state_dict": state, "epoch": 50, **schedule(), "val_result": 71.5, **others}
        torch.save(whole, path)
        return path

    return write


LAYOUTS: dict[str, tuple[Callable[[], State], str]] = {
    "CoOp": (coop, "context"),
    "CoOp, fp16": (lambda: coop(torch.float16), "context"),
    "CoOp, parallel": (lambda: parallel(coop()), "context"),
    "AdvPT": (advpt, "context"),
    "APT": (lambda: within(coop()), "context"),
    "APT, class-specific": (apt, "class-specific context"),
    "APT, class-specific, fp16": (lambda: apt(torch.float16), "class-specific context"),
    "MaPLe": (maple, "multi-modal"),
    "MaPLe, fp16": (lambda: maple(torch.float16), "multi-modal"),
    "MaPLe, parallel": (lambda: parallel(maple()), "multi-modal"),
    "MaPLe, fixed words": (maple_words, "multi-modal"),
    "FAP, depth 1": (lambda: fap(depth=1), "multi-modal"),
    "FAP": (fap, "multi-modal"),
    "NAP": (nap, "multi-modal"),
}
layouts = pytest.mark.parametrize("name", LAYOUTS)


def plain(state: Mapping[str, Tensor]) -> State:
    """The prompt learner's entries by their own names, in float32."""
    ends = {k.removeprefix("module.").removeprefix("prompt_learner."): v for k, v in state.items()}
    return {k: v.float() for k, v in ends.items()}


# ---- reading -------------------------------------------------------------------------------------


@layouts
def test_each_layout_is_read(write: Callable[..., Path], name: str) -> None:
    build, layout = LAYOUTS[name]
    state, prompts = plain(build()), read_prompts(write(build()))
    assert prompts.kind == layout
    assert (prompts.epoch, prompts.classes) == (50, len(NAMES))
    assert prompts.context.dtype == torch.float32
    assert torch.equal(prompts.context, state["ctx"])
    assert prompts.text_width == TEXT
    if layout != "multi-modal":
        assert (prompts.depth, prompts.image_width) == (1, None)
        assert prompts.deep is prompts.maps is None
        return
    depth = sum("compound_prompts_" in k for k in state) + 1
    assert (prompts.depth, prompts.image_width) == (depth, IMAGE)
    assert prompts.deep is not None
    assert prompts.maps is not None
    weight, bias = prompts.maps
    assert {t.dtype for t in (prompts.deep, weight, bias)} == {torch.float32}
    assert torch.equal(prompts.context, state["ctx"])
    if name == "FAP":
        assert prompts.back is not None
        for i in range(depth - 1):
            assert torch.equal(prompts.deep[i], state[f"compound_prompts_image.{i}"])
            at = f"compound_prompt_projections.{i}"
            assert torch.equal(prompts.back[0][i], state[f"{at}.weight"])
            assert torch.equal(prompts.back[1][i], state[f"{at}.bias"])
        return
    assert prompts.deep.shape == (depth - 1, *state["ctx"].shape)
    assert weight.shape == (depth, IMAGE, TEXT)
    assert bias.shape == (depth, IMAGE)
    assert torch.equal(weight[0], state["proj.weight"])
    assert torch.equal(bias[0], state["proj.bias"])
    for i in range(depth - 1):
        assert torch.equal(prompts.deep[i], state[f"compound_prompts_text.{i}"])
        assert torch.equal(weight[i + 1], state[f"compound_prompt_projections.{i}.weight"])
        assert torch.equal(bias[i + 1], state[f"compound_prompt_projections.{i}.bias"])


def test_twelve_layers_stay_in_their_order(write: Callable[..., Path]) -> None:
    # as words, "10" stands before "2"
    state = multi_modal(depth=12)
    prompts = read_prompts(write(within(dict(sorted(state.items())))))
    assert prompts.depth == 12
    assert prompts.deep is not None
    assert prompts.maps is not None
    for i in range(11):
        assert torch.equal(prompts.deep[i], state[f"compound_prompts_text.{i}"])
        weight = state[f"compound_prompt_projections.{i}.weight"]
        assert torch.equal(prompts.maps[0][i + 1], weight)


@pytest.mark.parametrize("result", [np.float64(3), np.float32(3), None, {"accuracy": 3.0}])
def test_whatever_the_accuracy_is_kept_as(write: Callable[..., Path], result: object) -> None:
    assert torch.equal(read_prompts(write(coop(), val_result=result)).context, coop()["ctx"])


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop"])
@pytest.mark.parametrize("scheduler", ["StepLR", "MultiStepLR", "CosineAnnealingLR"])
def test_dassls_other_schedulers(
    write: Callable[..., Path], optimizer: str, scheduler: str
) -> None:
    held = getattr(torch.optim, optimizer)([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    argument = [3, 5] if scheduler == "MultiStepLR" else 3
    after = getattr(torch.optim.lr_scheduler, scheduler)(held, argument)
    prompts = read_prompts(write(coop(), scheduler={"successor": after}))
    assert torch.equal(prompts.context, coop()["ctx"])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_alone_in_either_format(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "prompts.pt"
    torch.save({"ctx": coop()["ctx"]}, file, _use_new_zipfile_serialization=zipped)
    prompts = read_prompts(str(file))
    assert torch.equal(prompts.context, coop()["ctx"])
    assert prompts.epoch is prompts.classes is None


def test_class_specific_contexts_know_their_classes(write: Callable[..., Path]) -> None:
    assert read_prompts(write({"ctx": apt()["ctx"]})).classes == len(NAMES)


@pytest.mark.parametrize("epoch", [True, "50", None, np.float64(50)])
def test_an_epoch_is_a_whole_number_or_unknown(write: Callable[..., Path], epoch: object) -> None:
    assert read_prompts(write(coop(), epoch=epoch)).epoch is None


# ---- nothing is run ------------------------------------------------------------------------------


class Trap:
    """Unpickling makes the folder ``path``: code that must never run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["state_dict", "scheduler", "optimizer"])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    write: Callable[..., Path], tmp_path: Path, place: str
) -> None:
    trapped = tmp_path / "the code ran"
    if place == "state_dict":
        path = write({**coop(), "zz": Trap(trapped)})
    elif place == "optimizer":
        path = write(coop(), optimizer={"state": Trap(trapped)})
    else:  # within an object of a class that is known
        content = schedule()
        content["scheduler"]["successor"].T_max = Trap(trapped)
        path = write(coop(), **content)
    with pytest.raises(ValueError, match=r"^path.*\w+\.mkdir\b.* never"):
        read_prompts(path)
    assert not trapped.exists()
    torch.load(path, weights_only=False)
    assert trapped.exists(), "the trap itself does not work"


class Evaluated:
    def __reduce__(self) -> tuple[object, ...]:
        return eval, ("1 + 1",)


def test_a_builtin_function_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"^path.*eval\b.* never"):
        read_prompts(write(coop(), val_result=Evaluated()))


def test_other_classes_are_refused_by_name(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dassl", "dassl.optim", "dassl.optim.lr_scheduler"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    scheduler = type("ConstantWarmupScheduler", (), {"__module__": "dassl.optim.lr_scheduler"})
    sys.modules["dassl.optim.lr_scheduler"].ConstantWarmupScheduler = scheduler  # type: ignore[attr-defined]
    path = write(coop(), scheduler=scheduler())
    name = r"dassl\.optim\.lr_scheduler\.ConstantWarmupScheduler"
    with pytest.raises(ValueError, match=f"^path.*{name}.* never .*state_dict"):
        read_prompts(path)


def test_known_classes_are_not_made_either(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(coop())

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the optimizer was made")

    monkeypatch.setattr(torch.optim.SGD, "__setstate__", never)
    monkeypatch.setattr(torch.optim.Optimizer, "__setstate__", never)
    assert read_prompts(path).epoch == 50


@pytest.mark.parametrize("fails", [False, True])
def test_what_may_be_unpickled_is_as_before(write: Callable[..., Path], fails: bool) -> None:
    path = write(coop(), val_result=Evaluated() if fails else 1.0)
    before = torch.serialization.get_safe_globals()
    try:
        # defaultdict is allowed already, and has to stay so
        torch.serialization.add_safe_globals([defaultdict, Trap])
        allowed = set(torch.serialization.get_safe_globals())
        if fails:
            with pytest.raises(ValueError, match="eval"):
                read_prompts(path)
        else:
            read_prompts(path)
        assert set(torch.serialization.get_safe_globals()) == allowed
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_a_state_dict_in_safetensors_is_read(tmp_path: Path) -> None:
    save_file(coop(), tmp_path / "model.safetensors")
    assert torch.equal(read_prompts(tmp_path / "model.safetensors").context, coop()["ctx"])


# ---- files that are refused ----------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^path.*nowhere"):
        read_prompts(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"^path.*model\.pth\.tar-50"):
        read_prompts(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_file(write: Callable[..., Path], keep: int) -> None:
    path = write(coop())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"^path.*model\.pth\.tar-50 .*damaged: ."):
        read_prompts(path)


def test_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("epoch 50")
    with pytest.raises(ValueError, match=r"^path.*log\.txt .*damaged"):
        read_prompts(tmp_path / "log.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3, 2), r"bare tensor \[3, 2\].* AdvPT's bank .*model\.pth\.tar-50"),
        ([1, 2], "list.* checkpoint"),
        ({"state_dict": [1]}, "list.* state_dict"),
        ({}, "ctx.* nothing"),
        ({"state_dict": {}}, "ctx.* nothing"),
        ({"ctx": "words"}, r"prompt_learner\.ctx.* ctx"),
        ({f"layer{i}.w": torch.ones(1) for i in range(9)}, r"ctx.* layer0.*layer4\.w, \.\.\."),
    ],
)
def test_a_file_without_prompts(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=rf"^path.*odd\.pt .*{message}"):
        read_prompts(tmp_path / "odd.pt")


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("content", [torch.ones(3, 2), {"state_dict": {"ctx": torch.ones(3, 2)}}])
def test_a_plain_pickle_is_refused(tmp_path: Path, content: object, protocol: int) -> None:
    """As a bank of AdvPT may be: ``<set>_<backbone>.pkl``."""
    path = tmp_path / "caltech101_vit_b16.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ValueError, match=r"^path: .*b16\.pkl .* never loaded or run"):
        read_prompts(path)


def changed(**changes: Tensor | None) -> State:
    """MaPLe's prompt learner with entries changed or, where None, left out."""
    state = multi_modal(depth=4) | {k.replace("__", "."): v for k, v in changes.items()}
    return {k: v for k, v in state.items() if v is not None}


TEXTS, MAPS = "compound_prompts_text__", "compound_prompt_projections__"
BAD_SHAPES = [(TEXT,), (2, 2, 3, TEXT), (0, TEXT), (3, 0)]
REFUSED: dict[str, tuple[State, str]] = {
    "gap": (
        changed(**{f"{TEXTS}1": None, f"{MAPS}1__weight": None, f"{MAPS}1__bias": None}),
        "compound prompts.* 2.* 1",
    ),
    "first missing": (
        changed(**{f"{TEXTS}0": None, f"{MAPS}0__weight": None, f"{MAPS}0__bias": None}),
        "compound prompts.* 2.* 0",
    ),
    "text missing": (changed(**{f"{TEXTS}2": None}), r"compound_prompts_text\.2"),
    "map missing": (changed(**{f"{MAPS}2__weight": None}), r"projections\.2\.weight"),
    "bias missing": (changed(**{f"{MAPS}0__bias": None}), r"projections\.0\.bias"),
    "proj missing": (changed(proj__weight=None, proj__bias=None), r" proj\.weight"),
    "proj transposed": (
        changed(proj__weight=random(0, TEXT, IMAGE)),
        r" proj .*\[24, 32\].* \[32, 24\].* \[32\].*transposed",
    ),
    "map the other way": (
        changed(proj__weight=random(0, TEXT, IMAGE), proj__bias=random(0, TEXT)),
        r" proj .*\[24, 32\].* \[24\].* \[24, 24\]",
    ),
    "deeper map transposed": (
        changed(**{f"{MAPS}1__weight": random(0, TEXT, IMAGE)}),
        r"projections\.1 .*transposed",
    ),
    "maps to two widths": (
        changed(**{f"{MAPS}1__weight": random(0, 40, TEXT), f"{MAPS}1__bias": random(0, 40)}),
        r"projections\.1 .*\[40, 24\].* \[40\].* \[32, 24\].* \[32\]$",
    ),
    "bias of another width": (
        changed(proj__bias=random(0, 40)),
        r" proj .*\[32, 24\].* \[40\].* \[40, 24\]",
    ),
    "deep text of another width": (
        changed(**{f"{TEXTS}1": random(0, 3, 40)}),
        r"text\.1 .*\[3, 40\].* \[3, 24\].* ctx",
    ),
    "deep text of another length": (
        changed(**{f"{TEXTS}1": random(0, 5, TEXT)}),
        r"text\.1 .*\[5, 24\].* \[3, 24\]",
    ),
    "deep and class-specific": (
        changed(ctx=apt()["ctx"]),
        r" ctx .*\[3, 3, 24\].* \[M, width\] .*proj",
    ),
    "two widths": (learner(coop()["ctx"]) | {"token_prefix": random(0, 3, 1, 40)}, "widths"),
    "two numbers of classes": (
        learner(apt()["ctx"], ["a", "b", "c", "d", "e"]),
        r"\[3, 3, 24\].* \[5, 1, 24\].* classes",
    ),
    "whole numbers": (
        {"ctx": torch.ones(3, TEXT).long()},
        r" ctx .*torch\.int64.* floats",
    ),
    "sparse": (
        {"ctx": torch.ones(3, TEXT).to_sparse()},
        " ctx .*sparse.* dense",
    ),
    "meta": ({"ctx": torch.ones(3, TEXT, device="meta")}, " ctx .* meta.* dense"),
    "prompts of both encoders": (
        changed(compound_prompts_image__0=random(0, 3, IMAGE)),
        "compound_prompts_text.* compound_prompts_image",
    ),
    "image prompts of another width": (
        plain(fap()) | {"compound_prompts_image.0": random(0, 2, 40)},
        r"image\.0 .*\[2, 40\].* \[2, 32\]",
    ),
    "suffix of another width": (
        coop() | {"token_suffix": random(0, 3, 72, 40)},
        r"token_suffix .*\[3, 72, 40\].* \[3, tokens, 24\]",
    ),
    "a refiner without a layer": (
        {k: v for k, v in nap().items() if "image" not in k or "refiner.2.bias" not in k},
        r"block 1 .*second\.bias",
    ),
    "a refiner of another width": (
        nap()
        | {
            f"image_encoder.transformer.resblocks.1.token_refiner.refiner.{k}": v
            for k, v in (
                ("0.weight", random(0, 3 * IMAGE, IMAGE)),
                ("0.bias", random(0, 3 * IMAGE)),
                ("2.weight", random(0, IMAGE, 3 * IMAGE)),
            )
        },
        "block 1 .*hidden width",
    ),
    "a refiner with more layers": (
        nap()
        | {"image_encoder.transformer.resblocks.1.token_refiner.refiner.4.bias": random(0, 3)},
        r"refiner\.4\.bias",
    ),
    "an adapter in the image encoder": (
        within(coop(), **{"image_encoder.adapter.fc.weight": random(0, 4, 4)}),
        r"image_encoder\.adapter\.fc\.weight",
    ),
    "CoCoOp": (
        coop() | {"meta_net.linear1.weight": random(0, 4, 4)},
        r"meta_net\.linear1\.weight",
    ),
    "independent visual prompts": (
        within(
            coop(), **{"image_encoder.transformer.resblocks.1.VPT_shallow": random(0, 4, IMAGE)}
        ),
        "VPT_shallow",
    ),
    "numbering of another kind": (
        coop() | {"compound_prompts_text.a": random(0, 3)},
        r"compound_prompts_text\.a",
    ),
    **{
        f"ctx {list(shape)}": ({"ctx": torch.ones(shape)}, r" ctx .*\[M, width\].*\[classes")
        for shape in BAD_SHAPES
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_together_is_refused(write: Callable[..., Path], name: str) -> None:
    state, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^path.*{message}"):
        read_prompts(write(state))


def test_the_states_that_are_changed_are_good(write: Callable[..., Path]) -> None:
    assert read_prompts(write(changed())).depth == 4
    assert read_prompts(write(within(coop()))).depth == 1


@pytest.mark.parametrize("key", ["ctx", "proj.bias", "compound_prompts_text.2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(write: Callable[..., Path], key: str, value: float) -> None:
    state = changed()
    state[key].view(-1)[-1] = value
    with pytest.raises(ValueError, match=f"^path.*{key} .*finite"):
        read_prompts(write(state))


def test_float64_beyond_float32_is_not_finite(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="not finite"):
        read_prompts(write({"ctx": torch.full((3, TEXT), 1e200, dtype=torch.float64)}))


# ---- into a tuner --------------------------------------------------------------------------------


def tuner_methods(name: str) -> list[str]:
    if name == "NAP":
        return ["nap"]
    kind = LAYOUTS[name][1]
    return {"context": ["apt", "advpt"], "multi-modal": ["capt", "nap"]}.get(kind, ["apt"])


EACH = [(name, method) for name in LAYOUTS for method in tuner_methods(name)]
each = pytest.mark.parametrize(("name", "method"), EACH)


@pytest.fixture(scope="module")
def clip64() -> FrozenCLIP:
    return load_clip(small_model().double())


def by_hand(clip: FrozenCLIP, state: State, images: Tensor) -> Tensor:
    """Logits of the prompts in ``state``, by open_clip's own modules."""
    state = {k: v.double() for k, v in plain(state).items()}
    ctx = state["ctx"]

    def mapped(name: str, tokens: Tensor) -> Tensor:
        return F.linear(tokens, state[f"{name}.weight"], state[f"{name}.bias"])

    texts, visual = [], []
    if "proj.weight" in state:
        visual.append(mapped("proj", ctx))
    for i in range(sum("compound_prompts_" in k for k in state)):
        name = f"compound_prompt_projections.{i}"
        if f"compound_prompts_text.{i}" in state:
            texts.append(state[f"compound_prompts_text.{i}"])
            visual.append(mapped(name, texts[-1]))
        else:
            visual.append(state[f"compound_prompts_image.{i}"])
            texts.append(mapped(name, visual[-1]))
    at = "image_encoder.transformer.resblocks.1.token_refiner.refiner"

    def refine(x: Tensor) -> Tensor:
        return x + mapped(f"{at}.2", mapped(f"{at}.0", x).relu())

    refiners = [refine] if f"{at}.0.weight" in state and len(visual) > 1 else None
    words = {2: "of a "}.get(len(ctx), "") if "proj.weight" in state else ""
    if "ZS_image_encoder.conv1.weight" in state:
        words += "{{}}, a type of pet. "
    specific, template = ctx.ndim == 3, f"[ctx] {words}{{}}."
    text = ReferenceTextTower(
        clip, NAMES, ctx.shape[-2], class_specific=specific, template=template
    )
    image = ReferenceImageTower(clip, range(len(visual)))
    classes = F.normalize(text(ctx, torch.stack(texts) if texts else None), dim=-1)
    prompts = torch.stack(visual) if visual else None
    features = image(images.double(), prompts, refiners)
    return clip.logit_scale * F.normalize(features, dim=-1) @ classes.T


@each
def test_the_tuner_computes_what_the_original_did(
    write: Callable[..., Path], clip64: FrozenCLIP, images: Tensor, name: str, method: str
) -> None:
    state = LAYOUTS[name][0]()
    tuner = import_prompts(write(state), clip64, NAMES, method=method)
    logits = tuner.classifier(images)
    with torch.no_grad():
        expected = by_hand(clip64, state, images)
    assert logits.dtype == torch.float64
    assert float((logits - expected).norm() / expected.norm()) < EXACT
    # every one of them counts: a part that was dropped or swapped would show
    learned = r"\b(ctx|proj|compound_prompt)|image_encoder.*blocks\.1\.token_refiner"
    for key in (k for k in state if re.search(learned, k)):
        with torch.no_grad():
            moved = by_hand(clip64, {**state, key: state[key].roll(1, -1)}, images) - expected
        assert float(moved.norm() / expected.norm()) > VISIBLE, key


@each
def test_a_saved_import_is_loaded_with_the_same_bits(
    write: Callable[..., Path],
    small_clip: FrozenCLIP,
    images: Tensor,
    tmp_path: Path,
    name: str,
    method: str,
) -> None:
    tuner = import_prompts(write(LAYOUTS[name][0]()), small_clip, NAMES, method=method, epochs=3)
    assert type(tuner) is TUNERS[method]
    assert tuner.config.epochs == 3
    again = type(tuner).load(tuner.save(tmp_path / "run"), small_clip)
    assert again.config == tuner.config
    states = (again.prompts.state_dict(), tuner.prompts.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert torch.equal(again.classifier(images), tuner.classifier(images))


@each
def test_an_import_is_tuned_on(
    write: Callable[..., Path], small_clip: FrozenCLIP, tmp_path: Path, name: str, method: str
) -> None:
    tuner = import_prompts(write(LAYOUTS[name][0]()), small_clip, NAMES, method=method)
    run = tuner.save(tmp_path / "run")
    shape = ("n_ctx", "depth", "class_specific", "refiners", "coupling", "template")
    same = {k: v for k, v in as_dict(tuner.config).items() if k in shape}
    data = ImageTensors(torch.full((6, 3, 48, 48), 99, dtype=torch.uint8), torch.arange(6) % 3)
    onward = TUNERS[method](small_clip, NAMES, init_from=run, epochs=2, lr=1e-3, batch=3, **same)
    starts, after = tuner.prompts.state_dict(), onward.prompts.state_dict()
    assert all(torch.equal(starts[k], after[k]) for k in starts)
    after = onward.fit(data, progress=False).prompts.state_dict()
    assert all(0 < float((starts[k] - after[k]).norm()) < 0.1 for k in starts)


@layouts
def test_the_default_method(write: Callable[..., Path], small_clip: FrozenCLIP, name: str) -> None:
    tuner = import_prompts(write(LAYOUTS[name][0]()), small_clip, NAMES)
    assert tuner.method == tuner_methods(name)[0]


def test_a_preset_with_words_is_overruled(
    write: Callable[..., Path], bundled_clip: FrozenCLIP
) -> None:
    width = bundled_clip.text_parts.width  # type: ignore[union-attr]
    ctx = random(1, 6, width)
    tuner: Any = import_prompts(write({"ctx": ctx}), "tiny-shapes", NAMES, method="advpt")
    assert tuner.config.ctx_init is None
    assert tuner.config.n_ctx == 6
    assert torch.equal(tuner.prompts.tokens, ctx)


def test_a_context_is_for_other_classes_too(
    write: Callable[..., Path], small_clip: FrozenCLIP, images: Tensor
) -> None:
    path = write(coop())
    with pytest.raises(ValueError, match=r"^path.*other classes.* 1 .*'cat \.'.*'one'.*omit"):
        import_prompts(path, small_clip, ["one", "two", "three"])
    tuner = import_prompts(path, small_clip, method="advpt")
    assert tuner.classifier_for(["one", "two"])(images).shape == (len(images), 2)


# ---- the words around the context ----------------------------------------------------------------

DECODED = ["cat", "very small dog", "red circle"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_names_and_fixed_words_are_decoded(
    write: Callable[..., Path], small_clip: FrozenCLIP, dtype: torch.dtype
) -> None:
    for words, template in (
        ("", "[ctx] {}."),
        ("of a", "[ctx] of a {}."),
        ("of a {}, a type of pet.", "[ctx] of a {{}}, a type of pet . {}."),
    ):
        tuner = import_prompts(write(multi_modal(dtype=dtype, words=words)), small_clip)
        assert tuner.classnames == DECODED
        assert tuner.config.template == template
    assert import_prompts(write(coop(dtype)), small_clip).classnames == DECODED
    # class names of a context have no fixed words, even if all begin alike
    alike = learner(random(1, 4, TEXT, dtype=dtype), ["red cat", "red dog"])
    assert import_prompts(write(alike), small_clip).classnames == ["red cat", "red dog"]


def test_other_classnames_are_refused(write: Callable[..., Path], small_clip: FrozenCLIP) -> None:
    path = write(maple_words())
    turned = [NAMES[1], NAMES[0], NAMES[2]]
    with pytest.raises(ValueError, match=r"^path.* 1 is 'of a cat \.'.*'very small dog'.*order"):
        import_prompts(path, small_clip, turned)
    with pytest.raises(ValueError, match=r"^path.* 3 classes.* 2 classnames"):
        import_prompts(path, small_clip, NAMES[:2])
    # "dog" alone would make fixed words of "very small"
    with pytest.raises(ValueError, match=r"^path.*fixed words that differ"):
        import_prompts(path, small_clip, ["cat", "dog", "red circle"])


def test_another_vocabulary_is_refused(write: Callable[..., Path]) -> None:
    other = load_clip(small_model(seed=1))
    with pytest.raises(ValueError, match=r"^path.*token_suffix.* CLIP: token 1 of class 1 .*clip"):
        import_prompts(write(coop()), other, NAMES)


def test_another_image_encoder_is_refused(write: Callable[..., Path]) -> None:
    other = small_model()
    with torch.no_grad():
        other.visual.class_embedding += 1e-3
    with pytest.raises(ValueError, match=r"^clip.*class_embedding differs; .*image_weights"):
        import_prompts(write(maple()), load_clip(other), NAMES)


@pytest.mark.parametrize(
    "name",
    [
        "text_encoder.positional_embedding",
        "logit_scale",
        "image_encoder.transformer.resblocks.9.ln_1.bias",
    ],
)
def test_a_model_with_other_weights_is_refused(
    write: Callable[..., Path], small_clip: FrozenCLIP, name: str
) -> None:
    state = within(coop())
    state[name] = state.get(name, torch.zeros(IMAGE)) + 1e-3
    with pytest.raises(ValueError, match=rf"^clip.*other weights.*: {name} differs; pass "):
        import_prompts(write(state), small_clip, NAMES)


def test_a_refiner_of_another_width_is_refused(write: Callable[..., Path]) -> None:
    state = nap()
    at = "image_encoder.transformer.resblocks.1.token_refiner.refiner"
    for part, shape in (("0.weight", (80, 40)), ("0.bias", (80,)), ("2.weight", (40, 80))):
        state[f"{at}.{part}"] = random(1, *shape)
    state[f"{at}.2.bias"] = random(1, 40)
    with pytest.raises(ValueError, match=rf"^path.*block 1 .*\[80, 40\].* width {IMAGE}"):
        read_prompts(write(state))


def test_a_second_context_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"^path.*unsupported trained tensors \(ctx\)"):
        read_prompts(write({**within(coop()), "ctx": coop()["ctx"]}))


def test_names_that_begin_alike(write: Callable[..., Path], small_clip: FrozenCLIP) -> None:
    names = ["cat", "cat fish", "cat dog"]
    tuner = import_prompts(write(learner_of(names, "of a")), small_clip)
    assert tuner.classnames == names
    assert tuner.config.template == "[ctx] of a {}."
    joined = write(learner(random(1, 4, TEXT), ["cat", "st."]))
    with pytest.raises(ValueError, match=r"^path.*last token is not a period; pass classnames"):
        import_prompts(joined, small_clip)
    assert import_prompts(joined, small_clip, ["cat", "st."]).classnames == ["cat", "st."]


def test_the_position_of_the_name_is_read_from_the_log(
    write: Callable[..., Path], small_clip: FrozenCLIP, tmp_path: Path
) -> None:
    folder = tmp_path / "output" / "prompt_learner"
    folder.mkdir(parents=True)
    path = write(coop()).rename(folder / "model.pth.tar-50")
    config = "TRAINER:\n  COOP:\n    CLASS_TOKEN_POSITION: {}\n    CSC: False\n"
    assert import_prompts(path, small_clip).config.template == "[ctx] {}."
    for position, template in (("middle", "[ctx] {} [ctx]."), ("front", "{} [ctx].")):
        (folder.parent / "log.txt").write_text("** Config **\n" + config.format(position))
        assert import_prompts(path, small_clip).config.template == template
        given = import_prompts(path, small_clip, template="[ctx] {}.")  # the user knows better
        assert given.config.template == "[ctx] {}."
    (folder.parent / "log.txt").write_text(config.format("middle") + config.format("end"))
    with pytest.raises(ValueError, match=r"^template.*log\.txt.* end and middle"):
        import_prompts(path, small_clip)


def test_a_template_that_contradicts_the_checkpoint(
    write: Callable[..., Path], small_clip: FrozenCLIP
) -> None:
    with pytest.raises(ValueError, match=r"^path.*'of a cat \.'.*'\[ctx\] {}\.' gives 'cat \.'"):
        import_prompts(write(maple_words()), small_clip, NAMES, template="[ctx] {}.")


def test_without_the_words_they_have_to_be_given(
    write: Callable[..., Path], small_clip: FrozenCLIP
) -> None:
    bare = {k: v for k, v in plain(maple_words()).items() if k != "token_suffix"}
    with pytest.raises(ValueError, match=r"^classnames .*token_suffix"):
        import_prompts(write(bare), small_clip)
    with pytest.raises(ValueError, match=r"^template .*token_suffix.*of a \{\}"):
        import_prompts(write(bare), small_clip, NAMES)
    tuner = import_prompts(write(bare), small_clip, NAMES, template="[ctx] of a {}.")
    assert tuner.config.template == "[ctx] of a {}."
    one = {k: v for k, v in plain(multi_modal()).items() if k != "token_prefix"}
    one["token_suffix"] = one["token_suffix"][:1]
    with pytest.raises(ValueError, match=r"^path.*single class.*pass classnames"):
        import_prompts(write(one), small_clip)


def test_layouts_are_named(write: Callable[..., Path]) -> None:
    named = {name: read_prompts(write(build())).layout for name, (build, _) in LAYOUTS.items()}
    assert named["CoOp"] == named["APT"] == named["AdvPT"] == "CoOp (also AdvPT and APT)"
    assert (named["MaPLe"], named["FAP"], named["NAP"]) == ("MaPLe", "FAP", "NAP")
    assert named["FAP, depth 1"] == "MaPLe or FAP with depth 1"


@pytest.mark.parametrize(
    ("state", "method", "message"),
    [
        (coop(), "capt", "'apt'.*'advpt'.* context.*'capt'"),
        (apt(), "advpt", "'apt'.*class-specific.*'advpt'"),
        (maple(), "apt", "'capt'.*'nap'.*multi-modal.*'apt'"),
        (coop(), "coop", "'apt'.*'advpt'.*'coop'"),
        (nap(), "capt", "'nap'.*token refiners.*'capt'"),
    ],
)
def test_a_method_of_another_kind(
    write: Callable[..., Path], small_clip: FrozenCLIP, state: State, method: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^method .*{message}"):
        import_prompts(write(state), small_clip, NAMES, method=method)


@pytest.mark.parametrize(
    ("state", "method", "setting"),
    [
        (coop(), "advpt", {"n_ctx": 4}),
        (fap(), "capt", {"coupling": "text-to-image"}),
        (coop(), "advpt", {"ctx_init": "a photo of a"}),
        (coop(), "apt", {"class_specific": True}),
        (maple(), "capt", {"depth": 2}),
        (maple(), "nap", {"refiners": True}),
        (maple(), "nap", {"text_refiners": True}),
        (coop(), "apt", {"init_from": "run"}),
    ],
)
def test_settings_that_the_checkpoint_decides(
    write: Callable[..., Path],
    small_clip: FrozenCLIP,
    state: State,
    method: str,
    setting: dict[str, object],
) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(setting))} .*model\.pth\.tar-50"):
        import_prompts(write(state), small_clip, NAMES, method=method, **setting)


def test_class_specific_contexts_need_their_classes(
    write: Callable[..., Path], small_clip: FrozenCLIP
) -> None:
    bare = {"ctx": apt()["ctx"]}
    with pytest.raises(ValueError, match=r"^classnames .* 3 .* order.* 2\b"):
        import_prompts(write(bare), small_clip, NAMES[:2])
    with pytest.raises(ValueError, match=r"^classnames .*'a'"):
        import_prompts(write(bare), small_clip, ["a", "b", "a"])


@pytest.mark.parametrize("width", [512, 768, 640])
def test_a_context_of_another_width(
    write: Callable[..., Path], small_clip: FrozenCLIP, width: int
) -> None:
    fitting = {512: "ViT-B-16, ViT-B-32", 768: "ViT-L-14", 640: "ViT-B-16-plus"}[width]
    with pytest.raises(ValueError, match=f"^clip.*width {width}.*width {TEXT}.* {fitting}"):
        import_prompts(write({"ctx": random(0, 4, width)}), small_clip, NAMES)


def test_visual_prompts_of_another_width(
    write: Callable[..., Path], small_clip: FrozenCLIP
) -> None:
    state = multi_modal(depth=1) | {"proj.weight": random(0, 40, TEXT), "proj.bias": random(0, 40)}
    with pytest.raises(ValueError, match=r"^clip.*24.* 40.* 24.* 32$"):
        import_prompts(write(state), small_clip, NAMES)


def test_the_models_offered_have_the_widths() -> None:
    for text, image in ((512, None), (768, None), (640, None), (512, 768), (768, 1024)):
        names = _models(text, image)
        assert 1 < len(names) <= 5
        assert names[0].startswith("ViT-")
        for name in names:
            config = open_clip.get_model_config(name)
            assert config["text_cfg"]["width"] == text
            assert image is None or config["vision_cfg"]["width"] == image
    assert "ViT-B-32" in _models(512, 768)
    assert _models(TEXT, None) == []


def test_more_layers_than_the_towers_have(
    write: Callable[..., Path], small_clip: FrozenCLIP
) -> None:
    with pytest.raises(ValueError, match=r"^clip.*3 layers.* 2 \(text\).* 2 \(image\)"):
        import_prompts(write(multi_modal(depth=3)), small_clip, NAMES)


def test_an_image_tower_that_takes_no_prompts(write: Callable[..., Path]) -> None:
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
    torch.manual_seed(0)
    clip = load_clip(open_clip.CLIP(**{**SMALL, "vision_cfg": vision}).eval())
    with pytest.raises(ValueError, match="ModifiedResNet"):
        import_prompts(write(maple()), clip, NAMES)
    bare = {"ctx": coop()["ctx"]}
    assert import_prompts(write(bare), clip, NAMES, method="advpt").method == "advpt"


def test_prompts_say_what_they_are() -> None:
    context = ForeignPrompts(torch.ones(3, TEXT))
    assert (context.kind, context.depth, context.text_width) == ("context", 1, TEXT)
    assert context.state().keys() == {"tokens"}
