"""The house keeps its shape: rooms, sizes, imports that point down."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sslcli"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = ("objectives", "tasks", "adversarial", "exports", "peft")
# what a method may know: the names, and pure functions
BELOW_METHODS = ("core", "calibration", "classifiers", "losses", "frozen", "heads", "teacher", "metrics", "data", "errors", "hf")
BELOW_METHODS += ("augment", "schema", "unlabelled", "pseudo", "propagation")
READING_PATH = ("cli", "config", "core", "trainer", "adversarial/plain", "checkpoint", "distributed")


@pytest.mark.parametrize("path", [*Path(__file__).parent.glob("*.py"), *PACKAGE.parent.glob("scripts/**/*.py")], ids=lambda p: p.stem)
def test_what_stands_around_the_package_is_no_longer(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("\n") <= 300


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, as `data.store`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sslcli"):
            base = node.module.removeprefix("sslcli").lstrip(".")
            found |= {f"{base}.{alias.name}".lstrip(".") for alias in node.names} | ({base} if base else set())
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("sslcli.") for a in node.names if a.name.startswith("sslcli.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes_and_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 300, "a file has at most 300 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, f"{node.name} has at most 60 lines"
        if isinstance(node, ast.ClassDef):
            assert not node.name.startswith("Base") and not node.name.endswith(("Manager", "Helper")), node.name
    assert path.stem not in ("utils", "helpers", "ssl") and path.parent.name not in ("utils", "helpers", "ssl")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room, used = path.relative_to(PACKAGE).parts[0], imports(path)
    if room in ROOMS and path.stem != "__init__":
        allowed = {u for u in used if u.split(".")[0] in BELOW_METHODS}
        assert used == allowed, f"a method imports only {BELOW_METHODS}, not {sorted(used - allowed)}"
    for method in ("objectives", "tasks", "exports", "peft"):
        assert not any(u.split(".")[0] == method for u in used), "nothing imports a method by name: configuration names it"
    if room not in ("commands", "cli.py", "__main__.py"):
        assert not any(u.split(".")[0] in ("commands", "cli") for u in used), "only the command line imports commands"
    if path.name in ("core.py", "losses.py", "metrics.py", "errors.py"):
        assert not any(u.split(".")[0] in ("trainer", "data", "models", "commands", "run") for u in used)


def test_the_newcomers_path_is_short() -> None:
    lines = {name: (PACKAGE / f"{name}.py").read_text(encoding="utf-8").count("\n") for name in READING_PATH}
    assert sum(lines.values()) <= 1300, lines


def test_yaml_files_are_small_and_say_what_they_are() -> None:
    for path in (PACKAGE.parent / "configs").glob("*/*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 16 and lines[0].startswith("# "), path.name


def test_nothing_unsafe_is_called() -> None:
    """No pickle in, none out; no code from strings; no instantiation from configuration."""
    banned = {"eval", "exec", "instantiate"}
    attributes = {("torch", "load"), ("pickle", "load"), ("pickle", "loads"), ("joblib", "load"), ("yaml", "load"), ("torch", "save")}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                f = node.func
                if isinstance(f, ast.Name):
                    assert f.id not in banned, f"{path.name}: {f.id}"
                if isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name):
                    assert (f.value.id, f.attr) not in attributes, f"{path.name}: {f.value.id}.{f.attr}"
                for keyword in node.keywords:
                    is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                    assert not (keyword.arg in ("trust_remote_code", "shell", "allow_pickle") and is_true), path.name
