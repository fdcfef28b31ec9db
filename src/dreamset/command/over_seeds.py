"""The verbs over several seeds: ``table``, ``claims`` and ``recommend``."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from dreamset.command.parsing import common, span, verb
from dreamset.command.verbs import check_item, opened
from dreamset.core.errors import InputError
from dreamset.core.strict import listed

if TYPE_CHECKING:
    import argparse


def add(commands: Any) -> None:
    """Add the verbs."""
    tabled = verb(
        commands,
        "table",
        help="run every stage over shots and seeds, and write one table",
        description="Run the stages for every (shots, seed) under .dreamset/table, and write results/table/ from all\n"
        "finished cells of these settings: cells.csv, summary.csv, claims.csv, correlations.csv. If it is\n"
        "stopped, the same command goes on. Parts may run at other times and on other machines:\n"
        "results/table/cells holds a small record of each cell.",
        examples="  dreamset table --shots 4 16 --seeds 0-4 --jobs 2\n"
        "  dreamset table --shots 1 --seeds 5-9 --recipes stable_diffusion datadream_dset",
    )
    tabled.add_argument("--shots", type=int, nargs="+", required=True, metavar="K", help="images per class")
    tabled.add_argument("--seeds", type=span, required=True, metavar="A-B", help="seeds from A to B, both included")
    tabled.add_argument(
        "--recipes", nargs="+", metavar="RECIPE", help="rows of recipes (default: those that are active)"
    )
    tabled.add_argument("--jobs", type=int, metavar="N", help="cells at once (default: compute.workers), a thread each")
    tabled.add_argument(
        "--recheck",
        action="store_true",
        help="where only the code has changed: run one cell of each number of shots again, and take over the others "
        "if its results are the same",
    )
    common(tabled)
    tabled.set_defaults(run=table)

    claimed = verb(
        commands,
        "claims",
        help="fix what a table is to show, before any of its test scores exist",
        description="Write down which recipe and classifier are to beat which others, at which numbers of shots, on\n"
        "seeds that nobody has scored: results/table/fixed/NAME.json. The table calls claims primary only\n"
        "where every cell of theirs was scored after that, and everything else exploratory.",
        examples="  dreamset claims fix --shots 1 4 --no-loss-at 16 --seeds 20-29\n"
        "  dreamset claims fix second --shots 4 --seeds 30-39 --over real retrieved\n"
        "  dreamset claims show",
    )
    claimed.add_argument("what", choices=("fix", "show"), metavar="fix|show", help="fix claims, or list the fixed ones")
    claimed.add_argument("name", nargs="?", metavar="NAME", help="of the file (default: round-1, round-2, ...)")
    claimed.add_argument("--shots", type=int, nargs="+", metavar="K", help="where a gain is claimed, images per class")
    claimed.add_argument(
        "--no-loss-at", type=int, nargs="+", metavar="K", help="where no loss of evaluate.smallest_gain is claimed"
    )
    claimed.add_argument("--seeds", type=span, metavar="A-B", help="seeds from A to B, both included")
    claimed.add_argument(
        "--over",
        nargs="+",
        metavar="ARM",
        help="what is to be beaten: real, or recipes beside real images (default: real and the un-adapted recipes)",
    )
    common(claimed)
    claimed.set_defaults(run=claims)

    advised = verb(
        commands,
        "recommend",
        help="which images and which classifier to take, by a finished table",
        description="Say what a table over seeds says: synthetic images or none, whose, with which classifier, how\n"
        "sure that is and what it costs. Seeds that are left out measure what the others choose.",
        examples="  dreamset recommend\n  dreamset recommend --shots 4 --budget 60",
    )
    advised.add_argument("--shots", type=int, metavar="K", help="images per class (default: those of this project)")
    advised.add_argument("--budget", type=float, metavar="S", help="most seconds of making images and training")
    common(advised)
    advised.set_defaults(run=recommend)


def table(arguments: argparse.Namespace) -> None:
    """Run every stage over shots and seeds."""
    from dreamset.command import tracked_table
    from dreamset.sweep import cells

    params, workspace = opened(arguments)
    jobs = 1 if arguments.jobs is None else arguments.jobs
    if min(arguments.shots) < 1 or jobs < 1 or not arguments.seeds or arguments.seeds.start < 0:
        raise InputError("table: shots and jobs are 1 or more, and seeds a span such as 0-4.")
    for name in arguments.recipes or ():
        check_item(params, "generate", name)
    if arguments.recipes:
        # A recipe that starts from another one needs that in the table, too.
        needed = tuple(dict.fromkeys(name for given in arguments.recipes for name in params.lineage(given)))
        params = dataclasses.replace(params, active=needed)
    shots, seeds = sorted(set(arguments.shots)), list(arguments.seeds)
    print(cells.run(params, workspace, shots, seeds, arguments.jobs, recheck=arguments.recheck))
    tracked_table.record(params, workspace)


def claims(arguments: argparse.Namespace) -> None:
    """Fix claims before their test scores exist, or say which are fixed."""
    from dreamset.metrics import fixed
    from dreamset.sweep import fixing

    params, workspace = opened(arguments)
    if arguments.what == "show":
        rounds = fixed.read(workspace.results / "table")
        names = [one.name for one in rounds]
        if arguments.name is not None and arguments.name not in names:
            there = f"there are {listed(names)}" if names else "none is fixed"
            raise InputError(f"claims show {arguments.name}: no round has that name; {there}.")
        told = [one.words for one in rounds if arguments.name in (None, one.name)]
        print("\n".join(told) or "claims: none is fixed; `dreamset claims fix` does it.")
        return
    gain, no_loss, seeds = (list(given or ()) for given in (arguments.shots, arguments.no_loss_at, arguments.seeds))
    if not seeds or min(seeds) < 0:
        raise InputError("claims fix: give --seeds, a span such as 20-29.")
    if min((*gain, *no_loss), default=1) < 1:
        raise InputError("claims fix: --shots and --no-loss-at are 1 or more images per class.")
    one, path = fixing.fix(params, workspace, arguments.name, seeds, gain, no_loss, arguments.over)
    print(one.words)
    shots, path = " ".join(map(str, one.shots)), path.relative_to(workspace.root)
    # A table runs the active recipes where nothing else is said.
    rows = "" if one.rows.keys() <= set(params.active) else f" --recipes {' '.join(one.rows)}"
    print(
        f"claims: {path} is written. Commit it now (`git add -f {path}`), then run\n"
        f"  dreamset table --shots {shots} --seeds {seeds[0]}-{seeds[-1]}{rows}"
    )


def recommend(arguments: argparse.Namespace) -> None:
    """Say what a finished table says of which images and which classifier to take."""
    from dreamset.data.splits import read_split
    from dreamset.sweep import cells, recommending

    params, workspace = opened(arguments)
    shots = arguments.shots
    if shots is None:
        shots = read_split(workspace.splits).shots if workspace.splits.is_dir() else params.shots
    budget = arguments.budget
    if not isinstance(shots, int):
        raise InputError("recommend: shots is no one number of images per class here; give --shots K.")
    if shots < 1 or not (budget is None or 0 < budget < math.inf):
        what = "--shots, 1 or more images per class" if shots < 1 else "a --budget above 0 seconds"
        raise InputError(f"recommend: give {what}.")
    print("\n".join(recommending.run(params, workspace, cells.records(params, workspace), shots, budget)))
