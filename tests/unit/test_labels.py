"""Label arithmetic against plain numpy and scipy."""
import numpy as np
import pytest
from scipy import ndimage

from cocoseg.errors import LabelOverflowError, OptionError
from cocoseg.labels import relabel
from cocoseg.labels.components import label_components
from cocoseg.labels.merge import merge_small_groups
from cocoseg.labels.relabel import apply_lut, as_labels, densify, rank_groups
from cocoseg.labels.seams import list_contacts, match_labels, unique_pairs
from cocoseg.labels.unionfind import DisjointSets

SQUARE = np.ones((3, 3))


def number_by_first_pixel(labels):
    """Return labels renumbered 1..n in raster order."""
    ids, first = np.unique(labels, return_index=True)
    ids, first = ids[ids > 0], first[ids > 0]
    lut = np.zeros(labels.max() + 1, int)
    lut[ids[np.argsort(first)]] = np.arange(1, len(ids) + 1)
    return lut[labels]


def components_model(values, connectivity):
    """Label each value by scipy."""
    out, n = np.zeros(values.shape, int), 0
    for value in np.unique(values[values > 0]):
        part, count = ndimage.label(values == value, SQUARE if connectivity == 8 else None)
        out[part > 0] = part[part > 0] + n
        n += count
    return number_by_first_pixel(out), n


@pytest.mark.parametrize('connectivity', [4, 8])
@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (9, 1), (12, 17), (40, 31)])
@pytest.mark.parametrize('n_values', [2, 3, 9])
def test_components_are_those_of_scipy(shape, connectivity, n_values):
    rng = np.random.default_rng(n_values)
    for _ in range(20):
        values = rng.integers(0, n_values, shape).astype(np.uint32)
        found = label_components(values, connectivity)
        expected, n_expected = components_model(values, connectivity)
        assert found.n == n_expected
        assert np.array_equal(found.labels, expected)
        assert np.array_equal(found.sizes, np.bincount(expected.ravel()))
        _, firsts = np.unique(expected, return_index=True)
        assert np.array_equal(found.firsts[1:], firsts[len(firsts) - n_expected:])


def test_components_read_what_is_not_contiguous_and_change_nothing():
    values = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint16)
    values.flags.writeable = False
    labels = label_components(values[::2, ::3].T).labels
    assert np.array_equal(labels, components_model(np.array(values[::2, ::3].T), 4)[0])


@pytest.mark.parametrize('connectivity', [4, 8])
@pytest.mark.parametrize('dtype', [np.uint16, np.uint32])
def test_threads_that_share_rows_find_the_same(monkeypatch, connectivity, dtype):
    from cocoseg.labels import components
    monkeypatch.setattr(components, '_LEAST_ROWS', 1)
    rng = np.random.default_rng(4)
    for shape in ((7, 9), (30, 23), (3, 1)):
        for n_values in (2, 3):
            values = rng.integers(0, n_values, shape).astype(dtype)
            plain = label_components(values, connectivity)
            for num_threads in (2, 5):
                found = label_components(values, connectivity, num_threads=num_threads)
                for name in ('labels', 'sizes', 'firsts'):
                    assert np.array_equal(getattr(found, name), getattr(plain, name))


@pytest.mark.parametrize('connectivity', [6, None, True, '4'])
def test_components_refuse_another_connectivity(connectivity):
    with pytest.raises(OptionError, match='must be 4'):
        label_components(np.ones((2, 2), np.uint32), connectivity)


def test_components_refuse_more_pixels_than_their_indices_can_tell(monkeypatch):
    from cocoseg.labels import components
    monkeypatch.setattr(components, 'MAX_PIXELS', 5)
    with pytest.raises(LabelOverflowError, match='tile by tile'):
        label_components(np.ones((2, 3), np.uint32))


