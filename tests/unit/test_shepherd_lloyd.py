"""Lloyd's iterations, held against plain numpy; and the tree under them."""
import numpy as np
import pytest

from cocoseg.errors import OptionError
from cocoseg.shepherd import lloyd, lloyd_kernels
from cocoseg.shepherd.lloyd import SampleTree, run_lloyd, swap_centres


def assign_all(samples, centres):
    """Return the nearest centre of each sample, and the squared distances to all (N, K)."""
    distances = np.zeros((len(samples), len(centres)))
    for band in range(samples.shape[1]):
        distances += (samples[:, None, band] - centres[None, :, band]) ** 2
    return distances.argmin(axis=1), distances


def reference_lloyd(samples, centres, tol, max_iter=300):
    """Compare every sample with every centre, in every iteration."""
    samples, centres = samples.astype(float), centres.astype(float)
    labels, n_iter = None, 0
    while n_iter < max_iter:
        n_iter += 1
        old_labels, (labels, distances) = labels, assign_all(samples, centres)
        counts = np.bincount(labels, minlength=len(centres))
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, samples)
        (empty,) = np.nonzero(counts == 0)
        least = distances.min(axis=1)
        if len(empty) and least.any():
            farthest = np.argpartition(least, -len(empty))[:-len(empty) - 1:-1]
            for cluster, sample in zip(empty, farthest):
                sums[labels[sample]] -= samples[sample]
                counts[labels[sample]] -= 1
                sums[cluster], counts[cluster] = samples[sample], 1
        moved = centres.copy()
        moved[counts > 0] = sums[counts > 0] / counts[counts > 0, None]
        shift, centres = ((moved - centres) ** 2).sum(), moved
        if shift <= tol or (len(empty) and np.array_equal(labels, old_labels)):
            break
    labels, distances = assign_all(samples, centres)
    return centres, labels, distances.min(axis=1).sum(), n_iter


def check_run(samples, centres, **options):
    """Compare a run with the reference; return its result."""
    result = run_lloyd(samples, centres, **options)
    tol = options.get('tol')
    tol = 1e-4 * np.var(samples.astype(float), axis=0).mean() if tol is None else tol
    expected, labels, inertia, n_iter = reference_lloyd(samples, centres, tol,
                                                        options.get('max_iter', 300))
    np.testing.assert_allclose(result.centres, expected, rtol=1e-12, atol=1e-12)
    assert np.array_equal(result.labels, labels) and result.labels.dtype == np.int32
    assert np.array_equal(result.counts, np.bincount(labels, minlength=len(centres)))
    assert result.n_iter == n_iter
    np.testing.assert_allclose(result.inertia, inertia, rtol=1e-9)
    return result


def make_samples(kind, n_samples=1500, n_bands=3):
    """Return samples of a kind: clumps, many duplicates, a long tail, …"""
    rng = np.random.default_rng(n_samples + n_bands)
    middles = rng.integers(200, 3000, (12, n_bands))
    clumps = middles[rng.integers(0, 12, n_samples)] + rng.normal(0, 60, (n_samples, n_bands))
    if kind == 'clumps':
        return clumps.clip(0).astype('u2')
    if kind == 'duplicates':
        return (clumps / 300).astype('u1')
    if kind == 'signed':
        return clumps.astype('i2') - 1500
    if kind == 'tail':
        return np.exp(rng.normal(0, 4, (n_samples, n_bands)))
    if kind == 'far':
        return 1e4 + rng.random((n_samples, n_bands))
    raise AssertionError(kind)


KINDS = ('clumps', 'duplicates', 'signed', 'tail', 'far')


@pytest.fixture
def small_parts(monkeypatch):
    """Let small trees have many leaves and parts, too."""
    monkeypatch.setattr(lloyd, '_PART_SIZE', 100)
    monkeypatch.setattr(lloyd, '_LEAF_SIZE', 8)


# ---- runs ------------------------------------------------------------------

@pytest.mark.parametrize('n_bands', [1, 4, 9])
@pytest.mark.parametrize('kind', KINDS)
def test_runs_are_those_of_a_comparison_with_every_centre(kind, n_bands, small_parts):
    samples = make_samples(kind, n_bands=n_bands)
    check_run(samples, samples[::100])


