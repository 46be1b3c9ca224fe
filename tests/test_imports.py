"""The table in docs/design.md of which folder may import what, held by reading the sources.

Nothing is imported: every file is parsed, and imports inside functions and under TYPE_CHECKING
count like any other.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAME = "pocketmoe"
FOLDERS = (
    "model", "targets", "bundle", "engines", "runtime", "calibration", "compiler", "export",
    "server", "analysis", "tables", "report", "commands",
)  # fmt: skip
# What the commands are made of: nothing below knows it.
ABOVE = ("analysis", "report", "commands")

NEVER_IMPORTS = {
    "model": ("targets", "runtime", "calibration", "compiler", "export", "server", *ABOVE),
    "targets": ("compiler", "calibration", "runtime", "export", "server", *ABOVE),
    "runtime": ("compiler", "calibration", "export", "server", *ABOVE),
    "calibration": ("compiler", "export", "server", *ABOVE),
    "compiler": ("export", "server", *ABOVE),
    "export": ("model", "targets", "calibration", "compiler", "server", *ABOVE),
    "server": ("compiler", "calibration", "targets", "model", "export", *ABOVE),
    "analysis": ("export", "server", "report", "commands"),
    "report": ("export", "server", "commands"),
}
# What the runtime may know of a model. The packages themselves count, as importing a file of
# theirs runs their __init__.py.
RUNTIME_MAY_KNOW = ("model.spec", "model.rope", "model.families")
NOT_IN_THE_BASE_INSTALL = {
    "torch",
    "onnx",
    "onnxscript",
    "safetensors",
    "scipy",
    "transformers",
    "matplotlib",
    "packaging",
    "zstandard",
    "starlette",
    "uvicorn",
    "prometheus_client",
}
# The installer is a program of its own, so it has two such files too.
MAY_PRINT = ("commands.console", "export.installer.console")
MAY_READ_ENVIRONMENT = ("cli", "commands.folders", "export.installer.environment")
# The installer is of the standard library alone.
INSTALLER = f"{NAME}.export.installer"
# What it may use where it is there, to read zstd.
INSTALLER_MAY_TRY = {"compression", "backports", "zstandard"}

DYNAMIC = ("importlib.import_module", "import_module", "__import__")
TYPING = ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name (`pocketmoe.model.spec`, `torch.nn`)."""

    module: str
    line: int
    when: Literal["loading", "typing", "calling"]


def package_files(root: Path) -> list[Path]:
    """Return the sources of the package: the root's own files and those of its folders."""
    files = list(root.glob("*.py"))
    for folder in FOLDERS:
        files += (root / folder).rglob("*.py")
    return sorted(files)


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join((NAME, *parts)).removesuffix(".__init__")


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def read_modules(root: Path) -> dict[str, list[Import]]:
    """Return what each module of the package imports, by the module's full name."""
    files = {module_name(path, root): path for path in package_files(root)}
    return {name: list(imports_of(path, name, set(files))) for name, path in files.items()}


def imports_of(path: Path, name: str, known: set[str]) -> Iterator[Import]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def resolve(level: int, module: str) -> str:
        if level == 0:
            return module
        base = package.split(".")[: len(package.split(".")) - level + 1]
        return ".".join([*base, *filter(None, [module])])

    def visit(node: ast.AST, when: Literal["loading", "typing", "calling"]) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, when)
        elif isinstance(node, ast.ImportFrom):
            module = resolve(node.level, node.module or "")
            yield Import(module, node.lineno, when)
            for alias in node.names:
                # `from ..model import spec` imports a module, `from .spec import x` a name of one.
                # A folder that does not exist yet counts as well.
                inner = f"{module}.{alias.name}"
                if inner in known or (module == NAME and alias.name in FOLDERS):
                    yield Import(inner, node.lineno, when)
        elif isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in DYNAMIC:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                text = argument.value
                module = text.lstrip(".")
                yield Import(resolve(len(text) - len(module), module), node.lineno, when)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            when = "calling"
        if isinstance(node, ast.If) and ast.unparse(node.test) in TYPING:
            for child in node.body:
                yield from visit(child, "typing")
            for child in node.orelse:
                yield from visit(child, when)
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, when)

    yield from visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), "loading")