def test_sets_do_not_depend_on_the_order_of_pairs():
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, 40, (30, 2))
    expected = np.arange(40)
    for a, b in pairs:      # plain: the lower number wins, everywhere
        low, high = sorted((expected[a], expected[b]))
        expected[expected == high] = low
    for order in (pairs, pairs[::-1], pairs[:, ::-1], rng.permutation(pairs)):
        sets = DisjointSets(40)
        sets.join(order[:10, 0], order[:10, 1])
        sets.join(order[10:, 0], order[10:, 1])
        assert np.array_equal(sets.roots, expected)


@pytest.mark.parametrize('ids', [[0, 3, 3, 9], [5, 7], [0], [0, 2 ** 40, 7], [2 ** 60, 2 ** 61]])
def test_densify_keeps_order_and_gives_ids_back(ids):
    rng = np.random.default_rng(2)
    labels = rng.choice(np.array(ids, np.uint64), (5, 6))
    dense, found = densify(labels)
    present = np.unique(labels[labels > 0])
    assert np.array_equal(found, present)
    assert np.array_equal(np.append(0, found)[dense], labels)


@pytest.mark.parametrize('labels, message', [
    (np.zeros((2, 2)), 'whole numbers'), (np.zeros((2, 2), bool), 'whole numbers'),
    (np.zeros((2, 2, 2), int), 'shape'), (np.array([[-3, 1]]), 'hold -3'),
])
def test_labels_must_be_whole_numbers_from_0(labels, message):
    with pytest.raises(OptionError, match=message):
        as_labels(labels)


def test_groups_are_ranked_by_first_pixel():
    roots = np.array([0, 1, 1, 3, 0])
    first = np.array([80, 30, 9, -1, 10])
    ranks, n = rank_groups(roots, first)
    assert ranks.tolist() == [2, 1, 1, 0, 2] and n == 2


@pytest.mark.parametrize('num_threads', [1, 3])
def test_lut_is_applied_by_threads(monkeypatch, num_threads):
    monkeypatch.setattr(relabel, '_LEAST_PIXELS', 1)
    ids = np.array([[0, 2], [1, 2], [2, 0]], np.uint32)
    apply_lut(np.array([0, 5, 9], np.uint32), ids, num_threads)
    assert ids.tolist() == [[0, 9], [5, 9], [9, 0]]


def test_lut_is_applied_in_place_or_not_at_all():
    ids = np.arange(12, dtype=np.uint32).reshape(3, 4) % 3
    apply_lut(np.array([0, 7, 5], np.uint32), ids)
    assert ids.tolist() == [[0, 7, 5, 0], [7, 5, 0, 7], [5, 0, 7, 5]]
    with pytest.raises(OptionError, match='contiguous'):
        apply_lut(np.array([0], np.uint32), ids.T[1:])


def match_model(ours, theirs):
    """Pairs of labels, each of which is more than half of the other."""
    pairs = []
    for a in np.unique(ours[ours > 0]):
        for b in np.unique(theirs[theirs > 0]):
            common = ((ours == a) & (theirs == b)).sum()
            if 2 * common > (ours == a).sum() and 2 * common > (theirs == b).sum():
                pairs.append((a, b, common))
    return pairs


@pytest.mark.parametrize('seed', range(30))
def test_matches_are_mutual_majorities(seed):
    rng = np.random.default_rng(seed)
    ours = np.repeat(rng.integers(0, 6, (6, 4)), 3, axis=1).astype(np.uint32)
    theirs = np.where(rng.random(ours.shape) < 0.2, rng.integers(0, 6, ours.shape),
                      (ours * 5) % 7).astype(np.uint32)
    match = match_labels(ours, theirs, 6, 7)
    expected = match_model(ours, theirs)
    assert list(zip(match.ours, match.theirs)) == [pair[:2] for pair in expected]
    assert match.n_common == sum(pair[2] for pair in expected)
    assert match.n_labeled == ((ours > 0) | (theirs > 0)).sum()
    back = match_labels(theirs, ours, 7, 6)
    assert sorted(zip(back.theirs, back.ours)) == [pair[:2] for pair in expected]
    assert back.agreement == match.agreement


