"""House rules: who imports whom, what is public, and what stands where."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

import cosyjit
from cosyjit.families import FAMILIES
from tests.support.processes import ROOT, start

PACKAGE: Final = ROOT / "cosyjit"
FLOWS: Final = ROOT / "flows"

ROOMS: Final = (
    {"text"},
    {"errors"},
    {"documents", "families", "settings", "telemetry"},
    {"encoders", "fs", "metrics", "selection"},
    {"estimators"},
    {"processes", "prefect_api"},
    {"weights", "store"},
    {"configuration"},
    {"sources", "synth"},
    {"folders", "hubs"},
    {"torchscript", "vllm", "hf", "onnx"},
    {"provenance"},
    {"publishing"},
    {"planning"},
    {"building"},
    {"operations", "doctor", "pipeline"},
    {"reports"},
    {"flows"},
    {"cli"},
    {"__main__"},
)
"""From the bottom up: a room, or a module beside the rooms, imports from those below its own. `cosyjit` itself gathers
the public names."""

OTHERS: Final = {
    "torch": {
        *(
            "building.folders",
            "building.onnx_files",
            "building.zips",
            "torchscript.dissect",
            "torchscript.load",
            "torchscript.script",
            "torchscript.calls",
            "torchscript.expected",
            "vllm.model",
            "torchscript.gate",
            "torchscript.structure",
        ),
        *(
            "torchscript.step_time",
            "weights.casting",
            "metrics",
            "onnx.calls",
            "onnx.gate",
            "synth.synth",
            "synth.shapes",
            "doctor.with_torch",
            "encoders",
        ),
        *(f"estimators.{name}" for name in ("dit", "layers", "registry", "solver", "unet")),
    },
    "numpy": {"onnx.graph", "onnx.layers", "onnx.dit", "onnx.gate", "onnx.ranges"},
    "onnx": {"onnx.graph", "onnx.layers", "onnx.writer", "onnx.gate", "onnx.ranges"},
    "onnxruntime": {"onnx.gate"},
    "vllm": {"vllm.model", "vllm.plugin"},
    "tokenizers": {"hf.gate"},
    "fsspec": {"store.backends"},
    "packaging": {"doctor.versions"},
    "huggingface_hub": {"sources.hugging_face_client", "hubs.hugging_face"},
    "modelscope_hub": {"sources.modelscope", "hubs.modelscope"},
    "requests": {"sources.responses", "sources.modelscope", "prefect_api", "doctor.servers"},
    "urllib3": {"sources.responses", "prefect_api"},
    "xxhash": {
        *("fs.digests", "weights.tensor_digests", "provenance.fingerprint", "provenance.latest"),
        "publishing.publication",
    },
    "hyperpyyaml": {"configuration.config"},
    "ruamel": {"configuration.config", "configuration.yaml_subset", "configuration.yaml_nodes", "flows.alerts"},
    "cryptography": {"store.signing"},
    "cyclopts": {"cli.app", "cli.configuration_file", "cli.copying", "cli.options", "cli.service"},
    "rich": {"reports.tables", "reports.run_page", "cli.answers", "cli.console", "flows.export"},
    "prefect": {"flows.export", "flows.serve", "flows.servers", "flows.alerts", "flows.look"},
    "pydantic": {"flows.export", "flows.alerts"},
    "prefect_dask": {"flows.export"},
    "opentelemetry": {"telemetry"},
}
"""What is imported from elsewhere, and by which modules."""

PUBLIC: Final = [
    "Artifact",
    "BuildError",
    "Change",
    "Copied",
    "CosyjitError",
    "Diff",
    "Difference",
    "Export",
    "Exported",
    "Fault",
    "InputError",
    "Lineage",
    "OlderPlan",
    "Outcome",
    "OutdatedPlan",
    "Planned",
    "Publication",
    "Published",
    "PublishedDirectory",
    "Pushed",
    "Record",
    "Shown",
    "Status",
    "Store",
    "Target",
    "build",
    "copy_store",
    "diff",
    "export",
    "export_each",
    "gc",
    "history",
    "lineage",
    "obstacles",
    "outdated_plans",
    "plan",
    "push",
    "rollback",
    "status",
    "verify_directory",
    "verify_store",
]


@cache
def modules(directory: Path = PACKAGE) -> list[Path]:
    return sorted(directory.rglob("*.py"))


def room(path: Path) -> str:
    """The word for a file in `ROOMS`: that of the folder which it is in, or its own name."""
    return path.parent.name if path.parent != PACKAGE else path.stem


def name_of(path: Path) -> str:
    """The name of a module below the package; `encoders` for all that are there."""
    return "encoders" if room(path) == "encoders" else ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """The full names of all that is imported anywhere in a tree, `from` imports down to the name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they go"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(path: Path) -> set[str]:
    """The rooms of this project that a file imports, `__init__` where it is a name that the package itself has."""
    names = {tuple(name.split(".")) for name in imports(parsed(path))}
    rooms = {room(path) for path in modules()}
    return {(name[1] if name[1:2] and name[1] in rooms else "__init__") for name in names if name[0] == "cosyjit"}


