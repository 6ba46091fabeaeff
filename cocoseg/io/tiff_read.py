"""
Read the directories of a TIFF file, and trust nothing that they say.

The parser behind :mod:`cocoseg.io.verify`: classic TIFF and BigTIFF, in both
byte orders. Every number is held against the size of the file before it is
used, so that damaged or hostile bytes cost neither memory nor time. Nothing
here knows what a good image is.
"""
from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass

import numpy as np

# Bytes and numpy code of a value, by its type number.
_TYPES = {
    1: (1, 'u1'), 2: (1, 'u1'), 3: (2, 'u2'), 4: (4, 'u4'), 5: (8, None), 6: (1, 'i1'),
    7: (1, 'u1'), 8: (2, 'i2'), 9: (4, 'i4'), 10: (8, None), 11: (4, 'f4'), 12: (8, 'f8'),
    13: (4, 'u4'), 16: (8, 'u8'), 17: (8, 'i8'), 18: (8, 'u8')}
_MAGICS = {b'II*\0': '<', b'MM\0*': '>', b'II+\0': '<', b'MM\0+': '>'}
_HEAD = 1 << 16  # bytes read at once: the whole header of most files
_MAX_TEXT = 1 << 26  # bytes; a manifest of bands is far smaller
_MAX_DIRECTORIES = 200
_MAX_FIELDS = 1000  # GDAL writes about 25


class Damage(Exception):
    """What is wrong with a file, for the message of a CogError."""


class FileBytes:
    """
    The bytes of one open file, read in full or not at all.

    Args:
        descriptor (int): of the open file, which stays the caller's.

    Attributes:
        nbytes (int): size of the file.

    Raises:
        Damage: unless it is a regular file that holds something.

    Thread-safety: may be used from any thread.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryFile() as file:
        >>>     n_written = file.write(b'0123456789')
        >>>     file.flush()
        >>>     source = FileBytes(file.fileno())
        >>>     print(source.read(2, 3), source.read_each([0, 8], 4))
        b'234' [b'0123', b'89']
    """

    def __init__(self, descriptor):
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise Damage('it is a folder')
        if not stat.S_ISREG(status.st_mode):
            raise Damage('it is no regular file')
        self.nbytes = status.st_size
        if not self.nbytes:
            raise Damage('it is empty')
        self._descriptor = descriptor
        self._head = os.pread(descriptor, _HEAD, 0)

    def read(self, offset, length):
        """
        Return ``length`` bytes from ``offset`` on.

        Raises:
            Damage: if the file does not have them.
        """
        end = offset + length
        if end > self.nbytes:
            raise Damage(f'it points to bytes {offset} to {end}, behind its end')
        if end <= len(self._head):
            return self._head[offset:end]
        parts = []
        while offset < end:
            # The system returns less than was asked for where that is huge.
            part = os.pread(self._descriptor, end - offset, offset)
            if not part:
                raise Damage('it became shorter while it was read')
            parts.append(part)
            offset += len(part)
        return b''.join(parts)

    def read_each(self, offsets, length):
        """Return up to ``length`` bytes from each offset on, fewer at the end of the file."""
        # Not a memory map: a bad sector would end the process, not this call.
        read, descriptor = os.pread, self._descriptor
        return [read(descriptor, length, offset) for offset in offsets]


@dataclass(frozen=True)
class Field:
    """
    One field of a directory.

    Attributes:
        kind (int): type number of its values.
        count (int): number of values.
        position (int): offset of the values in the file, bytes.
        nbytes (int): of all values.
    """

    kind: int
    count: int
    position: int
    nbytes: int


