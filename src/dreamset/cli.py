"""The command line: one verb per stage, and a few beside the pipeline."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dreamset import __version__
from dreamset.errors import DiskFullError, InputError, StoppedError
from dreamset.files import disk_full
from dreamset.params import Params, load
from dreamset.rules import check_retrieval, check_start
from dreamset.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_FORMAT = argparse.RawDescriptionHelpFormatter


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Exit status: 0 done; 2 bad input; 1 the machine could not go on (disk, memory, a newer run); 130 and 143
    interrupted and terminated. All but 0 with one sentence on stderr.
    """
    arguments = _parser().parse_args(argv)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        arguments.run(arguments)
    except InputError as error:
        _fail(str(error))
    except (StoppedError, DiskFullError) as error:
        _fail(str(error), status=1)
    except KeyboardInterrupt as error:
        what, status = ("terminated", 143) if isinstance(error, _Terminated) else ("interrupted", 130)
        _fail(f"{what}; run the same command to go on.", status=status)
    except Exception as error:
        name = error.filename if isinstance(error, OSError) else None
        full = disk_full(error, Path(name).parent if isinstance(name, str) else Path.cwd())
        if full is None:
            raise
        _fail(str(full), status=1)
    finally:
        signal.signal(signal.SIGTERM, before)


class _Terminated(KeyboardInterrupt):
    """A SIGTERM, which leaves by the same way as Ctrl-C: what is in hand is put away."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def _fail(sentence: str, status: int = 2) -> NoReturn:
    print(f"dreamset: {sentence}", file=sys.stderr)
    raise SystemExit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dreamset",
        description="Few labelled images in; a labelled synthetic dataset, a better classifier and an honest\n"
        "measurement out. `dvc repro` runs every stage that is out of date; the verbs run one each.",
        epilog="examples:\n"
        "  dvc repro                                   everything that is out of date\n"
        "  dreamset generate datadream_dset --dry-run  what one stage would do\n"
        "  dreamset table --shots 4 16 --seeds 0-4     the comparison over seeds",
        formatter_class=_FORMAT,
    )
    parser.add_argument("--version", action="version", version=f"dreamset {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for stage, (item, what, examples) in _STAGES.items():
        verb = _verb(verbs, stage, help=what, description=what[0].upper() + what[1:] + ".", examples=examples)
        if item:
            verb.add_argument("item", metavar=item.upper(), help=_ITEM_HELP[item])
        verb.add_argument(
            "--dry-run", action="store_true", help="print parameters, inputs, outputs, counts; do nothing"
        )
        if stage == "tune":
            verb.add_argument(
                "--worker", action="store_true", help="run trials beside other processes, and write no results"
            )
        _common(verb)
        verb.set_defaults(run=_stage, stage=stage, item=None, worker=False)
    _beside(verbs)
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
        "say what synthetic images are likely to do here, before any are made",
        "  dreamset expect\n  dreamset expect --dry-run",
    ),
    "adapt": (
        "recipe",
        "train the adapters of a recipe on the shots",
        "  dreamset adapt datadream_dset\n  dreamset adapt datadream_cls --dry-run",
    ),
    "tune": (
        "recipe",
        "choose values of a recipe by a study, where its row has a search",
        "  dreamset tune stable_diffusion_tuned\n"
        "  dreamset tune stable_diffusion_tuned --worker  beside it, in as many processes as wanted\n"
        "  dreamset tune stable_diffusion_tuned --dry-run",
    ),
    "generate": (
        "recipe",
        "draw the synthetic dataset of a recipe",
        "  dreamset generate datadream_dset\n  dreamset generate stable_diffusion --dry-run",
    ),
    "train": (
        "arm",
        "train classifiers on real, synthetic, or both",
        "  dreamset train real\n  dreamset train datadream_dset",
    ),
    "evaluate": (None, "measure everything on the test images", "  dreamset evaluate"),
    "deliver": (None, "write the classifier to take away, which the verdict chooses", "  dreamset deliver"),
    "report": (None, "write the contact sheet and the HTML page", "  dreamset report"),
}


def _beside(verbs: Any) -> None:
    """Verbs that are no stages."""
    table = _verb(
        verbs,
        "table",
        help="run every stage over shots and seeds, and write one table",
        description="Run the stages for every (shots, seed) under .dreamset/table, and write results/table/ from all\n"
        "finished cells of these settings: cells.csv, summary.csv, claims.csv, correlations.csv. Stopped at any\n"
        "moment, the same command goes on. Parts may be run apart, and on other machines: results/table/cells\n"
        "holds a small record of each cell.",
        examples="  dreamset table --shots 4 16 --seeds 0-4 --jobs 2\n"
        "  dreamset table --shots 1 --seeds 5-9 --recipes stable_diffusion datadream_dset",
    )
    table.add_argument("--shots", type=int, nargs="+", required=True, metavar="K", help="images per class")
    table.add_argument("--seeds", type=span, required=True, metavar="A-B", help="seeds from A to B, both included")
    table.add_argument(
        "--recipes", nargs="+", metavar="RECIPE", help="rows of recipes (default: those that are active)"
    )
    table.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at once (default 1); cores are shared")
    _common(table)
    table.set_defaults(run=_table)

    _classifier(verbs)

    review = _verb(
        verbs,
        "review",
        help="look at a synthetic dataset in the browser and tick off wrong pictures",
        description="Open a page, on this machine alone, with the pictures of a recipe class by class. Decisions are\n"
        "saved at once in data/review/RECIPE.json; the next `dreamset generate RECIPE` replaces what was rejected.",
        examples="  dreamset review datadream_dset\n"
        "  dreamset review datadream_dset --no-browser --port 8000  behind `ssh -L 8000:localhost:8000`",
    )
    review.add_argument("item", metavar="RECIPE", help=_ITEM_HELP["recipe"])
    review.add_argument("--port", type=int, default=0, metavar="N", help="port of 127.0.0.1 (default: a free one)")
    review.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    _common(review)
    review.set_defaults(run=_review)

    fetch = _verb(
        verbs,
        "fetch",
        help="download the pretrained weights that a model's row names",
        description="Download the pinned revisions into the cache of the Hugging Face hub, or what is missing of\n"
        "them, and record commit and sha256 in models/fetched.json. No other verb fetches weights.",
        examples="  dreamset fetch sd21_base\n  HF_HOME=/data/hub dreamset fetch sd21_base sdxl_turbo",
    )
    fetch.add_argument("models", nargs="*", metavar="MODEL", help="rows of models (default: the one that model names)")
    _common(fetch)
    fetch.set_defaults(run=_fetch)

    gc = _verb(
        verbs,
        "gc",
        help="remove finished pieces of work that nothing uses any more",
        description="Remove shards that no dataset, adapter, unfinished study or table cell of this project uses.",
        examples="  dreamset gc",
    )
    _common(gc)
    gc.set_defaults(run=_gc)

    track = _verb(
        verbs,
        "track",
        help="send waiting records to the MLflow server",
        description="Send what no tracking server has taken yet. Stages do it by themselves; this is for afterwards.",
        examples="  dreamset track",
    )
    _common(track)
    track.set_defaults(run=_track)


def _classifier(verbs: Any) -> None:
    """Verbs that use what was delivered."""
    predict = _verb(
        verbs,
        "predict",
        help="label new image files with the delivered classifier",
        description="Label image files, folders of them, or patterns, as CSV: label, probability, whether the\n"
        "classifier abstains, and its five best classes. Files that cannot be used get a row with the reason.",
        examples="  dreamset predict photos --out predictions.csv\n"
        "  dreamset predict 'photos/*.jpg' one.png --threshold 0.8",
    )
    predict.add_argument("paths", nargs="+", metavar="PATH", help="an image file, a folder or a pattern")
    predict.add_argument("--out", type=Path, metavar="FILE", help="the CSV (default: standard output)")
    predict.add_argument("--threshold", type=float, metavar="T", help="abstain below it (default: the delivered one)")
    _which(predict)
    predict.set_defaults(run=_predict)

    export = _verb(
        verbs,
        "export",
        help="write the delivered classifier as ONNX, or a synthetic dataset for publication",
        description="Write the delivered classifier as one ONNX file, or a synthetic dataset without near-copies of\n"
        "the shots, for publication.",
        examples="  dreamset export --onnx classifier.onnx\n"
        "  dreamset export --public published --recipe datadream_dset",
    )
    what = export.add_mutually_exclusive_group(required=True)
    what.add_argument("--onnx", type=Path, metavar="FILE", help="the classifier goes here")
    what.add_argument("--public", type=Path, metavar="FOLDER", help="the dataset goes here")
    export.add_argument("--recipe", metavar="RECIPE", help="whose dataset is published")
    _which(export)
    _common(export)
    export.set_defaults(run=_export)


def _which(verb: argparse.ArgumentParser) -> None:
    folder = Path("models/classifier")
    verb.add_argument(
        "--classifier", type=Path, default=folder, metavar="FOLDER", help=f"as delivered (default: {folder})"
    )


def _verb(verbs: Any, name: str, *, help: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A verb with its help, laid out as it is written."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=help, description=description, epilog=f"examples:\n{examples}", formatter_class=_FORMAT
    )
    return parser


def _common(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--params", type=Path, default=None, metavar="FILE", help="parameters (default: params.yaml)")


def span(text: str) -> range:
    """Numbers from A to B, both included, of ``A-B`` or ``A`` on a command line."""
    first, _, last = text.partition("-")
    try:
        return range(int(first), int(last or first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected A-B or A, got {text!r}") from None


def _open(arguments: argparse.Namespace) -> tuple[Params, Workspace]:
    root = Path.cwd()
    return load(arguments.params or root / "params.yaml"), Workspace.at(root)


def _stage(arguments: argparse.Namespace) -> None:
    params, workspace = _open(arguments)
    stage, item = arguments.stage, arguments.item
    _check_item(params, stage, item)
    if arguments.dry_run:
        from dreamset.plan import describe

        print(describe(params, workspace, stage, item))
        return
    if arguments.worker:
        _work(params, workspace, item)
        return
    from dreamset import audit, locks, track

    started = time.time()
    shut = nullcontext() if stage in audit.OPENERS else audit.closed(workspace)
    with locks.turn(workspace.locks, f"{stage}_{item}" if item else stage), shut:
        summary = stage_function(stage)(params, workspace, *([item] if item else []))
    _print(stage, item, summary)
    for sentence in summary.get("sentences", ()):
        print(sentence, flush=True)
    plots = workspace.plots(stage, item)
    private = not params.report.show_real
    if stage == "tune" and item:
        record = json.loads(workspace.result(stage, item).read_text(encoding="utf-8"))
        track.study(workspace, params, item, record, _artifacts(workspace, stage, item, private))
    track.finish(
        workspace,
        params,
        stage,
        item,
        started=started,
        metrics=track.figures(summary),
        curves=_curves(plots / "loss.csv"),
        artifacts=_artifacts(workspace, stage, item, private),
    )


def _work(params: Params, workspace: Workspace, recipe: str) -> None:
    """Trials of a study, in turn with nobody: what others run is told by the study's storage."""
    from dreamset import audit, tune

    with audit.closed(workspace):
        _print("tune", recipe, tune.work(params, workspace, recipe))


