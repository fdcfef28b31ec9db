"""A delivered classifier as MLflow's logged model, which ``mlflow.pyfunc.load_model`` opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamset.track import spool

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient


def log(
    client: MlflowClient, experiment: str, run_id: str, model: spool.Model, folder: Path, figures: list[Metric]
) -> None:
    """Log a classifier as a model of a run, with its signature and its figures; what the server has is left alone.

    Args:
        client: of the server.
        experiment: id of the experiment.
        run_id: of the run that delivers it.
        model: what it is.
        folder: its files, to which MLflow's own description is added.
        figures: of the run; the model's page shows them.
    """
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import add_to_model
    from mlflow.types.schema import ColSpec, DataType, Schema

    there = client.search_logged_models([experiment], f"tags.digest = '{model.digest}'")
    known = [one for one in there if one.source_run_id == run_id]
    for one in known:
        if one.status == "READY":
            return
        client.delete_logged_model(one.model_id)  # half of one, by a sender that was killed
    created = client.create_logged_model(experiment, model.name, run_id, {"digest": model.digest})

    def schema(columns: dict[str, str]) -> Schema:
        return Schema([ColSpec(DataType[kind], name) for name, kind in columns.items()])

    signature = ModelSignature(schema(model.inputs), schema(model.outputs))
    described = Model(model.name, run_id, signature=signature, model_id=created.model_id)
    add_to_model(described, model.loader, data=spool.MODEL)
    described.save(str(folder.parent / "MLmodel"))
    client.log_model_artifact(created.model_id, str(folder.parent / "MLmodel"))
    client.log_model_artifacts(created.model_id, str(folder), spool.MODEL)
    (folder.parent / "MLmodel").unlink()
    last = [point for point in figures if point.step == 0]
    points = [Metric(row.key, row.value, row.timestamp, row.step, model_id=created.model_id) for row in last]
    client.log_batch(run_id, metrics=points)
    client.log_outputs(run_id, [LoggedModelOutput(created.model_id, 0)])
    client.finalize_logged_model(created.model_id, "READY")
