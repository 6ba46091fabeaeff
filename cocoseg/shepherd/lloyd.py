"""
Lloyd's iterations of the k-means, exact and fast for few bands.

Samples are sorted into a tree once (:class:`SampleTree`), and each iteration
walks it, as in the filtering algorithm of Kanungo et al.: most samples are
assigned by the thousand. The result is that of a comparison of every sample
with every centre. Knows nothing of images, configs and scikit-learn; those are
in :mod:`cocoseg.shepherd.clusters`.

References:
    .. [Kanungo2002] Kanungo et al., An efficient k-means clustering algorithm:
       analysis and implementation, IEEE PAMI 24(7), 2002.
    .. [PellegMoore1999] Pelleg, Moore, Accelerating exact k-means algorithms
       with geometric reasoning, KDD 1999.
"""
from __future__ import annotations

import heapq
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from cocoseg.errors import OptionError

# Share of the mean variance of the bands below which a shift of the centres
# ends the run; and the most iterations: those of scikit-learn.
TOLERANCE = 1e-4
MAX_ITER = 300
# Samples of a leaf. Measured: 32 to 96 differ little.
_LEAF_SIZE = 64
# A part is what a thread does at a time. Parts depend on the samples alone, so
# that sums of floats do not depend on the number of threads.
_PART_SIZE = 32768
# Rounding errors of a difference of squared distances, per band, as a share of
# the square of the diagonal of the box around all samples and centres. There
# are a dozen roundings of 1e-16.
_ROUNDING = 4e-15
# What a referee is asked about: differences of squared distances below this
# share of the same square. The rounding errors of sums of a million samples
# come to 1e-14 of it.
_DOUBT = 1e-13
# So many iterations are referred; at the next, the rest of the run is.
_MAX_REFERRED = 20
# So many centres are compared with each other, to find those that can be spared.
_MAX_COMPARED = 1024


@dataclass(frozen=True)
class LloydResult:
    """
    What a run of Lloyd's iterations came to.

    Attributes:
        centres (ndarray): float64 (K, B).
        labels (ndarray): int32 (N,), index of the centre nearest to each
            sample, the lowest where several are.
        counts (ndarray): int64 (K,), samples of each.
        inertia (float): sum of the squared distances of samples to centres.
        n_iter (int): iterations.
    """

    centres: np.ndarray
    labels: np.ndarray
    counts: np.ndarray
    inertia: float
    n_iter: int


