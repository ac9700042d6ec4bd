"""Where a prompt's tokens stand, written out by hand."""

import open_clip
import pytest
import torch
from helpers.engine_checks import (
    EXACT,
    TEMPLATES,
    agree,
    embedded,
    frozen,
    noise,
    relative,
    sentences,
)
from helpers.models import small_model
from torch import Tensor

from fastprompt import FrozenCLIP
from fastprompt.towers import ReferenceTextTower, TextTower
from fastprompt.towers.text_layout import text_ends, text_layout, word_context

# open_clip's token ids
SOT, EOT, X, PERIOD, CAT, VERY, SMALL, DOG = 49406, 49407, 343, 269, 2368, 1070, 2442, 1929
A, PHOTO, OF, ON, TABLE, BRACES = 320, 1125, 539, 525, 2175, 39025
NAMES = ["cat", "very_small dog"]

# of three context tokens: the ids behind the padding's cut, the context's places, what leads
BY_HAND = {
    "end": (
        [
            [SOT, X, X, X, CAT, PERIOD, EOT, 0, 0],
            [SOT, X, X, X, VERY, SMALL, DOG, PERIOD, EOT],
        ],
        [[1, 2, 3], [1, 2, 3]],
        4,
    ),
    "middle": (
        [
            [SOT, X, CAT, X, X, PERIOD, EOT, 0, 0],
            [SOT, X, VERY, SMALL, DOG, X, X, PERIOD, EOT],
        ],
        [[1, 3, 4], [1, 5, 6]],
        2,
    ),
    "front": (
        [
            [SOT, CAT, X, X, X, PERIOD, EOT, 0, 0],
            [SOT, VERY, SMALL, DOG, X, X, X, PERIOD, EOT],
        ],
        [[2, 3, 4], [4, 5, 6]],
        1,
    ),
}


@pytest.mark.parametrize("position", BY_HAND)
def test_places_by_hand(small_clip, position):
    ids, context, leading = BY_HAND[position]
    layout = text_layout(small_clip, NAMES, 3, template=TEMPLATES[position])
    assert layout.length == 77
    assert layout.ids[:, :9].tolist() == ids
    assert not layout.ids[:, 9:].any()
    assert layout.context.tolist() == context
    assert layout.ends.tolist() == [6, 8]
    assert layout.leading == leading


@pytest.mark.parametrize("position", BY_HAND)
def test_trimmed_ends_with_the_longest_prompt(small_clip, position):
    layout = text_layout(small_clip, NAMES, 3, template=TEMPLATES[position])
    trimmed = layout.trimmed()
    assert trimmed.ids.tolist() == BY_HAND[position][0]
    assert trimmed.length == 9
    assert torch.equal(trimmed.context, layout.context)
    assert torch.equal(trimmed.ends, layout.ends)
    assert trimmed.leading == layout.leading


@pytest.mark.parametrize("position", BY_HAND)
def test_no_context_is_plain_text(small_clip, position):
    layout = text_layout(small_clip, NAMES, 0, template=TEMPLATES[position])
    assert torch.equal(layout.ids, small_clip.tokenizer(["cat.", "very small dog."]))
    assert layout.context.shape == (2, 0)
    assert layout.ends.tolist() == [3, 5]
    assert layout.leading == 1


def test_an_odd_and_an_even_context_around_the_name(small_clip):
    for n_ctx, places in ((1, [2]), (2, [1, 3]), (4, [1, 2, 4, 5]), (5, [1, 2, 4, 5, 6])):
        layout = text_layout(small_clip, ["cat"], n_ctx, template=TEMPLATES["middle"])
        assert layout.context.tolist() == [places]
        assert layout.leading == 1 + n_ctx // 2


def test_a_name_whose_period_the_tokenizer_joins_to_it(small_clip):
    # "st." and its period become one token, "..": the context still stands behind the name
    joined = small_clip.tokenizer.encode("st..")
    assert len(joined) == 2
    layout = text_layout(small_clip, ["st."], 2, template=TEMPLATES["front"])
    assert layout.ids[0, :6].tolist() == [SOT, *joined, X, X, EOT]
    assert layout.context.tolist() == [[3, 4]]
    assert layout.ends.tolist() == [5]


def test_the_last_free_place(small_clip):
    name = " ".join(["cat"] * 10)
    layout = text_layout(small_clip, [name, "dog"], 77 - 13)
    assert layout.ends.tolist() == [76, 67]
    with pytest.raises(ValueError, match=r"^classnames: .* 65 .* 10 .*77"):
        text_layout(small_clip, [name, "dog"], 77 - 12)


