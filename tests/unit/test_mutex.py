"""The mutex watershed of arrays, against a plain one that goes edge by edge."""
import threading

import numpy as np
import pytest

from cocoseg.errors import LabelOverflowError, OptionError
from cocoseg.postprocess import mutex, mutex_kernels
from cocoseg.postprocess.mutex import mutex_watershed


def list_edges(weights, offsets):
    """Yield (p, q, weight) of edges inside, channel by channel, row by row; p and q are flat."""
    shape = weights.shape[1:]
    for channel, offset in zip(weights, offsets):
        for p, weight in np.ndenumerate(channel):
            q = tuple(np.add(p, offset))
            if all(0 <= at < size for at, size in zip(q, shape)) and not np.isnan(weight):
                yield np.ravel_multi_index(p, shape), np.ravel_multi_index(q, shape), weight


def mutex_watershed_model(affinities, offsets, bias=0.5, mask=None):
    """Treat one edge after the other, by sets of pixels and of excluded pixels."""
    weights = np.float32(affinities) - np.float32(bias)
    if mask is not None:
        weights = np.where(mask, weights, np.nan)
    edges = [edge for edge in list_edges(weights, offsets) if mask is None or mask.flat[edge[1]]]
    n_pixels = weights[0].size
    members = {p: {p} for p in range(n_pixels)}
    foes = {p: set() for p in range(n_pixels)}
    owner, is_background = list(range(n_pixels)), np.ones(n_pixels, bool)
    # sorted() is stable: equal weights stay in the order of the list.
    for p, q, weight in sorted(edges, key=lambda edge: -abs(edge[2])):
        if weight > 0:
            is_background[[p, q]] = False
        a, b = owner[p], owner[q]
        if a == b:
            continue
        if weight <= 0:
            foes[a].add(b)
            foes[b].add(a)
        elif b not in foes[a]:
            for r in members[b]:
                owner[r] = a
            members[a] |= members.pop(b)
            for c in foes.pop(b):
                foes[c].remove(b)
                foes[c].add(a)
                foes[a].add(c)
    labels, numbers = np.zeros(n_pixels, int), {}
    for p in np.flatnonzero(~is_background):
        labels[p] = numbers.setdefault(owner[p], len(numbers) + 1)
    return labels.reshape(weights.shape[1:])


def check(affinities, offsets, bias=0.5, mask=None):
    labels = mutex_watershed(affinities, offsets, bias, mask=mask)
    expected = mutex_watershed_model(affinities, offsets, bias, mask)
    assert labels.dtype == np.uint32
    np.testing.assert_array_equal(labels, expected)
    return labels