def stage_function(stage: str) -> Callable[..., dict[str, Any]]:
    """``run`` of a stage's module; importing it loads what that stage needs and no more."""
    import importlib

    function: Callable[..., dict[str, Any]] = importlib.import_module(f"dreamset.{stage}").run
    return function


def _check_item(params: Params, stage: str, item: str | None) -> None:
    if stage in ("adapt", "tune", "generate", "review") and item not in params.recipes:
        raise InputError(f"params.yaml: no row {item!r} in recipes; there are {', '.join(params.recipes)}.")
    if stage == "train" and item != "real" and item not in params.recipes:
        raise InputError(f"params.yaml: no row {item!r} in recipes; there are real, {', '.join(params.recipes)}.")
    # A row that is not active may be named here, too.
    if stage in ("adapt", "tune", "generate", "train") and item in params.recipes:
        check_retrieval(params, item)
        check_start(params, item)


def _print(stage: str, item: str | None, summary: dict[str, Any]) -> None:
    """One line of what a stage has done."""
    shown = [
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in summary.items()
        if isinstance(value, int | float | str) and key not in ("recipe", "arm")
    ]
    print(f"{stage}{f' {item}' if item else ''}: {', '.join(shown)}", flush=True)
    for warning in summary.get("warnings", ()):
        print(f"{stage}: warning: {warning}", file=sys.stderr, flush=True)


