"""Square: random search with square perturbations, without gradients.

Andriushchenko et al., "Square attack: a query-efficient black-box adversarial attack via random
search", ECCV 2020, algorithms 1 and 2 (L-inf).
"""

import math

import torch
from torch import Tensor

from .._utils.checks import MOST_STEPS, Fraction, check_count, check_seed, parse_fraction
from .._utils.types import Model
from ..kernels.random_start.eager import philox
from . import losses
from .base import Attack, Batch
from .random_start import start_key
from .result import AttackResult
from .slots import Run, State

_SHARE = 0.8  # share of the image that the first squares cover
# the share is halved after these numbers of proposals: as in AutoAttack's code, they do not depend
# on the number of queries, to which the paper scales them
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_STRIPES, _SQUARES = 1 << 31, (1 << 31) + 1  # random numbers other than those of the restarts
_AHEAD = 32  # largest number of queries in a pass if `batch` does not say
_OVERHEAD = {"cpu": 3, "cuda": 64}  # cost of a pass in addition to its queries, in queries


class Square(Attack):
    """Square in the L-inf ball: each query sets a random square to a random color of the ball.

    A proposal is kept if it raises the margin. An image leaves when it is fooled; the result of the
    others is their point of largest margin. All random numbers depend only on (seed, image index,
    query), unlike in the authors' code, where all images of a batch share the positions of the
    squares. The squares shrink as in AutoAttack's code, without regard to ``queries``.

    A proposal that does not change the image is rejected without a pass through the model. When few
    images are left, several proposals for each are evaluated in a batch; those behind the first
    one that is kept are discarded and do not count as queries. Neither changes the result.

    Args:
        model: as for `PGD`.
        eps: radius in pixel units, a float or a string such as ``"4/255"``.
        queries: maximum number of queries per image.
        batch: images attacked at once; None attacks all images given to `run` at once.
        seed: seed of the squares.

    Raises:
        ValueError, TypeError: an argument is out of range or has the wrong type.
    """

    def __init__(
        self,
        model: Model,
        eps: Fraction = 8 / 255,
        queries: int = 5000,
        *,
        batch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, stop=True, batch=batch)
        self.eps = parse_fraction(eps, "eps", zero=True)
        self.queries = check_count(queries, "queries", most=MOST_STEPS)
        self.seed = check_seed(seed)

    def __repr__(self) -> str:
        return f"Square(eps={self.eps * 255:g}/255, queries={self.queries}, seed={self.seed})"

    def _attack(self, batch: Batch, ask: bool) -> AttackResult:
        found = _SquareRun(self, batch).run()
        return AttackResult(found.images, found.fell, found.health, found.fell_at)


def sides(queries: int, height: int, width: int) -> list[int]:
    """Return the side of the square of each query in pixels; 0 for the first, the stripes."""
    out = [0]
    for proposal in range(queries - 1):
        share = _SHARE / 2 ** sum(proposal > last for last in _HALVED)
        side = max(1, round(math.sqrt(share * height * width)))
        out.append(min(side, height, width))
    return out


class _Squares:
    """The proposals of Square on one batch, as a `Search` for `_SquareRun`.

    The state holds the point of largest margin, ``adv``; its margin, ``best``; the ends of the
    ball, ``low`` and ``high``; and the ``corners`` and ``colors`` of all squares.
    """

    attempts = 1

    def __init__(self, attack: Square, batch: Batch) -> None:
        self.attack, self.batch, self.steps = attack, batch, attack.queries
        device = batch.images.device
        self.sides = torch.tensor(sides(attack.queries, *batch.images.shape[2:]), device=device)
        self.key = start_key(attack.seed, 0, device)

    def begin(self, rows: Tensor, attempt: int) -> State:
        x, eps = self.batch.images[rows], self.attack.eps
        channels, height, width = x.shape[1:]
        low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
        stripes = _bits(_colors(self._words(rows, _STRIPES, width)), channels)  # [S, W, C]
        words = self._words(rows, _SQUARES, self.steps)  # [S, Q, 4]
        spare = torch.stack([height - self.sides + 1, width - self.sides + 1], dim=1)
        return {
            "x": x,
            "low": low,
            "high": high,
            "adv": torch.where(stripes.mT[:, :, None], high, low),
            "best": torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device),
            "corners": ((words[..., :2] * spare) >> 32).int(),
            "colors": _colors(words),
        }

    def _words(self, rows: Tensor, stream: int, n: int) -> Tensor:
        """Return ``n`` times four random 32-bit words per image, int64 ``[S, n, 4]``."""
        image = self.batch.indices[rows][:, None]
        numbers = torch.arange(n, device=rows.device)[None]
        kind = torch.full_like(image, stream)
        counter = (numbers, kind, image & 0xFFFFFFFF, (image >> 32) & 0xFFFFFFFF)
        return torch.stack(philox(counter, self.key[0]), dim=2)

    def propose(self, state: State, queries: Tensor) -> Tensor:
        """Return the proposals of the given queries, ``[S, K, C, H, W]``, from ``[S, K]``."""
        channels, *size = state["x"].shape[1:]
        queries = queries.clamp_max(self.steps - 1)
        slots = torch.arange(len(queries), device=queries.device)[:, None]
        corner, side = state["corners"][slots, queries], self.sides[queries]
        inside = []
        for axis, length in enumerate(size):
            places = torch.arange(length, device=queries.device) - corner[..., axis, None]
            inside.append((places >= 0) & (places < side[..., None]))  # [S, K, H] and [S, K, W]
        square = (inside[0][..., :, None] & inside[1][..., None, :])[:, :, None]
        up = _bits(state["colors"][slots, queries], channels)[..., None, None]
        low, high, adv = (state[k][:, None] for k in ("low", "high", "adv"))
        return torch.where(square, torch.where(up, high, low), adv)

    def result(self, state: State) -> Tensor:
        return state["adv"]


