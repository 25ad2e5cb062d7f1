"""Which format a file has, by its content, and the reader of it."""

from pathlib import Path
from bnkit.formats.mapped import map_file
from bnkit.formats.tf_bundle import bundle_index, read_bundle
from bnkit.formats.tf_v1 import read_v1
def read(path, format=None):
    path = Path(path)
    path = bundle_index(path) or path
    s = map_file(path)
    return read_v1(s) if format=='v1' else read_bundle(s)
