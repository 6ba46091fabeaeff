"""
From blocks that are labeled to a finished label image, and what is known of it.
"""
from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from cocoseg.engine.timings import Timings, format_timings
from cocoseg.io.arrays import open_sink
from cocoseg.postprocess.label_blocks import find_labels, write_labels
from cocoseg.postprocess.workspace import open_store
from cocoseg.stitch.label import Seam

# What a label file is, unless the caller says otherwise.
_COG_OPTIONS = {'nodata': 0, 'overviews': 'nearest', 'channels': ['labels']}


@dataclass(frozen=True)
class LabelResult:
    """
    A finished label image, and what is known of it.

    Attributes:
        output (object): the array or path that was written.
        n_labels (int): ids are 1..n_labels, by first pixel, row by row.
        sizes (ndarray): int64 (n_labels + 1,), px by id; 0 for id 0.
        scores (ndarray): float64 (n_labels + 1,), mean value by id, of a mutex
            watershed the mean affinity; NaN where there are no values.
        seams (list[Seam]): how well neighboring blocks agree.
        grid_shape (tuple[int, ...]): blocks per axis.
        n_resumed (int): blocks that an earlier run had labeled.
        timings (Timings): seconds of the stages.
    """

    output: Any
    n_labels: int
    sizes: np.ndarray
    scores: np.ndarray
    seams: list[Seam]
    grid_shape: tuple[int, ...]
    n_resumed: int
    timings: Timings

    @property
    def agreement(self) -> float:
        """Share of the px labeled at seams that linked labels share; 1 without seams."""
        n_labeled = sum(seam.n_labeled for seam in self.seams)
        return sum(seam.n_common for seam in self.seams) / n_labeled if n_labeled else 1.0

    def format_seams(self) -> str:
        """
        Return a table of the seams for people, the worst first.

        Example:
            >>> from cocoseg import connected_components
            >>> result = connected_components(np.ones((2, 4), np.uint8), block_shape=2)
            >>> print(result.format_seams())
            agreement  labeled px  links  blocks
               1.0000           4      1  Window(y=0:2, x=0:2) | Window(y=0:2, x=2:4)
        """
        lines = ['agreement  labeled px  links  blocks']
        for seam in sorted(self.seams, key=lambda seam: seam.agreement):
            lines.append(f'{seam.agreement:9.4f} {seam.n_labeled:11d} {seam.n_links:6d}  '
                         f'{seam.first} | {seam.second}')
        return '\n'.join(lines)

    def format_timings(self) -> str:
        """Return a table of the seconds per stage, for people."""
        return format_timings(self.timings.summary(), 'Seconds per stage, over all workers')


def label_all(plan, dst, source, run, make_key, *, overwrite=False, sink_options=None):
    """
    Label, join and write; nothing is visible before all is done.

    Args:
        plan (LabelPlan): what to do.
        dst (object): as for :func:`cocoseg.io.arrays.open_sink`.
        source (BlockSource): whose georeference the output gets.
        run (BlockRun): how blocks are run.
        make_key (Callable[[], dict]): see :func:`open_store`.
        overwrite (bool): replace an output that exists.
        sink_options (dict | None): of the output.

    Returns:
        LabelResult: facts of the output.
    """
    timings, grid = Timings(), plan.grid
    options = dict(sink_options or {})
    if dst is None:
        dst = np.zeros(grid.shape, np.uint32)
    elif isinstance(dst, (str, os.PathLike)) and '.zarr' not in os.fspath(dst):
        options = {**_COG_OPTIONS, **options}
    with timings.interval('walltime'):
        sink = open_sink(dst, (*grid.shape, 1), np.uint32, overwrite=overwrite, like=source,
                         chunks=grid.block, **options)
        try:
            run.finish_upstream()
            with open_store(dst, run, make_key) as store:
                n_resumed = len(store.done)
                table = find_labels(plan, store, run, timings)
                write_labels(plan, store, sink, run, timings)
                output = sink.commit()
        except BaseException:
            sink.abort()
            raise
    return LabelResult(output, table.n_labels, table.sizes, table.scores, table.seams,
                       grid.grid_shape, n_resumed, timings)