def _curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Loss curves of a stage, one per adapter or run."""
    if not path.is_file():
        return {}
    curves: dict[str, list[tuple[int, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = row.get("adapter") or row.get("run") or "loss"
            curves.setdefault(f"loss/{name}", []).append((int(row["step"]), float(row["loss"])))
    return curves


def _artifacts(workspace: Workspace, stage: str, item: str | None, private: bool) -> list[Path]:
    """Files of a stage that a person looks at; none that shows or names a shot where the shots are ``private``."""
    # The evaluation names the files of shots that synthetic images resemble.
    files = [] if private and stage == "evaluate" else [workspace.result(stage, item)]
    plots = workspace.plots(stage, item)
    files += sorted(plots.glob("*")) if plots.is_dir() else []
    if stage == "report":
        files += [workspace.results / "report.html", workspace.results / "contact_sheet.png"]
    return [path for path in files if path.is_file()]


def _table(arguments: argparse.Namespace) -> None:
    from dreamset import sweep

    params, workspace = _open(arguments)
    if min(arguments.shots) < 1 or arguments.jobs < 1 or not arguments.seeds or arguments.seeds.start < 0:
        raise InputError("table: shots and jobs are 1 or more, and seeds a span such as 0-4.")
    for name in arguments.recipes or ():
        _check_item(params, "generate", name)
    if arguments.recipes:
        params = dataclasses.replace(params, active=tuple(dict.fromkeys(arguments.recipes)))
    print(sweep.run(params, workspace, sorted(set(arguments.shots)), list(arguments.seeds), arguments.jobs))


def _predict(arguments: argparse.Namespace) -> None:
    from dreamset import predict

    counts = predict.run(arguments.paths, arguments.classifier, arguments.out, arguments.threshold)
    told = f"{counts.labelled} labelled, {counts.abstained} abstained, {counts.unusable} unusable"
    # Standard output may be the CSV.
    print(f"predict: {counts.files} files: {told}", file=sys.stderr)


def _export(arguments: argparse.Namespace) -> None:
    from dreamset import cards, export

    if arguments.onnx:
        export.onnx(arguments.classifier, arguments.onnx)
        print(f"export: {arguments.onnx}")
        return
    if not arguments.recipe:
        raise InputError("export --public: needs --recipe; name the recipe whose dataset is published.")
    params, workspace = _open(arguments)
    _check_item(params, "generate", arguments.recipe)
    done = export.public(params, workspace, arguments.recipe, arguments.public)
    if params.recipes[arguments.recipe].init == "image":
        print(f"dreamset: {arguments.recipe}: {cards.DERIVED}", file=sys.stderr)
    left_out = ", ".join(f"{count} {reason}" for reason, count in done["removed"].items())
    print(f"export: {done['images']} images in {arguments.public}; left out: {left_out}")


def _review(arguments: argparse.Namespace) -> None:
    from dreamset.review import server

    params, workspace = _open(arguments)
    _check_item(params, "review", arguments.item)
    if not 0 <= arguments.port < 2**16:
        raise InputError(f"--port {arguments.port}: is no port; name one of 1024 to 65535, or none.")
    print(server.serve(workspace, arguments.item, arguments.port, browser=not arguments.no_browser))


def _fetch(arguments: argparse.Namespace) -> None:
    from dreamset import hub
    from dreamset.classifiers.pretrained import hub_name

    params, workspace = _open(arguments)
    for name in arguments.models or [params.model]:
        if name not in params.models:
            raise InputError(f"params.yaml: no row {name!r} in models; there are {', '.join(params.models)}.")
        row = params.models[name]
        wanted: list[tuple[str, hub.Part, str | None]] = [
            (row.generator, "generator", row.variant),
            (hub_name(row.clip) or row.clip, "clip", None),
            (row.judge, "judge", None),
        ]
        for weights, part, variant in wanted:
            if hub.repository(weights) is None:
                print(f"{name} {part}: {weights} is on this machine already")
                continue
            record = hub.fetch(workspace.root, weights, part, variant)
            pin = "" if record["pinned"] else f"; pin it: {weights.partition('@')[0]}@{record['commit']}"
            print(f"{name} {part}: {weights} at {record['commit']}, {record['bytes'] / 1e9:.2f} GB{pin}", flush=True)


def _gc(arguments: argparse.Namespace) -> None:
    from dreamset import locks, shards
    from dreamset.study import workers

    params, workspace = _open(arguments)
    running = locks.held(workspace.locks) + locks.held(workspace.shards)
    running += [f"study {study.name} ({name})" for study in workspace.trials.glob("*/") for name in locks.held(study)]
    if running:
        raise StoppedError(f"gc: {running[0]} is going on, and its work is in no list yet; run gc when it is done.")
    beside = workspace.root / ".dreamset"
    cells = [workspace.cell, *sorted(beside.glob("table/*/")), *sorted(beside.glob("folds/*/*/"))]
    workers.clear_abandoned(params, workspace)
    # Of a study that is finished nothing is left there: its values are known, and its images wanted no more.
    cells += sorted(workspace.trials.glob("*/*/*/*/"))
    used: set[str] = set()
    for cell in cells:
        for path in (*cell.glob("models/adapters/*/adapters.json"), *cell.glob("models/tuned/*/adapters.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            used |= {row["shard"] for row in record["adapters"]} | {*record.get("kept", ())}
        for path in cell.glob("data/synthetic/*/shards.json"):
            used |= set(json.loads(path.read_text(encoding="utf-8")))
    folders, size = shards.collect_garbage(workspace.shards, used)
    print(f"removed {folders} shards, {size / 1e6:.1f} MB")


def _track(arguments: argparse.Namespace) -> None:
    from dreamset import track

    params, workspace = _open(arguments)
    print(track.flush(workspace, params))
