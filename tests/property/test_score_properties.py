"""Promises of the scores, for labels that hypothesis draws."""
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cocoseg.postprocess.scores import (
    OverlapTable, agree_objects, count_overlaps, score_labels, score_overlaps)

QUICK = settings(max_examples=80, deadline=None)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=7)


@st.composite
def label_pairs(draw):
    """Draw truth and labels of one shape, a few objects each."""
    shape = draw(SHAPES)
    ids = [st.integers(0, draw(st.integers(0, 4))) for _ in range(2)]
    return tuple(draw(hnp.arrays(np.uint16, shape, elements=elements)) for elements in ids)


@QUICK
@given(label_pairs(), st.booleans())
def test_scores_lie_where_they_can(pair, ignore_background):
    found = score_labels(*pair, ignore_background=ignore_background)
    values = found.as_dict()
    n_pixels = pair[0].size
    assert all(0 <= value <= 1 + 1e-12 for name, value in values.items()
               if not name.startswith(('n_', 'vi')))
    assert all(0 <= values[name] <= np.log2(n_pixels) + 1e-9 for name in ('vi_split', 'vi_merge'))
    assert found.n_matched <= min(found.n_truth, found.n_labels)


@QUICK
@given(label_pairs())
def test_swapping_the_sides_swaps_the_scores(pair):
    ours = score_labels(*pair, ignore_background=False)
    theirs = score_labels(*pair[::-1], ignore_background=False)
    swapped = {'vi_split': 'vi_merge', 'rand_precision': 'rand_recall', 'precision': 'recall',
               'f1': 'f1', 'mean_iou': 'mean_iou', 'rand_error': 'rand_error', 'vi': 'vi'}
    for here, there in swapped.items():
        assert np.isclose(ours.as_dict()[here], theirs.as_dict()[there])


@QUICK
@given(label_pairs(), st.permutations(range(1, 5)))
def test_other_ids_and_another_order_of_pixels_change_nothing(pair, names):
    truth, labels = pair
    renamed = np.append(0, 1000 * np.array(names))[labels]
    assert score_labels(truth, labels) == score_labels(truth.T, renamed.T)


@QUICK
@given(label_pairs(), st.integers(0, 7))
def test_blocks_add_up_to_the_whole(pair, cut):
    total = sum((count_overlaps(*(side[part] for side in pair))
                 for part in (slice(0, cut), slice(cut, None))), OverlapTable.empty())
    assert score_overlaps(total) == score_labels(*pair)


@QUICK
@given(label_pairs())
def test_identical_labels_are_perfect_and_only_they(pair):
    truth, labels = pair
    same = score_labels(truth, truth)
    assert (same.f1, same.mean_iou, same.vi, same.rand_error) == (1, 1, 0, 0)
    assert agree_objects(truth, truth) == 1
    found = score_labels(truth, labels, matching_iou=1)
    is_same = agree_objects(labels, truth) == agree_objects(truth, labels) == 1
    assert (found.f1 == 1) == is_same