@pytest.mark.parametrize('kind', KINDS)
def test_empty_clusters_get_the_farthest_samples(kind, small_parts):
    samples = make_samples(kind)
    centres = np.linspace(samples.min(axis=0) * 2.0, samples.max(axis=0) * 2.0, 9)
    assert (np.bincount(assign_all(samples.astype(float), centres)[0], minlength=9) == 0).any()
    check_run(samples, centres)


def test_one_relocation_by_hand():
    samples = np.array([[0], [1], [2], [30]])
    # All four go to the first; 30 is farthest, and 0, 1, 2 are left.
    result = run_lloyd(samples, [[1], [1000]], max_iter=1)
    assert result.centres.tolist() == [[1.0], [30.0]]
    assert result.labels.tolist() == [0, 0, 0, 1] and result.inertia == 2


def test_a_centre_without_samples_stays_if_all_samples_are_centres():
    samples = np.array([[3, 3], [3, 3], [7, 1]])
    result = check_run(samples, np.array([[3, 3], [7, 1], [9, 9]]))
    assert result.counts.tolist() == [2, 1, 0] and result.centres[2].tolist() == [9.0, 9.0]


def test_ties_go_to_the_lowest_index():
    samples = np.array([[0], [1], [2]])
    assert run_lloyd(samples, [[0], [2]], max_iter=1).centres.tolist() == [[0.5], [2.0]]
    assert run_lloyd(samples, [[2], [0]], max_iter=1).centres.tolist() == [[1.5], [0.0]]


def test_sums_of_integers_are_exact():
    samples = np.full((3000, 2), 2 ** 32 - 1, 'u4')
    samples[::3] -= 1
    sums, counts, _ = SampleTree(samples).assign(np.array([[0.0, 0.0]]))
    assert sums[0].tolist() == samples.sum(axis=0, dtype='u8').tolist() and counts[0] == 3000


@pytest.mark.parametrize('kind', KINDS)
def test_the_number_of_threads_changes_nothing(kind, small_parts):
    samples = make_samples(kind)
    one, three = (run_lloyd(samples, samples[:20], num_threads=n) for n in (1, 3))
    assert np.array_equal(one.centres, three.centres) and one.inertia == three.inertia
    assert np.array_equal(one.labels, three.labels) and one.n_iter == three.n_iter > 1


def test_max_iter_and_tol_end_a_run():
    samples = make_samples('clumps')
    whole = check_run(samples, samples[:10], tol=0)
    assert check_run(samples, samples[:10], max_iter=2).n_iter == 2 < whole.n_iter
    assert check_run(samples, samples[:10], tol=1e9).n_iter == 1


def test_callers_arrays_may_be_read_only_and_of_any_layout():
    samples = np.asfortranarray(make_samples('clumps'))[::-1]
    centres = samples[:8].astype(float)
    samples.flags.writeable = centres.flags.writeable = False
    before = samples.copy(), centres.copy()
    check_run(samples, centres)
    assert np.array_equal(samples, before[0]) and np.array_equal(centres, before[1])


@pytest.mark.parametrize('centres', [[[1, 2]], [1, 2, 3], np.empty((0, 3)), [[1, 2, np.nan]],
                                     [[1, 2, 1e200]]])
def test_centres_that_do_not_suit(centres):
    with pytest.raises(OptionError, match='centres'):
        run_lloyd(make_samples('clumps'), centres)


@pytest.mark.parametrize('value', [1e200, np.inf, np.nan])
def test_samples_that_cannot_be_squared(value):
    with pytest.raises(OptionError, match='samples'):
        run_lloyd(np.array([[0.0], [1.0], [value]]), [[0.0], [1.0]])


# ---- the referee -----------------------------------------------------------

class Referee:
    """Runs the iterations that it is asked for; remembers what those were."""

    def __init__(self, samples):
        self.tree, self.asked = SampleTree(samples), []

    def __call__(self, centres, n_iter):
        result = run_lloyd(self.tree, centres, max_iter=n_iter)
        self.asked.append((centres.copy(), n_iter))
        return result.centres, result.n_iter


