"""What is put aside of a fingerprint changes no number, and nothing that does is put aside."""

from pathlib import Path

from dreamset.sweep import crossval
from dreamset.weights import fingerprint
from test_pipeline import closure

# Imported by what is done in a fold, without a part in its numbers.
NO_NUMBER = {"audit.py", "cards.py", "licences.py", "progress.py", "review/__init__.py", "review/decisions.py"}


def test_nothing_that_a_fold_runs_is_put_aside() -> None:
    runs = {
        name.removeprefix("src/dreamset/")
        for stage in ("adapt", "generate", "train")
        for name in closure(f"dreamset.{stage}")
    }
    assert {"base/glyphs.py", "metrics/calibration.py", "folds.py"} <= runs
    hashed = fingerprint._code(fingerprint._ASIDE | crossval._CODE_ASIDE)
    assert runs - set(hashed) <= NO_NUMBER
    assert not {"evaluate.py", "metrics/mcnemar.py", "base/training.py"} & set(hashed)


def test_what_is_put_aside_is_there() -> None:
    package = Path(fingerprint.__file__).parent
    assert all((package / name).exists() for name in fingerprint._ASIDE | crossval._CODE_ASIDE)
