"""The command line: one verb per stage, and a few verbs beside the pipeline."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dreamset import __version__
from dreamset.command import over_seeds, verbs
from dreamset.command.parsing import FORMAT, common, verb
from dreamset.core import device
from dreamset.core.errors import DiskFullError, InputError, StoppedError
from dreamset.core.files import disk_full, refused

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Exit status: 0 done; 1 the machine could not go on (disk, memory, a file it may not use, a newer run); 2 bad input;
    130 interrupted; 141 the reader of the output has gone, as with `| head`; 143 terminated. All but 0 and 141 come
    with one sentence on stderr.
    """
    arguments = _parser().parse_args(argv)
    device.keep_memory()
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except InputError as error:
        _fail(str(error))
    except (StoppedError, DiskFullError) as error:
        _fail(str(error), status=1)
    except KeyboardInterrupt as error:
        what, status = ("terminated", 143) if isinstance(error, _Terminated) else ("interrupted", 130)
        _fail(f"{what}; run the same command to go on.", status=status)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unread():
            raise SystemExit(128 + signal.SIGPIPE) from None
        name = error.filename if isinstance(error, OSError) else None
        full = disk_full(error, Path(name).parent if isinstance(name, str) else Path.cwd())
        sentence = refused(error) if full is None else str(full)
        if sentence is None:
            raise
        _fail(sentence, status=1)
    finally:
        signal.signal(signal.SIGTERM, before)


