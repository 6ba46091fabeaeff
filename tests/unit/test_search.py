"""The parameter search: what is run, what is scored, what is written."""
import csv
import dataclasses
import os
import sys
import threading

import numpy as np
import pytest

from cocoseg.errors import AssetWriteError, MissingDependencyError, OptionError, TaskError
from cocoseg.labels.components import label_components
from cocoseg.postprocess.parameters import WatershedParameters, enumerate_parameters
from cocoseg.postprocess.scores import OverlapTable, count_overlaps, score_labels
from cocoseg.postprocess.search import SCORES, search_parameters

VALUES = np.kron(np.array([[0.9, 0.1, 0.8, 0.3], [0.1, 0.1, 0.5, 0.2], [0.7, 0.1, 0.1, 0.6]]),
                 np.ones((4, 4)))
TRUTH = label_components((VALUES > 0.4).astype(np.uint8)).labels
THRESHOLDS = [{'threshold': value} for value in (0.05, 0.4, 0.65)]


def process(parameters, values=VALUES):
    return label_components((values > parameters['threshold']).astype(np.uint8)).labels


@pytest.fixture
def found():
    return search_parameters(process, THRESHOLDS, TRUTH)


@pytest.mark.parametrize('executor', ['serial', 'threads:2'])
def test_rows_are_the_scores_of_each_in_order(executor):
    found = search_parameters(process, iter(THRESHOLDS), TRUTH, executor=executor)
    assert [row.parameters for row in found.rows] == THRESHOLDS
    assert [row.scores for row in found.rows] == [
        score_labels(TRUTH, process(parameters)) for parameters in THRESHOLDS]
    assert len({row.scores for row in found.rows}) == 3
    assert all(row.seconds > 0 for row in found.rows)


def test_options_of_the_scores_are_those_of_the_rows():
    options = {'matching_iou': 0.9, 'ignore_background': False}
    found = search_parameters(process, THRESHOLDS, TRUTH, **options)
    expected = [score_labels(TRUTH, process(chosen), **options) for chosen in THRESHOLDS]
    assert [row.scores for row in found.rows] == expected
    assert expected != [score_labels(TRUTH, process(chosen)) for chosen in THRESHOLDS]


def test_threads_run_the_process_at_the_same_time():
    barrier = threading.Barrier(2, timeout=30)

    def wait(parameters):
        barrier.wait()
        return process(parameters)
    found = search_parameters(wait, THRESHOLDS[:2], TRUTH, executor='threads:2')
    assert len(found.rows) == 2


def test_objects_of_several_images_are_counted_together():
    images = [VALUES, VALUES.T, VALUES[:4]]
    truths = [label_components((image > 0.4).astype(np.uint8)).labels for image in images]

    def run(parameters, index):
        return process(parameters, images[index])
    found = search_parameters(run, THRESHOLDS, truths)
    for row in found.rows:
        tables = [count_overlaps(truth, process(row.parameters, image))
                  for truth, image in zip(truths, images)]
        assert row.scores.n_truth == sum(truth.max() for truth in truths)
        assert row.scores.n_labels == sum(len(np.unique(t.ids_labels[t.ids_labels > 0]))
                                          for t in tables)
    assert found.rows[1].scores.f1 == 1 > found.rows[0].scores.f1


def test_a_process_may_return_the_table_of_its_blocks():
    def run(parameters):
        labels = process(parameters)
        return sum((count_overlaps(TRUTH[rows], labels[rows])
                    for rows in (slice(0, 5), slice(5, None))), OverlapTable.empty())
    found = search_parameters(run, THRESHOLDS, None)
    assert [row.scores for row in found.rows] == [
        row.scores for row in search_parameters(process, THRESHOLDS, TRUTH).rows]
    with pytest.raises(TaskError, match='no truth'):
        search_parameters(process, THRESHOLDS, None)


@pytest.mark.parametrize('by', SCORES)
def test_best_is_highest_or_lowest(found, by):
    best = found.best(by)
    values = [row.scores.as_dict()[by] for row in found.rows]
    assert best.scores.as_dict()[by] == (max if SCORES[by] else min)(values)
    # The first of several that are as good.
    assert best is found.rows[values.index(best.scores.as_dict()[by])]
    # The true threshold is among the best, whatever is compared.
    assert found.rows[1].scores.as_dict()[by] == best.scores.as_dict()[by]
    assert len(found.ranked(by)) == 3 and found.ranked(by)[0] is best


def test_varied_are_the_parameters_with_several_values():
    base = WatershedParameters(method='distance', threshold=1)
    chosen = enumerate_parameters(base, sigma=[0.5, 0.50001], seed_distance=[3], min_size=[0, 9])
    found = search_parameters(lambda parameters: TRUTH, chosen, TRUTH)
    assert found.varied == ('sigma', 'min_size')
    assert search_parameters(lambda parameters: TRUTH, [base], TRUTH).varied == ()


@dataclasses.dataclass(frozen=True)
class Choice:
    """Parameters of one's own."""

    size: int
    mode: str = 'fast'


@pytest.mark.parametrize('chosen, name', [([Choice(1), Choice(2)], 'size'),
                                          ([3, 4], 'parameters')], ids=['dataclass', 'numbers'])
def test_parameters_may_be_of_any_type(chosen, name):
    found = search_parameters(lambda parameters: TRUTH, chosen, TRUTH)
    assert found.varied == (name,) and found.best().parameters == chosen[0]
    assert found.as_table().splitlines()[0].split()[0] == name


