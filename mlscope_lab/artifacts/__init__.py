"""Where bytes come from: a package's file, a local path, a URL, a hub, a wheel, an archive, a folder of these.

Every byte that is not used in place is checked against its SHA-256 and kept by that digest under the cache::

    cache/artifacts/<sha256>/<filename>    single files, read-only
    cache/trees/<sha256 of the members>/   folders, e.g. a SavedModel
    cache/wheels/                          wheels, so that several members cost one download
    cache/partial/                         what is under way; a cut download goes on from here
    cache/stamps/, cache/locks/            size and time at which a digest was last checked; one lock a digest
"""

from __future__ import annotations

from mlscope_lab.artifacts.cache import Fetched
from mlscope_lab.artifacts.digests import digest_of
from mlscope_lab.artifacts.locations import fetch
from mlscope_lab.artifacts.progress import Progress

__all__ = ["Fetched", "Progress", "digest_of", "fetch"]
