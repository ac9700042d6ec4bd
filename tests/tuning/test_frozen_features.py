"""Features of the frozen model: one row an image, whatever the batches."""

import pytest
import torch
from torch import nn

from fastprompt.data import ImageTensors
from fastprompt.tuning.frozen_features import frozen_features

CPU = torch.device("cpu")
N = 7


def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(256, (N, 3, 48, 48), generator=generator, dtype=torch.uint8)


class Items:
    """A map-style data set that is nothing else."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return pixels()[index], index % 3


DATA = {
    "tensors": lambda: ImageTensors(pixels(), torch.arange(N) % 3),
    "items": Items,
    "list": lambda: [(image, 0) for image in pixels()],
}


@pytest.fixture(params=DATA)
def data(request):
    return DATA[request.param]()


@pytest.mark.parametrize("batch", [1, 3, N, 128])
def test_row_i_belongs_to_image_i(data, batch):
    sizes = []

    def encode(x):
        sizes.append(len(x))
        return x.flatten(1)[:, :50].double()  # each row by itself: equal bits in any batch

    rows = frozen_features(encode, data, device=CPU, batch=batch, progress=False)
    assert torch.equal(rows, encode(pixels().float() / 255))
    assert sizes[:-1] == [min(batch, N - i) for i in range(0, N, batch)]


def test_they_are_the_towers_features(small_clip, data):
    rows = frozen_features(small_clip.encode_image, data, device=CPU, batch=3, progress=False)
    for row, image in zip(rows, pixels(), strict=True):
        alone = small_clip.encode_image(image[None].float() / 255)[0]
        assert (row - alone).norm() <= 1e-5 * alone.norm()
    assert (rows[0] - rows[1]).norm() > 1e-2 * rows[0].norm()


def test_no_graph_is_kept(data):
    learning = nn.Linear(48, 5)
    seen = []

    def encode(x):
        seen.append(torch.is_grad_enabled())
        return learning(x.mean((1, 2)))

    rows = frozen_features(encode, data, device=CPU, batch=4, progress=False)
    assert not rows.requires_grad
    assert seen == [False, False]
    assert torch.is_grad_enabled()


def test_low_precision_is_kept_in_float32(data):
    def encode(x):
        return x.flatten(1)[:, :5].bfloat16()

    rows = frozen_features(encode, data, device=CPU, progress=False)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, encode(pixels().float() / 255).float())


def test_images_are_encoded_where_the_features_are_kept():
    def encode(x):
        assert x.device.type == "meta"
        return x.flatten(1)

    data = ImageTensors(pixels(), torch.zeros(N, dtype=torch.int64))
    rows = frozen_features(encode, data, device=torch.device("meta"), batch=4, progress=False)
    assert rows.device.type == "meta"
    assert rows.shape == (N, 3 * 48 * 48)


def test_decoding_in_other_processes_keeps_the_order():
    rows = frozen_features(
        lambda x: x.flatten(1), Items(), device=CPU, batch=2, workers=2, progress=False
    )
    assert torch.equal(rows, (pixels().float() / 255).flatten(1))