class _Terminated(KeyboardInterrupt):
    """A SIGTERM, which ends the program like Ctrl-C does, so that work in progress is saved."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def _unread() -> bool:
    """Return whether standard output is a pipe that nobody reads any more; if so, discard what is still to come."""
    output = sys.stdout.fileno()
    pipe = select.poll()
    pipe.register(output, 0)  # errors are always reported
    unread = any(event & select.POLLERR for _, event in pipe.poll(0))
    if unread:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return unread


def _fail(sentence: str, status: int = 2) -> NoReturn:
    print(f"dreamset: {sentence}", file=sys.stderr)
    raise SystemExit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dreamset",
        description="Few labelled images in; a labelled synthetic dataset, a better classifier and an honest\n"
        "measurement out. `dvc repro` runs every stage that is out of date; the verbs run one each.",
        epilog="examples:\n"
        "  dreamset run                                everything that is out of date\n"
        "  dreamset generate datadream_dset --dry-run  what one stage would do\n"
        "  dreamset table --shots 4 16 --seeds 0-4     the comparison over seeds",
        formatter_class=FORMAT,
    )
    parser.add_argument("--version", action="version", version=f"dreamset {__version__}")
    commands = parser.add_subparsers(metavar="VERB", required=True)
    for stage, (item, what, examples) in _STAGES.items():
        own = verb(commands, stage, help=what, description=what[0].upper() + what[1:] + ".", examples=examples)
        if item:
            own.add_argument("item", metavar=item.upper(), help=_ITEM_HELP[item])
        own.add_argument("--dry-run", action="store_true", help="print what it would make and how long; do nothing")
        own.add_argument("-v", "--verbose", action="store_true", help="with --dry-run: print the parameters, too")
        if stage == "tune":
            own.add_argument(
                "--worker", action="store_true", help="run trials beside other processes, and write no results"
            )
        common(own)
        own.set_defaults(run=verbs.stage, stage=stage, item=None, worker=False)
    _beside(commands)
    return parser


_ITEM_HELP = {"recipe": "a row of recipes in params.yaml", "arm": "'real' or a row of recipes in params.yaml"}

_STAGES: dict[str, tuple[str | None, str, str]] = {
    "prepare": (
        None,
        "draw few-shot splits from a source of real images",
        "  dreamset prepare\n  dreamset prepare --dry-run",
    ),
    "expect": (
        None,
        "say how much synthetic images are likely to help, before any are made",
        "  dreamset expect\n  dreamset expect --dry-run",
    ),
    "adapt": (
        "recipe",
        "train the adapters of a recipe on the shots",
        "  dreamset adapt datadream_dset\n  dreamset adapt datadream_cls --dry-run",
    ),
    "tune": (
        "recipe",
        "choose the values of a recipe by a study, where its row has a search",
        "  dreamset tune stable_diffusion_tuned\n"
        "  dreamset tune stable_diffusion_tuned --worker   beside it, in as many processes as you like\n"
        "  dreamset tune stable_diffusion_tuned --dry-run",
    ),
    "generate": (
        "recipe",
        "draw the synthetic dataset of a recipe",
        "  dreamset generate datadream_dset\n  dreamset generate stable_diffusion --dry-run",
    ),
    "train": (
        "arm",
        "train classifiers on real images, synthetic ones, or both",
        "  dreamset train real\n  dreamset train datadream_dset",
    ),
    "evaluate": (None, "measure everything on the test images", "  dreamset evaluate"),
    "deliver": (None, "write the classifier that is best by folds of the shots, ready for use", "  dreamset deliver"),
    "report": (None, "write the contact sheet and the HTML page", "  dreamset report"),
}


def _beside(commands: Any) -> None:
    """Add the verbs that are no stages."""
    _project(commands)
    run = verb(
        commands,
        "run",
        help="run the whole pipeline: what it costs, a question, one bar, the verdict",
        description="Check everything first, say what to expect and what the run costs here, ask, and run every stage\n"
        "that is out of date. `dvc repro` does the same without words. After a stop, the same command goes on.",
        examples="  dreamset run\n"
        "  dreamset run --images ~/photos    your own images, a folder per class\n"
        "  dreamset run --yes                without a terminal",
    )
    run.add_argument("--images", type=Path, metavar="DIR", help="learn from this folder of class folders")
    run.add_argument("--yes", action="store_true", help="do not ask")
    run.set_defaults(run=verbs.run)

    check = verb(
        commands,
        "check",
        help="say what stands against a run, before anything is changed",
        description="Check parameters, weights, licence, images and places to write; say each problem and its mend.",
        examples="  dreamset check",
    )
    common(check)
    check.set_defaults(run=verbs.check)

    over_seeds.add(commands)
    _classifier(commands)

    review = verb(
        commands,
        "review",
        help="look at a synthetic dataset in the browser and reject wrong pictures",
        description="Open a page with the pictures of a recipe class by class; only this machine can reach it.\n"
        "Decisions are saved at once in data/review/RECIPE.json; the next `dreamset generate RECIPE`\n"
        "replaces the rejected pictures.",
        examples="  dreamset review datadream_dset\n"
        "  dreamset review datadream_dset --no-browser --port 8000  behind `ssh -L 8000:localhost:8000`",
    )
    review.add_argument("item", metavar="RECIPE", help=_ITEM_HELP["recipe"])
    review.add_argument("--port", type=int, default=0, metavar="N", help="port of 127.0.0.1 (default: a free one)")
    review.add_argument("--no-browser", action="store_true", help="print the address and open no browser")
    common(review)
    review.set_defaults(run=verbs.review)

    change = verb(
        commands,
        "set",
        help="change single values of params.yaml, and keep the rest as it is",
        description="Change values of params.yaml; comments and layout stay. The result is checked before the file is\n"
        "replaced. A key that a row takes over from another one by <<: gets a line of its own.",
        examples="  dreamset set shots=16 generate.per_class=200\n"
        "  dreamset set model=sd21_base 'active=[stable_diffusion, datadream_dset]'\n"
        "  dreamset set recipes.datadream_dset.sampler.guidance=3",
    )
    change.add_argument("changes", nargs="+", metavar="KEY=VALUE", help="a dotted key, and its value as YAML has it")
    common(change)
    change.set_defaults(run=verbs.change)

    compare = verb(
        commands,
        "compare",
        help="runs beside each other: gain, accuracy, time, and what differs in their parameters",
        description="Show finished runs beside each other: those evaluated here, those that git keeps, and DVC's\n"
        "experiments. Below stand the parameters that differ; models.* is the row that model names.",
        examples="  dreamset compare\n  dreamset compare --last 8\n  dreamset compare now a1b2c3d",
    )
    compare.add_argument("runs", nargs="*", metavar="RUN", help="names of runs, as they stand above the columns")
    compare.add_argument("--last", type=int, default=4, metavar="N", help="so many of the newest runs (default 4)")
    common(compare)
    compare.set_defaults(run=verbs.compare)

    fetch = verb(
        commands,
        "fetch",
        help="download the pretrained weights that a model's row names",
        description="Download the missing files of the pinned revisions into the cache of the Hugging Face hub, and\n"
        "record commit and sha256 in models/fetched.json. No other verb downloads weights.",
        examples="  dreamset fetch sd21_base\n  HF_HOME=/data/hub dreamset fetch sd21_base sdxl_turbo",
    )
    fetch.add_argument("models", nargs="*", metavar="MODEL", help="rows of models (default: the row that model names)")
    common(fetch)
    fetch.set_defaults(run=verbs.fetch)

    gc = verb(
        commands,
        "gc",
        help="remove finished pieces of work that nothing uses any more",
        description="Remove shards that no dataset, adapter, classifier, unfinished study or table cell here uses.",
        examples="  dreamset gc\n  dreamset gc --dry-run",
    )
    gc.add_argument("--dry-run", action="store_true", help="say how much would go; remove nothing")
    common(gc)
    gc.set_defaults(run=verbs.gc)

    clean = verb(
        commands,
        "clean",
        help="remove what can be made again: generated images, adapters, classifiers, results, scratch",
        description="Remove what the stages wrote, and finished and unfinished work. Your images, decisions and\n"
        "parameters stay, and so do results/table, studies and MLflow's runs. Links are left as they are.",
        examples="  dreamset clean --dry-run\n  dreamset clean --yes",
    )
    clean.add_argument("--dry-run", action="store_true", help="say what would go; remove nothing")
    clean.add_argument("--yes", action="store_true", help="do not ask")
    clean.set_defaults(run=verbs.clean)

    track = verb(
        commands,
        "track",
        help="send waiting records to the MLflow server",
        description="Send the records that no tracking server has received yet. Stages send theirs by themselves;\n"
        "this verb is for records that could not be sent.",
        examples="  dreamset track",
    )
    common(track)
    track.set_defaults(run=verbs.track)


def _project(commands: Any) -> None:
    """Add the verbs that make a project, and keep it beside the installed version."""
    init = verb(
        commands,
        "init",
        help="make a project for images of your own",
        description="Look at a folder of images, and make a project for them: params.yaml with settings that suit\n"
        "them, dvc.yaml, a README, and a git repository that takes no images. The images stay where they are.",
        examples="  dreamset init my-project --images photos   one folder per class, or train/ and test/ of them\n"
        "  dreamset init my-project --images photos/list.csv\n"
        "  dreamset init digits --digits              the demonstration",
    )
    init.add_argument("target", type=Path, metavar="FOLDER", help="the project's folder: a new one, or an empty one")
    source = init.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--images", type=Path, metavar="FOLDER", help="your images, or a list of them (docs/own-images.md)"
    )
    source.add_argument("--digits", action="store_true", help="handwritten digits, which come with scikit-learn")
    init.add_argument("--share", action="store_true", help="let git take the results, with figures and pictures")
    init.set_defaults(run=verbs.init, stages=tuple(_STAGES))

    version = verb(
        commands,
        "version",
        help="write what a project depends on of the installed dreamset",
        description="Write the hash of each stage's code into versions/, and the bundled base into models/base. The\n"
        "first stage of a project does it; after an upgrade it says which stages run again.",
        examples="  dreamset version",
    )
    version.set_defaults(run=verbs.version, stages=tuple(_STAGES))


def _classifier(commands: Any) -> None:
    """Add the verbs that use the delivered classifier."""
    predict = verb(
        commands,
        "predict",
        help="label new image files with the delivered classifier",
        description="Label image files, folders of them, or patterns. The result is a CSV: label, probability,\n"
        "whether the classifier abstains, and its five best classes. Files that cannot be used get a row\n"
        "with the reason.",
        examples="  dreamset predict photos --out predictions.csv\n"
        "  dreamset predict 'photos/*.jpg' one.png --threshold 0.8\n"
        "  dreamset predict labelled --score --out predictions.csv   labelled/CLASS/IMAGE: how often is it right?",
    )
    predict.add_argument("paths", nargs="+", metavar="PATH", help="an image file, a folder or a pattern")
    predict.add_argument("--out", type=Path, metavar="FILE", help="the CSV (default: standard output)")
    predict.add_argument("--threshold", type=float, metavar="T", help="abstain below it (default: the delivered one)")
    predict.add_argument(
        "--score", action="store_true", help="folders are named after classes: print the accuracy, add a column"
    )
    _which(predict)
    predict.set_defaults(run=verbs.predict)

    export = verb(
        commands,
        "export",
        help="write the classifier as ONNX, a dataset for publication or as tensors, or LoRAs for ComfyUI and A1111",
        description="Write the delivered classifier as one ONNX file, a synthetic dataset without near-copies of the\n"
        "shots for publication, a synthetic dataset as tensors with the names of its classes, or the LoRAs of a\n"
        "recipe in kohya's layout for ComfyUI and A1111.",
        examples="  dreamset export --onnx classifier.onnx\n"
        "  dreamset export --public published --recipe datadream_dset\n"
        "  dreamset export --tensors tensors --recipe turbo_distill --size 32x32 --normalise cifar100\n"
        "  dreamset export --kohya loras --recipe datadream_dset",
    )
    target = export.add_mutually_exclusive_group(required=True)
    target.add_argument("--onnx", type=Path, metavar="FILE", help="write the classifier to this file")
    target.add_argument("--public", type=Path, metavar="FOLDER", help="write the dataset to this folder")
    target.add_argument("--tensors", type=Path, metavar="FOLDER", help="write the dataset as tensors to this folder")
    target.add_argument("--kohya", type=Path, metavar="FOLDER", help="write the LoRAs to this folder")
    export.add_argument("--recipe", metavar="RECIPE", help="the recipe whose dataset or LoRAs are written")
    export.add_argument("--size", metavar="HxW", help="of tensors, in pixels (default: that of the shots)")
    export.add_argument(
        "--normalise", metavar="NAME", help="of tensors: imagenet, cifar10, cifar100 or own (default: 0 to 255)"
    )
    _which(export)
    common(export)
    export.set_defaults(run=verbs.export)


def _which(verb: argparse.ArgumentParser) -> None:
    folder = Path("models/classifier")
    verb.add_argument(
        "--classifier", type=Path, default=folder, metavar="FOLDER", help=f"the classifier (default: {folder})"
    )
