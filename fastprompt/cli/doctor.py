"""``fastprompt doctor``: report the installation and check that the bundled models run."""

import os
import time
from collections.abc import Sequence


def doctor(arguments: Sequence[str] = ()) -> int:
    """Print versions, devices, precisions and kernels; check the bundled models."""
    if arguments:
        if arguments[0] in ("-h", "--help"):
            print("usage: fastprompt doctor\nlist versions, devices, kernels; check bundled models")
            return 0
        raise ValueError(f"arguments: doctor takes no options, got {arguments[0]!r}")
    began = time.perf_counter()
    import torch

    from .. import kernels
    from .._utils.dtypes import explain_auto
    from .._utils.versions import versions
    from ..clip import bundled
    from ..clip.load import load_clip
    from ..kernels._dispatch import obstacle

    for name, version in versions().items():
        print(f"{name:<18}{version}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    print(f"{'device':<18}cpu, {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    for index in range(gpus):
        print(f"{'device':<18}cuda:{index}, {torch.cuda.get_device_name(index)}")
    if not gpus:
        print(f"{'':<18}no GPU: everything runs on the CPU")
    for device in ("cpu", *(f"cuda:{index}" for index in range(gpus))):
        auto = explain_auto(torch.float32, torch.device(device))
        print(f"{'precision':<18}auto on {device}: {auto}")
    why = obstacle([torch.empty(0, device="cuda")]) if gpus else "no GPU is available"
    runs = f"plain PyTorch implementation ({why})" if why else "Triton kernel on the GPU"
    for op in kernels.__all__:
        if op.islower():  # an operation, not a type
            print(f"{'kernel':<18}{op}: {runs}")
    failed = 0
    if not bundled.names():
        failed = 1
        print(f"{'model':<18}FAILS: no bundled model was installed")
    for name in bundled.names():
        try:
            clip = load_clip(name)
            logits = clip.zero_shot(["red circle", "blue star"])(torch.zeros(1, *clip.pixel_shape))
            good = bool(logits.isfinite().all())
        except Exception as error:  # doctor reports every failure
            good, reason = False, f"{type(error).__name__}: {error}"
        else:
            reason = "" if good else "its logits are not finite"
        failed += not good
        print(f"{'model':<18}{name}: {'loads and runs' if good else 'FAILS: ' + reason}")
    print(f"{'checked in':<18}{time.perf_counter() - began:.1f} s, excluding Python startup")
    return 1 if failed else 0
