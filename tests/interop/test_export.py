"""`fastprompt.export`: files that give the classifier's logits without fastprompt."""

import copy
import json
import sys
import warnings

import open_clip
import pytest
import torch
import torch.nn.functional as F
from helpers.method_checks import clip_of, data, tuner_of
from helpers.models import SMALL, resnet, small_model
from safetensors import safe_open
from torch import nn

import fastprompt
from fastprompt import CoOpTuner, PromptedCLIP, PromptMixture, export, load_clip
from fastprompt.interop import exporting
from fastprompt.interop.export_graph import trace

METHODS = ("advpt", "apt", "ampt", "capt", "nap", "coop")
LIMIT = 1e-4


@pytest.fixture(scope="module")
def tuners():
    """A tuner of each method, none of what learns at its start value."""
    clip = clip_of(torch.float32)
    made = {m: tuner_of(m, clip=clip, precision="fp32") for m in METHODS if m != "coop"}
    made["coop"] = CoOpTuner(clip, ["cat", "dog", "red circle"], n_ctx=2, precision="fp32")
    return made


def pixels(n, size=48):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(n))


def check_program(path, classifier, counts=(1, 7)):
    program = torch.export.load(path).module()
    for n in counts:
        wanted = classifier(pixels(n))
        assert (program(pixels(n)) - wanted).abs().max() < LIMIT
    return program


def onnx_parts():
    return pytest.importorskip("onnx"), pytest.importorskip("onnxscript")


def check_onnx(path, classifier, counts=(1, 7)):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n in counts:
        (found,) = session.run(["logits"], {"pixels": pixels(n).numpy()})
        assert (torch.from_numpy(found) - classifier(pixels(n))).abs().max() < LIMIT


# ---- each method -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_torch_program_gives_the_logits(method, tuners, tmp_path):
    tuner, extra = tuners[method], {"fastprompt": ""}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="No complete tensor")
        path = export(tuner, tmp_path / "model.pt2")
    check_program(path, tuner.classifier)
    program = torch.export.load(path, extra_files=extra)
    about = json.loads(extra["fastprompt"])
    assert about["method"] == method
    assert about["classnames"] == tuner.classnames
    assert about["model"]["fingerprint"] == tuner.clip.fingerprint
    assert about["fastprompt"] == fastprompt.__version__
    assert about["input"]["shape"] == ["batch", 3, 48, 48]
    assert about["preprocess"]["size"] == [48, 48]
    assert about["preprocess"]["interpolation"] == "bicubic"
    spaces = {getattr(n.target, "namespace", "") for n in program.graph.nodes}
    assert "fastprompt" not in spaces
    # the text encoder stays behind
    names = " ".join(program.state_dict)
    assert "token_embedding" not in names


@pytest.mark.parametrize("method", METHODS)
def test_an_onnx_file_gives_the_logits(method, tuners, tmp_path):
    onnx, _ = onnx_parts()
    tuner = tuners[method]
    path = export(tuner, tmp_path / "model.onnx")
    model = onnx.load(path)
    (properties,) = model.metadata_props
    assert properties.key == "fastprompt"
    assert json.loads(properties.value)["method"] == method
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    for value, size in ((model.graph.input[0], 4), (model.graph.output[0], 2)):
        dims = value.type.tensor_type.shape.dim
        assert len(dims) == size
        assert dims[0].dim_param == "batch"
    check_onnx(path, tuner.classifier)


@pytest.mark.parametrize("method", ["advpt", "apt", "coop"])
def test_class_features_alone(method, tuners, tmp_path):
    tuner = tuners[method]
    path = export(tuner, tmp_path / "classes.safetensors")
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["fastprompt"])
        features, scale = file.get_tensor("class_features"), file.get_tensor("logit_scale")
    assert about["classnames"] == tuner.classnames
    image = F.normalize(tuner.clip.encode_image(pixels(3)), dim=-1)
    assert (scale * image @ features.T - tuner.classifier(pixels(3))).abs().max() < 1e-5


# ---- other classifiers -------------------------------------------------------------------------


def test_the_reference_engine_gives_the_same_file(tmp_path):
    tuner = tuner_of("ampt", "reference", clip=clip_of(torch.float32))
    check_program(export(tuner, tmp_path / "model.pt2"), tuner.classifier)


@pytest.mark.parametrize("mix", ["normalized", "raw"])
def test_both_ways_to_mix(mix, tmp_path):
    clip = clip_of(torch.float32)
    prompts = PromptMixture(3, 2, clip.text_parts.width, 16, mix=mix, temperature=0.7)
    torch.manual_seed(1)
    for p in prompts.parameters():
        p.data += 0.3 * torch.randn_like(p)
    classifier = PromptedCLIP(clip, ["cat", "dog"], prompts, precision="fp32").classifier()
    check_program(export(classifier, tmp_path / "model.pt2"), classifier)


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_it_is_in_float32_whatever_the_precision(precision, tmp_path):
    clip = clip_of(torch.float64 if precision == "fp64" else torch.float32)
    tuner = tuner_of("capt", clip=clip, precision=precision)
    classifier = tuner.classifier
    single = classifier if precision == "fp64" else classifier.in_precision("fp32")
    check_program(export(classifier, tmp_path / "model.pt2"), single)
    assert clip.dtype == (torch.float64 if precision == "fp64" else torch.float32)


