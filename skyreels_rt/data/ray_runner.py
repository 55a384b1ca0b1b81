"""The same graph on Ray Data, for many machines; extra ``[ray]``.

Ray pickles functions and rows between its own processes; ours is one class, and rows of strings.
The folder of the build must be one that all machines see.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from skyreels_rt.data.dependencies import require
from skyreels_rt.data.settings import DataSettings, settings_from
from skyreels_rt.data.source import SourceGraph, answer_for
from skyreels_rt.data.tasks import SourceTask

INSTALL_HINT = "pip install 'skyreels-rt[data,ray]'"


class GraphActor:
    """The graph inside a Ray actor.

    Parameters
    ----------
    settings : str
        JSON of the settings.
    """

    def __init__(self, settings: str) -> None:
        self._graph = SourceGraph(settings_from(json.loads(settings)))

    def __call__(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Process one source; its answer as JSON."""
        return {"id": row["id"], "answer": json.dumps(answer_for(self._graph, row))}


def run_on_ray(
    tasks: Sequence[SourceTask], settings: DataSettings, folder: Path
) -> Iterator[tuple[SourceTask, Mapping[str, Any], Path]]:
    """Process sources on the cluster that ``ray.init()`` finds, one a core.

    A :class:`~skyreels_rt.data.build.Runner`.

    Raises
    ------
    MissingDependency
        Ray is not installed.
    WorkerFailed
        A worker cannot write.
    """
    from skyreels_rt.data.processes import raise_failed

    ray: Any = require("ray", "ray", INSTALL_HINT)
    ray_data: Any = require("ray.data", "ray", INSTALL_HINT)
    if not tasks:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    by_id = {task.id: task for task in tasks}
    rows = [
        {
            "id": task.id,
            "path": str(task.path.absolute()),
            "name": task.name,
            "target": str((folder / f"{task.id}.tar").absolute()),
        }
        for task in tasks
    ]
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    answers = ray_data.from_items(rows, override_num_blocks=len(rows)).map(
        GraphActor,
        fn_constructor_args=(json.dumps(settings.to_json()),),
        concurrency=(1, min(cores, len(rows))),
        num_cpus=1,
    )
    for item in answers.iter_rows():
        answer = json.loads(item["answer"])
        raise_failed(answer)
        yield by_id[item["id"]], answer, folder / f"{item['id']}.tar"