def _colors(words: Tensor) -> Tensor:
    """Return 64 random bits from the last two of four random words."""
    return words[..., 2] | words[..., 3] << 32


def _bits(colors: Tensor, channels: int) -> Tensor:
    """Return a bit per channel along a new last dimension, bool; from the 65th on they repeat."""
    places = torch.arange(channels, device=colors.device) % 64
    return (colors[..., None] >> places) & 1 == 1


class _SquareRun(Run):
    """`Run` whose steps are queries, one or several proposals per image in a pass."""

    search: _Squares

    def __init__(self, attack: Square, batch: Batch) -> None:
        search, slots = _Squares(attack, batch), attack.batch or len(batch)
        super().__init__(attack.model, search, batch.images, batch.labels, slots, attack.judge)
        self.fooled = attack.judge
        self.room = attack.batch or max(len(batch), _AHEAD)
        self.overhead = _OVERHEAD.get(batch.images.device.type, _OVERHEAD["cuda"])
        self.raised = 1.0  # share of the recent queries that raised the margin

    def ahead(self) -> int:
        """Return the number of proposals per image in the next pass.

        With K proposals for each of S images, a pass costs ``overhead + S K`` and advances by about
        ``S K (1 - raised K / 2)`` queries; this K makes the ratio smallest.
        """
        images = len(self.rows)
        best = math.sqrt(2 * self.overhead / (images * max(self.raised, 1e-3)))
        return max(1, min(int(best), self.room // images))

    @torch.no_grad()
    def step(self) -> None:
        state = self.state
        reach = torch.arange(self.ahead(), device=self.images.device)
        queries = state["step"][:, None] + reach
        tried = self.search.propose(state, queries)
        margins, fooled = self._margins(tried, queries)
        kept = fooled | (margins > state["best"][:, None]) | (queries == 0)
        moved, first = kept.any(dim=1), kept.int().argmax(dim=1)
        slots = torch.arange(len(queries), device=queries.device)
        wide = moved[:, None, None, None]
        state["adv"] = torch.where(wide, tried[slots, first], state["adv"])
        state["best"] = torch.where(moved, margins[slots, first], state["best"])
        last = torch.where(moved, queries[slots, first], queries[:, -1])
        state["step"] = last.clamp_max(self.search.steps - 1)
        self._note(fooled[slots, first])
        state["step"] += 1
        before, self.done = sum(self.done), state["step"].tolist()
        self.raised += 0.1 * (int(moved.sum()) / (sum(self.done) - before) - self.raised)

    def _margins(self, tried: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the margins of proposals that can be kept, else -inf, and which are fooled."""
        state = self.state
        changed = (tried != state["adv"][:, None]).flatten(2).any(dim=2)
        asked = torch.where(queries[:, :1] == 0, queries == 0, changed)
        asked &= queries < self.search.steps
        margins = torch.full_like(queries, -torch.inf, dtype=state["best"].dtype)
        fooled = torch.zeros_like(asked)
        images, labels = tried[asked], state["labels"][:, None].expand_as(queries)[asked]
        if len(images):
            logits = self._logits(images)
            found = losses.margin(logits, labels).to(margins.dtype)
            margins[asked] = found.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
            fooled[asked] = self.fooled(logits, labels)
        return margins, fooled

    def _note_last(self, finished: list[bool]) -> None:
        """Do nothing: `step` evaluates every query, the last one too."""
