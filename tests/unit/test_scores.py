"""Scores of labels against scikit-image, plain loops, and cases with a known answer."""
import itertools

import numpy as np
import pytest

from cocoseg.errors import OptionError
from cocoseg.postprocess import scores as scores_module
from cocoseg.postprocess.scores import (
    OverlapTable, agree_objects, agree_overlaps, count_overlaps, score_labels, score_overlaps)


def as_dict(table):
    """Return {(truth, label): px}."""
    return dict(zip(zip(table.ids_truth.tolist(), table.ids_labels.tolist()),
                    table.counts.tolist()))


def count_model(truth, labels):
    found = {}
    for pair in zip(np.ravel(truth).tolist(), np.ravel(labels).tolist()):
        found[pair] = found.get(pair, 0) + 1
    return found


def match_model(truth, labels, limit):
    """Match by the best assignment: (matched pairs, mean IoU)."""
    from scipy.optimize import linear_sum_assignment
    ious = np.zeros((truth.max() + 1, labels.max() + 1))
    for t, n in itertools.product(range(1, truth.max() + 1), range(1, labels.max() + 1)):
        union = ((truth == t) | (labels == n)).sum()
        ious[t, n] = ((truth == t) & (labels == n)).sum() / union if union else 0
    # As many pairs as there can be, and of these the best.
    gain = np.where(ious >= limit, 1000 + ious, 0)
    matched = ious[linear_sum_assignment(gain, maximize=True)]
    matched = matched[matched >= limit]
    return len(matched), matched.mean() if len(matched) else 0


