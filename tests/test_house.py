"""What holds for the house as a whole: who imports whom, what is public, what the docs say."""

import ast
import importlib
import re
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

import enrobe

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/enrobe"
# Top to bottom; a module imports from its own floor or from one below.
FLOORS = (
    ("cli", "__main__"),
    ("console", "console_data", "console_predict", "console_scores", "console_small", "progress"),
    ("tasks", "train", "compress", "evaluate", "convert", "fairseq"),
    ("engines", "nn", "data"),
    ("text", "hub", "sentence_folder"),
    ("checkpoint",),
    ("settings", "weights", "manifest"),
    ("dialects",),
    ("config",),
    ("atomic", "workers"),
    ("errors",),
)


def floor(room: str) -> int:
    return next(n for n, rooms in enumerate(FLOORS) if room in rooms)


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms of enrobe that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("enrobe.")}
    rooms = {path.stem if path.is_file() else path.name for path in SOURCE.iterdir()}
    return found & rooms


FILES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    here = floor(room_of(path))
    for room in imports(path):
        assert floor(room) >= here, f"{path.name} imports {room}"


def test_torch_is_imported_in_its_rooms_alone() -> None:
    for path in FILES:
        if re.search(r"^(import|from) torch", path.read_text(), re.MULTILINE):
            assert room_of(path) in ("nn", "train") or path.name == "torch.py", path


@pytest.mark.parametrize("path", sorted((ROOT / "bench").glob("*.py")), ids=lambda p: p.name)
def test_benchmarks_call_what_is_there(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "enrobe":
            try:
                source = importlib.import_module(node.module or "")
            except (enrobe.MissingExtraError, ModuleNotFoundError) as error:
                pytest.skip(str(error))
            for name in node.names:
                with suppress(ModuleNotFoundError):
                    importlib.import_module(f"{node.module}.{name.name}")
                assert hasattr(source, name.name), f"{node.module} has no {name.name}"
                found = getattr(source, name.name)
                if isinstance(found, ModuleType):
                    modules[name.asname or name.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            assert module is None or hasattr(module, node.attr), f"{node.value.id}.{node.attr}"


def test_public_names_are_sorted_and_complete() -> None:
    assert enrobe.__all__ == sorted(enrobe.__all__)
    public = {
        name
        for name, value in vars(enrobe).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("enrobe.")
    }
    assert set(enrobe.__all__) == public


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == enrobe.__version__
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == enrobe.__version__


def test_the_readme_has_a_tree_with_every_file() -> None:
    readme = (ROOT / "README.md").read_text()
    tree = readme.split("\nsrc/enrobe/", 1)[1].split("```")[0]
    for path in FILES:
        if path.name != "__main__.py":
            assert re.search(rf"\b{re.escape(path.name)}\b", tree), path.name
    for name in re.findall(r"\b(\w+\.py)\b", tree):
        assert list(SOURCE.rglob(name)), f"{name} is not there"


def test_docs_cli_is_what_help_prints() -> None:
    written = (ROOT / "docs/cli.md").read_text()
    made = subprocess.run(
        [sys.executable, ROOT / "scripts/write_docs.py", "--print"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert written == made, "run: make docs"


BLOCKED = """
import sys, time
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {names!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
"""


def without(*names: str, code: str) -> subprocess.CompletedProcess[str]:
    script = BLOCKED.format(names=names) + code
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_import_is_quick_and_light() -> None:
    code = "import sys, enrobe; print(' '.join(sorted({m.split('.')[0] for m in sys.modules})))"
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        answer = without("torch", "transformers", code=code)
        taken.append(time.perf_counter() - start)
        assert answer.returncode == 0, answer.stderr
    heavy = {"torch", "onnxruntime", "onnx", "huggingface_hub", "rich", "cyclopts", "pyarrow"}
    assert not heavy & set(answer.stdout.split())
    print(f"import enrobe: {min(taken):.2f} s")


def test_the_model_code_imports_on_a_bare_gpu_machine() -> None:
    bare = ("pydantic", "cyclopts", "rich", "onnx", "onnxruntime", "huggingface_hub")
    answer = without(*bare, code="import enrobe.nn.heads, enrobe.train.pretrain, enrobe.train.api")
    assert answer.returncode == 0, answer.stderr


def test_the_torch_engine_names_the_extra(tmp_path: Path) -> None:
    from tests.support import reference

    reference(tmp_path, "bert", "mlm")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(92))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    code = f"""
import enrobe
folder = {str(tmp_path)!r}
assert len(enrobe.load(folder).fill("w1 [MASK]")[0].masks) == 1
try:
    enrobe.load(folder, engine="torch")
except enrobe.MissingExtraError as error:
    print(error)
"""
    answer = without("torch", code=code)
    assert "pip install 'enrobe[train]'" in answer.stdout, answer.stderr


def test_fill_runs_without_torch_on_the_command_line(tmp_path: Path) -> None:
    from tests.support import reference

    reference(tmp_path, "bert", "mlm")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(92))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    code = f"""
from enrobe.cli import main
main(["fill", "w1 [MASK]", "--model", {str(tmp_path)!r}])
"""
    answer = without("torch", "transformers", "pyarrow", code=code)
    assert answer.returncode == 0, answer.stderr
    assert '"masks"' in answer.stdout
