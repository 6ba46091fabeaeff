"""
The error tree.

Every error that cocoseg raises for wrong input or a failed write derives from
:class:`CocosegError` and from the builtin that a caller would expect, so both
``except CocosegError`` and ``except ValueError`` work. A message says what was
wrong, with the values, and what to do about it. This module imports nothing.
"""


class CocosegError(Exception):
    """Base of every error raised by cocoseg on purpose."""

    # KeyError quotes its message; ours are sentences for people.
    __str__ = Exception.__str__


class OptionError(CocosegError, ValueError):
    """An option has a value that is unknown, or that contradicts another."""


class WindowShapeError(CocosegError, ValueError):
    """Data or weights do not have the shape that their window needs."""


class BandCountError(CocosegError, ValueError):
    """Data has another number of bands than the channels or the canvas."""


class WeightError(CocosegError, ValueError):
    """Weights are negative, not finite, or have no meaning for the window."""


class CoverageError(CocosegError, ValueError):
    """A window is outside the image, undeclared, or was already received."""


class ImageClosedError(CocosegError, RuntimeError):
    """Data came for an image (or a stitcher) that is already being written."""


class AlreadyFinalizedError(ImageClosedError, KeyError):
    """An image was finalized a second time."""


class UnknownImageError(CocosegError, KeyError):
    """The manifest has no image with this id."""


class NothingAccumulatedError(CocosegError, KeyError):
    """An image was finalized before any data was accumulated for it."""


class ManifestError(CocosegError, ValueError):
    """The kwcoco manifest cannot hold the result (no fpath, SQL view, …)."""


class ChannelCollisionError(CocosegError, ValueError):
    """The image already has an asset with one of the predicted channels."""


class ResumeError(CocosegError, RuntimeError):
    """A previous run cannot be resumed, for example with other settings."""


class BundleBusyError(CocosegError, RuntimeError):
    """Somebody else is writing the same assets: another process, or another manager."""


class CogError(CocosegError, ValueError):
    """A file is not a complete, valid Cloud-Optimized GeoTIFF."""


class AssetWriteError(CocosegError, OSError):
    """
    An asset could not be written; it is not registered, and never half visible.

    If only its line in the journal could not be written, the whole file is
    there already; the next try writes it again.

    Attributes:
        image_id (int | None): kwcoco image whose asset failed.
        path (str | None): final path that the asset would have had.
    """

    def __init__(self, message, image_id=None, path=None):
        super().__init__(message)
        self.image_id = image_id
        self.path = path

    def __reduce__(self):
        return (type(self), (str(self), self.image_id, self.path))


class TaskError(CocosegError, RuntimeError):
    """
    A task of a parallel run failed; raised from the error of the task.

    Attributes:
        task (object): what the function was called with, such as a segment tile.
    """

    def __init__(self, message, task=None):
        super().__init__(message)
        self.task = task

    def __reduce__(self):
        return (type(self), (str(self), self.task))


class TaskTimeoutError(TaskError, TimeoutError):
    """A task of a parallel run took longer than it may."""


class BlockCheckError(CocosegError, RuntimeError):
    """The result of a block did not pass the check that the caller gave."""


class NodataError(CocosegError, ValueError):
    """The nodata value of the input is not one that can be used, or bands differ in it."""


class LabelOverflowError(CocosegError, OverflowError):
    """There are more labels than fit in 32 bits."""


class CanvasError(CocosegError, OSError):
    """The memory to accumulate an image in could not be had."""

    # With the number of the system's error in front.
    __str__ = OSError.__str__


class MissingDependencyError(CocosegError, ImportError):
    """An optional dependency is needed and absent; the message says how to get it."""
