"""What went wrong in dacapo's blockwise segmentation does not here."""
import os

import numpy as np
import pytest

from cocoseg import BlockGrid, WatershedParameters, blockwise_watershed, connected_components
from cocoseg.engine.blockmap import BlockRun
from cocoseg.engine.block_store import BlockStore
from cocoseg.engine.timings import Timings
from cocoseg.postprocess.label_blocks import Labeled, LabelPlan, find_labels
from cocoseg.postprocess.links import ContactLinker, OverlapLinker

from ..cells import OFFSETS_2D, OFFSETS_3D, make_affinities, make_cells, partition


@pytest.mark.parametrize('offsets, shape', [(OFFSETS_2D, (40, 50)), (OFFSETS_3D, (12, 20, 24))])
def test_blocks_are_used_in_two_and_three_axes(offsets, shape):
    """There, all was one block, and the loop over faces knew three axes only."""
    affinities = make_affinities(make_cells(shape, 8), offsets, noise=0.1)
    parameters = WatershedParameters(offsets, context=6)
    result = blockwise_watershed(affinities, parameters, block_shape=10)
    assert len(result.seams) > 10 and min(result.grid_shape) > 1
    whole = blockwise_watershed(affinities, parameters, block_shape=64)
    assert partition(result.output) == partition(whole.output)


def test_ids_of_blocks_of_different_sizes_do_not_collide(tmp_path):
    """There, the step between ids was the size of whatever block came first."""
    grid = BlockGrid((7, 11), block=(4, 4))

    def label(block, timings):
        # As many labels as there are pixels, the most that can be.
        n = block.read.area
        return Labeled(np.arange(1, n + 1, dtype=np.uint32).reshape(block.read.shape), n,
                       label_values=np.arange(n + 1) + 1000 * (block.index[0] * 3 + block.index[1]))

    plan = LabelPlan(grid, label, ContactLinker(1))
    with BlockStore(tmp_path / 'work', {}) as store:
        table = find_labels(plan, store, BlockRun(), Timings())
        ids = np.concatenate([store.files.load(block.index, 'ids')[1:] for block in grid])
    assert table.n_labels == 77 and (table.sizes[1:] == 1).all()
    assert sorted(ids) == list(range(1, 78))


def test_the_order_of_blocks_does_not_choose_ids(tmp_path):
    """There, representatives were whatever file came first."""
    affinities = make_affinities(make_cells((50, 50), 9), OFFSETS_2D, noise=0.4)

    class Shuffled:
        n_workers = 1

        def run(self, func, tasks, **options):
            tasks = list(tasks)
            for place in np.random.default_rng(3).permutation(len(tasks)):
                yield tasks[place], func(tasks[place])

    parameters = WatershedParameters(OFFSETS_2D, context=8)
    ordered, shuffled = (blockwise_watershed(affinities, parameters, block_shape=16,
                                             executor=executor)
                         for executor in ('serial', Shuffled()))
    assert np.array_equal(ordered.output, shuffled.output)


def test_a_kept_folder_is_no_failure(tmp_path):
    """There, keep_tmpdir raised when all had gone well."""
    result = connected_components(np.ones((5, 5), np.uint8), block_shape=3, keep_tmpdir=True,
                                  workdir=tmp_path / 'work')
    assert result.n_labels == 1 and 'blocks.jsonl' in os.listdir(tmp_path / 'work')


def test_two_runs_that_begin_at_once_do_not_share_anything(tmp_path):
    """There, tasks were told apart by the second in which they began."""
    results = [connected_components(np.eye(6, dtype=np.uint8), tmp_path / f'{n}.tif', block_shape=2)
               for n in range(2)]
    assert [result.n_resumed for result in results] == [0, 0]


def test_upstream_work_is_done_once():
    """There, it was attached to both stages."""
    called = []
    connected_components(np.eye(6, dtype=np.uint8), block_shape=2,
                         upstream=[lambda: called.append(1)])
    assert called == [1]


def test_background_links_nothing():
    """Zero is no label, however much of it two blocks share."""
    affinities = np.zeros((30, 40, 2), np.float32)
    for rows in (slice(2, 6), slice(20, 25)):
        affinities[rows, 3:36, 0] = 0.9
        affinities[rows.start:rows.stop - 1, 3:37, 1] = 0.9
    parameters = WatershedParameters([(0, 1), (1, 0)], context=4, filter_fragments=False)
    result = blockwise_watershed(affinities, parameters, block_shape=10)
    assert result.n_labels == 2 and not result.output[8:18].any()


def test_pairs_are_the_same_from_either_side():
    """A link does not depend on who looks."""
    from cocoseg.labels.seams import match_labels
    rng = np.random.default_rng(0)
    for _ in range(20):
        ours, theirs = rng.integers(0, 5, (2, 6, 8)).astype(np.uint32)
        there, back = match_labels(ours, theirs, 4, 4), match_labels(theirs, ours, 4, 4)
        pairs = set(zip(there.ours.tolist(), there.theirs.tolist()))
        assert pairs == set(zip(back.theirs.tolist(), back.ours.tolist()))
    # All pairs of neighbors, and each once.
    steps = OverlapLinker().directions(3)
    assert len(steps) == 13 and not {tuple(-s for s in step) for step in steps} & set(steps)