def draw(seed, n_channels, shape, kind='any'):
    """Return affinities float32: 'any' of them, 'few' values, or 'bad' ones among them."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0.6, 0.4, (n_channels, *shape)).astype(np.float32)
    if kind == 'few':
        return values.round(1)
    if kind == 'bad':
        odd = np.array([np.nan, np.inf, -np.inf, 0.5, 0.5], np.float32)
        return np.where(rng.random(values.shape) < 0.3, rng.choice(odd, values.shape), values)
    return values


@pytest.fixture
def small_bands(monkeypatch):
    """Let few edges be sorted at once, and tables and links grow early."""
    monkeypatch.setattr(mutex, '_LEAST_BAND', 8)
    monkeypatch.setattr(mutex, '_LEAST_TABLE', 4)


FLAT = [(0, 1), (1, 0), (0, -3), (2, 2), (-4, 1)]
SOLID = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (-2, 0, 0), (0, 2, -2), (1, 1, 1)]


@pytest.mark.parametrize('kind', ['any', 'few', 'bad'])
@pytest.mark.parametrize('offsets, shape', [
    (FLAT, (1, 1)), (FLAT, (1, 9)), (FLAT, (13, 1)), (FLAT, (3, 2)), (FLAT, (11, 14)),
    (SOLID, (1, 4, 5)), (SOLID, (5, 4, 6))], ids=str)
def test_labels_are_those_of_edge_after_edge(kind, offsets, shape, small_bands):
    for seed in range(4):
        check(draw(seed, len(offsets), shape, kind), offsets)


def test_what_was_never_large_enough_for_bands_is_labelled_alike():
    check(draw(7, 5, (30, 33)), FLAT)


def test_masked_pixels_are_background_and_join_nothing(small_bands):
    for seed in range(6):
        mask = np.random.default_rng(seed).random((9, 12)) < 0.7
        labels = check(draw(seed, 5, mask.shape, 'bad'), FLAT, mask=mask)
        assert not labels[~mask].any()
    row = np.full((1, 1, 3), 0.9, np.float32)
    assert mutex_watershed(row, [(0, 1)], mask=np.array([[True, False, True]])).tolist() == [
        [0, 0, 0]]
    assert not mutex_watershed(row, [(0, 1)], mask=np.zeros((1, 3), bool)).any()


def run_line(*channels, offsets=((0, 1), (0, 2))):
    return mutex_watershed(np.array(channels)[:, None], offsets[:len(channels)]).tolist()[0]


def test_a_mutex_holds_for_all_that_joins_later():
    # 0 and 2 exclude each other before 0-1 and 1-2 are tried.
    assert run_line([0.8, 0.7, 0], [0.0, 0, 0]) == [1, 1, 2]
    # Lighter than both, it comes too late.
    assert run_line([0.8, 0.7, 0], [0.45, 0, 0]) == [1, 1, 1]


def test_a_pixel_with_a_blocked_attraction_is_no_background():
    assert run_line([0.9, 0.8, 0.1, 0.1, 0], [0.0, 0.3, 0.3, 0, 0]) == [1, 1, 2, 0, 0]


def test_first_of_equal_weights_is_decided_first():
    # Weights of 1/4 exactly: the channel comes first, then the pixel.
    assert run_line([0.75, 0.75, 0], [0.25, 0, 0]) == [1, 1, 1]
    swapped = np.array([[0.25, 0, 0], [0.75, 0.75, 0]])[:, None]
    assert mutex_watershed(swapped, [(0, 2), (0, 1)]).tolist() == [[1, 1, 2]]
    # 1 joins 0 before 2 is tried, then 0 and 2 exclude each other.
    assert run_line([0.75, 0.75, 0], [0.2, 0, 0]) == [1, 1, 2]


def test_what_equals_the_bias_repels():
    assert run_line([0.5, 0.5, 0.0]) == [0, 0, 0]
    assert run_line([0.5000001, 0.5, 0.0]) == [1, 1, 0]


def test_edges_that_leave_the_array_do_not_exist():
    assert run_line([0.1, 0.1, 0.9]) == [0, 0, 0]
    assert run_line([0.9, 0.1, 0.1], offsets=[(0, -1)]) == [0, 0, 0]
    assert mutex_watershed(np.ones((2, 2, 2)), [(5, 0), (0, -2)]).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64, '>f4'])
def test_any_float_in_any_order_of_memory_is_read_and_not_changed(dtype):
    values = draw(3, 5, (9, 10)).astype(np.float16).astype(dtype)
    expected = mutex_watershed_model(values, FLAT)
    for array in (values, np.asfortranarray(values), values[:, ::-1][:, ::-1],
                  np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 0, -1)), -1, 0)):
        array.flags.writeable = False
        before = array.tobytes()
        assert np.array_equal(mutex_watershed(array, FLAT), expected)
        assert array.tobytes() == before


def test_float64_beyond_float32_is_infinite():
    assert run_line([1e300, -1e300, 0.9, 0.0]) == [1, 1, 2, 2]


def test_many_mutexes_make_room_and_forget_nothing(monkeypatch):
    """A star of attraction among pixels that all repel each other; links and table grow."""
    monkeypatch.setattr(mutex, '_LEAST_TABLE', 2)
    made = []
    make_room = mutex._Partition._make_room
    monkeypatch.setattr(mutex._Partition, '_make_room',
                        lambda self: (made.append(len(self.links)), make_room(self)))
    offsets = [(0, step) for step in range(1, 24)]
    check(draw(5, len(offsets), (6, 40), 'few') - 0.3, offsets)
    assert len(set(made)) > 1 and len(made) > len(set(made))


def test_too_many_pixels_or_mutexes_are_refused(monkeypatch):
    affinities = draw(0, 5, (20, 20)) - 0.4
    monkeypatch.setattr(mutex, 'MAX_PIXELS', 399)
    with pytest.raises(LabelOverflowError, match='block by block'):
        mutex_watershed(affinities, FLAT)
    monkeypatch.setattr(mutex, 'MAX_PIXELS', 400)
    monkeypatch.setattr(mutex, 'MAX_LINKS', 32)
    monkeypatch.setattr(mutex, '_LEAST_TABLE', 4)
    with pytest.raises(LabelOverflowError, match='more than 16 mutexes'):
        mutex_watershed(affinities, FLAT)


GOOD = np.ones((2, 3, 4), np.float32)


@pytest.mark.parametrize('affinities, offsets, options, message', [
    (np.ones((2, 3, 4), np.uint8), [(0, 1), (1, 0)], {}, 'must be floats'),
    (np.ones((2, 3, 4), bool), [(0, 1), (1, 0)], {}, 'must be floats'),
    (np.ones((2, 3, 4), complex), [(0, 1), (1, 0)], {}, 'must be floats'),
    (GOOD, [(0, 1)], {}, r'need \(1, h, w\), channels first'),
    (GOOD, [(0, 0, 1), (0, 1, 0)], {}, r'need \(2, d, h, w\)'),
    (GOOD[0], [(0, 1), (1, 0)], {}, 'channels first'),
    (GOOD[:, :0], [(0, 1), (1, 0)], {}, 'no pixels'),
    (GOOD, [], {}, 'needs offsets'),
    (GOOD, [(0, 1), (0, 0)], {}, 'not zero'),
    (GOOD, [(0, 1), (0, 1)], {}, 'different'),
    (GOOD, [(0, 1), (0, 1.5)], {}, 'whole pixels'),
    (GOOD, [(0, 1), (1, 0)], {'bias': np.nan}, 'finite'),
    (GOOD, [(0, 1), (1, 0)], {'bias': '0.5'}, 'finite'),
    (GOOD, [(0, 1), (1, 0)], {'bias': None}, 'finite'),
    (GOOD, [(0, 1), (1, 0)], {'mask': np.ones((4, 3), bool)}, 'mask is bool of shape'),
    (GOOD, [(0, 1), (1, 0)], {'mask': np.ones((3, 4), np.uint8)}, 'must be bool'),
])
def test_bad_input_is_refused_with_its_values(affinities, offsets, options, message):
    with pytest.raises(OptionError, match=message):
        mutex_watershed(affinities, offsets, **options)


def test_several_threads_may_call_at_once():
    problems = [draw(seed, 5, (20, 20)) for seed in range(4)]
    expected = [mutex_watershed(problem, FLAT) for problem in problems]
    found = {}

    def work(index):
        found[index] = mutex_watershed(problems[index], FLAT)
    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[index], expected[index]) for index in range(4))


# -- the kernels by themselves

@pytest.mark.parametrize('top', [0, 1, 3000, 2 ** 22, 2 ** 31 - 1])
def test_edges_are_sorted_as_by_numpy(top):
    rng = np.random.default_rng(top)
    keys = rng.integers(0, top, 500, endpoint=True) if top < 2 ** 31 - 1 else (
        np.append(rng.integers(0, top, 498), [0, top]))
    edges = mutex._Edges((keys * 2 + rng.integers(0, 2, 500)).astype(np.uint32),
                         np.arange(500, dtype=np.int32), np.arange(500, 0, -1, dtype=np.int32))
    order = np.argsort(-keys, kind='stable')
    expected = [values[order].copy() for values in edges]
    for values, wanted in zip(mutex._sort(edges), expected):
        assert np.array_equal(values, wanted)


def test_heaviest_edges_are_those_of_a_loop():
    rng = np.random.default_rng(1)
    ranks = rng.integers(0, 20, 60).astype(np.uint32)
    heads, tails = rng.integers(0, 12, (2, 60)).astype(np.int32)
    best, others = np.zeros(12, np.uint32), np.full(12, -1, np.int32)
    mutex_kernels._kernel_find_heaviest(ranks, heads, tails, best, others)
    for node in range(12):
        rows = np.flatnonzero((heads == node) | (tails == node))
        first = rows[np.argmax(ranks[rows] >> 1)]
        assert best[node] == ranks[first]
        assert others[node] == heads[first] + tails[first] - node


def test_contraction_alone_joins_what_only_attracts():
    edges, attracted = mutex._list_edges(draw(2, 2, (12, 12)) + 9, ((0, 1), (1, 0)),
                                         np.float32(0.5), np.empty(0, bool))
    assert len(edges) == 2 * 12 * 11 and attracted.all()
    rest, sets, n_sets = mutex._contract(edges, 144)
    assert n_sets == 1 and len(rest) == 0 and not sets.any()


def test_live_pairs_survive_a_new_table():
    nodes = np.zeros((6, 3), np.int32)
    nodes[:, 0] = [0, 1, 1, 3, 4, 5]
    table = np.zeros(16, np.uint64)
    pairs = [(0, 1), (0, 2), (2, 3), (4, 5)]
    mutex_kernels._kernel_insert(np.array([a << 32 | b for a, b in pairs], np.uint64), table)
    assert np.count_nonzero(table) == 4
    live = table[:mutex_kernels._kernel_keep_live(table, nodes)]
    assert sorted(live.tolist()) == [1, 4 << 32 | 5]


def walk(partition, root):
    """Return the nodes in the list of mutexes of a root."""
    found, link = [], partition.nodes[root, mutex_kernels.FIRST]
    while link >= 0:
        found.append(partition.nodes[partition.links[link, 1], mutex_kernels.PARENT])
        link = partition.links[link, 0]
    return found


def check_mutexes(partition):
    """The table holds the pairs of the lists, with room, and counts are right."""
    nodes, (n_used, n_links) = partition.nodes, partition._state[:2]
    assert n_used == np.count_nonzero(partition.table) <= len(partition.table) / 2
    assert n_links <= len(partition.links)
    roots = np.flatnonzero(nodes[:, mutex_kernels.PARENT] == np.arange(len(nodes)))
    lists = {root: walk(partition, root) for root in roots}
    for root, others in lists.items():
        assert len(others) == nodes[root, mutex_kernels.DEGREE]
        assert all(root in lists[other] for other in others) and root not in others
    pairs = {(min(a, b), max(a, b)) for a in roots for b in lists[a]}
    live = partition.table[:mutex_kernels._kernel_keep_live(partition.table.copy(), nodes)].size
    assert live == len(pairs)


def test_mutexes_stay_consistent_while_bands_get_lighter(small_bands):
    n_made = 0
    for seed in range(5):
        affinities = draw(seed, 5, (14, 15)) - 0.2
        edges, attracted = mutex._list_edges(affinities, tuple(FLAT), np.float32(0.5),
                                             np.empty(0, bool))
        edges, _, n_sets = mutex._contract(edges, len(attracted))
        partition, lightest, n_bands = mutex._Partition(n_sets), 2 ** 31, 0
        size = len(partition.table)
        for band in mutex._iter_bands(edges, partition):
            assert (np.diff((band.ranks >> 1).astype(np.int64)) <= 0).all()
            assert band.ranks[0] >> 1 < lightest or n_bands == 0
            lightest, n_bands = band.ranks[-1] >> 1, n_bands + 1
            partition.run(band)
            check_mutexes(partition)
        assert n_bands > 2
        n_made += len(partition.table) > size
    assert n_made


def test_room_is_made_before_a_large_set_moves_its_mutexes():
    n_foes = 200
    partition = mutex._Partition(2 + 2 * n_foes)
    size = len(partition.table)
    heads = np.append(np.repeat([0, 1], n_foes), 0).astype(np.int32)
    tails = np.append(np.arange(2, 2 + 2 * n_foes), 1).astype(np.int32)
    ranks = np.append(np.full(2 * n_foes, 8), 7).astype(np.uint32)
    assert 2 * 2 * n_foes < size < 2 * 3 * n_foes, 'the last edge is to need more room'
    partition.run(mutex._Edges(ranks, heads, tails))
    check_mutexes(partition)
    assert partition.nodes[0, 0] == partition.nodes[1, 0]
    assert max(partition.nodes[:2, mutex_kernels.DEGREE]) == 2 * n_foes