class SampleTree:
    """
    Samples, sorted for fast assignment to centres.

    Holds two float64 copies of the samples' size. Never changes once made, so
    that threads may share it.

    Args:
        samples (ndarray): numbers (N, B), at least one, finite.

    Attributes:
        n_samples, n_bands (int): N and B.
        tolerance (float): TOLERANCE of the mean variance of the bands.

    Example:
        >>> from cocoseg.shepherd.lloyd import SampleTree
        >>> import numpy as np
        >>> tree = SampleTree(np.array([[1], [2], [9]], 'uint8'))
        >>> sums, counts, _ = tree.assign(np.array([[0.0], [8.0]]))
        >>> sums[:, 0].tolist(), counts.tolist()
        ([3.0, 9.0], [2, 1])
    """

    def __init__(self, samples):
        from .lloyd_kernels import _SHARE, _kernel_build
        rows = np.array(samples, np.float64, order='C')
        self.n_samples, self.n_bands = rows.shape
        with np.errstate(over='ignore', invalid='ignore'):
            self.tolerance = TOLERANCE * float(np.var(rows, axis=0).mean())
        # Tree position -> index of the sample.
        self._order = np.arange(self.n_samples)
        max_nodes = 2 * _SHARE * self.n_samples // _LEAF_SIZE + 1
        spans = [np.empty(max_nodes, np.int64) for _ in range(3)]
        boxes = np.empty((max_nodes, 2, self.n_bands))
        node_sums = np.empty((max_nodes, self.n_bands))
        _kernel_build(rows, self._order, _LEAF_SIZE, *spans, boxes, node_sums)
        columns = np.ascontiguousarray(rows.T)
        self._arrays = (columns, *spans, boxes, node_sums)
        self._low, self._high = boxes[0]
        self._roots = _find_parts(*spans)

    def get_samples(self):
        """Return the samples in their order, float64 (N, B), a copy."""
        samples = np.empty((self.n_samples, self.n_bands))
        samples[self._order] = self._arrays[0].T
        return samples

    def measure_extent(self, centres):
        """Return the square of the diagonal of the box around samples and centres."""
        low = np.minimum(self._low, centres.min(axis=0))
        high = np.maximum(self._high, centres.max(axis=0))
        # What is too large to square is found by the caller.
        with np.errstate(over='ignore', invalid='ignore'):
            return float(((high - low) ** 2).sum())

    def assign(self, centres, doubt=0.0, share=map):
        """
        Assign every sample to its nearest centre, and sum up.

        Args:
            centres (ndarray): float64 (K, B).
            doubt (float): counts the samples whose two nearest centres differ
                in squared distance by this at most, as a share of the square of
                the extent of all.
            share (Callable): maps a function on parts; that of a thread pool.

        Returns:
            tuple[ndarray, ndarray, int]: sums (K, B) float64, counts (K,)
            int64, and the number of samples in doubt. The sums of integers are
            exact as long as they are below 2**53.
        """
        sums, counts, n_ties, _ = self._walk(centres, doubt, share, np.empty(0, np.int32))
        return sums, counts, n_ties

    def label(self, centres, share=map):
        """
        Assign every sample to its nearest centre, and tell to which.

        Args:
            centres, share: as for :meth:`assign`.

        Returns:
            tuple[ndarray, ndarray, float]: labels (N,) int32 in the order of
            the samples, counts (K,) int64, and the inertia.
        """
        placed = np.empty(self.n_samples, np.int32)
        _, counts, _, inertia = self._walk(centres, 0.0, share, placed)
        labels = np.empty_like(placed)
        labels[self._order] = placed
        return labels, counts, inertia

    def _walk(self, centres, doubt, share, labels):
        from .lloyd_kernels import _kernel_assign
        extent = self.measure_extent(centres)
        margin = doubt * extent
        guard = margin + _ROUNDING * self.n_bands * extent
        sums = np.zeros((len(self._roots), *centres.shape))
        counts = np.zeros((len(self._roots), len(centres)), np.int64)

        def walk(part):
            return _kernel_assign(*self._arrays, self._roots[part], centres, guard, margin,
                                  sums[part], counts[part], labels)

        n_ties, inertias = zip(*share(walk, range(len(self._roots))))
        return sums.sum(axis=0), counts.sum(axis=0), sum(n_ties), sum(inertias)


def _find_parts(starts, stops, rights):
    """Return nodes that hold all samples, each once, of at most _PART_SIZE unless all alike."""
    # Largest first; a left child is the next node.
    pending, parts = [(-int(stops[0] - starts[0]), 0)], []
    while pending:
        size, node = heapq.heappop(pending)
        if -size <= _PART_SIZE or rights[node] < 0:
            parts.append(node)
            continue
        for child in (node + 1, int(rights[node])):
            heapq.heappush(pending, (-int(stops[child] - starts[child]), child))
    return parts


@contextmanager
def sharing(tree, num_threads):
    """Yield what maps a function on the parts of a tree, in threads if that is worth it."""
    n_threads = min(num_threads, len(tree._roots))
    if n_threads < 2:
        yield map
        return
    with ThreadPoolExecutor(n_threads, 'cocoseg-fit') as pool:
        yield pool.map


