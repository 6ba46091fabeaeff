"""
What must hold in a bundle after a fault, whatever the fault was.

Each check is a function from a bundle's folder to a list of findings, sentences
that name the file; no finding is a pass. test_checks.py shows that each can fail.
"""
import json
import os
import zlib
from pathlib import Path

MANIFEST = 'out.kwcoco.json'
ASSETS = '_assets'
_JOURNAL = '.cocoseg-*.jsonl'


def list_assets(folder):
    """Return the paths of all files that have a final name, sorted."""
    return sorted(path for path in (Path(folder) / ASSETS).rglob('*')
                  if path.is_file() and not path.name.startswith('.'))


def describe_file(fpath):
    """Return (bytes, CRC-32 as 8 hex digits) of a file."""
    content = Path(fpath).read_bytes()
    return len(content), f'{zlib.crc32(content):08x}'


def read_journals(folder):
    """Return {journal path: (records, lines that are no JSON)}."""
    found = {}
    for path in sorted((Path(folder) / ASSETS).rglob(_JOURNAL)):
        records, broken = [], []
        for line in path.read_bytes().split(b'\n'):
            try:
                entry = json.loads(line or b'{}')
            except ValueError:
                broken.append(line)
            else:
                records += [entry['record']] if 'record' in entry else []
        found[path] = records, broken
    return found


def list_noted(folder):
    """Return {file name: (bytes, checksum)} of the latest records of all journals."""
    from cocoseg.coco.manifest import list_files
    noted = {}
    for records, _ in read_journals(folder).values():
        latest = {record['image_id']: record for record in records}
        for record in latest.values():
            noted.update({file['asset']['file_name']: (file['nbytes'], file['checksum'])
                          for file in list_files(record)})
    return noted


def count_done(folder):
    """Return how many images the journals call finished."""
    return len({(path, record['image_id']) for path, (records, _) in read_journals(folder).items()
                for record in records})


def find_damaged(folder):
    """Every file with a final name is a whole, readable COG."""
    from cocoseg.errors import CogError
    from cocoseg.io.verify import verify_cog
    findings = []
    for path in list_assets(folder):
        try:
            verify_cog(path, full=True)
        except (CogError, OSError) as ex:
            findings.append(f'{path.name} is damaged: {ex}')
    return findings


def find_journal_faults(folder, max_broken=1):
    """Every file in the journal is there with its bytes; each kill may cut one line."""
    findings = []
    for file_name, expected in list_noted(folder).items():
        fpath = Path(folder) / file_name
        if not fpath.is_file():
            findings.append(f'{file_name} is in the journal but not on the disk')
        elif describe_file(fpath) != expected:
            findings.append(f'{file_name} is {describe_file(fpath)}, its journal says {expected}')
    for path, (_, broken) in read_journals(folder).items():
        if len(broken) > max_broken:
            findings.append(f'{path.name} has {len(broken)} broken lines: {broken}')
    return findings


def _load_manifest(folder, name=MANIFEST):
    """Return the saved manifest, None if there is none; raises ValueError if it is cut."""
    path = Path(folder) / name
    return json.loads(path.read_text()) if path.exists() else None


def list_named(manifest):
    """Return the assets of ours that a manifest names, as (image id, entry)."""
    return [(img['id'], asset) for img in manifest['images']
            for key in ('auxiliary', 'assets') for asset in img.get(key) or ()
            if (asset.get('file_name') or '').startswith(f'{ASSETS}/')]


def find_manifest_faults(folder, is_noted=True):
    """A saved manifest loads, and names only assets that are whole, and in the journal."""
    try:
        manifest = _load_manifest(folder)
    except ValueError as ex:
        return [f'the manifest cannot be read: {ex}']
    if manifest is None:
        return []
    import kwcoco
    kwcoco.CocoDataset(os.fspath(Path(folder) / MANIFEST))
    findings, noted = [], list_noted(folder)
    whole = {os.fspath(path.relative_to(folder)) for path in list_assets(folder)}
    for image_id, asset in list_named(manifest):
        name = asset['file_name']
        if name not in whole:
            findings.append(f'the manifest names {name} for image {image_id}, which is not there')
        elif is_noted and name not in noted:
            findings.append(f'the manifest names {name}, which no journal knows')
    return findings


def find_leftovers(folder, is_open=False):
    """Nothing lies in the bundle but what belongs there, and locks while it is open."""
    folder = Path(folder)
    expected = {*list_assets(folder), *read_journals(folder), folder / MANIFEST,
                *(folder / ASSETS).rglob('.cocoseg-*.run.json')}
    if is_open:
        expected.update((folder / ASSETS).glob('.cocoseg-*.lock'))
    return [f'{path.relative_to(folder)} was left behind' for path in sorted(folder.rglob('*'))
            if path.is_file() and path not in expected]


def normalize(manifest):
    """
    Return what two manifests of the same work have in common.

    Images are finished in any order. So ids of annotations and of categories,
    which are given in that order, are left out; names stand for categories.
    """
    names = {category['id']: category['name'] for category in manifest['categories']}

    def describe(annotation):
        rest = {key: value for key, value in annotation.items() if key not in ('id', 'category_id')}
        return json.dumps({**rest, 'category': names[annotation['category_id']]}, sort_keys=True)
    return {**manifest, 'categories': sorted(names.values()),
            'images': sorted(manifest['images'], key=lambda img: img['id']),
            'annotations': sorted(map(describe, manifest['annotations']))}


def find_differences(folder, reference, name=MANIFEST):
    """The assets are those of the reference to the byte; the manifest says the same."""
    folder, reference = Path(folder), Path(reference)
    ours, theirs = ({path.relative_to(root): path.read_bytes() for path in list_assets(root)}
                    for root in (folder, reference))
    findings = [f'{name} is in one bundle only' for name in sorted(ours.keys() ^ theirs.keys())]
    findings += [f'{name} has other bytes' for name in sorted(ours.keys() & theirs.keys())
                 if ours[name] != theirs[name]]
    one, two = _load_manifest(folder, name), _load_manifest(reference, name)
    if one is None or two is None:
        return [*findings, 'there is no manifest']
    one, two = normalize(one), normalize(two)
    findings += [f'the manifest has other {key}' for key in sorted(one.keys() | two.keys())
                 if one.get(key) != two.get(key)]
    return findings


def check_cut(folder, max_broken=1, is_noted=True):
    """Return all findings in a bundle whose process was killed."""
    return [*find_damaged(folder), *find_journal_faults(folder, max_broken),
            *find_manifest_faults(folder, is_noted)]


def check_whole(folder, reference, max_broken=1):
    """Return all findings in a bundle whose work was done to the end."""
    return [*check_cut(folder, max_broken), *find_differences(folder, reference),
            *find_leftovers(folder)]