@dataclass(frozen=True)
class Directory:
    """
    One image file directory.

    Attributes:
        position (int): offset in the file, bytes.
        fields (dict[int, Field]): by tag.
        spans (tuple[tuple[int, int], ...]): (start, stop) of all its bytes in
            the file: its own, and values that lie elsewhere.
        source (FileBytes): the file.
        order (str): byte order, '<' or '>'.
    """

    position: int
    fields: dict
    spans: tuple[tuple[int, int], ...]
    source: FileBytes
    order: str

    def read_numbers(self, tag, n_max):
        """
        Return the values of a field, int64, shape (n,).

        Args:
            tag (int): the field; it is empty if there is none.
            n_max (int): most values that make sense.

        Raises:
            Damage: if there are more, or they are no whole numbers below 2**63.
        """
        field = self.fields.get(tag)
        if field is None:
            return np.empty(0, np.int64)
        code = _TYPES[field.kind][1]
        if code is None or code[0] == 'f' or field.count > n_max:
            raise Damage(f'the field {tag} of the image directory at byte {self.position} holds '
                         f'{field.count} values of type {field.kind}')
        values = np.frombuffer(self.source.read(field.position, field.nbytes), self.order + code)
        numbers = values.astype(np.int64)
        if code == 'u8' and numbers.min(initial=0) < 0:
            raise Damage(f'the field {tag} of the image directory at byte {self.position} holds '
                         f'{values.max()}')
        return numbers

    def read_number(self, tag, default=None):
        """
        Return the one value of a field, an int.

        Raises:
            Damage: if there is another number of values, or none without a default.
        """
        if default is not None and tag not in self.fields:
            return default
        values = self.read_numbers(tag, 1)
        if not len(values):
            raise Damage(f'the image directory at byte {self.position} has no field {tag}')
        return int(values[0])

    def read_text(self, tag):
        """
        Return the text of a field up to its first zero byte, or None without one.

        Raises:
            Damage: if it is no text, or one of more than 64 MiB.
        """
        field = self.fields.get(tag)
        if field is None:
            return None
        if field.kind != 2 or field.nbytes > _MAX_TEXT:
            raise Damage(f'the field {tag} of the image directory at byte {self.position} is no '
                         f'text: {field.nbytes} bytes of type {field.kind}')
        text = self.source.read(field.position, field.nbytes)
        return text.partition(b'\0')[0].decode('utf8', 'replace')


@dataclass(frozen=True)
class Layout:
    """
    What the first bytes of a TIFF say.

    Attributes:
        order (str): byte order, '<' or '>'.
        is_big (bool): it is a BigTIFF.
        nbytes (int): of the header.
        position (int): offset of the first directory, bytes.
    """

    order: str
    is_big: bool
    nbytes: int
    position: int


def read_layout(source):
    """
    Return the :class:`Layout` of a file.

    Raises:
        Damage: if it is no TIFF.
    """
    magic = source.read(0, min(4, source.nbytes))
    order = _MAGICS.get(magic)
    if order is None:
        raise Damage(f'it is no TIFF, it starts with {magic!r}')
    if b'*' in magic:
        (position,) = struct.unpack(f'{order}I', source.read(4, 4))
        return Layout(order, False, 8, position)
    width, zero, position = struct.unpack(f'{order}HHQ', source.read(4, 12))
    if (width, zero) != (8, 0):
        raise Damage(f'it is a BigTIFF with offsets of {width} bytes')
    return Layout(order, True, 16, position)


def read_directories(source, layout):
    """
    Return all directories of a file, in the order of their chain.

    Args:
        source (FileBytes): the file. layout (Layout): its first bytes.

    Returns:
        list[Directory]: at least one; their positions ascend.

    Raises:
        Damage: if the chain goes back (and perhaps in a circle), has no end,
            or a directory points out of the file.
    """
    directories, position = [], layout.position
    while position:
        if directories and position <= directories[-1].position:
            raise Damage('its image directories are out of order: '
                         f'{directories[-1].position} points to {position}')
        if len(directories) == _MAX_DIRECTORIES:
            raise Damage(f'it has more than {_MAX_DIRECTORIES} image directories')
        directory, position = _read_directory(source, layout, position)
        directories.append(directory)
    if not directories:
        raise Damage('it has no image directory')
    return directories


def _read_directory(source, layout, position):
    """Return one directory, and where the next is."""
    if layout.is_big:
        n_head, head, n_entry, entry, n_next, following = 8, 'Q', 20, 'HHQ8s', 8, 'Q'
    else:
        n_head, head, n_entry, entry, n_next, following = 2, 'H', 12, 'HHI4s', 4, 'I'
    order = layout.order
    (n_fields,) = struct.unpack(order + head, source.read(position, n_head))
    if not 0 < n_fields <= _MAX_FIELDS:
        raise Damage(f'its image directory at byte {position} has {n_fields} fields')
    start = position + n_head
    body = source.read(start, n_entry * n_fields + n_next)
    end = start + len(body)
    fields, spans, last = {}, [(position, end)], -1
    entries = struct.iter_unpack(order + entry, body[:-n_next])
    for index, (tag, kind, count, inline) in enumerate(entries):
        if tag <= last or kind not in _TYPES:
            raise Damage(f'the image directory at byte {position} is damaged at its field {index} '
                         f'(tag {tag} behind {last}, type {kind})')
        last, nbytes = tag, count * _TYPES[kind][0]
        place = start + n_entry * (index + 1) - n_next
        if nbytes > n_next:
            (place,) = struct.unpack(order + following, inline)
            if place + nbytes > source.nbytes:
                raise Damage(f'the field {tag} of the image directory at byte {position} points '
                             f'to bytes {place} to {place + nbytes}, behind the end of the file')
            spans.append((place, place + nbytes))
        fields[tag] = Field(kind, count, place, nbytes)
    (next_position,) = struct.unpack(order + following, body[-n_next:])
    return Directory(position, fields, tuple(spans), source, order), next_position
