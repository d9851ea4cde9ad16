"""Manifests: models, frameworks, datasets and systems as data, in YAML.

A manifest is read by `load.load_manifest`, which takes plain YAML only and turns every mistake into a `ManifestError`
that names the file, the path within it and the way out. The four kinds are frozen pydantic models:

========= ============================== ======================================================
kind      class                          says
========= ============================== ======================================================
model     `model.ModelManifest`          what goes in and out of a model and where its bytes are
framework `framework.FrameworkManifest`  which versions of a framework are known and how to install
dataset   `dataset.DatasetManifest`      where labelled samples are
system    `system.SystemManifest`        peaks, bandwidth, power and price of a machine
========= ============================== ======================================================

`schema.json_schema` describes them for editors. Importing this package imports nothing else.
"""
