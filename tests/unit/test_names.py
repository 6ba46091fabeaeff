"""Names from a manifest become distinct, safe file names, and stay readable."""
import os

import pytest
import ubelt as ub
from hypothesis import example, given
from hypothesis import strategies as st

from cocoseg.coco.names import compute_stem, compute_stems, compute_suffix, is_safe

# Surrogates too: a JSON manifest can hold them, a file system cannot.
ANY_TEXT = st.text(st.characters(), max_size=200)
TRICKY_TEXT = st.text('aAb_-./\\: 1id\n\0', max_size=8)

HOSTILE = ['', '.', '..', '../../etc/passwd', '/etc/passwd', 'a/b', 'a\\b', 'C:evil', 'a\0b',
           'line\nbreak', '-rf', '~', '$HOME', 'a b', '*', '.hidden', 'x' * 300, 'ends.',
           'ümlaut', '\udc80', 'a/../b', 'nul\0', '\n']


@pytest.mark.parametrize('name', ['img_00001', 'a', '_x', 'S2A.T18SUJ.20200101', 'a-b', 'x' * 120])
def test_ordinary_names_pass_unchanged(name):
    assert is_safe(name)
    assert compute_stem(name) == name


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_names_are_replaced(name):
    assert not is_safe(name)
    stem = compute_stem(name)
    assert stem != name and is_safe(stem)


@given(ANY_TEXT | TRICKY_TEXT)
def test_stem_is_one_component_inside_its_folder(name):
    stem = compute_stem(name)
    assert is_safe(stem) and len(stem) <= 120
    path = os.path.normpath(os.path.join('/bundle/assets', f'{stem}_water.tif'))
    assert os.path.dirname(path) == '/bundle/assets'


def test_stem_keeps_the_readable_part():
    assert compute_stem('site 7/frame:3').startswith('site-7-frame-3_')
    assert compute_stem('日本').startswith('image_')


@given(st.lists(ANY_TEXT | TRICKY_TEXT, unique=True, min_size=2, max_size=6))
def test_hostile_names_stay_different(names):
    stems = [compute_stem(name) for name in names if not is_safe(name)]
    assert len(set(stems)) == len(stems)


# Names that others are turned into, so that they meet.
NAMES = st.one_of(
    st.none(), st.integers(0, 5), TRICKY_TEXT,
    st.sampled_from(['a', 'A', 'a_id1', 'a_id2', 'A_ID2', 'a_id1_id2', '1', '2', 'image',
                     compute_stem('a/b'), 'a/b', compute_stem('a/b').upper()]))


@given(st.dictionaries(st.integers(1, 9), NAMES, max_size=8), st.randoms())
@example({1: 'a', 2: 'A', 3: 'a_id1', 4: 'a_id2'}, None)
def test_stems_of_a_dataset_differ_where_case_does_not_count(names, order):
    images = {image_id: {'name': name} for image_id, name in names.items()}
    stems = compute_stems(images)
    assert set(stems) == set(images)
    assert len({stem.casefold() for stem in stems.values()}) == len(images)
    assert all(is_safe(stem) for stem in stems.values())
    if order is not None:
        items = list(images.items())
        order.shuffle(items)
        assert compute_stems(dict(items)) == stems


def test_only_names_that_are_shared_get_an_id():
    images = {1: {'name': 'f0'}, 2: {'name': 'f0'}, 3: {'name': 'f1'}, 4: {}, 5: {'name': None}}
    assert compute_stems(images) == {1: 'f0_id1', 2: 'f0_id2', 3: 'f1', 4: '4', 5: '5'}


@pytest.mark.parametrize('chan_code', ['water', 'B8a', 'a_b-c.1'])
def test_a_plain_channel_is_its_own_suffix(chan_code):
    assert compute_suffix(chan_code) == chan_code


@pytest.mark.parametrize('chan_code', ['a|b|c', 'hidden.0:16', '../x', 'a b', 'x' * 61, ''])
def test_other_channels_are_hashed_as_the_reference_does(chan_code):
    suffix = compute_suffix(chan_code)
    assert suffix == ub.hash_data(chan_code)[:16]
    assert is_safe(suffix) and len(suffix) == 16


def test_suffix_of_the_reference_example():
    assert compute_suffix('a|b|c') == '8af6a4177fe312b2'


@given(st.lists(TRICKY_TEXT, unique=True, max_size=8))
def test_suffixes_differ(codes):
    assert len({compute_suffix(code) for code in codes}) == len(codes)