def run_lloyd(samples, centres, *, max_iter=MAX_ITER, tol=None, num_threads=1, referee=None):
    """
    Move centres to the means of their samples until they stay.

    Each iteration assigns every sample to its nearest centre, the lowest index
    where several are, and moves each centre to the mean of its samples. A
    centre that has none moves to a sample that is farthest from its own centre,
    and takes it away from there. The run ends when the sum of the squared
    shifts of the centres is no more than ``tol``, when only empty centres moved
    and no label changed, or after ``max_iter``.

    Args:
        samples (ndarray | SampleTree): numbers (N, B), finite; never modified.
        centres (ndarray): numbers (K, B), where to begin; never modified.
        max_iter (int): at least 1.
        tol (float | None): in squared units of the samples; None is TOLERANCE
            of the mean variance of the bands.
        num_threads (int): at most so many. The result does not depend on it.
        referee (Callable | None): decides the iterations in which rounding
            decides where a sample belongs, and those with empty clusters.
            ``referee(centres, n_iter)`` runs so many of Lloyd's iterations from
            centres, less if they converge, and returns the new centres and how
            many it ran. The last iteration is always its.

    Returns:
        LloydResult: its labels are those for its centres.

    Raises:
        OptionError: if the shapes disagree, or numbers are too large to square.

    Example:
        >>> from cocoseg.shepherd.lloyd import run_lloyd
        >>> import numpy as np
        >>> samples = np.array([[0, 0], [2, 0], [9, 8], [9, 10]], 'uint8')
        >>> result = run_lloyd(samples, samples[:2])
        >>> result.centres.tolist(), result.labels.tolist(), result.inertia
        ([[1.0, 0.0], [9.0, 9.0]], [0, 0, 1, 1], 4.0)
    """
    tree = samples if isinstance(samples, SampleTree) else SampleTree(samples)
    centres = np.array(centres, np.float64, order='C')
    if centres.ndim != 2 or centres.shape[1] != tree.n_bands or not len(centres):
        raise OptionError(f'centres of shape {centres.shape} do not suit samples of shape '
                          f'{(tree.n_samples, tree.n_bands)}; both need the same bands')
    if not np.isfinite(tree.tolerance + tree.measure_extent(centres)):
        raise OptionError('the samples or centres are not finite, or too large to square; '
                          'scale them down')
    tol = tree.tolerance if tol is None else tol
    with sharing(tree, num_threads) as share:
        if referee is None:
            centres, n_iter = _iterate(tree, centres, max_iter, tol, share)
        else:
            centres, n_iter = _iterate_refereed(tree, centres, max_iter, tol, share, referee)
        labels, counts, inertia = tree.label(centres, share)
    return LloydResult(centres, labels, counts, inertia, n_iter)


def swap_centres(tree, centres, n_swaps, rng, num_threads=1):
    """
    Improve centres by trying to move single ones elsewhere.

    Lloyd's iterations never move a centre from where there are too many to
    where one lacks. Each trial moves one of the centres that are least needed
    to a sample, drawn by its squared distance to the nearest centre, runs two
    iterations, and is kept if the inertia is less than that of the best.

    Args:
        tree (SampleTree): of the samples.
        centres (ndarray): float64 (K, B); never modified.
        n_swaps (int): trials.
        rng (numpy.random.Generator): draws them.
        num_threads (int): at most so many. The result does not depend on it.

    Returns:
        ndarray: float64 (K, B).

    References:
        .. [Franti2018] Fränti, Efficiency of random swap clustering, Journal of
           Big Data 5:13, 2018.

    Example:
        >>> from cocoseg.shepherd.lloyd import SampleTree, swap_centres
        >>> import numpy as np
        >>> tree = SampleTree(np.array([[0.0], [1], [50], [51], [90], [91]]))
        >>> centres = np.array([[0.0], [1], [70]])
        >>> sorted(swap_centres(tree, centres, 20, np.random.default_rng(0))[:, 0].tolist())
        [0.5, 50.5, 90.5]
    """
    samples = tree.get_samples()
    middle = samples.mean(axis=0)
    best, best_scatter, places = centres, -np.inf, None
    with sharing(tree, num_threads) as share:
        for index in range(n_swaps + 1):
            trial = best.copy()
            if index:
                if places is None:
                    labels, counts, _ = tree.label(best, share)
                    places = np.cumsum(((samples - best[labels]) ** 2).sum(axis=1))
                    spare = _find_spare(best, counts)
                place = np.searchsorted(places, rng.random() * places[-1], side='right')
                trial[rng.choice(spare)] = samples[min(place, len(samples) - 1)]
            for _ in range(2):
                sums, counts, _ = tree.assign(trial, share=share)
                trial = _average(sums, counts, trial)
            # The inertia is the scatter of the samples less that of the means.
            scatter = float((counts * ((trial - middle) ** 2).sum(axis=1)).sum())
            if scatter > best_scatter:
                best, best_scatter, places = trial, scatter, None
    return best


