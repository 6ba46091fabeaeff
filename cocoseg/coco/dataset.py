"""
The input and the result of whatever runs over the images of a dataset.
"""
from __future__ import annotations

import os

from cocoseg.coco.manifest import check_dataset
from cocoseg.errors import ManifestError, OptionError


def load_dataset(src):
    """
    Return a dataset, loaded if it is a path.

    Args:
        src (kwcoco.CocoDataset | PathLike): as it is, or a manifest.

    Raises:
        ManifestError: if there is no such file.
    """
    import kwcoco
    if not isinstance(src, (str, os.PathLike)):
        return src
    if not os.path.isfile(src):
        raise ManifestError(f'src={os.fspath(src)!r} is no file; give a kwcoco manifest')
    return kwcoco.CocoDataset(os.fspath(src))


def open_result(src, dst):
    """
    Return a copy of a dataset that lives at ``dst``.

    Args:
        src (kwcoco.CocoDataset | PathLike): the input; not modified.
        dst (PathLike): manifest to be written.

    Raises:
        ManifestError: if ``src`` is no manifest, or not one on JSON.
        OptionError: if ``dst`` is the input.

    Example:
        >>> import kwcoco, ubelt as ub
        >>> from cocoseg.coco.dataset import open_result
        >>> src = kwcoco.CocoDataset.demo('shapes1', image_size=(16, 16))
        >>> dst = ub.Path.appdir('cocoseg/doctest/dataset').ensuredir() / 'new.kwcoco.json'
        >>> assert open_result(src, dst).fpath == str(dst)
    """
    src = load_dataset(src)
    check_dataset(src)
    dst = os.path.abspath(os.fspath(dst))
    if os.path.realpath(dst) == os.path.realpath(os.fspath(src.fpath)):
        raise OptionError(f'dst={dst} is the input manifest; write the result beside it, '
                          'under another name')
    result = src.copy()
    if os.path.dirname(dst) != os.path.abspath(os.fspath(src.bundle_dpath)):
        result.reroot(absolute=True)
    result.fpath = dst
    return result


def list_image_ids(dset, image_ids=None):
    """
    Return the ids of the images to work on.

    Args:
        dset (kwcoco.CocoDataset): that has them.
        image_ids (Iterable[int] | None): None is all.

    Raises:
        OptionError: if there is no image, or not this one.

    Example:
        >>> import kwcoco
        >>> from cocoseg.coco.dataset import list_image_ids
        >>> list_image_ids(kwcoco.CocoDataset.demo('shapes2', image_size=(16, 16)))
        [1, 2]
    """
    image_ids = list(dset.images() if image_ids is None else image_ids)
    unknown = [image_id for image_id in image_ids if image_id not in dset.index.imgs]
    if unknown or not image_ids:
        raise OptionError(f'image_ids: the dataset has no images {unknown[:5]}' if unknown else
                          'image_ids: there are no images')
    return image_ids