WORDS = {
    # fixed words around the context and the name
    "a photo [ctx] of {}.": ([A, PHOTO, X, X, X, OF, CAT, PERIOD], [3, 4, 5], 7),
    "[ctx] of {} on a table.": ([X, X, X, OF, CAT, ON, A, TABLE, PERIOD], [1, 2, 3], 5),
    "{} on [ctx] a table": ([CAT, ON, X, X, X, A, TABLE], [3, 4, 5], 1),
    # two halves: M // 2 tokens, and the rest
    "a [ctx] photo {} of [ctx].": ([A, X, PHOTO, CAT, OF, X, X, PERIOD], [2, 6, 7], 4),
    "[ctx] of [ctx] a {}.": ([X, OF, X, X, A, CAT, PERIOD], [1, 3, 4], 6),
    "[ctx] {{}} {}.": ([X, X, X, BRACES, CAT, PERIOD], [1, 2, 3], 5),
}


@pytest.mark.parametrize("template", WORDS)
def test_fixed_words_by_hand(small_clip, template):
    ids, places, leading = WORDS[template]
    layout = text_layout(small_clip, ["cat", "very_small dog"], 3, template=template)
    assert layout.ids[0, : len(ids) + 2].tolist() == [SOT, *ids, EOT]
    assert layout.context[0].tolist() == places
    assert layout.leading == leading
    assert torch.equal(layout.ids[0, :leading], layout.ids[1, :leading])
    assert layout.ends.tolist() == [len(ids) + 1, len(ids) + 3]
    first = min(places[0], leading)
    assert (layout.shared(False), layout.shared(True)) == (leading, first)


@pytest.mark.parametrize(
    ("template", "spaced"),
    [
        ("a photo of [ctx]{}.", "a photo of [ctx] {}."),
        ("a photo[ctx]of {}.", "a photo [ctx] of {}."),
        ("{}[ctx]on a table", "{} [ctx] on a table"),
        ("[ctx]{}[ctx]", "[ctx] {} [ctx]"),
        ("( [ctx]. {}", "( [ctx] . {}"),
        ("{}[ctx].", "{} [ctx]."),
    ],
)
def test_words_around_a_context_are_not_joined(small_clip, template, spaced):
    layout, wanted = (text_layout(small_clip, NAMES, 3, template=t) for t in (template, spaced))
    assert torch.equal(layout.ids, wanted.ids)
    assert torch.equal(layout.context, wanted.context)
    # the words are those of the text in which words stand for the context
    text = spaced.replace("[ctx]", "X" if spaced.count("[ctx]") == 2 else "X X X", 1)
    text = text.replace("[ctx]", "X X").format("cat")
    assert torch.equal(layout.ids[0], small_clip.tokenizer([text])[0])


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("[ctx] of a.", "exactly one"),
        ("[ctx] {} {}.", "exactly one"),
        ("[ctx] {0}.", "exactly one"),
        ("[ctx] {name}.", "exactly one"),
        ("[ctx] a { {}.", r"is not valid .* '\{\{'"),
        ("a photo of a {}.", r"'\[ctx\]' once, or twice"),
        ("[ctx] [ctx] {} [ctx].", r"'\[ctx\]' once, or twice"),
    ],
)
def test_templates_that_are_not_valid(small_clip, template, why):
    with pytest.raises(ValueError, match=f"^template.*{why}"):
        text_layout(small_clip, NAMES, 3, template=template)
    with pytest.raises(TypeError, match=r"^template must be a string"):
        text_layout(small_clip, NAMES, 3, template=3)


def test_fixed_words_that_leave_no_room(small_clip):
    long = "[ctx] " + "of " * 40 + "{}."
    with pytest.raises(ValueError, match=r"^classnames: .*of of.* template"):
        text_layout(small_clip, NAMES, 40, template=long)


# ---- other tokenizers --------------------------------------------------------------------------

LENGTH, END = 16, 40


class Words:
    """A word a token, in a vocabulary of 41 that ends with the end token."""

    def __init__(self, start: bool, end: bool, pad: int) -> None:
        self.start, self.end, self.pad = start, end, pad
        self.known: dict[str, int] = {}

    def __call__(self, texts: list[str]) -> Tensor:
        rows = []
        for text in texts:
            words = text.replace(".", " .").split()
            row = [self.known.setdefault(word, 2 + len(self.known)) for word in words]
            assert len(self.known) < END - 2
            row = [1] * self.start + row + [END] * self.end
            rows.append((row + [self.pad] * LENGTH)[:LENGTH])
        return torch.tensor(rows)