def test_exactly_half_is_no_majority():
    ours = np.array([[1, 1, 2, 2]], np.uint32)
    assert len(match_labels(ours, np.array([[1, 1, 1, 1]], np.uint32), 2, 1).ours) == 0


def contacts_model(pieces, connectivity, eligible=None):
    steps = [(0, 1), (1, 0)] + ([(1, 1), (1, -1)] if connectivity == 8 else [])
    pairs, (rows, columns) = set(), pieces.shape
    for y in range(rows):
        for x in range(columns):
            for dy, dx in steps:
                if y + dy < rows and 0 <= x + dx < columns:
                    a, b = sorted((pieces[y, x], pieces[y + dy, x + dx]))
                    if 0 < a < b and (eligible is None or eligible[a] or eligible[b]):
                        pairs.add((int(a), int(b)))
    return sorted(pairs)


@pytest.mark.parametrize('connectivity', [4, 8])
def test_contacts_are_all_touching_pairs(connectivity):
    rng = np.random.default_rng(3)
    for size in (1, 2, 7, 30):
        pieces = rng.integers(0, 12, (size, size + 1)).astype(np.uint32)
        eligible = rng.random(13) < 0.3
        found = list_contacts(pieces, connectivity)
        assert list(map(tuple, found.tolist())) == contacts_model(pieces, connectivity)
        found = list_contacts(pieces, connectivity, eligible)
        assert list(map(tuple, found.tolist())) == contacts_model(pieces, connectivity, eligible)


def test_pairs_keep_large_numbers_apart():
    pairs = np.array([[1, 2 ** 32 - 1], [0, 5], [1, 2 ** 32 - 1], [2 ** 32 - 1, 0]])
    assert unique_pairs(pairs).tolist() == [[0, 5], [1, 2 ** 32 - 1], [2 ** 32 - 1, 0]]


def merge_model(contacts, sizes, sums, min_size, limit):
    """Merge step by step with dicts of neighbors."""
    n = len(sizes)
    sizes, sums = list(sizes), [np.array(row, float) for row in sums]
    owner = list(range(n))
    neighbors = {group: set() for group in range(n)}
    for a, b in contacts:
        neighbors[a].add(b)
        neighbors[b].add(a)
    changed = True
    while changed:
        changed = False
        for group in range(n):
            if owner[group] != group or not 0 < sizes[group] < min_size or not neighbors[group]:
                continue
            mean = sums[group] / sizes[group]
            distance, other = min((((mean - sums[other] / sizes[other]) ** 2).sum(), other)
                                  for other in neighbors[group])
            if distance > limit ** 2:
                continue
            stays, goes = min(group, other), max(group, other)
            sizes[stays] += sizes[goes]
            sums[stays] = sums[stays] + sums[goes]
            owner = [stays if o == goes else o for o in owner]
            for third in neighbors.pop(goes):
                neighbors[third].discard(goes)
                if third != stays:
                    neighbors[third].add(stays)
                    neighbors[stays].add(third)
            changed = True
    return owner


@pytest.mark.parametrize('seed', range(40))
def test_small_groups_merge_step_by_step(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 25))
    contacts = rng.integers(0, n, (int(rng.integers(0, 3 * n)), 2))
    contacts = unique_pairs(np.sort(contacts[contacts[:, 0] != contacts[:, 1]], axis=1))
    sizes = rng.integers(1, 12, n)
    sums = sizes[:, None] * rng.integers(0, 9, (n, 2)).astype(float)
    min_size, limit = int(rng.integers(1, 15)), float(rng.choice([0, 2, 5, np.inf]))
    merged, n_merged = merge_small_groups(contacts, sizes, sums, min_size, limit)
    expected = merge_model(contacts, sizes, sums, min_size, limit)
    assert merged.tolist() == expected
    assert n_merged == n - len(set(expected))