def below(name: str) -> set[str]:
    if name == "__init__":
        return set().union(*ROOMS[: ROOMS.index({"reports"})])
    level = next(level for level, rooms in enumerate(ROOMS) if name in rooms)
    return set().union(*ROOMS[:level]) | ({"__init__"} if name == "cli" else set())


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", modules(), ids=ids)
def test_imports_point_down(path: Path) -> None:
    assert own(path) - {room(path)} <= below(room(path))


def test_the_flow_of_a_checkout_is_that_of_the_package() -> None:
    assert {name for path in modules(FLOWS) for name in imports(parsed(path))} == {"cosyjit.flows.export.export"}


def test_each_module_has_its_place() -> None:
    assert {room(path) for path in modules()} == set().union(*ROOMS) | {"__init__"}


@pytest.mark.parametrize("folder", sorted({path.parent for path in modules()}), ids=ids)
def test_a_folder_is_looked_over_at_once(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= 12


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=ids)
def test_a_room_says_in_a_sentence_what_it_is_for_and_imports_nothing(path: Path) -> None:
    tree = parsed(path)
    assert ast.get_docstring(tree)
    assert path.parent.name == "encoders" or len(tree.body) == 1


def test_each_dependency_is_imported_where_it_belongs() -> None:
    found: dict[str, set[str]] = {}
    for path in modules():
        for name in imports(parsed(path)):
            root = name.split(".")[0]
            if root not in sys.stdlib_module_names and root != "cosyjit":
                found.setdefault(root, set()).add(name_of(path))
    assert found == OTHERS


@pytest.mark.parametrize("name", ["building/folders", "building/zips", "building/onnx_files"])
def test_torch_and_what_needs_it_are_imported_where_they_run_only(name: str) -> None:
    tree = parsed(PACKAGE / f"{name}.py")
    inside = {name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for name in imports(node)}
    needing = {"torch", "encoders", "estimators", "synth", "torchscript", "folder", "gate", "writer", "models"}
    heavy = {each for each in imports(tree) if needing & set(each.split("."))} - {"cosyjit.torchscript.graph.Graph"}
    assert heavy
    assert heavy <= inside


@pytest.mark.parametrize(("name", "others"), [("encoders", {"errors"}), ("estimators", {"errors", "encoders"})])
def test_networks_import_torch_the_errors_and_themselves_alone(name: str, others: set[str]) -> None:
    for path in modules(PACKAGE / name):
        roots = {name.split(".")[0] for name in imports(parsed(path))}
        assert roots - sys.stdlib_module_names <= {"torch", "cosyjit"}
        assert own(path) <= {name, *others}


