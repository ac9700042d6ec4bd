"""Precisions by name, and which one a device gets."""

import pytest
import torch
from helpers.models import small_model

from fastprompt import load_clip
from fastprompt._utils import dtypes
from fastprompt._utils.dtypes import (
    at_least_float32,
    auto_precision,
    check_precision,
    explain_auto,
    multiplies_bf16,
    why_no_bf16,
)
from fastprompt.towers.engines import resolve_precision

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


ASK = why_no_bf16  # the tests' CPU has no bfloat16 units, whatever the machine has


@pytest.fixture
def bf16(monkeypatch):
    """Say whether devices multiply bfloat16."""
    return lambda has: monkeypatch.setattr(
        dtypes, "why_no_bf16", lambda device: "" if has else "no units"
    )


@pytest.fixture
def cpu(monkeypatch):
    """A CPU with these capabilities, and these variables."""
    monkeypatch.setattr(dtypes, "why_no_bf16", ASK)
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)

    def having(*names, **variables):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return having


@pytest.fixture(autouse=True)
def _nothing_logged_yet():
    dtypes._log_once.cache_clear()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_at_least_float32(given, wanted):
    x = torch.tensor([0.5, -2.0], dtype=given)
    out = at_least_float32(x)
    assert out.dtype == wanted
    assert out.tolist() == [0.5, -2.0]
    assert (out is x) == (given == wanted)


def test_bf16_is_what_the_device_computes_in(monkeypatch):
    asked = []

    def supported(including_emulation):
        asked.append(including_emulation)
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert not multiplies_bf16(MPS)
    assert asked == []
    assert not multiplies_bf16(CUDA)
    assert set(asked) == {False}  # emulated bfloat16 is slower than float32


AVX512 = ("avx2", "avx512_f", "avx512_vl", "avx512_bw", "avx512_dq", "avx512_vnni")
SERVER = (*AVX512, "avx512_bf16", "amx_tile", "amx_bf16")
GRAVITON = ("neon", "sve", "bf16")


