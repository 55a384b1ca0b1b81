"""A recorder of steps for machines without a GPU: replays by running the work again.

It obeys the same contract as a CUDA graph: the work sees nothing but the fixed buffers, leaves its
results where the first run left them, and may do nothing that a capture refuses. So the bookkeeping
of :class:`skyreels_rt.runtime.cuda_graphs.StepGraphs` is tested as it is.
"""

from __future__ import annotations

from collections.abc import Callable

from skyreels_rt.runtime.cuda_graphs import Tensors, refused_as_failure


class RerunRecorder:
    """Stands in for :class:`skyreels_rt.runtime.cuda_graphs.CudaRecorder`, on any device.

    Attributes
    ----------
    num_recorded, num_replayed : int
        Calls so far.
    """

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replayed = 0

    def record(self, work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """See :meth:`skyreels_rt.runtime.cuda_graphs.Recorder.record`."""
        results = refused_as_failure(work)
        self.num_recorded += 1

        def replay() -> None:
            self.num_replayed += 1
            for place, result in zip(results, work(), strict=True):
                place.copy_(result)

        return replay, results

    def apart(self) -> RerunRecorder:
        """Itself: it keeps no memory that two recordings could share."""
        return self