def test_referee_decides_ties_from_the_last_undoubted_centres():
    samples = np.array([[0], [1], [2], [10], [11], [12]])
    start = np.array([[0.0], [2.0], [11.0]])
    referee = Referee(samples)
    result = run_lloyd(samples, start, tol=0, referee=referee)
    assert result.centres.tolist() == [[0.5], [2.0], [11.0]] and result.n_iter == 2
    # Of the first, 1 is a tie; the second is the last.
    assert [(centres.tolist(), n_iter) for centres, n_iter in referee.asked] == [
        (start.tolist(), 1), ([[0.5], [2.0], [11.0]], 1)]


def test_referee_is_asked_again_from_there_while_doubts_last():
    # Each time both clusters of twins stay a tie for the sample between them.
    samples = np.array([[0], [2], [4], [30], [50], [51]])
    start = np.array([[0.0], [4.0], [40.0]])
    referee = Referee(samples)
    expected = run_lloyd(samples, start, tol=0)
    result = run_lloyd(samples, start, tol=0, referee=referee)
    assert np.array_equal(result.centres, expected.centres)
    assert result.n_iter == expected.n_iter
    assert referee.asked[0][0].tolist() == start.tolist()


def test_referee_gets_the_rest_of_a_run_that_is_all_doubt(monkeypatch):
    samples = make_samples('clumps')
    monkeypatch.setattr(lloyd, '_DOUBT', 1.0)
    monkeypatch.setattr(lloyd, '_MAX_REFERRED', 3)
    referee = Referee(samples)
    result = run_lloyd(samples, samples[:10], referee=referee)
    expected = run_lloyd(samples, samples[:10])
    assert [n_iter for _, n_iter in referee.asked] == [1, 2, 3, 300]
    assert np.array_equal(result.centres, expected.centres)
    assert result.n_iter == expected.n_iter > 4


def test_referee_that_converges_early_ends_the_run():
    samples = make_samples('clumps')

    def referee(centres, n_iter):
        return centres, 0
    result = run_lloyd(samples, np.full((2, 3), 5e4), referee=referee)
    assert result.n_iter == 0 and (result.centres == 5e4).all()


@pytest.mark.parametrize('share', [1e-3, 1e-2])
def test_doubts_are_counted(share, small_parts):
    samples = make_samples('clumps').astype(float)
    centres = samples[:12]
    tree = SampleTree(samples)
    distances = np.sort(assign_all(samples, centres)[1], axis=1)
    extent = ((samples.max(axis=0) - samples.min(axis=0)) ** 2).sum()
    expected = np.count_nonzero(distances[:, 1] - distances[:, 0] <= share * extent)
    assert tree.assign(centres, share)[2] == expected > 0


# ---- better starts ---------------------------------------------------------

def test_swaps_free_a_centre_that_is_needed_elsewhere():
    samples = np.repeat(np.array([[0.0], [10], [1000], [1010], [2000]]), 20, axis=0)
    # Lloyd's iterations leave both 1000 and 1010 to one, and 0 and 10 to two.
    stuck = run_lloyd(samples, [[0], [10], [1005], [1999], [5000]])
    tree, rng = SampleTree(samples), np.random.default_rng(0)
    centres = swap_centres(tree, stuck.centres[[0, 1, 2, 3, 3]], 200, rng)
    assert sorted(centres[:, 0].tolist()) == [0, 10, 1000, 1010, 2000]


def test_swaps_never_make_it_worse_and_are_seeded(small_parts):
    samples = make_samples('tail')
    tree, start = SampleTree(samples), samples[:15]
    runs = [swap_centres(tree, start, n_swaps, np.random.default_rng(3), num_threads)
            for n_swaps, num_threads in ((0, 1), (30, 1), (30, 3))]
    inertias = [tree.label(centres)[2] for centres in runs]
    assert inertias[1] < inertias[0] < tree.label(start)[2]
    assert np.array_equal(runs[1], runs[2])


@pytest.mark.parametrize('max_compared', [3, 1024])
def test_spare_centres_cost_least_to_merge(max_compared, monkeypatch):
    monkeypatch.setattr(lloyd, '_MAX_COMPARED', max_compared)
    centres = np.array([[0.0], [5], [100], [101], [900]])
    # 100 and 101 are near, but have many samples; 5 has few, so that it costs little to
    # merge it with 0, whichever of them goes.
    spare = lloyd._find_spare(centres, np.array([1000, 2, 1000, 1000, 7]))
    assert spare.tolist() == ([0, 1] if max_compared > 3 else [0, 1, 2, 3, 4])
    spare = lloyd._find_spare(centres, np.array([0, 500, 1000, 1000, 0]))
    assert set(spare.tolist()) == ({0, 4} if max_compared > 3 else {0, 1, 2, 3, 4})