@pytest.mark.parametrize(
    ("names", "variables", "why_not"),
    [
        (SERVER, {}, ""),
        ((*AVX512, "avx512_bf16"), {}, ""),
        (("avx2", "amx_bf16"), {}, ""),
        (GRAVITON, {}, ""),
        (AVX512, {}, "no bfloat16 units"),  # oneDNN emulates it there
        (("avx2",), {}, "no bfloat16 units"),
        (("avx2", "avx_ne_convert"), {}, "no bfloat16 units"),  # these only convert it
        (("neon",), {}, "no bfloat16 units"),
        (SERVER, {"ATEN_CPU_CAPABILITY": "default"}, "ATEN_CPU_CAPABILITY=default"),
        (SERVER, {"ATEN_CPU_CAPABILITY": "avx2"}, "ATEN_CPU_CAPABILITY=avx2"),
        (SERVER, {"ATEN_CPU_CAPABILITY": "avx512"}, ""),
        (SERVER, {"ATEN_CPU_CAPABILITY": "AVX2"}, ""),  # torch ignores it
        (GRAVITON, {"ATEN_CPU_CAPABILITY": "default"}, "ATEN_CPU_CAPABILITY=default"),
        (SERVER, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "ONEDNN_MAX_CPU_ISA=AVX2"),
        (SERVER, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "ONEDNN_MAX_CPU_ISA=AVX512_CORE"),
        (SERVER, {"ONEDNN_MAX_CPU_ISA": "avx512_core_vnni"}, "=avx512_core_vnni"),
        (SERVER, {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI_2"}, "=AVX2_VNNI_2"),
        (SERVER, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, ""),
        (SERVER, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, ""),
        (SERVER, {"ONEDNN_MAX_CPU_ISA": "DEFAULT"}, ""),
        (SERVER, {"DNNL_MAX_CPU_ISA": "SSE41"}, "DNNL_MAX_CPU_ISA=SSE41"),
        (SERVER, {"ONEDNN_MAX_CPU_ISA": "ALL", "DNNL_MAX_CPU_ISA": "AVX"}, ""),
        (AVX512, {"ONEDNN_MAX_CPU_ISA": "ALL"}, "no bfloat16 units"),
    ],
)
def test_a_cpu_multiplies_bf16_if_it_has_units_that_no_variable_excludes(
    cpu, names, variables, why_not
):
    cpu(*names, **variables)
    assert multiplies_bf16(CPU) == (not why_not)
    assert why_not in ASK(CPU)
    wanted = "fp32" if why_not else "bf16"
    assert auto_precision(torch.float32, CPU) == wanted
    assert explain_auto(torch.float32, CPU).startswith(f"{wanted} (")
    assert why_not in explain_auto(torch.float32, CPU)


def test_without_onednn_the_units_are_not_used(cpu, monkeypatch):
    cpu(*SERVER)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not multiplies_bf16(CPU)
    assert "oneDNN" in ASK(CPU)


def test_the_names_of_the_units_are_torchs(cpu):
    """A renamed capability would silently switch bfloat16 off."""
    known = torch.cpu.get_capabilities()
    if known["architecture"] in ("x86_64", "AMD64"):
        assert {"avx512_bf16", "amx_bf16"} <= set(known)
    else:
        assert "bf16" in known


def test_the_two_variables_give_float32_with_one_line(cpu, caplog):
    cpu(*SERVER, ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="AVX2")
    with caplog.at_level("INFO"):
        assert [auto_precision(torch.float32, CPU) for _ in range(3)] == ["fp32"] * 3
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "ATEN_CPU_CAPABILITY=default" in record.message


def test_emulated_bf16_runs_with_one_warning(cpu, caplog):
    cpu(*AVX512)
    assert [check_precision("bf16", CPU) for _ in range(3)] == [torch.bfloat16] * 3
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert all(word in record.message for word in ("'bf16'", "slower", "no bfloat16 units"))
    caplog.clear()
    cpu(*SERVER)
    dtypes._log_once.cache_clear()
    check_precision("bf16", CPU)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("dtype", "device", "has", "wanted"),
    [
        (torch.float32, CUDA, True, "bf16"),
        (torch.float32, CUDA, False, "fp32"),
        (torch.float64, CUDA, True, "fp64"),
        (torch.float32, CPU, True, "bf16"),
        (torch.float32, CPU, False, "fp32"),
        (torch.float64, CPU, True, "fp64"),
        (torch.bfloat16, CPU, True, "bf16"),
        (torch.float16, CPU, True, "fp16"),
    ],
)
def test_auto_precision(bf16, dtype, device, has, wanted):
    bf16(has)
    assert auto_precision(dtype, device) == wanted
    assert explain_auto(dtype, device).split()[0] == wanted


@pytest.mark.parametrize("name", DTYPES)
def test_a_known_precision_is_its_dtype(name):
    assert check_precision(name, CPU) == DTYPES[name]


def test_precisions_that_are_refused(bf16):
    with pytest.raises(ValueError, match=r"^precision .*fp64.*'int8'"):
        check_precision("int8", CPU)
    with pytest.raises(ValueError, match=r"^precision.*mps .*'fp32'"):
        check_precision("fp64", MPS)
    bf16(False)
    with pytest.raises(ValueError, match=r"^precision.*cuda .*'fp32'"):
        check_precision("bf16", CUDA)
    assert check_precision("fp32", CUDA) == torch.float32


@pytest.mark.parametrize("name", ["fp32", "fp64"])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_auto_is_the_weights_own_precision_on_a_plain_cpu(engine, name):
    clip = load_clip(small_model().to(DTYPES[name]))
    assert resolve_precision(clip, engine, "auto") == name
    assert resolve_precision(clip, engine, name) == name
    other = "fp64" if name == "fp32" else "fp32"
    if engine == "fast":
        assert resolve_precision(clip, engine, other) == other
    else:
        with pytest.raises(ValueError, match=f"^precision .*{name!r}.*'reference'.*{other!r}"):
            resolve_precision(clip, engine, other)


def test_the_reference_engine_stays_in_float32_where_the_fast_one_takes_bf16(small_clip, bf16):
    bf16(True)

    class OnAGPU:
        dtype, device = torch.float32, CUDA

    assert resolve_precision(OnAGPU, "fast", "auto") == "bf16"
    assert resolve_precision(OnAGPU, "reference", "auto") == "fp32"
    bf16(False)
    assert resolve_precision(OnAGPU, "fast", "auto") == "fp32"


def test_an_unknown_engine_is_refused_first(small_clip):
    with pytest.raises(ValueError, match=r"^engine .*'fast'.*'slow'"):
        resolve_precision(small_clip, "slow", "int8")