@pytest.mark.parametrize(
    "module",
    [
        "cosyjit",
        *(f"cosyjit.{name}" for name in ("cli.app", "pipeline", "vllm.rules", "hf.rules", "processes.worker")),
        *(f"cosyjit.{name}" for name in ("torchscript.graph", "onnx.forms", "building.onnx_files")),
        *("cosyjit.encoders.parameters", "cosyjit.estimators.parameters"),
    ],
)
def test_importing_imports_neither_torch_nor_prefect(module: str) -> None:
    code = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"
    with start(code, module) as process:
        out, err = process.communicate(timeout=600)
    imported = {name.split(".")[0] for name in out.split()}
    assert err == ""
    assert module in out.split()
    assert imported & {"torch", "prefect", "numpy", "opentelemetry"} == set()


def test_nothing_is_printed_but_by_the_command_line() -> None:
    printing = {
        (path.stem, ast.unparse(node))
        for path in modules()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).split(".")[-1] == "print"
    }
    # The console of the tables is captured, for the text that it draws.
    assert {name for name, _ in printing} == {"tables", "console"}
    assert {text for name, text in printing if name == "tables"} == {"console.print"}


def test_the_public_names_are_these() -> None:
    assert cosyjit.__all__ == PUBLIC
    assert [name for name in PUBLIC if not hasattr(cosyjit, name)] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_docstring(name: str) -> None:
    # From the source: a dataclass without one is given its signature.
    path = ROOT.joinpath(*getattr(cosyjit, name).__module__.split(".")).with_suffix(".py")
    (definition,) = (
        node for node in parsed(path).body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
    )
    assert ast.get_docstring(definition)


@pytest.mark.parametrize("path", modules(), ids=ids)
def test_a_module_says_what_it_is_for_and_is_no_longer_than_it_should_be(path: Path) -> None:
    assert ast.get_docstring(parsed(path))
    assert len(path.read_text(encoding="utf-8").splitlines()) < 600


@pytest.mark.parametrize("path", [*modules(), *modules(FLOWS)], ids=ids)
def test_a_docstring_begins_with_a_summary(path: Path) -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [ast.get_docstring(node) for node in ast.walk(parsed(path)) if isinstance(node, documented)]
    assert [
        each for each in docstrings if each and each.split()[0] in {"Args:", "Attributes:", "Raises:", "Returns:"}
    ] == []


FAMILY_WORDS: Final = {word.casefold() for family in FAMILIES for word in (family.name, family.language_model)}


def family_strings(tree: ast.Module) -> Iterator[str]:
    """The strings of code that are a family's name or one of its classes.

    Prose that mentions one is none of them, nor is the default of a parameter, which the caller can see and change.
    """
    defaults = {
        id(default)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for default in (*node.args.defaults, *node.args.kw_defaults)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in defaults:
            word = node.value.casefold()
            if word in FAMILY_WORDS or word.startswith("cosyvoice."):
                yield node.value


def family_comparisons(tree: ast.Module) -> Iterator[str]:
    """The comparisons and matches of a family or its name with anything."""
    for node in ast.walk(tree):
        compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        for side in [*compared, *([node.subject] if isinstance(node, ast.Match) else [])]:
            if ast.unparse(side).removesuffix(".name").split(".")[-1] == "family":
                yield ast.unparse(node)


SHARED: Final = [path for path in [*modules(), *modules(FLOWS)] if room(path) not in {"families", "synth"}]


@pytest.mark.parametrize("path", SHARED, ids=ids)
def test_no_family_is_named_in_shared_code(path: Path) -> None:
    # The encoders' options are tables by the class names that configurations use.
    assert path.name == "options.py" or list(family_strings(parsed(path))) == []
    assert list(family_comparisons(parsed(path))) == []


@pytest.mark.parametrize(
    "code",
    [
        "if family.name == 'x': pass",
        "ok = checkpoint.family in others",
        "match target.family.name:\n    case 'x': pass",
        "if name == 'CosyVoice2': pass",
        "table = {'cosyvoice.llm.llm.Qwen2LM': 1}",
        "def f(x): return x.startswith('cosyvoice')",
    ],
)
def test_the_rule_about_families_finds_what_it_forbids(code: str) -> None:
    tree = ast.parse(code)
    assert [*family_strings(tree), *family_comparisons(tree)] != []