def _find_spare(centres, counts):
    """Return the clusters, a third of them, that cost least to merge with another."""
    if len(centres) > _MAX_COMPARED:
        return np.arange(len(centres))
    distances = ((centres[:, None] - centres) ** 2).sum(axis=2)
    # With itself, and with a cluster without samples, is with none.
    np.fill_diagonal(distances, np.inf)
    distances[:, counts == 0] = np.inf
    # By what the inertia grows when two clusters become one.
    shares = counts[:, None] * counts / np.maximum(counts[:, None] + counts, 1)
    costs = (distances * np.maximum(shares, 1e-300)).min(axis=1)
    return np.argsort(costs, kind='stable')[:-(-len(centres) // 3)]


def _iterate(tree, centres, max_iter, tol, share):
    """Return the centres at the end of the run, and the iterations that it took."""
    labels, n_iter = None, 0
    while n_iter < max_iter:
        n_iter += 1
        sums, counts, _ = tree.assign(centres, share=share)
        old_labels, labels = labels, None
        if not counts.all():
            labels, _, _ = tree.label(centres, share)
            _relocate(tree, centres, labels, sums, counts)
        moved = _average(sums, counts, centres)
        shift = ((moved - centres) ** 2).sum()
        centres = moved
        # Clusters were empty then and are now if labels are the same.
        same = labels is not None and old_labels is not None and (labels == old_labels).all()
        if shift <= tol or same:
            break
    return centres, n_iter


def _average(sums, counts, centres):
    """Return the means (K, B); a centre without samples stays where it is."""
    return np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)


def _relocate(tree, centres, labels, sums, counts):
    """Give a sample that is far from its centre to each empty cluster, in place."""
    samples = tree.get_samples()
    distances = ((samples - centres[labels]) ** 2).sum(axis=1)
    if not distances.any():
        # There are more centres than different samples.
        return
    (empty,) = np.nonzero(counts == 0)
    # The order of equal samples is that of scikit-learn.
    farthest = np.argpartition(distances, -len(empty))[:-len(empty) - 1:-1]
    for cluster, sample in zip(empty, farthest):
        owner = labels[sample]
        sums[owner] -= samples[sample]
        counts[owner] -= 1
        sums[cluster], counts[cluster] = samples[sample], 1


def _iterate_refereed(tree, centres, max_iter, tol, share, referee):
    """
    As :func:`_iterate`, with the arithmetic of the referee where it decides.

    Centres depend on labels alone. So after an iteration without a doubt, the
    referee, which begins from the centres before it, gets to the very centres
    that it would have got to on its own, bit by bit, and sees the same ties.
    """
    # Where the last iteration without a doubt began, and the iterations before.
    anchor, n_anchor = centres, 0
    n_iter = n_referred = 0
    while n_iter < max_iter:
        sums, counts, n_ties = tree.assign(centres, _DOUBT, share)
        is_referred = n_ties > 0 or not counts.all()
        if is_referred:
            n_referred += 1
            is_last = n_referred > _MAX_REFERRED
            n_asked = (max_iter if is_last else n_iter + 1) - n_anchor
            moved, n_done = referee(anchor, n_asked)
            n_iter = n_anchor + n_done
            if is_last or n_done < n_asked:
                return moved, n_iter
        else:
            anchor, n_anchor = centres, n_iter
            moved = _average(sums, counts, centres)
            n_iter += 1
        shift = ((moved - centres) ** 2).sum()
        centres = moved
        if shift <= tol:
            break
    if not is_referred:
        centres, _ = referee(anchor, n_iter - n_anchor)
    return centres, n_iter
