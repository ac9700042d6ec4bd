"""Training images: on the device or from the host, the same bits in the order asked for."""

import pytest
import torch
from torch import Tensor

from fastprompt.data import ImageTensors, device_images
from fastprompt.data.dataset import batches as plain_batches
from fastprompt.data.device_images import Pictures

CPU = torch.device("cpu")
N, SIDE = 9, 6
BYTES = N * 3 * SIDE * SIDE
ORDER = torch.tensor([8, 0, 3, 3, 7, 0, 1])


class Files:
    """A map-style set that makes its items when asked, and counts how often it was."""

    def __init__(self, images: Tensor, labels: list[int]) -> None:
        self.images, self.targets, self.read = images, labels, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        return self.images[index].clone(), self.targets[index]


class Broken(Files):
    """One of its files can't be read."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 5:
            raise OSError("file 5 is truncated")
        return super().__getitem__(index)


class Mixed(Files):
    """One of its items is unlike the others."""

    def __init__(self, images: Tensor, labels: list[int], odd: tuple[Tensor, object]) -> None:
        super().__init__(images, labels)
        self.odd = odd

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.odd if index == 5 else super().__getitem__(index)


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (N, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


LABELS = [(5 * i) % 7 for i in range(N)]


def source(kind: str, images: Tensor) -> Files | ImageTensors:
    return Files(images, LABELS) if kind == "files" else ImageTensors(images, torch.tensor(LABELS))


def joined(batches) -> tuple[list[int], list[Tensor]]:
    """Sizes of the batches, and rows, pixels and labels of all of them."""
    read = list(batches)
    return [len(rows) for rows, _, _ in read], [torch.cat(part) for part in zip(*read, strict=True)]


KINDS = pytest.mark.parametrize("kind", ["files", "tensors"])
BUDGETS = pytest.mark.parametrize("budget", [BYTES, 0], ids=["resident", "streamed"])


@KINDS
@BUDGETS
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_rows_in_order(images, kind, budget, workers):
    data = Pictures(source(kind, images), CPU, budget=budget, workers=workers, progress=False)
    assert data.resident == (budget > 0)
    assert len(data) == N
    sizes, (rows, pixels, labels) = joined(data.batches(ORDER, 3))
    assert sizes == [3, 3, 1]
    assert torch.equal(rows, ORDER)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, images[ORDER].float() / 255)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [LABELS[i] for i in ORDER]


@KINDS
@BUDGETS
def test_the_pixels_are_those_of_the_other_reader(images, kind, budget):
    data = source(kind, images)
    _, ours = joined(Pictures(data, CPU, budget=budget, progress=False).batches(ORDER, 4))
    _, theirs = joined(plain_batches(data, ORDER.tolist(), 4))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@KINDS
@BUDGETS
def test_every_byte_becomes_its_255th(kind, budget):
    every = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    data = Files(every, [0]) if kind == "files" else ImageTensors(every, torch.tensor([0]))
    stored = Pictures(data, CPU, budget=budget and every.numel(), progress=False)
    assert stored.resident == (budget > 0)
    (_, pixels, _) = next(stored.batches(torch.tensor([0]), 1))
    assert torch.equal(pixels[0, 0].flatten(), torch.arange(256).float() / 255)


@KINDS
@BUDGETS
def test_passes_are_independent_of_each_other(images, kind, budget):
    data = Pictures(source(kind, images), CPU, budget=budget, progress=False)
    first = data.batches(ORDER, 2)
    next(first)
    _, (whole, pixels, _) = joined(data.batches(torch.arange(N), N))
    assert torch.equal(whole, torch.arange(N))
    pixels.zero_()  # what was given out is the caller's own
    _, (rows, rest, _) = joined(first)
    assert torch.equal(rows, ORDER[2:])
    assert torch.equal(rest, images[ORDER[2:]].float() / 255)


@KINDS
@BUDGETS
def test_an_empty_order_gives_nothing(images, kind, budget):
    data = Pictures(source(kind, images), CPU, budget=budget, progress=False)
    assert list(data.batches(torch.empty(0, dtype=torch.int64), 4)) == []


# ---- what is kept ---------------------------------------------------------------------------


def kept(data: Pictures) -> list[Tensor]:
    """Every tensor that hangs on it, but the data set itself."""
    found, stack = [], [v for k, v in vars(data).items() if k != "_data"]
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            stack += value
    return found


@KINDS
def test_images_are_kept_as_bytes_alone(images, kind):
    data = Pictures(source(kind, images), CPU, progress=False)
    joined(data.batches(ORDER, 3))
    sizes = {t.dtype: t.nbytes for t in kept(data)}
    assert sizes[torch.uint8] == BYTES
    assert sizes[torch.int64] == 8 * N
    assert sum(t.nbytes for t in kept(data)) <= BYTES + 8 * N + 4
    streamed = Pictures(source(kind, images), CPU, budget=0, progress=False)
    assert sum(t.nbytes for t in kept(streamed)) <= 4


def test_images_in_memory_are_not_copied_for_the_cpu(images):
    data = Pictures(ImageTensors(images, torch.tensor(LABELS)), CPU)
    assert images.data_ptr() in {t.data_ptr() for t in kept(data)}


def test_resident_images_are_decoded_once(images):
    """But for the first, which is looked at before."""
    files = Files(images, LABELS)
    data = Pictures(files, CPU, progress=False)
    once = files.read
    assert N <= once <= N + 2
    joined(data.batches(ORDER, 3))
    assert files.read == once


def test_streamed_images_are_decoded_in_each_pass(images):
    files = Files(images, LABELS)
    data = Pictures(files, CPU, budget=0, progress=False)
    assert files.read <= 2
    before = files.read
    joined(data.batches(ORDER, 3))
    assert files.read == before + len(ORDER)


@KINDS
def test_the_budget_decides(images, kind):
    for budget, resident in ((BYTES, True), (BYTES - 1, False)):
        data = Pictures(source(kind, images), CPU, budget=budget, progress=False)
        assert data.resident is resident


@pytest.mark.parametrize(("memory", "resident"), [(4 * BYTES, True), (4 * BYTES - 1, False)])
def test_by_default_a_quarter_of_the_devices_memory(images, monkeypatch, memory, resident):
    monkeypatch.setattr(device_images, "total_memory", lambda device: memory)
    data = Pictures(Files(images, LABELS), CPU, progress=False)
    assert data.resident is resident


def test_more_images_than_are_decoded_at_once(images):
    times = 130 // N + 1
    many, its_labels = images.repeat(times, 1, 1, 1), LABELS * times
    data = Pictures(Files(many, its_labels), CPU, progress=False)
    _, (_, pixels, labels) = joined(data.batches(torch.arange(len(many)), 50))
    assert torch.equal(pixels, many.float() / 255)
    assert labels.tolist() == its_labels


# ---- the device -----------------------------------------------------------------------------


@KINDS
def test_resident_batches_look_at_no_value(images, kind):
    """On a device without values: what waits for the device fails there."""
    meta = torch.device("meta")
    data = Pictures(source(kind, images), meta, budget=BYTES, progress=False)
    sizes, parts = joined(data.batches(ORDER, 3))
    assert sizes == [3, 3, 1]
    assert all(part.device == meta for part in parts)


@pytest.mark.gpu
@KINDS
@BUDGETS
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_gets_the_same_bits(images, kind, budget, workers):
    device = torch.device("cuda")
    data = Pictures(source(kind, images), device, budget=budget, workers=workers, progress=False)
    _, parts = joined(data.batches(ORDER, 3))
    assert all(part.device.type == "cuda" for part in parts)
    _, wanted = joined(plain_batches(source(kind, images), ORDER.tolist(), 3))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(parts, wanted, strict=True))


@pytest.mark.gpu
def test_resident_batches_do_not_wait_for_the_gpu(images):
    data = Pictures(Files(images, LABELS), torch.device("cuda"), budget=BYTES, progress=False)
    read = data.batches(ORDER, 3)
    next(read)  # the order's copy
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(read)) == 2
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- what goes wrong ------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_data_set_raises_arrives(images, workers):
    broken = Broken(images, LABELS)
    with pytest.raises(OSError, match="file 5 is truncated"):
        Pictures(broken, CPU, workers=workers, progress=False)
    data = Pictures(broken, CPU, workers=workers, budget=0, progress=False)
    read = data.batches(torch.tensor([0, 1, 5, 2]), 2)
    assert next(read)[0].tolist() == [0, 1]
    with pytest.raises(OSError, match="file 5 is truncated"):
        next(read)


@pytest.mark.parametrize(
    ("odd", "error", "message"),
    [
        ((torch.zeros(3, 6, 7).byte(), 0), ValueError, r"^data .*\[3, 6, 6\].*\[3, 6, 7\]"),
        ((torch.zeros(3, 6, 6), 0), ValueError, "^data .*uint8.*float32"),
        ((torch.zeros(3, 6, 6).byte(), 1.5), TypeError, "^labels of data .*1.5"),
    ],
)
@BUDGETS
def test_an_item_unlike_the_first_is_told(images, odd, error, message, budget):
    def read() -> None:
        data = Pictures(Mixed(images, LABELS, odd), CPU, budget=budget, progress=False)
        joined(data.batches(torch.tensor([4, 5]), 2))

    with pytest.raises(error, match=message):
        read()


def test_labels_may_be_tensors(images):
    data = Mixed(images, LABELS, (images[5], torch.tensor(4)))
    (_, _, labels) = next(Pictures(data, CPU, progress=False).batches(torch.tensor([5]), 1))
    assert labels.tolist() == [4]


@pytest.mark.parametrize(
    ("order", "batch", "error", "message"),
    [
        ([0, 1], 2, TypeError, "^order .*list"),
        (torch.tensor([0.0]), 2, ValueError, r"^order .*int64 \[n\].*float32"),
        (torch.tensor([[0]]), 2, ValueError, r"^order .*int64 \[n\].*\[1, 1\]"),
        (torch.tensor([0], device="meta"), 2, ValueError, "^order .*meta"),
        (torch.tensor([0, N]), 2, ValueError, f"^order .*0..{N - 1}.*{N}"),
        (torch.tensor([-1]), 2, ValueError, "^order .*-1"),
        (ORDER, 0, ValueError, "^batch .*1.*0"),
    ],
)
@BUDGETS
def test_an_order_that_does_not_fit_is_refused_at_once(
    images, budget, order, batch, error, message
):
    data = Pictures(Files(images, LABELS), CPU, budget=budget, progress=False)
    with pytest.raises(error, match=message):
        data.batches(order, batch)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": -1}, ValueError, "^budget .*-1"),
        ({"budget": 1e9}, TypeError, "^budget .*1000000000.0"),
        ({"workers": -1}, ValueError, "^workers .*-1"),
    ],
)
def test_settings_out_of_range_are_refused(images, options, error, message):
    with pytest.raises(error, match=message):
        Pictures(Files(images, LABELS), CPU, **options)


def test_unfit_data_sets_are_refused(images):
    with pytest.raises(ValueError, match=r"^data .*empty"):
        Pictures(Files(images[:0], []), CPU)
    with pytest.raises(TypeError, match=r"^data .*uint8.*float32"):
        Pictures(Files(images.float(), LABELS), CPU)
