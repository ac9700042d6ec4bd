"""The data sets of CoOp: folders, files and prompt templates, as CoOp's own code has them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

PREFIX = "coop:"  # of the names that `load_data` takes
PHOTO = "a photo of a {}."

# how the classes and splits are stored: a split file, lists of variants, one folder per WordNet ID,
# or one folder per label
Layout = Literal["split", "variants", "wnid", "index"]


@dataclass(frozen=True)
class CoOpSet:
    """Where CoOp stores a data set.

    Attributes:
        name: its name, without ``coop:``.
        folder: its folder in the root directory.
        images: the folder of its pictures, in ``folder``.
        layout: how classes and splits are stored.
        split: the split file, if ``layout`` is ``"split"``.
        template: CoOp's prompt template.
        aliases: other names, such as those in CoOp's configurations.
        renamed: class names that CoOp replaces.
        test_only: whether there are only test images.
    """

    name: str
    folder: str
    images: str
    layout: Layout = "split"
    split: str = ""
    template: str = PHOTO
    aliases: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    test_only: bool = False

    @property
    def lists(self) -> tuple[str, ...]:
        """The files in ``folder`` that list the classes and splits."""
        if self.layout == "split":
            return (self.split,)
        if self.layout == "variants":
            return (VARIANTS, *VARIANT_LISTS.values())
        return (CLASSNAMES,)


CLASSNAMES = "classnames.txt"
VARIANTS = "variants.txt"
VARIANT_LISTS = {part: f"images_variant_{part}.txt" for part in ("train", "val", "test")}

# CoOp's split file has the new names; the split files of its first version have the old ones
_EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}


def _split(name: str, folder: str, images: str, split: str = "", **more: object) -> CoOpSet:
    file = f"split_zhou_{split or name}.json"
    return CoOpSet(name, folder, images, "split", file, **more)  # type: ignore[arg-type]  # by name


def _shifted(name: str, folder: str, images: str, layout: Layout = "wnid") -> CoOpSet:
    alias = name.replace("ImageNet", "ImageNet-")
    return CoOpSet(name, folder, images, layout, aliases=(alias,), test_only=True)


_SETS = (
    _split("Caltech101", "caltech-101", "101_ObjectCategories"),
    _split("OxfordPets", "oxford_pets", "images", template="a photo of a {}, a type of pet."),
    _split("StanfordCars", "stanford_cars", "."),
    _split(
        "Flowers102",
        "oxford_flowers",
        "jpg",
        "OxfordFlowers",
        template="a photo of a {}, a type of flower.",
        aliases=("OxfordFlowers",),
    ),
    _split("Food101", "food-101", "images", template="a photo of {}, a type of food."),
    _split("SUN397", "sun397", "SUN397"),
    _split(
        "DTD",
        "dtd",
        "images",
        "DescribableTextures",
        template="{} texture.",
        aliases=("DescribableTextures",),
    ),
    _split(
        "EuroSAT",
        "eurosat",
        "2750",
        template="a centered satellite photo of {}.",
        renamed=_EUROSAT,
    ),
    _split("UCF101", "ucf101", "UCF-101-midframes", template="a photo of a person doing {}."),
    CoOpSet(
        "FGVCAircraft",
        "fgvc_aircraft",
        "images",
        "variants",
        template="a photo of a {}, a type of aircraft.",
    ),
    CoOpSet("ImageNet", "imagenet", "images", "wnid"),
    _shifted("ImageNetV2", "imagenetv2", "imagenetv2-matched-frequency-format-val", "index"),
    _shifted("ImageNetSketch", "imagenet-sketch", "images"),
    _shifted("ImageNetA", "imagenet-adversarial", "imagenet-a"),
    _shifted("ImageNetR", "imagenet-rendition", "imagenet-r"),
)
SETS = {spec.name: spec for spec in _SETS}
ALIASES = {alias: spec.name for spec in _SETS for alias in spec.aliases}
