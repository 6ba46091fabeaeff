"""
File names for assets, from names that a manifest dictates.

A manifest is data from elsewhere: its image names may be missing, repeated,
very long, or try to leave the folder. The names made here are always one safe
path component. Ordinary names pass unchanged.
"""
from __future__ import annotations

import hashlib
import re
from collections import Counter

# One path component that every common file system takes, however it is quoted.
_SAFE = re.compile(r'[A-Za-z0-9_][A-Za-z0-9._-]{0,119}')
_MAX_SLUG = 80


def _digest(text, length):
    return hashlib.sha256(text.encode('utf8', 'surrogatepass')).hexdigest()[:length]


def is_safe(name):
    """
    Return True if ``name`` can be a file name as it is.

    Example:
        >>> is_safe('img_00001'), is_safe('a/b'), is_safe('..'), is_safe('x\\0')
        (True, False, False, False)
    """
    return bool(_SAFE.fullmatch(name)) and '..' not in name and not name.endswith('.')


def compute_stem(name):
    """
    Return a safe file stem for an image name.

    A name that is not safe keeps its readable part and gets a hash of the
    whole, so that different names stay different.

    Args:
        name (str): image name.

    Example:
        >>> compute_stem('frame_1')
        'frame_1'
        >>> stem = compute_stem('../../etc/passwd')
        >>> assert stem.startswith('etc-passwd_') and is_safe(stem)
        >>> assert compute_stem('a/b') != compute_stem('a-b')
    """
    if is_safe(name):
        return name
    slug = re.sub(r'[^A-Za-z0-9_-]+', '-', name).strip('-')[:_MAX_SLUG]
    return f'{slug or "image"}_{_digest(name, 12)}'


def compute_suffix(chan_code):
    """
    Return the part of a file name that stands for the channels.

    The channel code itself when it is one safe word, else 16 hex digits of
    its hash (``ubelt.hash_data``, as the reference does).

    Example:
        >>> compute_suffix('water'), compute_suffix('a|b|c')
        ('water', '8af6a4177fe312b2')
    """
    if is_safe(chan_code) and len(chan_code) <= 60:
        return chan_code
    import ubelt as ub
    return ub.hash_data(chan_code)[0:16]


def compute_stems(images):
    """
    Return a distinct stem per image, the same for the same dataset.

    Args:
        images (dict[int, dict]): kwcoco images by id.

    Returns:
        dict[int, str]: stems that stay distinct where case does not count.

    Example:
        >>> compute_stems({1: {'name': 'a'}, 2: {'name': 'b'}, 3: {'name': 'B'}, 4: {}})
        {1: 'a', 2: 'b_id2', 3: 'B_id3', 4: '4'}
    """
    stems = {}
    for image_id, img in images.items():
        name = img.get('name')
        stems[image_id] = compute_stem(str(image_id) if name is None else str(name))
    counts = Counter(stem.casefold() for stem in stems.values())
    shared = {image_id for image_id, stem in stems.items() if counts[stem.casefold()] > 1}
    taken = {stem.casefold() for image_id, stem in stems.items() if image_id not in shared}
    for image_id in sorted(shared):
        candidate = f'{stems[image_id]}_id{image_id}'
        while candidate.casefold() in taken:
            # Only if another image is called just like this; the hash ends the tie.
            candidate = f'{candidate}_{_digest(candidate, 8)}'
        stems[image_id] = candidate
        taken.add(candidate.casefold())
    return stems
