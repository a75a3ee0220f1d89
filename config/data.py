"""The data packs that ship with Apostille: the label file, law packs, countries, agreement templates, examples."""

from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from federation.errors import UsageError

_FILES = resources.files("config")


def labels_text() -> str:
    """The label file of CSAF 2.0."""
    return _FILES.joinpath("labels", "csaf-2.0.yaml").read_text(encoding="utf-8")


def pack_names() -> tuple[str, ...]:
    """The law packs that ship, by name."""
    return tuple(sorted(item.name.removesuffix(".yaml") for item in _FILES.joinpath("packs").iterdir()))


def pack_text(name: str) -> str:
    """The text of the law pack `name`. Raises UsageError when none has that name."""
    if name not in pack_names():
        raise UsageError(f"law_packs: no law pack is called {name!r}; there are: {', '.join(pack_names())}")
    return _FILES.joinpath("packs", f"{name}.yaml").read_text(encoding="utf-8")


def examples() -> Traversable:
    """The folder of advisories and cases that ship for the demo and for practice."""
    return _FILES.joinpath("examples")


@cache
def countries() -> tuple[str, ...]:
    """The alpha-2 codes of ISO 3166-1."""
    import pycountry  # a large table, read when first needed

    return tuple(sorted(entry.alpha_2 for entry in pycountry.countries))
