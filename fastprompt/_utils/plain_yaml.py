"""YAML without aliases and deep nesting, and numbers in plain decimal notation only.

YAML 1.1 reads ``0x10`` as 16, ``1_0`` as 10, ``010`` as 8 and ``1:30`` as 90. These are refused.
"""

import re
from typing import Any, get_args

import yaml

from .checks import shown

_DEPTH, _DIGITS = 20, 30
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"(?:[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_OTHER_NOTATION = re.compile(
    r"[-+]?(?:0[xXoObB][0-9a-fA-F_]+|[0-9][0-9_.]*_[0-9_.]*(?:[eE][-+]?[0-9]+)?|0[0-9]+"
    r"|[0-9]+(?::[0-9]+)+(?:\.[0-9]*)?)"
)


class _PlainLoader(yaml.SafeLoader):
    """The safe loader with other rules for numbers, and a limit of the nesting."""

    _level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            # nested aliases can stand for gigabytes
            raise yaml.YAMLError("aliases (*name) are not accepted; write the value out")
        if self._level >= _DEPTH:
            raise yaml.YAMLError(f"it is nested more than {_DEPTH} levels deep")
        self._level += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._level -= 1


_DROPPED = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp", "merge")}
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag not in _DROPPED]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load_yaml(text: str) -> Any:
    """Return the content of a YAML or JSON text; numbers in other notations stay strings.

    Raises:
        yaml.YAMLError: the text is not valid, has aliases, or is nested too deep.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except (ValueError, RecursionError) as error:  # such as an integer of 5,000 digits
        raise yaml.YAMLError(str(error)) from None


def check_plain(value: object, name: str, kind: Any) -> None:
    """Raise ValueError if a text of type ``kind`` has a number in another notation than decimal.

    jsonargparse reads such a text as YAML 1.1 if its type is or contains int, float or a list.
    """
    if not isinstance(value, str) or kind is str or set(get_args(kind)) == {str, type(None)}:
        return
    for part in re.split(r"[\[\]{},\s]+", value):
        if _OTHER_NOTATION.fullmatch(part):
            raise ValueError(f"{name} must be a plain decimal number, got {shown(value)}")
        if part.isdigit() and len(part) > _DIGITS:
            raise ValueError(f"{name} must have at most {_DIGITS} digits, got {shown(value)}")
    if value.count("[") + value.count("{") > _DEPTH:
        raise ValueError(f"{name} must not be nested, got {shown(value)}")
