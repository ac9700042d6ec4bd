"""The result of `FrozenCLIP.describe`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Description:
    """Architecture of a model and the features it supports; ``print`` formats it as text.

    ``methods``, ``prompts`` and ``fast_paths`` map each name to the reason why the model does not
    support it, or to an empty string if it does. ``compared`` maps each tower that was compared
    with the model's own forward pass to the result. ``image_size`` and ``patch_size`` are
    ``(height, width)`` unless they are square.
    """

    name: str
    embed_dim: int
    image_size: int | tuple[int, int]
    image_tower: str
    image_width: int | None
    image_layers: int | None
    patch_size: int | tuple[int, int] | None
    text_tower: str
    text_width: int | None
    text_layers: int | None
    context_length: int
    causal: bool
    parameters: int
    methods: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    fast_paths: dict[str, str] = field(default_factory=dict)
    compared: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        def sizes(width: int | None, layers: int | None) -> str:
            return "" if width is None else f", width {width}, {layers} layers"

        def sides(size: int | tuple[int, int]) -> str:
            return f"{size[0]} x {size[1]}" if isinstance(size, tuple) else str(size)

        patch = "" if self.patch_size is None else f", patch {sides(self.patch_size)}"
        lines = [
            f"{self.name}: {self.parameters / 1e6:.1f} M parameters, embedding {self.embed_dim}",
            f"  image: {self.image_tower}{sizes(self.image_width, self.image_layers)}, "
            f"{sides(self.image_size)} pixels{patch}",
            f"  text:  {self.text_tower}{sizes(self.text_width, self.text_layers)}, "
            f"{self.context_length} tokens, {'causal' if self.causal else 'not causal'}",
        ]
        tables = (("method", self.methods), ("prompts", self.prompts), ("path", self.fast_paths))
        for title, table in tables:
            lines += [
                f"  {title} {k}: {'no: ' + why if why else 'yes'}" for k, why in table.items()
            ]
        lines += [f"  compared {k}: {result}" for k, result in self.compared.items()]
        return "\n".join(lines)