def test_models_of_other_kinds(tmp_path):
    with_bias = small_model(open_clip.CustomTextCLIP)
    with_bias.logit_bias = nn.Parameter(torch.tensor(-3.0))
    changed = small_model()
    changed.visual.transformer.resblocks[0].register_forward_hook(lambda *given: 1.1 * given[-1])
    for name, clip in {"bias": load_clip(with_bias), "hook": load_clip(changed)}.items():
        classifier = clip.zero_shot(["cat", "dog"])
        check_program(export(classifier, tmp_path / f"{name}.pt2"), classifier)
    classifier = resnet().zero_shot(["cat", "dog"])
    program = torch.export.load(export(classifier, tmp_path / "resnet.pt2")).module()
    assert (program(pixels(3, 64)) - classifier(pixels(3, 64))).abs().max() < LIMIT


def test_the_classifier_is_not_changed(tuners, tmp_path):
    classifier = tuners["nap"].classifier
    before = copy.deepcopy(classifier.state_dict())
    export(classifier, tmp_path / "model.pt2")
    after = classifier.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


# ---- int8 --------------------------------------------------------------------------------------


def test_int8_is_smaller_and_close(tmp_path):
    onnx, _ = onnx_parts()
    runtime = pytest.importorskip("onnxruntime")
    config = copy.deepcopy(SMALL)
    config["vision_cfg"] |= {"width": 128, "head_width": 32}  # weights as large as are not folded
    torch.manual_seed(0)
    clip = load_clip(open_clip.CLIP(**config).eval())
    tuner = tuner_of("nap", clip=clip, precision="fp32")
    path = export(tuner, tmp_path / "small.onnx", int8=True)
    whole = export(tuner, tmp_path / "whole.onnx")
    assert path.stat().st_size < 0.5 * whole.stat().st_size
    model = onnx.load(path)
    kinds = [node.op_type for node in model.graph.node]
    # the last block reads one token: its queries are a product of their own, keys and values too
    assert kinds.count("MatMulInteger") == 4 + 5 + 2 + 1  # blocks, refiner, projection
    assert "int8" in json.loads(model.metadata_props[0].value)["quantization"]
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = data().images.float() / 255
    (found,) = session.run(None, {"pixels": images.numpy()})
    wanted = tuner.classifier(images)
    apart = (torch.from_numpy(found) - wanted).norm() / wanted.norm()
    assert 1e-5 < apart < 0.05
    check_onnx(whole, tuner.classifier)


# ---- refusals; nothing is left behind ----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.bin", {}, r"path must end in one of \.onnx"),
        ("model", {}, "path must end in one of"),
        ("model.onnx", {"format": "torch"}, r"must end in \.pt2"),
        ("model.pt2", {"format": "tflite"}, "format"),
        ("model.pt2", {"int8": True}, "int8 must be False"),
        ("classes.safetensors", {}, r"visual prompts.*format='onnx'"),
    ],
)
def test_what_does_not_fit(name, options, message, tuners, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(tuners["nap"], tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opset", [17, 1, 0, 999])
def test_an_opset_too_old_or_too_new(opset, tuners, tmp_path):
    onnx_parts()
    with pytest.raises(ValueError, match="opset"):
        export(tuners["apt"], tmp_path / "model.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_a_newer_opset(tuners, tmp_path):
    onnx, _ = onnx_parts()
    path = export(tuners["apt"], tmp_path / "model.onnx", opset=20)
    assert [i.version for i in onnx.load(path).opset_import if i.domain == ""] == [20]
    check_onnx(path, tuners["apt"].classifier)


def test_an_existing_file_stays(tuners, tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="exists"):
        export(tuners["apt"], path)
    assert path.read_bytes() == b"mine"


def test_another_object(tmp_path):
    with pytest.raises(TypeError, match="got Linear"):
        export(nn.Linear(2, 2), tmp_path / "model.pt2")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_the_missing_extra_is_named(package, tuners, tmp_path, monkeypatch):
    if package == "onnxscript":
        pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"fastprompt\[export\]"):
        export(tuners["apt"], tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_towers_that_cannot_be_traced(tmp_path):
    model = small_model()
    own = model.encode_image
    # depends on the values of the pixels: no graph has it
    model.encode_image = lambda x, normalize=False: own(x, normalize) * (2 if x.sum() > 0 else 3)
    classifier = load_clip(model).zero_shot(["cat", "dog"])
    with pytest.raises(ValueError, match="cannot be exported"):
        export(classifier, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_custom_operators_are_refused(tuners):
    classifier = tuners["ampt"].classifier

    class Other(type(classifier.head)):
        """Not known to the export: its own forward, with the fused operator, is traced."""

    classifier.head.__class__ = Other
    with pytest.raises(ValueError, match="custom operator fastprompt"):
        trace(classifier)


def test_a_write_that_fails_leaves_nothing(tuners, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastprompt._utils.files._flush", full)
    with pytest.raises(OSError, match="could not write"):
        export(tuners["apt"], tmp_path / "classes.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_preprocessing_is_the_models_own():
    model = small_model()
    model.visual.preprocess_cfg = {"resize_mode": "squash", "interpolation": "bilinear"}
    about = exporting.preprocess_of(load_clip(model))
    assert about["resize_mode"] == "squash"
    assert about["interpolation"] == "bilinear"
    assert about["crop"] is None
