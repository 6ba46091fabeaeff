"""
Predictors from outside: named functions, and scikit-learn estimators in files.

A predictor is any callable (h, w, B) -> (h, w, K); see
:class:`cocoseg.protocols.Predictor`.
"""
from __future__ import annotations

import hashlib
import importlib
import logging
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.protocols import Predictor

logger = logging.getLogger(__name__)


def load_predictor(spec: str, trusted: Iterable[str] = ()) -> Predictor:
    """
    Return the predictor that a string names.

    Args:
        spec (str): ``package.module:name`` of a function, a predictor object,
            or a class that is made without arguments; or the path of a
            scikit-learn estimator saved with ``skops.io.dump`` (``*.skops``).
            Pickles are refused: loading one runs whatever it contains.
        trusted (Iterable[str]): types in a skops file that you trust besides
            those that skops does, such as ``sklearn.tree._tree.Tree``.

    Returns:
        Predictor: a callable.

    Raises:
        OptionError: if there is no such thing, it is not callable, or the
            file holds types that skops does not trust.

    Example:
        >>> predictor = load_predictor('numpy:sqrt')
        >>> float(predictor(np.full((1, 1, 1), 4.0)).item())
        2.0
    """
    if spec.endswith('.skops'):
        return EstimatorPredictor(_load_skops(spec, set(trusted)), config_hash=_hash_file(spec))
    module_name, _, name = spec.partition(':')
    if not name or not module_name or module_name.startswith('.'):
        raise OptionError(f'predictor={spec!r} must be "package.module:function" or a path '
                          'ending in .skops')
    try:
        predictor = importlib.import_module(module_name)
        for part in name.split('.'):
            predictor = getattr(predictor, part)
    except (ImportError, AttributeError) as ex:
        raise OptionError(f'predictor={spec!r} cannot be imported: {ex}; is its folder on '
                          'PYTHONPATH?') from ex
    if isinstance(predictor, type):
        try:
            predictor = predictor()
        except TypeError as ex:
            raise OptionError(f'predictor={spec!r} cannot be made without arguments ({ex}); name '
                              'a ready object of its module instead') from ex
    if not callable(predictor):
        raise OptionError(f'predictor={spec!r} is {predictor!r}, which cannot be called')
    return predictor


def _hash_file(fpath):
    """Return the SHA-256 of a file as hex digits."""
    digest = hashlib.sha256()
    with open(fpath, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _load_skops(fpath, trusted):
    import skops.io
    if not os.path.isfile(fpath):
        raise OptionError(f'{fpath!r} is no file; save an estimator with skops.io.dump')
    try:
        untrusted = skops.io.get_untrusted_types(file=fpath)
    except Exception as ex:
        # It parses foreign bytes, which can fail in any way.
        raise OptionError(f'{fpath} is not a skops file ({ex}); save an estimator with '
                          'skops.io.dump') from ex
    refused = sorted(set(untrusted) - trusted)
    if refused:
        raise OptionError(f'{fpath} holds types that are not safe to load: {refused}; if you know '
                          'where the file comes from, name them as trusted (--trusted)')
    return skops.io.load(fpath, trusted=sorted(trusted & set(untrusted)))


class EstimatorPredictor:
    """
    A scikit-learn estimator that predicts each pixel from its bands.

    Args:
        estimator: fitted, with ``predict_proba`` (one channel per class) or a
            regressor's ``predict`` (one channel per output).
        config_hash (str | None): what tells it from others, such as the hash
            of its file. None: that of its parameters and what it has learned.

    Attributes:
        channels (str | None): the classes, where they make channel names.

    Raises:
        OptionError: for anything else, such as a classifier without
            probabilities.

    Example:
        >>> class Half:
        ...     classes_ = ['dry', 'wet']
        ...     def predict_proba(self, X):
        ...         return np.stack([1 - X[:, 0], X[:, 0]], axis=1)
        >>> predictor = EstimatorPredictor(Half())
        >>> image = np.array([[[0.25], [np.nan]]], dtype='f4')
        >>> predictor.channels, predictor(image).tolist()
        ('dry|wet', [[[0.75, 0.25], [nan, nan]]])
    """

    def __init__(self, estimator: Any, config_hash: str | None = None) -> None:
        self.estimator = estimator
        self._config_hash = config_hash
        self.channels = None
        classes = getattr(estimator, 'classes_', None)
        if hasattr(estimator, 'predict_proba'):
            self._predict = estimator.predict_proba
            names = [str(name) for name in classes] if classes is not None else []
            if names and all(name.isidentifier() for name in names):
                self.channels = '|'.join(names)
        elif hasattr(estimator, 'predict') and classes is None:
            self._predict = estimator.predict
        else:
            raise OptionError(f'{estimator!r} has no predict_proba; use an estimator that gives '
                              'probabilities, or a regressor')

    @property
    def config_hash(self) -> str | None:
        """
        Hash that is the same where the predictions are, or None.

        Only estimators that tell their parameters, as those of scikit-learn
        do, are hashed.
        """
        if self._config_hash is None and hasattr(self.estimator, 'get_params'):
            import joblib
            try:
                self._config_hash = joblib.hash(self.estimator)
            except Exception as ex:
                # It pickles, which can fail in any way.
                logger.info('%r cannot be told from others: %s', self.estimator, ex)
        return self._config_hash

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Predict one window; see :class:`cocoseg.protocols.Predictor`."""
        return self.predict_batch(image[None])[0]

    def predict_batch(self, images: np.ndarray) -> np.ndarray:
        """Predict several windows, (N, h, w, B) -> (N, h, w, K), in one call."""
        pixels = images.reshape(-1, images.shape[-1])
        valid = np.isfinite(pixels).all(axis=1)
        if not valid.any():
            # The number of outputs is only known to the estimator.
            found = self._predict(np.zeros((1, pixels.shape[1]), pixels.dtype))
            n_outputs = 1 if found.ndim == 1 else found.shape[1]
            return np.full((*images.shape[:-1], n_outputs), np.nan, np.float32)
        found = self._predict(pixels[valid])
        found = found[:, None] if found.ndim == 1 else found
        out = np.full((len(pixels), found.shape[1]), np.nan, np.float32)
        out[valid] = found
        return out.reshape(*images.shape[:-1], found.shape[1])