def draw_pair(seed, shape=(12, 17), n=5, share=0.3):
    """Return blocky truth, and labels that differ from it at a share of the pixels."""
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, n, (-(-shape[0] // 4), -(-shape[1] // 4))),
                    np.ones((4, 4), int))[:shape[0], :shape[1]]
    labels = np.where(rng.random(shape) < share, rng.integers(0, n + 2, shape), truth)
    return truth, labels


@pytest.mark.parametrize('dtype', [np.uint8, np.int32, np.uint64])
@pytest.mark.parametrize('offset', [0, 2 ** 33])
def test_overlaps_are_those_of_a_plain_count(dtype, offset):
    for seed in range(4):
        truth, labels = (values.astype(dtype) for values in draw_pair(seed))
        if offset and dtype == np.uint64:
            # Both ways to sort: ids that fit in one key, and those that do not.
            labels = np.where(labels > 2, labels + np.uint64(offset), labels)
        table = count_overlaps(truth, labels)
        assert as_dict(table) == count_model(truth, labels)
        pairs = list(zip(table.ids_truth.tolist(), table.ids_labels.tolist()))
        assert pairs == sorted(pairs) and table.n_pixels == truth.size


def test_overlaps_of_chunks_and_views_are_those_of_the_whole(monkeypatch):
    truth, labels = draw_pair(1, (30, 40))
    expected = count_model(truth[::2, ::-1].T, labels[::2, ::-1].T)
    monkeypatch.setattr(scores_module, '_CHUNK', 7)
    truth.flags.writeable = labels.flags.writeable = False
    assert as_dict(count_overlaps(truth[::2, ::-1].T, labels[::2, ::-1].T)) == expected


@pytest.mark.parametrize('ignore_background', [True, False])
def test_information_and_rand_error_are_those_of_scikit_image(ignore_background):
    metrics = pytest.importorskip('skimage.metrics')
    ignored = (0,) if ignore_background else ()
    for seed in range(6):
        truth, labels = draw_pair(seed)
        ours = score_labels(truth, labels, ignore_background=ignore_background)
        split, merge = metrics.variation_of_information(truth, labels, ignore_labels=ignored)
        assert np.allclose([ours.vi_split, ours.vi_merge], [split, merge])
        assert ours.vi == ours.vi_split + ours.vi_merge
        error, *shares = metrics.adapted_rand_error(truth, labels, ignore_labels=ignored)
        assert np.isclose(ours.rand_error, error)
        # Which is which is decided by the next test, not by their order here.
        assert np.allclose(sorted([ours.rand_precision, ours.rand_recall]), sorted(shares))


def test_rand_scores_are_shares_of_pairs_of_pixels():
    truth, labels = draw_pair(3, (5, 8))
    pairs = [(i, j) for i, j in itertools.combinations(range(truth.size), 2)
             if truth.flat[i] and truth.flat[j]]
    same = np.array([(truth.flat[i] == truth.flat[j], labels.flat[i] == labels.flat[j])
                     for i, j in pairs])
    both = same.all(axis=1).sum()
    found = score_labels(truth, labels)
    assert np.isclose(found.rand_precision, both / same[:, 1].sum())
    assert np.isclose(found.rand_recall, both / same[:, 0].sum())
    assert found.rand_precision != found.rand_recall


@pytest.mark.parametrize('limit', [0.5, 0.6, 0.9, 1.0])
def test_matches_are_those_of_the_best_assignment(limit):
    n_all = 0
    for seed in range(12):
        truth, labels = draw_pair(seed, share=0.02 * seed)
        found = score_labels(truth, labels, matching_iou=limit)
        n_matched, mean_iou = match_model(truth, labels, limit)
        n_truth, n_labels = (len(np.unique(values[values > 0])) for values in (truth, labels))
        assert found.n_matched == n_matched and np.isclose(found.mean_iou, mean_iou)
        assert (found.n_truth, found.n_labels) == (n_truth, n_labels)
        assert np.isclose(found.precision, n_matched / n_labels)
        assert np.isclose(found.recall, n_matched / n_truth)
        assert np.isclose(found.f1, 2 * n_matched / (n_truth + n_labels))
        # As Kirillov et al. define it.
        n_missed = (n_truth + n_labels - 2 * n_matched) / 2
        assert np.isclose(found.panoptic_quality, n_matched * mean_iou / (n_matched + n_missed))
        n_all += n_matched
    assert n_all > 0


@pytest.mark.parametrize('whole, halves', [([[1, 1, 1, 1, 0]], [[1, 1, 2, 2, 0]])])
def test_halves_match_once(whole, halves):
    for truth, labels in ((whole, halves), (halves, whole)):
        found = score_labels(truth, labels)
        assert (found.n_matched, found.mean_iou) == (1, 0.5)
    assert score_labels(whole, halves, matching_iou=0.51).n_matched == 0


def test_splits_and_merges_are_told_apart():
    whole, halves = np.ones((4, 8), int), np.repeat([[1, 2]], 4, axis=1) * np.ones((4, 1), int)
    split, merged = score_labels(whole, halves), score_labels(halves, whole)
    assert (split.vi_split, split.vi_merge) == (1, 0)
    assert (merged.vi_split, merged.vi_merge) == (0, 1)
    assert split.rand_precision == 1 > split.rand_recall
    assert merged.rand_recall == 1 > merged.rand_precision


def test_ids_do_not_matter():
    truth, labels = draw_pair(5)
    renamed = np.array([0, 900, 17, 2 ** 40, 3, 55, 8])[labels]
    assert score_labels(truth, labels) == score_labels(truth, renamed)
    assert score_labels(truth, truth).as_dict() == {
        **score_labels(truth, truth).as_dict(), 'f1': 1, 'mean_iou': 1, 'vi': 0, 'rand_error': 0,
        'panoptic_quality': 1}


@pytest.mark.parametrize('truth, labels, expected', [
    ([[0, 0]], [[0, 0]], {'precision': 1, 'recall': 1, 'f1': 1, 'mean_iou': 1, 'vi': 0,
                          'rand_error': 0, 'panoptic_quality': 1}),
    ([[1, 2]], [[0, 0]], {'precision': 1, 'recall': 0, 'f1': 0, 'mean_iou': 0, 'vi_merge': 1,
                          'vi_split': 0, 'rand_recall': 1, 'panoptic_quality': 0}),
    ([[0, 0]], [[1, 2]], {'precision': 0, 'recall': 1, 'f1': 0, 'mean_iou': 0, 'vi': 0,
                          'rand_error': 0, 'panoptic_quality': 0}),
    (np.zeros((0, 3), int), np.zeros((0, 3), int), {'f1': 1, 'vi': 0, 'rand_error': 0}),
], ids=['no objects', 'no labels', 'no truth', 'no pixels'])
def test_empty_sides_have_a_defined_score(truth, labels, expected):
    found = score_labels(truth, labels).as_dict()
    assert {name: found[name] for name in expected} == expected
    assert np.isfinite(list(found.values())).all()


def test_background_counts_in_matches_always_and_elsewhere_when_asked():
    truth, labels = np.array([[1, 1, 0, 0, 0]]), np.array([[5, 5, 5, 5, 5]])
    ignoring, counting = (score_labels(truth, labels, ignore_background=flag)
                          for flag in (True, False))
    assert ignoring.vi == 0 and counting.vi_merge > 0.9
    assert ignoring.n_matched == counting.n_matched == 0


def test_tables_of_blocks_add_up_in_any_order():
    truth, labels = draw_pair(7, (20, 20))
    parts = [(slice(y, y + 7), slice(x, x + 9)) for y in range(0, 20, 7) for x in range(0, 20, 9)]
    tables = [count_overlaps(truth[part], labels[part]) for part in parts]
    for order in (tables, tables[::-1]):
        total = sum(order, OverlapTable.empty())
        assert as_dict(total) == count_model(truth, labels)
        assert score_overlaps(total) == score_labels(truth, labels)
    with pytest.raises(TypeError):
        tables[0] + 1


def test_objects_of_several_images_stay_apart():
    pairs = [draw_pair(seed) for seed in range(3)]
    both = OverlapTable.of_images(count_overlaps(*pair) for pair in pairs)
    # The same as if the images lay side by side, with ids of their own.
    truth = np.concatenate([np.where(t > 0, t + 100 * k, 0) for k, (t, _) in enumerate(pairs)])
    labels = np.concatenate([np.where(n > 0, n + 100 * k, 0) for k, (_, n) in enumerate(pairs)])
    assert score_overlaps(both) == score_labels(truth, labels)
    assert score_overlaps(both).n_truth == sum(len(np.unique(t[t > 0])) for t, _ in pairs)
    assert OverlapTable.of_images([]).n_pixels == 0


def test_objects_agree_if_they_have_the_same_pixels():
    reference = np.array([[1, 1, 0, 2, 2, 3, 3, 4]])
    labels = np.array([[7, 7, 0, 8, 9, 5, 0, 4]])
    assert agree_objects(labels, reference) == 0.5
    assert agree_objects(reference, reference) == 1
    # One that is the same and more is not the same, in either direction.
    assert agree_objects([[1, 1, 1]], [[1, 1, 0]]) == agree_objects([[1, 1, 0]], [[1, 1, 1]]) == 0
    assert agree_objects([[1, 1]], [[0, 0]]) == 1 and agree_objects([[0, 0]], [[1, 1]]) == 0
    halves = [count_overlaps(reference[:, part], labels[:, part])
              for part in (slice(0, 4), slice(4, 8))]
    assert agree_overlaps(halves[0] + halves[1]) == 0.5


def test_an_axis_of_one_channel_may_be_there_or_not():
    truth, labels = draw_pair(2)
    expected = score_labels(truth, labels)
    assert score_labels(truth, labels[..., None]) == expected
    assert score_labels(truth[..., None], labels) == expected
    for other in (labels[None], np.stack([labels] * 2, axis=-1)):
        with pytest.raises(OptionError, match='same pixels'):
            score_labels(truth, other)


@pytest.mark.parametrize('truth, labels, message', [
    (np.ones((2, 3), int), np.ones((3, 2), int), 'same pixels'),
    (np.ones((2, 2)), np.ones((2, 2), int), 'truth have shape'),
    (np.ones((2, 2), int), np.ones((2, 2), bool), 'labels have shape'),
    (np.ones((2, 2), int), np.full((2, 2), -4), 'labels hold -4'),
    (3, 4, 'give an array'),
], ids=['shapes', 'float', 'bool', 'negative', 'numbers'])
def test_what_are_no_labels_of_one_image_is_refused(truth, labels, message):
    for call in (count_overlaps, score_labels):
        with pytest.raises(OptionError, match=message):
            call(truth, labels)


@pytest.mark.parametrize('limit', [0.49, 1.01, float('nan'), None, '0.5'])
def test_limits_at_which_matches_are_not_unique_are_refused(limit):
    with pytest.raises(OptionError, match='must be 0.5 to 1'):
        score_labels([[1]], [[1]], matching_iou=limit)
    with pytest.raises(OptionError, match='must be 0.5 to 1'):
        score_overlaps(OverlapTable.empty(), matching_iou=limit)
