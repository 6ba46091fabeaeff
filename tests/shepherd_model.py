"""
The rules of Shepherd segmentation in plain Python: slow, and easy to check.

Tests of different folders hold the compiled loops against it, as
``from ..shepherd_model import …``. Nothing here comes from the package.
"""
import numpy as np


def iter_around(y, x, shape, four_connected):
    """Yield the neighbors of a pixel in raster order."""
    for ny in range(max(y - 1, 0), min(y + 2, shape[0])):
        for nx in range(max(x - 1, 0), min(x + 2, shape[1])):
            if (ny, nx) != (y, x) and (not four_connected or ny == y or nx == x):
                yield ny, nx


def iter_pixels(shape):
    """Yield all (y, x) in raster order."""
    return ((y, x) for y in range(shape[0]) for x in range(shape[1]))


def model_valid(image, nodata=None, mask=None):
    """Return bool (H, W): no band is nodata, NaN or infinite, and the mask is True."""
    valid = np.ones(image.shape[:2], bool) if mask is None else mask.copy()
    for y, x in iter_pixels(valid.shape):
        for value in image[y, x].tolist():
            if value == nodata or not np.isfinite(value):
                valid[y, x] = False
    return valid


def model_clusters(image, centres, valid):
    """Return 1 + the nearest centre, the first of equally near ones; 0 where not valid."""
    out = np.zeros(valid.shape, np.uint16)
    for y, x in iter_pixels(valid.shape):
        if valid[y, x]:
            distances = ((image[y, x].astype(np.float64) - centres) ** 2).sum(axis=1)
            out[y, x] = np.argmin(distances) + 1
    return out


def model_clumps(clusters, four_connected, max_size=None):
    """
    Return (labels, highest).

    Each pixel without a label, in raster order, begins a clump, which grows
    depth first; neighbors column by column. With a ``max_size`` it stops when
    as many pixels were added, before the next pixel's neighbors are looked at.
    """
    labels = np.zeros(clusters.shape, np.uint32)
    highest = 0
    for seed in iter_pixels(clusters.shape):
        if clusters[seed] == 0 or labels[seed] != 0:
            continue
        highest += 1
        labels[seed] = highest
        waiting, n_added = [seed], 0
        while waiting and (max_size is None or n_added < max_size):
            y, x = waiting.pop()
            around = iter_around(y, x, clusters.shape, four_connected)
            for place in sorted(around, key=lambda place: (place[1], place[0])):
                if labels[place] == 0 and clusters[place] == clusters[seed]:
                    labels[place] = highest
                    waiting.append(place)
                    n_added += 1
    return labels, highest


def count_sizes(labels):
    """Return {label: pixels}, of null too."""
    ids, counts = np.unique(labels, return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist()))


def close_gaps(labels):
    """Return labels without gaps, in the same order; 0 stays."""
    ids = [label for label in np.unique(labels).tolist() if label]
    return relabel(labels, {label: rank for rank, label in enumerate(ids, 1)})


def number_by_first_pixel(labels):
    """Return labels without gaps, numbered in raster order of their first pixels."""
    new_ids = {}
    for label in labels.ravel().tolist():
        if label and label not in new_ids:
            new_ids[label] = len(new_ids) + 1
    return relabel(labels, new_ids)


def relabel(labels, new_ids):
    out = np.zeros_like(labels)
    for old, new in new_ids.items():
        out[labels == old] = new
    return out


def measure_pixels(a, b):
    """Return the squared distance of two pixels: exact for integers, else in their dtype."""
    if a.dtype.kind in 'iu':
        return sum((int(u) - int(v)) ** 2 for u, v in zip(a, b))
    total = a.dtype.type(0)
    for u, v in zip(a, b):
        total += (u - v) * (u - v)
    return total


def model_singles(image, labels, four_connected, compat):
    """
    Return labels in which single pixels were merged, without gaps.

    With ``compat`` null is a segment like others.
    """
    labels = labels.copy()
    least = 0 if compat else 1
    while True:
        sizes, chosen = count_sizes(labels), []
        for y, x in iter_pixels(labels.shape):
            if sizes[labels[y, x]] != 1 or labels[y, x] < least:
                continue
            best = target = None
            for place in iter_around(y, x, labels.shape, four_connected):
                if sizes[labels[place]] > 1 and labels[place] >= least:
                    distance = measure_pixels(image[y, x], image[place])
                    if best is None or distance < best:
                        best, target = distance, labels[place]
            if best is not None:
                chosen.append(((y, x), target))
        for place, target in chosen:
            labels[place] = target
        if not chosen:
            return close_gaps(labels)


class ModelSegment:
    """Sum of bands, and pixels in the order in which they are looked at."""

    def __init__(self, n_bands, kind):
        self.kind = kind
        self.sums = [kind(0)] * n_bands
        self.pixels = []

    def add(self, pixel, values):
        self.pixels.append(pixel)
        self.sums = [self.kind(float(total) + float(value))
                     for total, value in zip(self.sums, values)]

    def take(self, other):
        self.pixels += other.pixels
        self.sums = [self.kind(a + b) for a, b in zip(self.sums, other.sums)]

    def distance(self, other):
        """Return the squared distance of the means, each step rounded."""
        total = self.kind(0)
        for a, b in zip(self.sums, other.sums):
            difference = a / self.kind(len(self.pixels)) - b / self.kind(len(other.pixels))
            total = total + difference * difference
        return total


