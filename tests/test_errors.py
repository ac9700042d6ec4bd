"""Every error about what a user handed in begins with the argument, setting or file it is about."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = [
    path
    for folder in ("fastprompt", "kernels")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.relative_to(ROOT).parts[:2] != ("fastprompt", "kernels")  # a link to the other
]
TREES = {path: ast.parse(path.read_text("utf-8")) for path in FILES}
# what a message may begin with beside an argument's name: a variable that holds one, or a file
HELD = ("name", "what", "key", "where", "path", "file", "folder")
# how a message goes on behind the name
SAID = (
    *(" must", " is ", " are ", " needs", " need ", " has ", " have ", " holds", " goes", " go "),
    *(" gives", " takes", " returns", " returned", " sets", " may ", " was ", " above ", " of "),
    *(" or ", " and ", " {", "."),
)
# what names no argument of a call, and why
KNOWN = {
    "clip/transformers_layout.py": "load_clip and to_transformers put the model in front",
    "interop/checkpoints.py": "read_prompts puts the path in front",
    "interop/words.py": "import_prompts puts the path in front",
    "evaluation/search.py": "searched puts search_precision and the model in front",
    "model/classifier.py": "routing_weights has no argument that could be another",
}


def literal(node: ast.expr) -> str:
    """The message's text, with ``{expression}`` where something is put in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(map(literal, values))
        case ast.FormattedValue(value=value):
            return f"{{{ast.unparse(value)}}}"
        case ast.BinOp(left=left, right=right):
            return literal(left) + literal(right)
        case ast.Call(func=ast.Attribute(value=value)):
            return literal(value)
        case ast.IfExp(body=body):
            return literal(body)
    return f"{{{ast.unparse(node)}}}"


def names() -> set[str]:
    """Every parameter of a function and every field of a class."""
    found: set[str] = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                a = node.args
                found |= {arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)}
            elif isinstance(node, ast.ClassDef):
                found |= {
                    item.target.id
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
    return found


NAMES = names()


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of the ValueErrors and TypeErrors that are raised in a file."""
    for node in ast.walk(TREES[path]):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id="ValueError" | "TypeError"), args=[text])):
                yield node.lineno, literal(text)


def names_its_argument(message: str) -> bool:
    """Whether it begins with an argument's name and goes on about it, or with a file's path."""
    head = re.match(r"(?:--|`)?([A-Za-z_]\w*)`?(?=:|,|\W|$)|\{([\w.]+)[ !}]", message)
    if head is None:
        return False
    if head[1] is None:
        variable, _, attribute = head[2].rpartition(".")
        return attribute in (("path", "folder") if variable else HELD)
    rest = message[head.end() :]
    return head[1] in NAMES and rest.startswith((":", *SAID))


def test_errors_begin_with_what_they_are_about():
    bare = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in FILES
        if not path.as_posix().endswith(tuple(KNOWN))
        for line, text in messages(path)
        if not names_its_argument(text)
    ]
    assert bare == []


def test_the_check_finds_a_message_that_names_nothing():
    assert not names_its_argument("something is wrong")
    assert not names_its_argument("a file is broken")
    assert not names_its_argument("{clip.name} takes no prompts")
    assert names_its_argument("eps must be at most 1, got {value!r}")
    assert sum(len(list(messages(path))) for path in FILES) > 200
