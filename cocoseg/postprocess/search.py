"""
Parameter search: run a process for each of some parameters, and score what it makes.

The process is any function of parameters; :mod:`cocoseg.postprocess.scores`
compares its labels with the truth.
"""
from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Callable

from numpy.typing import ArrayLike

from cocoseg.engine.executors import Executor, get_executor
from cocoseg.errors import MissingDependencyError, OptionError
from cocoseg.io.commit import as_write_error, atomic_write
from cocoseg.postprocess.scores import (
    LabelScores, OverlapTable, check_matching_iou, count_overlaps, score_overlaps)
from cocoseg.protocols import PathLike, Progress

# Scores by which results are compared, and whether more is better.
SCORES = {'f1': True, 'precision': True, 'recall': True, 'mean_iou': True,
          'panoptic_quality': True, 'vi': False, 'vi_split': False, 'vi_merge': False,
          'rand_error': False, 'rand_precision': True, 'rand_recall': True}
_TABLE_SCORES = ('f1', 'precision', 'recall', 'mean_iou', 'vi_split', 'vi_merge', 'rand_error')
_RESERVED = (*SCORES, 'n_truth', 'n_labels', 'n_matched', 'seconds')
_PLOT_SUFFIXES = ('png', 'svg', 'pdf')


@dataclass(frozen=True)
class SearchRow:
    """
    What one set of parameters gave.

    Attributes:
        parameters (object): as they came.
        scores (LabelScores): over all images.
        seconds (float): that the process took, over all images.
    """

    parameters: Any
    scores: LabelScores
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return parameters, scores and seconds by name."""
        return {**_name_parameters(self.parameters), **self.scores.as_dict(),
                'seconds': self.seconds}


@dataclass(frozen=True)
class SearchResult:
    """
    What :func:`search_parameters` found.

    Attributes:
        rows (tuple[SearchRow, ...]): in the order of the parameters.

    Example:
        >>> import numpy as np
        >>> from cocoseg import search_parameters
        >>> truth = np.array([[1, 1, 0, 2, 2]])
        >>> def keep(parameters):
        ...     return np.where(truth > parameters['least'], truth, 0)
        >>> found = search_parameters(keep, [{'least': least} for least in (0, 1)], truth)
        >>> found.best('f1').parameters
        {'least': 0}
    """

    rows: tuple[SearchRow, ...]

    @property
    def varied(self) -> tuple[str, ...]:
        """Names of the parameters of which there are several values."""
        named = [_name_parameters(row.parameters) for row in self.rows]
        names = dict.fromkeys(name for parameters in named for name in parameters)
        return tuple(name for name in names
                     if len({repr(parameters.get(name)) for parameters in named}) > 1)

    def best(self, by: str = 'f1') -> SearchRow:
        """
        Return the best row, the first of several.

        Args:
            by (str): a score: 'f1', 'precision', 'recall', 'mean_iou',
                'panoptic_quality', 'rand_precision' and 'rand_recall', of which
                more is better; 'vi', 'vi_split', 'vi_merge' and 'rand_error',
                of which less is.

        Returns:
            SearchRow: one of ``rows``.

        Raises:
            OptionError: for another name.
        """
        return self.ranked(by)[0]

    def ranked(self, by: str = 'f1') -> tuple[SearchRow, ...]:
        """Return the rows, best first; arguments as for :meth:`best`."""
        sign = -1 if _check_score(by) else 1
        return tuple(sorted(self.rows, key=lambda row: sign * row.scores.as_dict()[by]))

    def as_table(self, by: str | None = None) -> str:
        """
        Return aligned text: the varied parameters, the main scores and the seconds.

        Args:
            by (str | None): a score, to have the best row first; None keeps
                the order.

        Raises:
            OptionError: for another name.
        """
        names = (*self.varied, *_TABLE_SCORES, 'n_labels', 'seconds')
        rows = self.rows if by is None else self.ranked(by)
        lines = [names, *([_format(row.as_dict().get(name)) for name in names] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        return '\n'.join('  '.join(cell.rjust(width) for cell, width in zip(line, widths))
                         for line in lines)

    def write_csv(self, fpath: PathLike) -> None:
        """
        Write all parameters and scores, a row each, as text with commas.

        Args:
            fpath (str | PathLike): replaced if it exists.

        Raises:
            AssetWriteError: if it cannot be written.
        """
        rows = [row.as_dict() for row in self.rows]
        names = list(dict.fromkeys(name for row in rows for name in row))

        def write(temp):
            with open(temp, 'w', encoding='utf-8', newline='') as file:
                writer = csv.DictWriter(file, names, lineterminator='\n')
                writer.writeheader()
                writer.writerows(rows)
        _commit(fpath, write)

    def plot(self, fpath: PathLike, by: str = 'f1') -> None:
        """
        Draw a score over each parameter that was varied.

        A point is a row; the line follows the best row of each value. Needs
        matplotlib, of which no global state is touched.

        Args:
            fpath (str | PathLike): ends with .png, .svg or .pdf; replaced if
                it exists.
            by (str): as for :meth:`best`.

        Raises:
            OptionError: for another ending or score, or if no parameter was
                varied.
            MissingDependencyError: without matplotlib.
            AssetWriteError: if it cannot be written.
        """
        suffix = str(fpath).rpartition('.')[2].lower()
        _check_score(by)
        if suffix not in _PLOT_SUFFIXES:
            raise OptionError(f'{str(fpath)!r} does not end with one of '
                              f'{["." + known for known in _PLOT_SUFFIXES]}')
        if not self.varied:
            raise OptionError(f'no parameter was varied in {len(self.rows)} rows; there is '
                              'nothing to draw a score over')
        figure = _draw(self, by)
        _commit(fpath, lambda temp: figure.savefig(temp, format=suffix))


def search_parameters(process: Callable[..., Any], parameters: Iterable, truth: ArrayLike | None, *,
                      executor: str | Executor = 'serial', matching_iou: float = 0.5,
                      ignore_background: bool = True,
                      progress: Progress | None = None) -> SearchResult:
    """
    Score what a process makes with each of some parameters.

    Args:
        process (Callable): ``process(parameters)`` returns labels of the shape
            of ``truth``, or, of an image larger than memory, the
            :class:`~cocoseg.postprocess.scores.OverlapTable` of its blocks.
            For several images it is ``process(parameters, index)``. Called
            from several threads if the executor has several.
        parameters (Iterable): one or more sets of them, of any type that
            ``process`` takes; for example those of
            :func:`cocoseg.enumerate_parameters`. WatershedParameters, other
            dataclasses and dicts are told by their names in tables.
        truth (ndarray | Sequence[ndarray] | None): true labels, as for
            :func:`cocoseg.score_labels`. A list or tuple is of several images,
            over which objects and pixels are counted together. None if
            ``process`` returns tables.
        executor (str | Executor): see :func:`cocoseg.get_executor`; a task is
            one image with one set of parameters.
        matching_iou, ignore_background: as for :func:`cocoseg.score_labels`.
        progress (Callable | None): wraps an iterable, called with ``total``
            and ``desc``; for example ``ubelt.ProgIter``.

    Returns:
        SearchResult: a row for each set of parameters, in their order.

    Raises:
        OptionError: if there are no parameters or images, parameters have the
            names of scores, or for a wrong ``matching_iou``.
        TaskError: if the process fails, or its labels do not fit the truth;
            from that error.

    Example:
        >>> import numpy as np
        >>> from cocoseg.postprocess.search import search_parameters
        >>> values = np.array([[0.1, 0.6, 0.9, 0.4, 0.1, 0.9]])
        >>> truth = np.array([[0, 1, 1, 1, 0, 2]])
        >>> def process(parameters):
        ...     from cocoseg.labels.components import label_components
        ...     return label_components((values > parameters['threshold']).astype('u1')).labels
        >>> found = search_parameters(process, [{'threshold': t} for t in (0.05, 0.3, 0.8)], truth)
        >>> found.best().parameters, found.best(by='vi').parameters
        ({'threshold': 0.3}, {'threshold': 0.3})
        >>> [round(row.scores.f1, 2) for row in found.rows]
        [0.67, 1.0, 0.5]
    """
    parameters = list(parameters)
    truths = list(truth) if isinstance(truth, (list, tuple)) else [truth]
    if not parameters or not truths:
        raise OptionError(f'there are {len(parameters)} sets of parameters and {len(truths)} '
                          'images; give at least one of each')
    check_matching_iou(matching_iou)
    taken = {*_RESERVED} & {name for chosen in parameters for name in _name_parameters(chosen)}
    if taken:
        raise OptionError(f'parameters are named {sorted(taken)}, as are columns of the result; '
                          'give them other names')
    executor = get_executor(executor)
    trial = _Trial(process, parameters, truths, isinstance(truth, (list, tuple)))
    tasks = [(row, image) for row in range(len(parameters)) for image in range(len(truths))]
    steps = executor.run(trial, tasks, describe=trial.describe)
    if progress is not None:
        steps = progress(steps, total=len(tasks), desc='search')
    found = dict(steps)
    rows = []
    for row, chosen in enumerate(parameters):
        tables, seconds = zip(*(found[row, image] for image in range(len(truths))))
        table = tables[0] if len(tables) == 1 else OverlapTable.of_images(tables)
        scores = score_overlaps(table, matching_iou=matching_iou,
                                ignore_background=ignore_background)
        rows.append(SearchRow(chosen, scores, sum(seconds)))
    return SearchResult(tuple(rows))


@dataclass(frozen=True)
class _Trial:
    """Run the process for one set of parameters and one image, and count overlaps."""

    process: Callable
    parameters: list
    truths: list
    has_several: bool

    def __call__(self, task):
        row, image = task
        start = time.perf_counter()
        args = (image,) if self.has_several else ()
        found = self.process(self.parameters[row], *args)
        seconds = time.perf_counter() - start
        if not isinstance(found, OverlapTable):
            if self.truths[image] is None:
                raise OptionError(f'the process returned {type(found).__name__} and there is no '
                                  'truth; give one, or let it return an OverlapTable')
            found = count_overlaps(self.truths[image], found)
        return found, seconds

    def describe(self, task):
        row, image = task
        return f'{self.parameters[row]!r}' + (f' of image {image}' if self.has_several else '')


def _name_parameters(parameters):
    """Return parameters by name."""
    if hasattr(parameters, 'as_dict'):
        return parameters.as_dict()
    if dataclasses.is_dataclass(parameters) and not isinstance(parameters, type):
        return {field.name: getattr(parameters, field.name)
                for field in dataclasses.fields(parameters)}
    return dict(parameters) if isinstance(parameters, Mapping) else {'parameters': parameters}


def _check_score(by):
    """Return True if more of a score is better."""
    if by not in SCORES:
        raise OptionError(f'by={by!r} is no score to compare by; use one of {tuple(SCORES)}')
    return SCORES[by]


def _format(value):
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def _commit(fpath, write):
    try:
        with atomic_write(fpath) as temp:
            write(temp)
    except OSError as ex:
        raise as_write_error(str(fpath), ex) from ex


def _draw(result, by):
    """Return a figure with a panel for each varied parameter."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as ex:
        raise MissingDependencyError(
            f'matplotlib is needed to plot, and cannot be imported: {ex}. Install it by '
            '`pip install cocoseg[instances]`, or use as_table or write_csv') from ex
    names = result.varied
    figure = Figure(figsize=(4 * len(names), 3.2), layout='constrained')
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    pick = max if SCORES[by] else min
    for panel, name in zip(panels, names):
        values = [_name_parameters(row.parameters).get(name) for row in result.rows]
        scores = [row.scores.as_dict()[by] for row in result.rows]
        places, ticks = _place(values)
        line = {}
        for place, score in zip(places, scores):
            line[place] = pick(line.get(place, score), score)
        panel.plot(*zip(*sorted(line.items())), color='C0')
        panel.plot(places, scores, 'o', color='C1', alpha=0.7)
        panel.set_xlabel(name)
        if ticks:
            panel.set_xticks(range(len(ticks)), ticks)
    panels[0].set_ylabel(by)
    return figure


def _place(values):
    """Return where values lie on an axis, and its texts if they are no numbers."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return values, []
    texts = list(dict.fromkeys(map(str, values)))
    return [texts.index(str(value)) for value in values], texts