def test_table_is_aligned_and_sorted_when_asked(found):
    lines = found.as_table().splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert lines[0].split()[:2] == ['threshold', 'f1']
    assert [line.split()[0] for line in lines[1:]] == ['0.05', '0.4', '0.65']
    assert found.as_table(by='vi').splitlines()[1].split()[:2] == ['0.4', '1']


def test_csv_has_all_there_is_and_can_be_read_back(found, tmp_path):
    path = tmp_path / 'search.csv'
    path.write_text('old')
    found.write_csv(path)
    with open(path, newline='') as file:
        rows = list(csv.DictReader(file))
    assert os.listdir(tmp_path) == ['search.csv'] and len(rows) == 3
    for row, read in zip(found.rows, rows):
        assert {name: float(value) for name, value in read.items()} == row.as_dict()
    with pytest.raises(AssetWriteError, match='could not write'):
        found.write_csv(tmp_path / 'missing' / 'search.csv')


@pytest.mark.parametrize('suffix, magic', [('png', b'\x89PNG'), ('svg', b'<?xml'),
                                           ('PDF', b'%PDF')])
def test_plot_is_written_whole_or_not_at_all(tmp_path, monkeypatch, suffix, magic):
    pytest.importorskip('matplotlib')
    from matplotlib.figure import Figure
    chosen = [{'threshold': value, 'mode': mode} for value in (0.05, 0.4) for mode in 'ab']
    found = search_parameters(process, chosen, TRUTH)
    path = tmp_path / f'search.{suffix}'
    found.plot(path, by='vi')
    written = path.read_bytes()
    assert written.startswith(magic) and os.listdir(tmp_path) == [path.name]

    def fail(self, temp, **options):
        with open(temp, 'wb') as file:
            file.write(b'half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Figure, 'savefig', fail)
    with pytest.raises(AssetWriteError, match='No space left'):
        found.plot(path)
    assert path.read_bytes() == written and os.listdir(tmp_path) == [path.name]


def test_plot_follows_the_best_of_each_value():
    pytest.importorskip('matplotlib')
    from cocoseg.postprocess.search import _draw
    chosen = [{'threshold': value, 'mode': mode} for value in (0.65, 0.4) for mode in 'ab']
    found = search_parameters(
        lambda p: process(p) * (p['mode'] == 'a' or p['threshold'] < 0.5), chosen, TRUTH)
    figure = _draw(found, 'f1')
    threshold, mode = figure.axes
    line, points = threshold.lines
    f1 = [row.scores.f1 for row in found.rows]
    assert line.get_xydata().tolist() == [[0.4, 1.0], [0.65, f1[0]]] and f1[0] > f1[1]
    assert points.get_xydata().tolist() == [[row.parameters['threshold'], score]
                                            for row, score in zip(found.rows, f1)]
    assert [text.get_text() for text in mode.get_xticklabels()] == ['a', 'b']
    assert (threshold.get_xlabel(), mode.get_xlabel(), threshold.get_ylabel()) == (
        'threshold', 'mode', 'f1')


def test_plot_says_what_is_missing(found, tmp_path, monkeypatch):
    with pytest.raises(OptionError, match='does not end with'):
        found.plot(tmp_path / 'search.csv')
    with pytest.raises(OptionError, match='nothing to draw'):
        search_parameters(process, THRESHOLDS[:1], TRUTH).plot(tmp_path / 'search.png')
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    monkeypatch.setitem(sys.modules, 'matplotlib.backends.backend_agg', None)
    with pytest.raises(MissingDependencyError, match=r'pip install cocoseg\[instances\]'):
        found.plot(tmp_path / 'search.png')
    assert os.listdir(tmp_path) == []


def test_progress_wraps_every_run(found):
    seen = []

    def progress(steps, total, desc):
        for step in steps:
            seen.append((total, desc))
            yield step
    again = search_parameters(lambda p, index: process(p), THRESHOLDS, [TRUTH, TRUTH],
                              progress=progress)
    assert seen == [(6, 'search')] * 6
    assert again.rows[0].scores.f1 == found.rows[0].scores.f1


@pytest.mark.parametrize('chosen, truth, options, message', [
    ([], TRUTH, {}, '0 sets of parameters'),
    (THRESHOLDS, [], {}, '0 images'),
    (THRESHOLDS, TRUTH, {'matching_iou': 0.3}, 'must be 0.5 to 1'),
    (THRESHOLDS, TRUTH, {'executor': 'nobody'}, "executor='nobody'"),
    ([{'vi': 1, 'seconds': 2}], TRUTH, {}, "'seconds', 'vi'"),
], ids=['no parameters', 'no images', 'IoU', 'executor', 'names'])
def test_wrong_input_is_refused_before_the_process_runs(chosen, truth, options, message):
    with pytest.raises(OptionError, match=message):
        search_parameters(pytest.fail, chosen, truth, **options)


@pytest.mark.parametrize('by', ['n_labels', 'seconds', None])
def test_what_is_no_score_is_refused(found, by):
    for call in (found.best, found.ranked, lambda by: found.plot('a.png', by=by)):
        with pytest.raises(OptionError, match='is no score'):
            call(by)


def test_a_failure_tells_its_parameters_and_image():
    def fail(parameters, index):
        if parameters['threshold'] > 0.5 and index == 1:
            raise RuntimeError('out of luck')
        return TRUTH
    with pytest.raises(TaskError, match="'threshold': 0.65} of image 1 failed.*out of luck"):
        search_parameters(fail, THRESHOLDS, [TRUTH, TRUTH])
    with pytest.raises(TaskError, match="'threshold': 0.05}.*same pixels"):
        search_parameters(lambda parameters: TRUTH[1:], THRESHOLDS, TRUTH)