# ---- the tree --------------------------------------------------------------

def build(samples, leaf_size):
    """Return what the kernel makes of samples, the nodes cut to their number."""
    rows, order = samples.astype(float), np.arange(len(samples))
    max_nodes = 2 * lloyd_kernels._SHARE * len(rows) // leaf_size + 1
    nodes = [np.full(max_nodes, -7) for _ in range(3)]
    boxes, sums = np.empty((max_nodes, 2, rows.shape[1])), np.empty((max_nodes, rows.shape[1]))
    n_nodes = lloyd_kernels._kernel_build(rows, order, leaf_size, *nodes, boxes, sums)
    assert n_nodes <= max_nodes
    return (rows, order, *(array[:n_nodes] for array in (*nodes, boxes, sums)))


@pytest.mark.parametrize('leaf_size', [8, 64])
@pytest.mark.parametrize('kind', KINDS)
def test_tree_holds_every_sample_once(kind, leaf_size):
    samples = make_samples(kind)
    rows, order, starts, stops, rights, boxes, sums = build(samples, leaf_size)
    assert np.array_equal(rows, samples[order].astype(float))
    assert np.array_equal(np.sort(order), np.arange(len(samples)))
    leaves = np.flatnonzero(rights < 0)
    assert starts[leaves[0]] == 0 and stops[leaves[-1]] == len(samples)
    assert np.array_equal(starts[leaves[1:]], stops[leaves[:-1]])
    for node, (start, stop, right) in enumerate(zip(starts, stops, rights)):
        part = rows[start:stop]
        assert np.array_equal(boxes[node], [part.min(axis=0), part.max(axis=0)])
        np.testing.assert_allclose(sums[node], part.sum(axis=0), rtol=1e-12)
        if right >= 0:
            assert starts[node + 1] == start and stops[right] == stop
            assert stops[node + 1] == starts[right]
            least = (stop - start) // lloyd_kernels._SHARE
            assert min(stops[node + 1] - start, stop - starts[right]) >= least > 0
        else:
            assert stop - start <= leaf_size or (part == part[0]).all()


@pytest.mark.parametrize('kind', KINDS)
def test_parts_hold_every_sample_once(kind, monkeypatch):
    monkeypatch.setattr(lloyd, '_PART_SIZE', 100)
    samples = make_samples(kind)
    _, _, starts, stops, rights, _, _ = build(samples, 8)
    parts = sorted(lloyd._find_parts(starts, stops, rights), key=starts.__getitem__)
    assert starts[parts[0]] == 0 and stops[parts[-1]] == len(samples) and len(parts) > 10
    assert np.array_equal(starts[parts[1:]], stops[parts[:-1]])
    assert all(rights[part] < 0 or stops[part] - starts[part] <= 100 for part in parts)


def test_samples_come_back_in_their_order(small_parts):
    samples = make_samples('tail')
    assert np.array_equal(SampleTree(samples).get_samples(), samples)


@pytest.mark.parametrize('rank', [0, 1, 40, 98])
def test_split_at_rank(rank):
    rows = np.random.default_rng(rank).integers(0, 30, (99, 2)).astype(float)
    before, order = rows.copy(), np.arange(99)
    lloyd_kernels._split_at_rank(rows, order, 1, 0, 99, rank)
    assert rows[:rank, 1].max(initial=0) <= rows[rank:, 1].min()
    assert np.array_equal(rows, before[order])


@pytest.mark.parametrize('value', [-1.0, 0.0, 14.5, 29.0, 99.0])
def test_split_at_value(value):
    rows = np.random.default_rng(5).integers(0, 30, (99, 2)).astype(float)
    before, order = rows.copy(), np.arange(99)
    place = lloyd_kernels._split_at_value(rows, order, 0, 10, 90, value)
    assert (rows[10:place, 0] <= value).all() and (rows[place:90, 0] > value).all()
    assert np.array_equal(rows, before[order]) and np.array_equal(rows[:10], before[:10])
