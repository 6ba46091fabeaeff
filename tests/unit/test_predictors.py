"""Predictors by name, and estimators from files that cannot run code."""
import pickle
import sys

import numpy as np
import pytest

from cocoseg.coco.predictors import EstimatorPredictor, load_predictor
from cocoseg.errors import OptionError
from cocoseg.protocols import BatchPredictor

RNG = np.random.RandomState(0)


@pytest.fixture()
def module(tmp_path, monkeypatch):
    """A user's module, on the path."""
    (tmp_path / 'user_predictors.py').write_text(
        'scale = 2\n'
        'def double(image):\n    return image * scale\n'
        'class Maker:\n'
        '    def __call__(self, image):\n        return image + 1\n'
        '    class inner:\n        double = staticmethod(double)\n'
        'ready = Maker()\n'
        'class NotCallable:\n    pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    yield 'user_predictors'
    sys.modules.pop('user_predictors', None)


@pytest.mark.parametrize('name, expected', [('double', 6), ('ready', 4), ('Maker', 4),
                                            ('Maker.inner.double', 6)])
def test_a_predictor_by_name(module, name, expected):
    assert load_predictor(f'{module}:{name}')(np.full((1, 1, 1), 3)).item() == expected


@pytest.mark.parametrize('name', ['gone', 'scale', 'NotCallable', 'double.gone'])
def test_a_name_without_a_predictor(module, name):
    with pytest.raises(OptionError, match=f'{module}:{name}'):
        load_predictor(f'{module}:{name}')


@pytest.mark.parametrize('spec', ['', 'numpy', 'numpy:', 'no_such_module:f', 'model.pkl',
                                  'model.joblib', 'folder/model.pkl:f', ':f', '.relative:f'])
def test_what_names_nothing_is_refused(spec):
    with pytest.raises(OptionError, match='predictor='):
        load_predictor(spec)


def test_a_missing_file(tmp_path):
    with pytest.raises(OptionError, match='no file'):
        load_predictor(str(tmp_path / 'gone.skops'))


# --- skops ---------------------------------------------------------------

class Custom:
    """A type that skops cannot know."""


def make_classifier(names=('dry', 'wet')):
    from sklearn.linear_model import LogisticRegression
    pixels = RNG.rand(200, 3)
    return LogisticRegression().fit(pixels, np.array(names)[(pixels[:, 0] > 0.5).astype(int)])


def test_an_estimator_comes_back_from_its_file(tmp_path):
    import skops.io
    classifier = make_classifier()
    skops.io.dump(classifier, tmp_path / 'model.skops')
    predictor = load_predictor(str(tmp_path / 'model.skops'))
    image = RNG.rand(4, 5, 3).astype('f4')
    expected = classifier.predict_proba(image.reshape(-1, 3)).reshape(4, 5, 2)
    assert np.allclose(predictor(image), expected)
    assert predictor.channels == 'dry|wet'


def test_untrusted_types_are_refused_and_named(tmp_path):
    import skops.io
    classifier = make_classifier()
    classifier.extra = Custom()
    skops.io.dump(classifier, tmp_path / 'model.skops')
    with pytest.raises(OptionError, match='not safe to load.*Custom'):
        load_predictor(str(tmp_path / 'model.skops'))


def test_functions_in_a_file_are_refused(tmp_path):
    import os

    import skops.io
    from sklearn.preprocessing import FunctionTransformer
    skops.io.dump(FunctionTransformer(os.getcwd), tmp_path / 'model.skops')
    with pytest.raises(OptionError, match='not safe'):
        load_predictor(str(tmp_path / 'model.skops'))


class Bomb:
    """What a pickle can do to who loads it."""

    def __reduce__(self):
        return (divmod, (1, 0))


@pytest.mark.parametrize('name', ['model.pkl', 'model.joblib', 'model.pickle'])
def test_a_pickle_is_never_loaded(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(OptionError):
        load_predictor(str(tmp_path / name))


@pytest.mark.parametrize('content', [b'', b'PK not really', pickle.dumps(Bomb())],
                         ids=['empty', 'text', 'pickle'])
def test_a_file_that_is_no_skops_file(tmp_path, content):
    """A renamed pickle is not run either."""
    (tmp_path / 'model.skops').write_bytes(content)
    with pytest.raises(OptionError, match='model.skops'):
        load_predictor(str(tmp_path / 'model.skops'))


# --- estimators ----------------------------------------------------------

def test_it_is_a_batch_predictor():
    assert isinstance(EstimatorPredictor(make_classifier()), BatchPredictor)


def test_a_batch_equals_its_windows_one_by_one():
    predictor = EstimatorPredictor(make_classifier())
    images = RNG.rand(3, 4, 5, 3).astype('f4')
    images[1, 2, 3, 0] = np.nan
    kept = images.copy()
    images.flags.writeable = False
    batch = predictor.predict_batch(images)
    assert batch.shape == (3, 4, 5, 2) and batch.dtype == np.float32
    assert np.array_equal(batch, np.stack([predictor(image) for image in images]), equal_nan=True)
    assert np.array_equal(images, kept, equal_nan=True)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_invalid_pixels_have_no_prediction(value):
    image = RNG.rand(4, 5, 3).astype('f4')
    image[0, 0, 1] = value
    found = EstimatorPredictor(make_classifier())(image)
    assert np.isnan(found[0, 0]).all() and np.isnan(found).sum() == 2


def test_a_window_without_data():
    found = EstimatorPredictor(make_classifier())(np.full((2, 3, 3), np.nan, 'f4'))
    assert found.shape == (2, 3, 2) and np.isnan(found).all()


def test_a_regressor_has_one_channel_per_output():
    from sklearn.linear_model import LinearRegression
    pixels = RNG.rand(50, 3)
    single = EstimatorPredictor(LinearRegression().fit(pixels, pixels.sum(axis=1)))
    double = EstimatorPredictor(LinearRegression().fit(pixels, pixels[:, :2]))
    image = RNG.rand(4, 5, 3).astype('f4')
    assert single.channels is None and double.channels is None
    assert np.allclose(single(image), image.sum(axis=2, keepdims=True), atol=1e-5)
    assert np.allclose(double(image), image[..., :2], atol=1e-5)
    assert single(np.full((2, 2, 3), np.nan, 'f4')).shape == (2, 2, 1)


@pytest.mark.parametrize('names, channels', [
    (('dry', 'wet'), 'dry|wet'), (('a b', 'c'), None), ((0, 1), None), (('a|b', 'c'), None)])
def test_classes_become_channels_where_they_can(names, channels):
    assert EstimatorPredictor(make_classifier(names)).channels == channels


def test_a_classifier_without_probabilities_is_refused():
    from sklearn.svm import LinearSVC
    pixels = RNG.rand(20, 3)
    with pytest.raises(OptionError, match='predict_proba'):
        EstimatorPredictor(LinearSVC().fit(pixels, pixels[:, 0] > 0.5))
    with pytest.raises(OptionError):
        EstimatorPredictor('not an estimator')


class NeedsArguments:
    """A predictor that cannot be made from its name alone."""

    def __init__(self, model):
        self.model = model


def test_a_class_that_needs_arguments_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, 'needy', sys.modules[__name__])
    with pytest.raises(OptionError, match='without arguments'):
        load_predictor('needy:NeedsArguments')