class ModelMerger:
    """Merges small segments; ``compat`` in float32 and without the last step."""

    def __init__(self, image, labels, min_size, limit, four_connected, compat):
        self.labels = labels.copy()
        self.min_size, self.four_connected = min_size, four_connected
        self.limit = float(limit * limit)
        kind = np.float32 if compat else np.float64
        self.segments = {}
        for y, x in iter_pixels(labels.shape):
            if labels[y, x]:
                segment = self.segments.setdefault(int(labels[y, x]),
                                                   ModelSegment(image.shape[2], kind))
                segment.add((y, x), image[y, x])
        self.n_merged = 0

    def size(self, label):
        return len(self.segments[label].pixels)

    def find_nearest(self, label, above, low_first=False):
        """Return the nearest neighbor larger than a size, if within the limit."""
        best = target = None
        segment = self.segments[label]
        for y, x in segment.pixels:
            for place in iter_around(y, x, self.labels.shape, self.four_connected):
                other = int(self.labels[place])
                if other in (0, label) or self.size(other) <= above:
                    continue
                distance = segment.distance(self.segments[other])
                if best is None or distance < best or (
                        low_first and distance == best and other < target):
                    best, target = distance, other
        return None if best is None or float(best) > self.limit else target

    def merge(self, label, target):
        for pixel in self.segments[label].pixels:
            self.labels[pixel] = target
        self.segments[target].take(self.segments.pop(label))
        self.n_merged += 1

    def merge_by_size(self):
        for size in range(1, self.min_size):
            n_before = None
            for _ in range(10):
                ids = [label for label in sorted(self.segments) if self.size(label) == size]
                if len(ids) == n_before:
                    break
                n_before = len(ids)
                chosen = [(label, self.find_nearest(label, size)) for label in ids]
                for label, target in chosen:
                    if target is not None:
                        self.merge(label, target)

    def settle(self):
        n_before = None
        while self.n_merged != n_before:
            n_before = self.n_merged
            for label in sorted(self.segments):
                if label in self.segments and self.size(label) < self.min_size:
                    target = self.find_nearest(label, 0, low_first=True)
                    if target is not None:
                        self.merge(label, target)


def model_small(image, labels, min_size, limit, four_connected, compat):
    """Return (labels, how many segments were merged)."""
    merger = ModelMerger(image, labels, min_size, limit, four_connected, compat)
    merger.merge_by_size()
    if compat:
        return close_gaps(merger.labels), merger.n_merged
    merger.settle()
    return number_by_first_pixel(merger.labels), merger.n_merged


def model_segment(image, valid, centres, limit, config, max_size=10000):
    """Return (labels, number of segments, of singles, of small ones) of a whole run."""
    compat, four_connected = config.compat is not None, config.four_connected
    clusters = model_clusters(image, centres, valid)
    labels, n_clumps = model_clumps(clusters, four_connected, max_size if compat else None)
    if compat or config.min_segment_size > 1:
        labels = model_singles(image, labels, four_connected, compat)
    n_left = int(labels.max())
    labels, n_small = model_small(image, labels, config.min_segment_size, limit, four_connected,
                                  compat)
    return labels, int(labels.max()), n_clumps - n_left, n_small


def find_small_with_near_neighbor(image, labels, min_size, limit, four_connected):
    """Return the ids of small segments whose mean is within the limit of a neighbor's."""
    sizes = count_sizes(labels)
    means = {label: image[labels == label].astype(np.float64).mean(axis=0) for label in sizes}
    found = set()
    for y, x in iter_pixels(labels.shape):
        label = int(labels[y, x])
        if not label or sizes[label] >= min_size:
            continue
        for place in iter_around(y, x, labels.shape, four_connected):
            other = int(labels[place])
            if other not in (0, label):
                distance = np.sqrt(((means[label] - means[other]) ** 2).sum())
                if distance <= limit * (1 - 1e-9):
                    found.add(label)
    return found


def find_disconnected(labels, four_connected):
    """Return the ids whose pixels are not all connected."""
    pieces, _ = model_clumps(labels, four_connected)
    pairs = {(label, piece) for label, piece in zip(labels.ravel().tolist(),
                                                    pieces.ravel().tolist()) if label}
    ids = [label for label, _ in pairs]
    return {label for label in ids if ids.count(label) > 1}


def make_noisy_image(rng, shape, n_values, dtype=np.uint8, null_share=0.1):
    """Return a small image (H, W, B) of few values in patches, and its valid pixels."""
    height, width, n_bands = shape
    patches = rng.integers(1, n_values + 1, (height // 3 + 1, width // 3 + 1, n_bands))
    image = patches.repeat(3, axis=0).repeat(3, axis=1)[:height, :width]
    noise = rng.integers(1, n_values + 1, shape)
    image = np.where(rng.random((height, width, 1)) < 0.4, noise, image).astype(dtype)
    valid = rng.random((height, width)) >= null_share
    image[~valid] = 0
    return image, valid