TOKENIZERS = {
    "start-end-pad": (True, True, 0),
    "end-pad": (False, True, 0),
    "start-padded-by-end": (True, True, END),
    "padded-by-end": (False, True, END),
    "start-no-end": (True, False, 0),
    "neither": (False, False, 0),
}


def words_clip(tokenizer: str, **text: object) -> FrozenCLIP:
    options = {"context_length": LENGTH, "vocab_size": END + 1, "layers": 3}
    model = small_model(open_clip.CustomTextCLIP, **options, **text)
    return frozen(model, tokenizer=Words(*TOKENIZERS[tokenizer]))


@pytest.mark.parametrize(
    ("tokenizer", "pool"),
    # a tower that looks for an end token has a tokenizer that writes one
    [
        (t, p)
        for t in TOKENIZERS
        for p in ("argmax", "eos", "last")
        if TOKENIZERS[t][1] or p == "last"
    ],
)
def test_ends_of_other_tokenizers(tokenizer, pool):
    start = TOKENIZERS[tokenizer][0]
    clip = words_clip(tokenizer, pool_type=pool, eos_id=END)
    tokens = clip.tokenizer(["cat .", "very small dog ."])
    # without an end token the text ends at the first of the padding
    assert text_ends(clip, tokens).tolist() == [start + 2, start + 4]


def test_a_text_that_fills_the_tokenizer_ends_at_its_last_token():
    clip = words_clip("neither", pool_type="last")
    assert text_ends(clip, clip.tokenizer(["cat " * LENGTH])).tolist() == [LENGTH - 1]


@pytest.mark.parametrize("position", BY_HAND)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_layouts_of_other_tokenizers(tokenizer, position):
    start = int(TOKENIZERS[tokenizer][0])
    clip = words_clip(tokenizer, pool_type="last")
    layout = text_layout(clip, NAMES, 3, template=TEMPLATES[position])
    sentence = {"end": "X X X {}.", "middle": "X {} X X.", "front": "{} X X X."}[position]
    plain = clip.tokenizer([sentence.format(name) for name in ("cat", "very small dog")])
    assert torch.equal(layout.ids, plain)
    # the hand-written places count a start token
    wanted = torch.tensor(BY_HAND[position][1]) - (1 - start)
    assert torch.equal(layout.context, wanted)
    assert layout.ends.tolist() == [5 + start, 7 + start]


MODELS = {
    "causal-argmax": {},
    "causal-eos": {"pool_type": "eos", "eos_id": END},
    "causal-last": {"pool_type": "last"},
    "not-causal": {"no_causal_mask": True},
    "not-causal-last": {"no_causal_mask": True, "pool_type": "last"},
    "not-causal-first": {"no_causal_mask": True, "pool_type": "first"},
}


@pytest.mark.parametrize("position", BY_HAND)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tokenizer", ["end-pad", "start-padded-by-end", "padded-by-end"])
def test_engines_on_other_tokenizers(tokenizer, model, position):
    clip = words_clip(tokenizer, **MODELS[model])
    towers = [
        t(clip, NAMES, 3, template=TEMPLATES[position]) for t in (TextTower, ReferenceTextTower)
    ]
    context, deep = noise(3, 24), noise(2, 3, 24, seed=1)
    learnable = {"context": context, "deep": deep}
    agree([lambda t=t: t(context, deep) for t in towers], learnable, EXACT)
    # words in place of the context make a sentence
    sentence = {"end": "on a table {}.", "middle": "on {} a table.", "front": "{} on a table."}
    plain = [sentence[position].format(name) for name in ("cat", "very small dog")]
    words = clip.tokenizer(["on a table"])[0, int(TOKENIZERS[tokenizer][0]) :][:3]
    phrase = clip.text_parts.token_embedding(words)
    for tower in towers:
        assert relative(tower(phrase), sentences(clip, plain)) <= EXACT


# ---- words as a context ------------------------------------------------------------------------


def test_word_context_is_the_words_embeddings(small_clip):
    for words, tokens in (("a photo of a", 4), ("a photo", 2), ("a_photo_of_a", 4)):
        got = word_context(small_clip, words)
        assert got.shape == (tokens, 24)
        assert torch.equal(got, embedded(small_clip, words.replace("_", " "))[:tokens])
    with pytest.raises(ValueError, match=r"^ctx_init .*' '"):
        word_context(small_clip, " ")


def test_word_context_of_a_tokenizer_without_a_start_token():
    clip = words_clip("padded-by-end", pool_type="last")
    first = clip.tokenizer(["on a table"])[0]
    assert torch.equal(word_context(clip, "on a"), clip.text_parts.token_embedding(first[:2]))