def forbidden_imports(root: Path) -> list[str]:
    """Return a line for each import that the table does not allow."""
    found = []
    for name, imports in read_modules(root).items():
        folder = name.split(".")[1] if "." in name else ""
        for imported in imports:
            where = f"{name}:{imported.line} imports {imported.module}"
            if imported.module.split(".")[0] in FOLDERS:
                found.append(f"{where}: a second copy of {NAME}.{imported.module}")
            for other in NEVER_IMPORTS.get(folder, ()):
                if within(imported.module, f"{NAME}.{other}"):
                    found.append(f"{where}: {folder} never imports {other}")
            if (
                folder == "runtime"
                and within(imported.module, f"{NAME}.model")
                and imported.module != f"{NAME}.model"
                and not any(within(imported.module, f"{NAME}.{ok}") for ok in RUNTIME_MAY_KNOW)
            ):
                found.append(f"{where}: runtime knows only {', '.join(RUNTIME_MAY_KNOW)} of model")
    return found


def heavy_imports(root: Path, *, starts: list[str], only_loading: bool) -> list[str]:
    """Return a chain for each way from `starts` to a module that the base install lacks.

    `only_loading` follows what runs when the modules are loaded, and nothing inside functions.
    """
    modules = read_modules(root)
    # A package that is loaded only because a module inside it is imported runs its __init__.py,
    # and none of the functions there: (module, whether only its loading counts) → how it got here.
    chains: dict[tuple[str, bool], str] = {(start, only_loading): start for start in starts}
    queue = list(chains)
    found = []
    while queue:
        module, loading = queue.pop()
        chain = chains[module, loading]
        reached = [
            (imported.module, loading)
            for imported in modules.get(module, [])
            if imported.when == "loading" or not loading
        ]
        if "." in module:
            reached.append((module.rpartition(".")[0], True))
        for target, target_loading in reached:
            if target.split(".")[0] in NOT_IN_THE_BASE_INSTALL:
                found.append(f"{chain} → {target}")
            elif within(target, NAME) and (target, target_loading) not in chains:
                chains[target, target_loading] = f"{chain} → {target}"
                queue.append((target, target_loading))
    return sorted(found)


def prints_and_environment(root: Path) -> list[str]:
    """Return a line for each print and each look at the environment where neither is allowed."""
    found = []
    for path in package_files(root):
        name = module_name(path, root)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            called = isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
            if called and name.removeprefix(f"{NAME}.") not in MAY_PRINT:
                found.append(f"{name}:{node.lineno} calls print")
            names = []
            if isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            elif isinstance(node, ast.ImportFrom) and node.module == "os":
                names = [f"os.{alias.name}" for alias in node.names]
            if name.removeprefix(f"{NAME}.") in MAY_READ_ENVIRONMENT:
                continue
            for used in {"os.environ", "os.environb", "os.getenv"}.intersection(names):
                found.append(f"{name}:{node.lineno} reads {used}")
    return found


def installer_imports(root: Path) -> list[str]:
    """Return a line for each import of the installer that a device may lack."""
    return [
        f"{name}:{imported.line} imports {imported.module}"
        for name, imports in read_modules(root).items()
        if within(name, INSTALLER)
        for imported in imports
        if not within(imported.module, INSTALLER)
        and imported.module.split(".")[0] not in sys.stdlib_module_names | INSTALLER_MAY_TRY
    ]


def runtime_modules(root: Path) -> list[str]:
    return [name for name in read_modules(root) if within(name, f"{NAME}.runtime")]


def test_folders_import_what_the_table_allows() -> None:
    assert forbidden_imports(ROOT) == []


def test_runtime_reaches_nothing_beyond_the_base_install() -> None:
    assert heavy_imports(ROOT, starts=runtime_modules(ROOT), only_loading=False) == []


def test_package_and_command_line_load_with_the_base_install() -> None:
    starts = [NAME, f"{NAME}.cli"]
    assert heavy_imports(ROOT, starts=starts, only_loading=True) == []


def test_the_installer_needs_the_standard_library_alone() -> None:
    assert installer_imports(ROOT) == []


def test_only_the_command_line_prints_and_reads_the_environment() -> None:
    assert prints_and_environment(ROOT) == []


