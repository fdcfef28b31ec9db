"""What finished work depends on is computed from imports, and nothing that can change a number is left out."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreamset.core import code
from dreamset.weights import fingerprint

SOURCE = Path(__file__).parents[1] / "src"
# The modules that make shards, the scores of a study, the scores of a fold, and the cells of a table.
MAKERS = {
    "adapter": ("dreamset.adapt",),
    "images": ("dreamset.drawing.draw",),
    "retrieved images": ("dreamset.drawing.retrieve",),
    "searched images": ("dreamset.drawing.pools",),
    "classifier": ("dreamset.classifiers.fitting",),
    "study": ("dreamset.adapt", "dreamset.generate", "dreamset.study.objective"),
    "fold": ("dreamset.sweep.crossval", "dreamset.evaluate.logits"),
    "cell": fingerprint.CELL,
    "table": fingerprint.TABLE,
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package to change."""
    shutil.copytree(SOURCE / "dreamset", tmp_path / "dreamset", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def changed(copy: Path, module: str, before: str, after: str) -> set[str]:
    """The makers whose hash changes when ``before`` becomes ``after`` in a module of the copy."""
    path = code.module_file(module, copy)
    assert path is not None
    text = path.read_text()
    assert before in text
    digests = {name: code.code_digest(*makers, source=SOURCE) for name, makers in MAKERS.items()}
    path.write_text(text.replace(before, after, 1))
    return {name for name, makers in MAKERS.items() if code.code_digest(*makers, source=copy) != digests[name]}


def test_how_a_shot_becomes_pixels_is_in_the_key_of_an_adapter(copy: Path) -> None:
    assert "adapter" in changed(
        copy, "dreamset.adapt", "resize(read_rgb(workspace.cell / path), size)", "read_rgb(path)"
    )


def test_the_features_of_clip_are_in_the_key_of_retrieved_images(copy: Path) -> None:
    touched = changed(copy, "dreamset.classifiers", "permute(0, 3, 1, 2).float() / 255", "permute(0, 3, 1, 2).float()")
    assert {"retrieved images", "searched images", "classifier"} <= touched
    assert not {"adapter", "images"} & touched


def test_the_steps_of_a_sampler_are_in_the_key_of_its_images(copy: Path) -> None:
    touched = changed(
        copy, "dreamset.params.model", "int(self.steps * self.strength)", "round(self.steps * self.strength)"
    )
    assert touched == set(MAKERS)


def test_metrics_are_in_the_keys_of_a_cell_and_of_the_table_alone(copy: Path) -> None:
    assert changed(copy, "dreamset.metrics.accuracy", "return", "return 0 or") == {"cell", "table"}


def test_how_images_are_scored_is_in_the_key_of_a_fold(copy: Path) -> None:
    before = "predictor.logits(images.test(predictor.size).images)"
    assert {"fold", "cell"} <= changed(copy, "dreamset.evaluate.logits", before, before + " + 1")


def test_which_claims_are_primary_is_in_the_hash_of_the_table(copy: Path) -> None:
    assert "table" in changed(copy, "dreamset.metrics.gains", "min(same", "max(same")


def test_the_page_is_in_no_key() -> None:
    reached = {name for makers in MAKERS.values() for name in code.closure(*makers)}
    assert not {name for name in reached if name.startswith(("dreamset.report", "dreamset.command", "dreamset.track"))}


def test_every_library_that_is_reached_is_in_a_key_or_decides_no_number() -> None:
    reached = {
        name.partition(".")[0]
        for makers in MAKERS.values()
        for path in code.modules(*makers).values()
        for name in code.imports(path)
    }
    outside = {name for name in reached if name != "dreamset" and name not in sys.stdlib_module_names}
    # What an optional library reads is written as PNG before anything learns from it.
    assert outside - code._LIBRARIES.keys() == {
        "huggingface_hub",
        "pillow_heif",
        "safetensors",
        "sqlalchemy",
        "threadpoolctl",
    }


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("dreamset.core.errors", '"""', '"""Changed. '),
        ("dreamset.adapt", "no memory for a step of", "there is no memory for a step of"),
        ("dreamset.params.knob_words", "LoRA of rank", "A LoRA of rank"),
        ("dreamset.data.splits", '"""', '"""Changed. '),
        ("dreamset.core.seeds", "    import", '    """Added."""\n    import'),
        ("dreamset.core.images", "\n\ndef ", "\n\n# A comment.\ndef "),
        ("dreamset.core.images", ") -> bytes:", ") -> object:"),
    ],
)
def test_words_change_no_key(copy: Path, module: str, before: str, after: str) -> None:
    assert changed(copy, module, before, after) == set()


def test_what_is_put_aside_is_reached_by_some_work() -> None:
    reached = {name for makers in MAKERS.values() for name in code.closure(*makers)}
    assert reached >= code.ASIDE


def test_the_modules_of_a_cell_are_those_that_compute_its_numbers() -> None:
    # A cell calls the stages; what it imports beside them keeps records and says what came out.
    stages = {"dreamset.prepare", "dreamset.generate", "dreamset.train", "dreamset.tune", "dreamset.evaluate"}
    assert stages <= code.imports(SOURCE / "dreamset/sweep/cells.py")
    assert stages <= set(code.modules(*fingerprint.CELL))


def test_what_python_loads_is_in_the_closure() -> None:
    # In one process, one after the other: what a module brings with it is a part of what it may run.
    script = """
import importlib, json, sys
loaded = {}
for name in ("dreamset.adapt", "dreamset.generate", "dreamset.train", "dreamset.evaluate", "dreamset.sweep.cells"):
    importlib.import_module(name)
    loaded[name] = [module for module in sys.modules if module.split(".")[0] == "dreamset"]
print(json.dumps(loaded))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected: set[str] = set()
    for name, modules in json.loads(done.stdout).items():
        # The package of a module that is named itself is run for it, too.
        expected |= code.closure(name).keys() | {name.rpartition(".")[0]}
        assert set(modules) <= expected
    with pytest.raises(ModuleNotFoundError):
        code.closure("dreamset.nowhere")


def test_evaluate_imports_no_training() -> None:
    training = {"dreamset.adapt", "dreamset.generate", "dreamset.train", "dreamset.tune"}
    assert not training & code.closure("dreamset.evaluate").keys()


def test_no_module_but_this_one_lists_modules() -> None:
    named = {}
    for path in sorted((SOURCE / "dreamset").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Tuple | ast.Set | ast.List):
                texts = [element.value for element in node.elts if isinstance(element, ast.Constant)]
                if sum(isinstance(text, str) and text.startswith("dreamset.") for text in texts) > 1:
                    named[path.relative_to(SOURCE).as_posix()] = node.lineno
    # A cell's, which `claims` asks for without importing the stages above it.
    assert set(named) == {"dreamset/core/code.py", "dreamset/weights/fingerprint.py"}
