"""Named settings take their defaults from `fgvpl_jax/defaults.py` and from nowhere else."""

import ast
from pathlib import Path

import pytest

from fgvpl_jax import defaults

PACKAGE = Path(__file__).parents[1] / "fgvpl_jax"
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "defaults.py")
NAMES = {name.lower() for name in vars(defaults) if name.isupper()}


def literal_defaults(source):
    """Returns (line, name) of each setting whose default is a literal in the source.

    Covers arguments of functions and lambdas, and assignments to names, attributes (such as
    `config.num_prompts = 1`) and items (such as `config["num_prompts"] = 1`).
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        pairs = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            positional = [*node.args.posonlyargs, *node.args.args]
            count = len(node.args.defaults)
            pairs += zip(positional[len(positional) - count :], node.args.defaults, strict=True)
            pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        elif isinstance(node, ast.Assign):
            pairs += [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign):
            pairs.append((node.target, node.value))
        found += [
            (target.lineno, name_of(target))
            for target, value in pairs
            if name_of(target) in NAMES and value is not None and is_literal(value)
        ]
    return found


def name_of(target):
    """Returns the lower-case name that an assignment sets, or None if it has no fixed name."""
    match target:
        case ast.arg(arg=name) | ast.Name(id=name) | ast.Attribute(attr=name):
            return name.lower()
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return name.lower()
    return None


def is_literal(value):
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True


def test_these_settings_have_a_default():
    assert sorted(NAMES) == [
        "attention_map",
        "augmented_passes",
        "cache_logit_weight",
        "cache_votes",
        "connectivity",
        "false_rejection_rate",
        "favourite",
        "label_method",
        "minutes",
        "num_prompts",
        "object_logit_weight",
        "object_query",
        "own_photos_attention_map",
        "prompt_layer",
        "text_residual_ratio",
        "top_k",
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_other_file_sets_a_default(file):
    assert not literal_defaults(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(dim, num_prompts=1): ...", True),
        ("def f(*, object_query: str = 'class_token'): ...", True),
        ("async def f(a, /, connectivity=-1): ...", True),
        ("lambda cache_logit_weight=1.0: 0", True),
        ("config.text_residual_ratio = 0.05", True),
        ("config['num_prompts'] = 1", True),
        ("class A:\n    object_logit_weight: float = 0.5", True),
        ("def f(dim=1, num_prompts=defaults.NUM_PROMPTS): ...", False),
        ("def f(num_prompts, dim=1): ...", False),
        ("config.num_prompts = defaults.NUM_PROMPTS", False),
        ("class A:\n    num_prompts: int", False),
        ("f(num_prompts=1)", False),
    ],
)
def test_the_check_finds_literals_and_ignores_other_values(source, found):
    assert bool(literal_defaults(source)) == found