def test_every_folder_with_sources_is_packaged() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent.relative_to(ROOT).parts for path in package_files(ROOT)}
    assert {".".join((NAME, *parts)) for parts in folders} <= set(
        project["tool"]["setuptools"]["packages"]
    )


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model/a.py", "from ..runtime.bundle import Manifest"),
        ("model/families/a.py", "from ...targets import Target"),
        ("model/a.py", "from .. import runtime"),
        ("model/a.py", "from pocketmoe import compiler"),
        ("model/__init__.py", "from ..compiler import x"),
        ("targets/a.py", "import pocketmoe.compiler.quantize as q"),
        ("targets/a.py", "def f():\n    from ..calibration import record"),
        ("runtime/a.py", "if TYPE_CHECKING:\n    from ..compiler.plan import Plan"),
        ("runtime/a.py", "import importlib\nimportlib.import_module('..compiler', 'x')"),
        ("runtime/a.py", "from ..model.module import Module"),
        ("runtime/a.py", "from ..model import module"),
        ("calibration/a.py", "class A:\n    def f(self):\n        import pocketmoe.compiler"),
        ("compiler/a.py", "import runtime"),
        ("runtime/a.py", "from ..server.pool import Pool"),
        ("server/a.py", "from ..compiler import compile"),
        ("cli.py", "from model.spec import ModelSpec"),
        ("compiler/a.py", "from ..export import app"),
        ("export/a.py", "from ..model.spec import ModelSpec"),
        ("runtime/a.py", "from ..commands.console import print_table"),
        ("analysis/a.py", "from ..report.svg import Scale"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, text: str) -> None:
    root = write_tree(tmp_path, {"model/module.py": "", file: text})
    assert len(forbidden_imports(root)) == 1


def test_a_planted_import_of_the_installer_is_found(tmp_path: Path) -> None:
    text = "import json, click\nfrom ..contents import x\nfrom .store import y"
    files = {
        "export/installer/a.py": text,
        "export/contents.py": "",
        "export/installer/store.py": "",
    }
    assert len(installer_imports(write_tree(tmp_path, files))) == 2


def test_what_is_allowed_is_not_found(tmp_path: Path) -> None:
    text = "import numpy\nfrom ..model.spec import A\nfrom ..model import families, spec\n"
    files = {
        "model/spec.py": "",
        "model/families/__init__.py": "",
        "model/module.py": "import torch\nfrom . import spec",
        "runtime/session.py": text + "from ..sizes import parse_size\nfrom . import pager",
        "runtime/pager.py": "",
        "sizes.py": "from .errors import InputError",
        "compiler/trace.py": "import torch\nfrom ..runtime import x\nfrom ..targets import y",
        "cli.py": "def compile():\n    from .compiler import trace\n    os.environ['X']",
        "bench/a.py": "import torch, runtime\nprint()",
    }
    root = write_tree(tmp_path, files)
    assert forbidden_imports(root) == []
    assert heavy_imports(root, starts=runtime_modules(root), only_loading=False) == []
    assert heavy_imports(root, starts=[NAME, f"{NAME}.cli"], only_loading=True) == []
    assert prints_and_environment(root) == []


@pytest.mark.parametrize(
    "files",
    [
        {"runtime/a.py": "import torch.nn"},
        {"runtime/a.py": "def f():\n    from onnx import helper"},
        {"runtime/a.py": "from ..sizes import x", "sizes.py": "def f():\n    import torch"},
        {"runtime/a.py": "from ..model.spec import x", "model/__init__.py": "from . import module"},
        {"runtime/a.py": "from .. import sizes", "sizes.py": "if TYPE_CHECKING:\n    import torch"},
        {"runtime/a.py": "import importlib\nimportlib.import_module('torch')"},
        {"runtime/a.py": "", "__init__.py": "from .model.module import x"},
    ],
)
def test_a_planted_way_to_torch_is_found(tmp_path: Path, files: dict[str, str]) -> None:
    root = write_tree(tmp_path, {"model/module.py": "import torch", "model/spec.py": "", **files})
    assert len(heavy_imports(root, starts=runtime_modules(root), only_loading=False)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "print('x')",
        "import os\nx = os.environ['X']",
        "import os\nx = os.getenv('X')",
        "from os import environ",
    ],
)
def test_a_planted_print_is_found(tmp_path: Path, text: str) -> None:
    assert len(prints_and_environment(write_tree(tmp_path, {"runtime/a.py": text}))) == 1
