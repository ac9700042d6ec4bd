"""``fastprompt push RUN ORG/NAME``: upload a run's prompts to the Hugging Face Hub."""

from collections.abc import Sequence

from .._utils.checks import check_path
from .._utils.printable import printable
from .._utils.progress import tell
from ..hub.remote import check_repo
from ..methods.auto import AutoTuner
from .parser import Parser

_ABOUT = (
    "Upload a run's prompts, settings and result with a model card to the Hugging Face Hub. The "
    "token is that of `hf auth login` or HF_TOKEN. With --out, write the folder and upload nothing."
)


def push_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser(prog="fastprompt push", description=_ABOUT, allow_abbrev=False)
    parser.add_argument("run", type=str, help="run folder written by fastprompt tune")
    parser.add_argument("repo", type=str | None, nargs="?", help="repository, such as org/run")
    parser.add_argument("--out", type=str | None, help="folder to write instead of uploading")
    parser.add_argument(
        "--private", type=bool | None, help="whether a new repository is private; default: as owner"
    )
    parser.add_argument("--revision", type=str | None, help="branch that exists; default: main")
    parser.add_argument("--message", type=str, default="Tuned prompts", help="commit message")
    return parser


def push(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    given = push_parser().parse_args(list(arguments))
    if (given.repo is None) == (given.out is None):
        raise ValueError("repo: pass a repository such as org/run, or --out and a folder")
    if given.repo is not None:
        check_repo(given.repo)
    run = check_path(given.run, "run")
    tell(f"loading {run}")
    tuner = AutoTuner.load(run)
    if given.out is not None:
        print(printable(f"saved folder: {tuner.save_pretrained(given.out)}"))
        return 0
    options = {"private": given.private, "revision": given.revision, "message": given.message}
    print(printable(f"uploaded: {tuner.push_to_hub(given.repo, **options)}"))
    return 0
